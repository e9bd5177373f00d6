"""Who has a device node of the NVIDIA driver open or mapped, and can be asked to go."""

import os
from collections.abc import Iterable
from pathlib import Path

from migd.core.holders import Found, Holder, Node
from migd.host.held import held
from migd.host.nodes import HOST, Nodes, Places
from migd.host.processes import ancestors, describe_one, own_container, owner, stat

_UNIT = "migd.service"
# Programs that log somebody in, and stay as long as the session does.
_LOGINS = ("login", "sshd", "sshd-session")


def scan(
    listed: Iterable[int] = (), places: Places = HOST, own: int | None = None
) -> tuple[Found, ...]:
    """Every process that has a node, and those in `listed`, whatever they have.

    Left out is who can never be asked to go: the first process, kernel threads, service managers,
    logins; and migd with all that it runs.

    Blocking, for a thread: 0.2 ms a process with 50 open files, most of it in the kernel.

    listed: pids that NVML names
    own: the process that is migd, this one by default
    """
    nodes = Nodes(places)
    within = own_container()
    us = _Us(own or os.getpid(), within)
    asked = set(listed)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        pid = int(entry.name)
        has = held(pid, nodes)
        if not has and pid not in asked:
            continue
        asked.discard(pid)
        # At once: the later, the more likely the pid is another's.
        holder = describe_one(pid, within)
        if not us.leave_out(holder, has):
            found.append(Found(holder, has))
    found += [Found(describe_one(pid, within), frozenset()) for pid in asked]
    return tuple(found)


class _Us:
    """migd itself, and who else is nobody's client."""

    def __init__(self, pid: int, within: str) -> None:
        self._pid = pid
        self._within = within
        self._in_unit = owner(pid, within).unit == _UNIT

    def leave_out(self, holder: Holder, has: frozenset[Node]) -> bool:
        if holder.pid in (1, self._pid) or self._pid in ancestors(holder.pid):
            return True
        if self._in_unit and holder.unit == _UNIT:
            return True
        if owner(holder.pid, self._within).manager:
            return True
        now = stat(holder.pid)
        return (now is not None and now.kernel) or _login(holder, has)


def _login(holder: Holder, has: frozenset[Node]) -> bool:
    """Login shells are named "-sh". Anybody can take such a name; but no shell maps a node."""
    if not has or any(node.mapped for node in has):
        return False
    program = holder.executable.rpartition("/")[2]
    return holder.command.startswith("-") or bool(holder.session and program in _LOGINS)
