"""Who a process is, by name: command, user, unit, container. The only importer of psutil.

A process names itself as it likes: with line breaks, as a line of a file in /proc, or by megabytes.
So what it can write is read within bounds, and nothing that it can write tells another thing.
"""

import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from migd.core.holders import Holder
from migd.host import cgroups
from migd.host.cgroups import Owner
from migd.printable import printable

_COMMAND_LIMIT = 200
_LOST = (FileNotFoundError, ProcessLookupError, PermissionError)
_DELETED = " (deleted)"
# include/linux/sched.h
_PF_KTHREAD = 0x00200000


@dataclass(frozen=True)
class Stat:
    """From /proc/PID/stat. started: field 22, clock ticks after boot."""

    state: str
    parent: int
    kernel: bool
    threads: int
    started: int


def stat(pid: int) -> Stat | None:
    """None for a process that is gone."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except _LOST:
        return None
    return parsed(data)


def parsed(data: bytes) -> Stat:
    """What such a file says."""
    # The name stands in parentheses and may contain some itself.
    fields = data[data.rindex(b")") + 2 :].split()
    kernel = bool(int(fields[6]) & _PF_KTHREAD)
    return Stat(fields[0].decode(), int(fields[1]), kernel, int(fields[17]), int(fields[19]))


def describe(pids: Iterable[int]) -> dict[int, Holder]:
    """By pid. A process that is gone, or not to be seen from here, is still named by its pid.

    Blocking: where users come from a directory service, it is asked for their names.
    """
    within = own_container()
    return {pid: describe_one(pid, within) for pid in pids}


def describe_one(pid: int, within: str) -> Holder:
    """within: own_container(), for many to be told apart from it only once."""
    gone = Holder(pid, command="gone, or outside this host's view")
    before = stat(pid)
    if before is None:
        return gone
    uid = _uid(pid)
    try:
        began = round(psutil.Process(pid).create_time() * 1_000_000)
    except psutil.Error:
        return gone
    of = owner(pid, within)
    described = Holder(
        pid,
        before.started,
        printable(_command(pid), _COMMAND_LIMIT),
        printable(_executable(pid)),
        uid,
        printable(_user(uid)),
        printable(of.unit),
        printable(of.user_unit),
        printable(of.container),
        printable(of.session),
        of.job,
        began,
    )
    after = stat(pid)
    return described if after and after.started == before.started else gone


def _command(pid: int) -> str:
    """Its command line as far as it will be shown, or its name.

    One whose first thread has ended has no command line, and yet can have a GPU.
    """
    words = _begin(pid, "cmdline", 4 * _COMMAND_LIMIT).rstrip(b"\0").replace(b"\0", b" ")
    return os.fsdecode(words or _begin(pid, "comm", 64).removesuffix(b"\n"))


def _begin(pid: int, name: str, most: int) -> bytes:
    try:
        with Path(f"/proc/{pid}/{name}").open("rb", buffering=0) as file:
            return file.read(most)
    except _LOST:
        return b""


def _uid(pid: int) -> int:
    """The real one, -1 where it cannot be read.

    Not psutil's: to that, a process that is named "Uid:" with numbers behind is whoever it says.
    The kernel breaks no line within the name.
    """
    lines = _begin(pid, "status", 4096).split(b"\n")
    return next((int(line.split()[1]) for line in lines if line.startswith(b"Uid:")), -1)


def _user(uid: int) -> str:
    if uid < 0:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _executable(pid: int) -> str:
    """Not psutil's: where the kernel does not tell, that believes the process itself."""
    try:
        return str(Path(f"/proc/{pid}/exe").readlink()).removesuffix(_DELETED)
    except OSError:
        return ""


def owner(pid: int, within: str = "") -> Owner:
    """Who runs a process, as its control group tells."""
    return cgroups.parse(_cgroup(pid), within)


def own_container() -> str:
    """The control group of the container that this process is in, "" if it is in none."""
    return cgroups.container_path(_cgroup(os.getpid()))


def _cgroup(pid: int) -> str:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cgroup").read_bytes())
    except _LOST:
        return ""


def ancestors(pid: int) -> list[int]:
    """Parent, its parent and so on, up to the first process of the host."""
    found: list[int] = []
    while (of := stat(pid)) and of.parent > 0 and of.parent not in found:
        pid = of.parent
        found.append(pid)
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, those who are nearest first; none if it is gone."""
    try:
        return [p.pid for p in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []
