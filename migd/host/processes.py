"""Who a process is, by name: command, user, systemd unit. The only importer of psutil."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_COMMAND_LIMIT = 200
_UNIT = re.compile(r"[^/]+\.(?:service|scope)")


@dataclass(frozen=True)
class Holder:
    """A process as people know it. Texts come from the process itself and may be anything.

    command: its command line, cut; user: its name, or the number; unit: "" outside systemd
    """

    pid: int
    command: str
    user: str
    unit: str

    def __str__(self) -> str:
        of = f" of user {self.user}" if self.user else ""
        within = f" in {self.unit}" if self.unit else ""
        return f"pid {self.pid} ({self.command}){of}{within}"


def describe(pids: Iterable[int]) -> dict[int, Holder]:
    """By pid. A process that is gone, or not to be seen from here, is still named by its pid."""
    return {pid: _describe(pid) for pid in pids}


def _describe(pid: int) -> Holder:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            command = " ".join(process.cmdline()) or process.name()
            user = process.username()
    except psutil.Error:
        return Holder(pid, "gone, or outside this host's view", "", "")
    return Holder(pid, printable(command)[:_COMMAND_LIMIT], user, _unit(pid))


def printable(text: str) -> str:
    """`text` with everything that could steer a terminal or break a line made visible."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _unit(pid: int) -> str:
    """The systemd unit of a process, the innermost: the last one in its cgroup's path."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        if line.startswith("0::") or ":name=systemd:" in line:
            found = _UNIT.findall(line)
            if found:
                return str(found[-1])
    return ""
