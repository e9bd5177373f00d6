"""Tells when files may have changed. Nothing runs as long as nothing happens.

Watched are folders, not files, since editors and package managers replace files by renaming:
the folders in which the files stand, by name; where a folder is missing or a link is on the way,
the folder in which that name stands; and all on the way, for being moved or removed. So files
are found again wherever they come from. Not seen is a file system mounted over a folder.
A last name such as *.yaml, with the * at its beginning, means all files in the folder that end so.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from migd.host import inotify, trusted
from migd.host.inotify import Inotify

log = logging.getLogger(__name__)

# ATTRIB: who may write a file or a folder decides whether it counts (host.trusted).
_SELF = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.ATTRIB
_NAMES = (
    inotify.CLOSE_WRITE
    | inotify.MOVED_FROM
    | inotify.MOVED_TO
    | inotify.CREATE
    | inotify.DELETE
)  # fmt: skip
_MOST_PARTS = 400
_MOST_LINKS = 40
_TRIES = 8
# A burst of changes is told once it has been quiet for so long, or has lasted so long.
_QUIET_S = 0.3
_LONGEST_S = 3.0


class Watch:
    """Calls `changed` when one of `paths` may be another file than before. For one event loop."""

    def __init__(
        self,
        paths: Iterable[Path],
        changed: Callable[[], None],
        *,
        quiet_s: float = _QUIET_S,
        longest_s: float = _LONGEST_S,
    ) -> None:
        self._paths = [path.absolute() for path in paths]
        self._changed = changed
        self._quiet_s = quiet_s
        self._longest_s = longest_s
        self._inotify: Inotify | None = None
        self._watched: dict[int, tuple[str, frozenset[str]]] = {}
        self._due: asyncio.TimerHandle | None = None
        self._since = 0.0

    def start(self) -> None:
        """Tell from now on. Raises OSError where this host has no watches left."""
        self._inotify = Inotify()
        try:
            self._arm(self._inotify)
        except OSError:
            self._inotify.close()
            self._inotify = None
            raise
        asyncio.get_running_loop().add_reader(
            self._inotify.descriptor, self._read, self._inotify
        )  # fmt: skip

    def close(self) -> None:
        if self._due:
            self._due.cancel()
            self._due = None
        if self._inotify:
            asyncio.get_running_loop().remove_reader(self._inotify.descriptor)
            self._inotify.close()
            self._inotify = None

    @property
    def due(self) -> bool:
        """Whether a change has been seen and is about to be told."""
        return self._due is not None

    # -- what is watched -----------------------------------------------------------------

    def _arm(self, kernel: Inotify) -> None:
        """Watch what matters now, and again if it is another by then. Raises OSError."""
        for _ in range(_TRIES):
            found = folders(self._paths)
            complete = self._add_all(kernel, found)
            if complete and folders(self._paths) == found:
                return
        # Somebody moves folders all the time: look again later, not at once.
        self._touch()

    def _add_all(self, kernel: Inotify, found: Mapping[str, frozenset[str]]) -> bool:
        """Watch these and no others; whether all were there."""
        watched: dict[int, tuple[str, frozenset[str]]] = {}
        complete = True
        for folder, names in found.items():
            try:
                number = kernel.add(folder, _mask(names))
            except PermissionError:
                if names:
                    raise
                continue  # one on the way, and only for the case that it moves
            if number in watched:  # the same folder at two places
                names |= watched[number][1]
                kernel.add(folder, _mask(names))
            if number >= 0:
                watched[number] = (folder, names)
            complete &= number >= 0
        for number in self._watched.keys() - watched.keys():
            kernel.remove(number)
        self._watched = watched
        return complete

    # -- what happens --------------------------------------------------------------------

    def _read(self, kernel: Inotify) -> None:
        if any(self._matters(*event) for event in kernel.events()):
            self._rearm()
            self._touch()

    def _matters(self, number: int, what: int, name: str) -> bool:
        if what & inotify.OVERFLOW:
            return True
        folder, names = self._watched.get(number, ("", frozenset()))
        if not name and what & (_SELF | inotify.UNMOUNT | inotify.IGNORED):
            return bool(folder)
        if name not in names and not any(_means(pattern, name) for pattern in names):
            return False
        return not (what & inotify.CREATE and _unwritten(f"{folder}/{name}"))

    def _rearm(self) -> None:
        assert self._inotify
        try:
            self._arm(self._inotify)
        except OSError as error:
            log.error("not all changes of files are seen any more: %s", error)

    def _touch(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._due:
            self._due.cancel()
        else:
            self._since = now
        when = min(now + self._quiet_s, self._since + self._longest_s)
        self._due = loop.call_at(when, self._tell)

    def _tell(self) -> None:
        self._due = None
        self._rearm()
        self._changed()


def folders(paths: Sequence[Path]) -> dict[str, frozenset[str]]:
    """The folders on the way to absolute `paths`, as they are now, with the names that matter."""
    found: dict[str, set[str]] = {"/": set()}
    for path in paths:
        _follow(path, found)
        with suppress(OSError):
            for entry in entries(path):
                _follow(entry, found)
    return {folder: frozenset(names) for folder, names in found.items()}


def entries(path: Path) -> list[Path]:
    """What FOLDER/*END means now, by name; nothing for a path without *, or without the folder.

    Files whose names begin with a dot are left out, as a shell does. Raises OSError, and Untrusted
    where others could have taken files away.
    """
    if not path.name.startswith("*"):
        return []
    return [path.with_name(n) for n in trusted.names(path.parent) if _means(path.name, n)]


def _means(pattern: str, name: str) -> bool:
    return pattern[:1] == "*" and name.endswith(pattern[1:]) and not name.startswith(".")


def _follow(path: Path, found: dict[str, set[str]]) -> None:
    folder, left, links = "/", [*reversed(path.parts[1:])], 0
    for _ in range(_MOST_PARTS):
        if not left:
            return
        name = left.pop()
        if name == "..":
            folder = folder.rpartition("/")[0] or "/"
            continue
        here = Path(folder, name)
        try:
            mode = here.lstat().st_mode
            target = here.readlink() if stat.S_ISLNK(mode) else None
        except OSError:
            mode, target = 0, None
        if target and links < _MOST_LINKS:
            found[folder].add(name)
            links += 1
            folder = "/" if target.is_absolute() else folder
            left += [part for part in reversed(target.parts) if part != "/"]
        elif stat.S_ISDIR(mode) and left:
            folder = str(here)
            found.setdefault(folder, set())
        else:
            found[folder].add(name)
            return


def _mask(names: frozenset[str]) -> int:
    return _SELF | _NAMES if names else _SELF


def _unwritten(path: str) -> bool:
    """Whether a new file still waits for its content; its closing is told as well."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0
