"""Loads a list of GPU clients in the GPU Operator's format, and refuses what must never stop."""

import re
from dataclasses import dataclass

from migd.config.document import document
from migd.config.faults import Faults, shortened
from migd.config.fields import Field

VERSION = "v1"
KEYS = ("version", "systemd-services")

_LONGEST = 255
_UNIT = re.compile(
    r"[A-Za-z0-9:_.\\-]+(?P<template>@(?P<instance>[A-Za-z0-9:_.\\@-]*))?\.(?P<kind>[a-z]+)"
)
_KINDS = ("service", "socket", "timer", "path")
_EVERY_KIND = (*_KINDS, "target", "slice", "scope", "mount", "automount", "swap", "device")
# Without the kind at the end, and without an instance.
_NEVER = {
    **dict.fromkeys(("dbus", "dbus-broker"), "the system bus"),
    **dict.fromkeys(("polkit", "polkitd", "dbus-org.freedesktop.PolicyKit1"), "polkit"),
    **dict.fromkeys(("systemd-logind", "dbus-org.freedesktop.login1"), "logind"),
    **dict.fromkeys(
        ("systemd-journald", "systemd-journald-dev-log", "systemd-journald-audit",
         "systemd-journald-varlink", "syslog"),
        "the journal",
    ),
    **dict.fromkeys(("user", "user-runtime-dir"), "the manager of a user's session"),
    **dict.fromkeys(("migd", "migd-boot"), "migd itself"),
    **dict.fromkeys(
        ("nvidia-persistenced", "nvidia-fabricmanager"), "a service that migd is started after"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Clients:
    """GPU clients that are stopped for a change, in this order."""

    services: tuple[str, ...] = ()


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


def _root(root: Field) -> Clients:
    right = f"write version: {VERSION} and systemd-services: with a list of units"
    members = root.record(KEYS, right) or {}
    check_version(members.get("version"))
    listed = members.get("systemd-services")
    if listed is None or listed.empty:
        return Clients()
    units: dict[str, int] = {}
    for item in listed.items("write a list of units, such as [nvidia-dcgm.service]") or ():
        unit = item.text("write the name of a unit")
        if unit is None:
            continue
        if wrong := _wrong(unit):
            item.wrong(wrong)
        elif unit in units:
            item.wrong(f"{unit} stands here and in line {units[unit]}; keep one of the two")
        else:
            units[unit] = item.position.line
    return Clients(tuple(units))


def check_version(version: Field | None) -> None:
    """Add a fault if there is a version and it is another; the other readers ask for none."""
    if version and (known := version.text(f"write version: {VERSION}")) not in (None, VERSION):
        version.wrong(f'"{shortened(str(known))}" is not known; write version: {VERSION}')


def _wrong(unit: str) -> str:
    """What is wrong with the name of a unit, or ""."""
    match = _UNIT.fullmatch(unit) if len(unit) <= _LONGEST else None
    shown = f'"{shortened(unit)}"'
    if match is None or match["kind"] not in _EVERY_KIND:
        plain = re.fullmatch(r"[A-Za-z0-9:_@-]+", unit)
        hint = f"write {unit}.service" if plain else "write one such as nvidia-dcgm.service"
        return f"{shown} is not the name of a systemd unit; {hint}"
    if match["kind"] not in _KINDS:
        return (
            f"{shown} is a {match['kind']}, which cannot be stopped and started as a client; "
            "write the services in it"
        )
    if match["instance"] == "":
        return f"{shown} is a template; write an instance of it, with a name behind the @"
    name = unit.partition("@")[0] if match["template"] else unit.rpartition(".")[0]
    if name in _NEVER:
        return f"{shown} must not be stopped: it is {_NEVER[name]}; remove it"
    return ""
