"""What nodes of the driver a process has open or mapped, from /proc.

Processes come and go while they are looked at, which is no error. A lack of descriptors here is
one: nobody must seem to be idle for that. Not seen are threads with a table of open files of their
own (unshare(CLONE_FILES)), and nodes that were made outside of any /dev.
"""

# A path object for each of 100,000 links takes as long as the links do.
# ruff: noqa: PTH116, PTH123, PTH208

import os
from collections.abc import Iterator
from dataclasses import replace

from migd.core.holders import Node
from migd.host.nodes import Nodes
from migd.host.processes import stat

_PIECE = 1 << 16
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


def held(pid: int, nodes: Nodes) -> frozenset[Node]:
    """Empty for one that is gone or may not be looked at."""
    folder = f"/proc/{pid}"
    opened = _opened(folder + "/fd", nodes)
    if opened is None:
        return frozenset()
    if not opened.files:
        now = stat(pid)
        if now is None or now.kernel:
            return frozenset()
        if now.state == "Z" and now.threads > 1 and (other := _other_thread(pid)):
            # Its first thread has ended, the others have not: only they show what it has.
            folder = other
            opened = _opened(folder + "/fd", nodes) or opened
    mapped = _mapped(folder, nodes)
    return frozenset(mapped | {n for n in opened.nodes if replace(n, mapped=True) not in mapped})


class _Opened:
    """How many files are open, and which of them are nodes."""

    def __init__(self, files: int) -> None:
        self.files = files
        self.nodes: set[Node] = set()


def _opened(folder: str, nodes: Nodes) -> _Opened | None:
    """What a folder of descriptors shows; None if it cannot be read.

    Links are read, which the kernel answers from memory. Only what looks like a node is looked at
    itself: to ask for the status of a file on a dead network mount would never end.
    """
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except _GONE:
        return None
    try:
        names = os.listdir(at)
        opened = _Opened(len(names))
        seen = set()
        for descriptor in names:
            try:
                path = os.readlink(descriptor, dir_fd=at)
                if ("nvidia" not in path and "/dri/" not in path) or path in seen:
                    continue
                seen.add(path)
                if name := nodes.name(path):
                    node = nodes.node(name, os.stat(descriptor, dir_fd=at))
                    if node:
                        opened.nodes.add(node)
            except OSError:
                # Closed by now, or its path is longer than the kernel tells.
                continue
    except _GONE:
        return None
    finally:
        os.close(at)
    return opened


def _mapped(folder: str, nodes: Nodes) -> set[Node]:
    """Nodes in the memory of a process: a mapping outlives the descriptor that it was made with."""
    found: set[Node] = set()
    seen = set()
    for line in _lines(folder + "/maps"):
        addresses, *rest = line.split(None, 5)
        path = rest[-1]
        if path in seen:
            continue
        seen.add(path)
        name = nodes.name(os.fsdecode(path))
        status = _mapping(folder, addresses, nodes, name) if name else None
        if name and status and (node := nodes.node(name, status)):
            found.add(replace(node, mapped=True))
    return found


def _lines(maps: str) -> Iterator[bytes]:
    """Those that can tell of a node. Piece by piece: with long paths they are a quarter gigabyte.

    Only a line feed ends one: the kernel leaves none in a path, but a carriage return it does.
    """
    rest = b""
    try:
        with open(maps, "rb", buffering=0) as file:
            while data := file.read(_PIECE):
                whole, _, rest = (rest + data).rpartition(b"\n")
                if b"nvidia" in whole or b"/dri/" in whole:
                    lines = whole.split(b"\n")
                    yield from (s for s in lines if b"nvidia" in s or b"/dri/" in s)
    except _GONE:
        return


def _mapping(folder: str, addresses: bytes, nodes: Nodes, name: str) -> os.stat_result | None:
    """The mapped file; where that may not be looked at, this host's own node of that name."""
    begin, _, end = addresses.partition(b"-")
    try:
        return os.stat(f"{folder}/map_files/{int(begin, 16):x}-{int(end, 16):x}")
    except OSError:
        return nodes.own(name)


def _other_thread(pid: int) -> str | None:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except _GONE:
        return None
    return next((f"/proc/{pid}/task/{t}" for t in threads if t != str(pid)), None)
