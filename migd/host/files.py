"""Files that must survive a power cut: replaced as a whole, or appended to, and synced."""

import os
import stat
from pathlib import Path


def read(path: Path, limit: int, *, follow: bool = False) -> bytes | None:
    """All of a regular file, None if there is none.

    follow: whether the file may be a link, as administrators make them
    Raises OSError; ValueError over the limit, or if it is no regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is larger than {limit} bytes")
    return data


def replace(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, or leave it as it was: there is nothing between. Raises OSError."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, data)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)
    sync_folder(path.parent)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def append(path: Path, data: bytes) -> None:
    """Add `data` at the end, on disk when this returns. Raises OSError, adding nothing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    new = not path.exists()
    descriptor = os.open(path, flags, 0o600)
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
        sync_folder(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
