"""The kernel's inotify, through libc: calls, flags and events as inotify(7) has them.

ctypes, because no library will do: python3-inotify is a blocking generator, aionotify is older
than the asyncio of today, pyinotify is dead, and watchdog brings threads.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator

# linux/inotify.h; the numbers are the same on every architecture.
ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF, UNMOUNT, OVERFLOW, IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
_ONLYDIR, _DONT_FOLLOW = 0x1000000, 0x2000000

_EVENT = struct.Struct("iIII")
_BUFFER = 1 << 16
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_HINTS = {
    errno.EMFILE: "no inotify instance is left (fs.inotify.max_user_instances)",
    errno.ENOSPC: "no inotify watch is left (fs.inotify.max_user_watches)",
}


class Inotify:
    """A descriptor that can be read when something has happened in a watched folder."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise _last_error()

    def add(self, folder: str, mask: int) -> int:
        """The number of the watch, the same for the same folder; -1 if it is no folder now.

        Raises OSError.
        """
        mask |= _ONLYDIR | _DONT_FOLLOW
        number: int = self._libc.inotify_add_watch(self.descriptor, os.fsencode(folder), mask)
        if number < 0 and ctypes.get_errno() not in _GONE:
            raise _last_error(folder)
        return number

    def remove(self, number: int) -> None:
        """Also of a watch that is gone already."""
        self._libc.inotify_rm_watch(self.descriptor, number)

    def events(self) -> Iterator[tuple[int, int, str]]:
        """What has happened: watch, what, and the name in the folder; none if nothing has."""
        try:
            data = os.read(self.descriptor, _BUFFER)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            name = data[offset : offset + length].partition(b"\0")[0]
            offset += length
            yield number, mask, os.fsdecode(name)

    def close(self) -> None:
        os.close(self.descriptor)


def _last_error(path: str | None = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, _HINTS.get(number, os.strerror(number)), path)
