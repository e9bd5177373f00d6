"""A folder in memory for what a check must find on disk; and inputs that are several files."""

import atexit
import shutil
import tempfile
from pathlib import Path

from tests.fuzz.mutate import PART

_SHM = Path("/dev/shm")


class Scratch:
    """Made at its first use, gone with the process."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        if self._folder is None:
            within = _SHM if _SHM.is_dir() else None
            self._folder = Path(tempfile.mkdtemp(prefix="migd-fuzz-", dir=within))
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def empty(self) -> Path:
        """The folder, with nothing in it."""
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        return self.folder


SCRATCH = Scratch()


def together(*files: bytes) -> bytes:
    return PART.join(files)


def parts(data: bytes, count: int) -> list[bytes]:
    """The files of an input; those that are missing are empty."""
    return [*data.split(PART, count - 1), *([b""] * count)][:count]
