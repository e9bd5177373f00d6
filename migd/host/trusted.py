"""Files and programs that only root could have put there; others do not count.

The whole way to a file is judged, from / on, since whoever may write into a folder decides what
the names in it mean. It is walked name by name on descriptors, links are read from their own, and
what is read is what was judged: nothing can be exchanged in between.

Good is what belongs to root (or to whom we run as, which is the same but in tests and the demo),
and what neither group nor others may write. Access lists need no look of their own: where there is
one, the group bits of the mode are its mask, and without g+w nobody that it names can write
(acl(5)). Of a link the mode says nothing. A folder like /tmp, where everybody may write and nobody
may take away what is another's (the sticky bit), is good to pass through, into a folder that is
good itself. Files and links in it are not: anybody can give one of root's a second name there.
"""

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from migd.printable import printable

# Nothing is opened to be read before it is known to be a file: to open a device can do things.
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40
_MOVE = "use a folder of root's own"


class Untrusted(PermissionError):
    """Somebody else than root can have written it; the text says where, and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EPERM, text)

    def __str__(self) -> str:
        return self.strerror or ""


def read(path: Path, limit: int) -> bytes | None:
    """All of a regular file, None if there is none.

    Raises Untrusted and other OSError; ValueError over the limit, or if it is no regular file.
    """
    try:
        found = find(path)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise ValueError(f"{path} is not a regular file")
        with open(f"/proc/self/fd/{found}", "rb", opener=_unblocked) as file:
            data = file.read(limit + 1)
    finally:
        os.close(found)
    if len(data) > limit:
        raise ValueError(f"{path} is larger than {limit} bytes")
    return data


def names(path: Path) -> list[str]:
    """What is in a folder, in order; nothing where there is none. Raises Untrusted, OSError."""
    try:
        with folder(path) as found:
            return sorted(os.listdir(found))  # noqa: PTH208 - a descriptor
    except FileNotFoundError:
        return []


def check_executable(path: Path) -> None:
    """Raises Untrusted, and OSError for what is not there or no program."""
    found = find(path)
    try:
        mode = os.fstat(found).st_mode
    finally:
        os.close(found)
    if not stat.S_ISREG(mode) or not mode & 0o111:
        raise PermissionError(errno.EACCES, "it is no program", str(path))


@contextmanager
def folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder, to work in it whatever becomes of its name. Raises as find()."""
    found = find(path)
    try:
        # "." because what was opened to be looked at can neither be listed nor synced.
        there = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
    finally:
        os.close(found)
    try:
        yield there
    finally:
        os.close(there)


def find(path: Path) -> int:
    """A descriptor, only to be looked at, of what a path leads to. Raises Untrusted, OSError."""
    walk = _Walk()
    try:
        walk.to(os.fspath(path.absolute()))
    except BaseException:
        os.close(walk.at)
        raise
    return walk.at


class _Walk:
    """at, path: what was reached; shared: whether everybody may write there."""

    def __init__(self) -> None:
        self.at = os.open("/", _LOOK)
        self.path = "/"
        self.shared = False
        self._links = 0

    def to(self, path: str) -> None:
        self.shared = _judged(os.fstat(self.at), self.path)
        left = _parts(path)
        while left:
            if target := self._step(left.pop()):
                left += _parts(target)
        if self.shared:
            why = "can be written into by everybody"
            raise _refused(os.fstat(self.at), self.path, why, _MOVE)

    def _step(self, name: str) -> str:
        """Go there, unless it is a link: then stay (or be at the root), and give its target."""
        there = _opened(name, self.at)
        path = os.path.normpath(f"{self.path.rstrip('/')}/{name}")
        try:
            status = os.fstat(there)
            shared = _judged(status, path)
            if self.shared and not stat.S_ISDIR(status.st_mode):
                why = f"is in {printable(self.path)}, where everybody can put files"
                raise _refused(status, path, why, _MOVE)
            target = os.readlink("", dir_fd=there) if stat.S_ISLNK(status.st_mode) else ""
        except BaseException:
            os.close(there)
            raise
        if not target:
            self._move(there, path, shared=shared)
            return ""
        os.close(there)
        self._links += 1
        if self._links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            self._move(os.open("/", _LOOK), "/", shared=False)
        return target

    def _move(self, there: int, path: str, *, shared: bool) -> None:
        os.close(self.at)
        self.at, self.path, self.shared = there, path, shared


def _parts(path: str) -> list[str]:
    """Its names, the last first; ".." is one of them, since only the kernel knows where it goes."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _opened(name: str, at: int) -> int:
    try:
        # As a folder, so that what is mounted only on demand is mounted now.
        return os.open(name, _LOOK | os.O_DIRECTORY, dir_fd=at)
    except NotADirectoryError:
        return os.open(name, _LOOK, dir_fd=at)


def _unblocked(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _judged(status: os.stat_result, path: str) -> bool:
    """Whether it is a folder that everybody may write into. Raises Untrusted."""
    if stat.S_IFMT(status.st_mode) not in _KINDS:
        raise Untrusted(f"{printable(path)} is neither a file nor a folder")
    if status.st_uid not in (0, os.geteuid()):
        raise _refused(status, path, "does not belong to root")
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & _BY_OTHERS:
        return False
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return True
    raise _refused(status, path, "can be written by others than root")


def _refused(status: os.stat_result, path: str, why: str, mend: str = "") -> Untrusted:
    shown = printable(path)
    quoted = shlex.quote(shown)
    link = stat.S_ISLNK(status.st_mode)
    own = f"`chown -h root: {quoted}`" if link else f"`chown root: {quoted} && chmod go-w {quoted}`"
    mode = stat.S_IMODE(status.st_mode)
    return Untrusted(
        f"{shown} {why} (owner {status.st_uid}, mode {mode:04o}), and only what root alone can "
        f"write counts. See what it holds, then {mend or own}"
    )
