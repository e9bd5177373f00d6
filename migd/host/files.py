"""Files that must survive a power cut: replaced as a whole, or appended to, and synced.

All is done within the folder as it was found and judged (host.trusted), and no link is followed.
Reading is there, too.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from migd.host import trusted

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def replace(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, or leave it as it was: there is nothing between. Raises OSError."""
    new = path.name + ".new"
    with trusted.folder(path.parent) as folder:
        # What a crash has left must not be what is written into, whatever it is.
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=folder)
        try:
            _write_new(new, data, folder)
            os.replace(new, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with suppress(OSError):
                os.unlink(new, dir_fd=folder)  # it takes room, where there may be none
            raise
        os.fsync(folder)


def _write_new(name: str, data: bytes, folder: int) -> None:
    descriptor = os.open(name, _WRITE | os.O_EXCL, 0o600, dir_fd=folder)
    try:
        write_all(descriptor, data)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, name: str) -> None:
    """Give it another name in its folder. Raises OSError."""
    with trusted.folder(path.parent) as folder:
        os.replace(path.name, name, src_dir_fd=folder, dst_dir_fd=folder)


def remove(path: Path) -> None:
    with trusted.folder(path.parent) as folder:
        with suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        os.fsync(folder)


def append(path: Path, data: bytes) -> None:
    """Add `data` at the end, on disk when this returns. Raises OSError, adding nothing."""
    with trusted.folder(path.parent) as folder:
        new = path.name not in os.listdir(folder)  # noqa: PTH208 - a descriptor
        descriptor = os.open(path.name, _WRITE | os.O_APPEND, 0o600, dir_fd=folder)
        try:
            end = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, data)
                os.fdatasync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)  # what comes next must not follow half a line
                raise
        finally:
            os.close(descriptor)
        if new:
            os.fsync(folder)


def write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def own_folder(folder: Path) -> int:
    """A descriptor; nobody else can own the folder as long as it is open. Raises OSError.

    The folder itself is locked, so nothing has to be written, and nothing is left.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OSError(f"another migd is at work on {folder}; `fuser {folder}` names it") from None
    return descriptor
