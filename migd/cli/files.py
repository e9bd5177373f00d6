"""Files that migctl reads and writes itself: bounded, and never half written."""

import contextlib
import os
import stat
from pathlib import Path

from migd.cli.outcome import Exit, Failure

_MODE = 0o644


def read(path: Path, most: int) -> bytes | None:
    """The first `most` bytes of a file, None if there is none. Raises Failure."""
    try:
        # O_NONBLOCK: or else a pipe would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _failure(path, "read", error) from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Failure(Exit.FAILED, f"{path} is not a regular file")
        try:
            return file.read(most)
        except OSError as error:
            raise _failure(path, "read", error) from error


def names(folder: Path) -> list[str]:
    """What is in a folder, nothing if it is not there. Raises Failure."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _failure(folder, "read", error) from error


def write(path: Path, data: bytes, *, follow: bool = False) -> None:
    """Make a file hold `data`, or leave it as it was. Raises Failure.

    follow: where it is a link, change the file that it leads to; else it is a link no more
    A new file is readable for all, one that was there as it was.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        real = path.resolve() if follow else path
        new = real.with_name(f".{real.name}.new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(descriptor, _mode(real))
                os.fsync(descriptor)
            new.replace(real)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        _sync(real.parent)
    except OSError as error:
        raise _failure(path, "written", error) from error


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return _MODE


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failure(path: Path, what: str, error: OSError) -> Failure:
    code = Exit.NOT_ALLOWED if isinstance(error, PermissionError) else Exit.FAILED
    return Failure(code, f"{path} cannot be {what}: {error.strerror}")
