"""Loads lists of GPU clients: the GPU Operator's format, and migd's keys."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from migd.config.document import document
from migd.config.faults import Faults, shortened
from migd.config.fields import Field
from migd.config.processes import process
from migd.config.settings import word
from migd.config.units import forbidden, unit
from migd.core.listed import Listed, ListedUnit, Unlisted

__all__ = ["KEYS", "VERSION", "Clients", "check_version", "combined", "forbidden", "load"]

VERSION = "v1"
KEYS = ("version", "systemd-services", "processes", "unlisted")


@dataclass(frozen=True)
class Clients:
    """One file; says_unlisted: whether it has that key."""

    listed: Listed = field(default_factory=Listed)
    says_unlisted: bool = False


def load(text: str, source: str) -> Clients:
    """The clients that `text` lists; none where it is empty.

    source: the file's name, for the messages
    Raises ConfigRefused with every fault, one a line.
    """
    faults = Faults()
    root = document(text, source, faults)
    clients = Clients()
    if root is not None and root.value not in (None, {}):
        clients = _root(Field(root, "", faults))
    faults.check()
    return clients


def combined(files: Iterable[Clients]) -> Listed:
    """All files, each adding to those before.

    A unit that is listed again keeps its place and is as the last file says. Of the entries that
    mean a process, the first counts. `unlisted` is as the last file says that has it.
    """
    listed = Listed()
    for file in files:
        listed = listed.adding(file.listed, says_unlisted=file.says_unlisted)
    return listed


def check_version(version: Field | None) -> None:
    """Add a fault if there is a version and it is another; the other readers ask for none."""
    if version and (known := version.text(f"write version: {VERSION}")) not in (None, VERSION):
        version.wrong(f'"{shortened(str(known))}" is not known; write version: {VERSION}')


def _root(root: Field) -> Clients:
    right = f"write version: {VERSION} and systemd-services: with a list of units"
    members = root.record(KEYS, right) or {}
    check_version(members.get("version"))
    listed = Listed(
        _units(members.get("systemd-services")),
        tuple(p for item in _items(members.get("processes"), _PROCESSES) if (p := process(item))),
        word(members.get("unlisted"), Unlisted.REFUSE),
    )
    return Clients(listed, "unlisted" in members)


def _units(value: Field | None) -> tuple[ListedUnit, ...]:
    units: dict[str, ListedUnit] = {}
    lines: dict[str, int] = {}
    for item in _items(value, _UNITS):
        found = unit(item)
        if found is None:
            continue
        if found.name in units:
            line = lines[found.name]
            item.wrong(f"{found.name} stands here and in line {line}; keep one of the two")
        else:
            units[found.name], lines[found.name] = found, item.position.line
    return tuple(units.values())


_UNITS = "write a list of units, such as [nvidia-dcgm.service]"
_PROCESSES = "write a list, such as [{executable: /usr/bin/nvtop}]"


def _items(value: Field | None, right: str) -> Iterable[Field]:
    return () if value is None or value.empty else value.items(right) or ()
