"""Device nodes of MIG capabilities: which are missing, and nvidia-modprobe, which makes them.

The driver makes only the files in /proc. The nodes are made by nvidia-modprobe, where NVML or
nvidia-smi has not had it done already, and udev or devtmpfs does not.
"""

import asyncio
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from migd.core.nodes import device_minor
from migd.host.nodes import HOST, Places, majors
from migd.host.programs import SYSTEM_PATH, Programs
from migd.host.threads import in_thread

_PROGRAM = "nvidia-modprobe"
_DRIVER = "nvidia-caps"
# It takes -f so often and no more (nvidia-modprobe.c, from 450.51 to 610.43.03).
_MOST = 256
# How long all of it may take, with what others make late.
LIMIT_S = 10.0
_LOOK_S = 5.0
_PAUSE_S = 0.05
# How many files it may refuse before no other is tried.
_REFUSALS = 5


@dataclass(frozen=True)
class Missing:
    """file: of the driver, which tells of a capability; node: what is not there, or not it."""

    file: Path
    node: Path


@dataclass(frozen=True)
class Look:
    """missing: capabilities without their nodes; unseen: files that the driver does not show."""

    missing: tuple[Missing, ...]
    unseen: tuple[Path, ...]


@dataclass(frozen=True)
class Made:
    """What came of it. made: so many nodes; failed: what is wrong, as a sentence, or ""."""

    made: int
    failed: str


def look(names: Iterable[str], places: Places = HOST) -> Look:
    """Which of these capabilities (core.nodes) have no node.

    A driver that shows no capabilities at all has other ways, and nothing is missing there.
    """
    if not places.capabilities.is_dir():
        return Look((), ())
    major = next((n for n, drivers in majors(places.devices).items() if _DRIVER in drivers), None)
    missing, unseen = [], []
    for name in names:
        file = places.capabilities / name
        try:
            minor = device_minor(file.read_text(errors="replace"))
        except OSError:
            minor = None
        if minor is None:
            unseen.append(file)
            continue
        node = places.dev / f"nvidia-caps/nvidia-cap{minor}"
        if not _is_there(node, major, minor):
            missing.append(Missing(file, node))
    return Look(tuple(missing), tuple(unseen))


def _is_there(node: Path, major: int | None, minor: int) -> bool:
    """Whether it is the node that is meant: after a reload of the driver its major is another."""
    try:
        status = node.stat()
    except OSError:
        return False
    if not stat.S_ISCHR(status.st_mode):
        return False
    return major is None or status.st_rdev == os.makedev(major, minor)


class Capabilities:
    """All methods are for one event loop."""

    def __init__(
        self, programs: Programs, places: Places = HOST, *, limit_s: float = LIMIT_S
    ) -> None:
        self._programs = programs
        self._places = places
        self._limit_s = limit_s

    async def make(self, names: Sequence[str], waits: Callable[[str], None]) -> Made:
        """Make the nodes that are missing, and wait for those that come late.

        waits: told what is waited for
        Raises NoSystemd.
        """
        run = _Run(self._programs, self._places, names, self._limit_s)
        try:
            await run.all(waits)
        except TimeoutError:
            return Made(0, "looking for device nodes in /dev/nvidia-caps does not end")
        return Made(len(run.tried - run.open), run.failure())


class _Run:
    def __init__(
        self, programs: Programs, places: Places, names: Sequence[str], limit_s: float
    ) -> None:
        self._programs = programs
        self._places = places
        self._names = names
        self._end = asyncio.get_running_loop().time() + limit_s
        self._seen = Look((), ())
        self._refused: set[Path] = set()
        self._problem = ""
        self.tried: set[Path] = set()

    @property
    def open(self) -> set[Path]:
        """The nodes that are missing."""
        return {m.node for m in self._seen.missing}

    @property
    def _left_s(self) -> float:
        return self._end - asyncio.get_running_loop().time()

    async def all(self, waits: Callable[[str], None]) -> None:
        """Raises NoSystemd, and TimeoutError where a look does not end."""
        await self._look()
        while self._left_s > 0:
            fresh = [m for m in self._seen.missing if m.node not in self.tried]
            late = self.open - self._refused
            if fresh:
                if len(self._refused) >= _REFUSALS:
                    return
                waits(f"{_PROGRAM} to make {len(fresh)} device nodes")
                await self._modprobe(fresh[:_MOST])
            elif late or self._seen.unseen:
                waits("device nodes of MIG instances to appear")
                await asyncio.sleep(_PAUSE_S)
                await self._look()
            else:
                return

    async def _look(self) -> None:
        self._seen = await in_thread(lambda: look(self._names, self._places), _LOOK_S)

    async def _modprobe(self, asked: Sequence[Missing]) -> None:
        """It ends at the first that it cannot make, without a word which, and tries no other."""
        program = shutil.which(_PROGRAM, path=SYSTEM_PATH)
        if not program:
            self._refuse([m.node for m in asked], "is not installed")
            return
        arguments = [program, *(word for m in asked for word in ("-f", str(m.file)))]
        done = await self._programs.run(arguments, limit_s=self._left_s)
        await self._look()
        there = [m.node for m in asked if m.node in self.open]
        if not done.failure:
            self.tried |= {m.node for m in asked}
            return
        self.tried |= {m.node for m in asked} - set(there)
        self._refuse(there[:1] if done.in_time else there, done.failure)

    def _refuse(self, nodes: Sequence[Path], problem: str) -> None:
        self._refused |= set(nodes)
        self.tried |= set(nodes)
        self._problem = problem

    def failure(self) -> str:
        """What is wrong, in a sentence; "" for nothing."""
        told = []
        if missing := self._seen.missing:
            first = missing[0]
            count = f"{len(missing)} of {len(self._names)}"
            why = self._problem or "has run, and yet they are not there"
            told.append(
                f"device nodes of MIG instances are missing ({count}, the first is {first.node}): "
                f"{_PROGRAM} {why}. Once that is mended, `{_PROGRAM} -f {first.file}` makes it"
            )
        if unseen := self._seen.unseen:
            told.append(
                f"the driver does not show {unseen[0]}"
                + (f" and {len(unseen) - 1} others" if len(unseen) > 1 else "")
                + ", so the nodes that MIG instances are used by cannot be made"
            )
        return "; ".join(told)
