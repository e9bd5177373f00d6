"""Units in a list of GPU clients: how one is listed, and which must never stop."""

import re

from migd.config.faults import shortened
from migd.config.fields import Field
from migd.config.settings import TIME_LIMITS, word
from migd.core.listed import From, ListedUnit

KEYS = ("unit", "stop-for", "stop-timeout", "start-timeout", "kill")

_RIGHT = "write the name of a unit, or unit: and its name"
_LONGEST = 255
_UNIT = re.compile(
    r"[A-Za-z0-9:_.\\-]+(?P<template>@(?P<instance>[A-Za-z0-9:_.\\@-]*))?\.(?P<kind>[a-z]+)"
)
_KINDS = ("service", "socket", "timer", "path")
_EVERY_KIND = (*_KINDS, "target", "slice", "scope", "mount", "automount", "swap", "device")

# What migd needs itself to do its work and to bring clients back, what people's sessions live in,
# and what must run before migd does. Without the kind at the end and the name of an instance; what
# ends in @ is meant only where there is one.
_USERS = "the manager of a user's session"
_ITSELF = "migd itself"
_NEVER = {
    **dict.fromkeys(("dbus", "dbus-broker"), "the system bus"),
    **dict.fromkeys(("polkit", "polkitd", "dbus-org.freedesktop.PolicyKit1"), "polkit"),
    **dict.fromkeys(
        ("systemd-logind", "systemd-logind-varlink", "dbus-org.freedesktop.login1"), "logind"
    ),
    **dict.fromkeys(
        ("systemd-journald", "systemd-journald-dev-log", "systemd-journald-audit",
         "systemd-journald-varlink", "syslog"),
        "the journal",
    ),
    **dict.fromkeys(
        ("systemd-udevd", "systemd-udevd-control", "systemd-udevd-kernel", "systemd-udevd-varlink",
         "udev"),
        "udev, which looks after device nodes",
    ),
    **dict.fromkeys(("user@", "user-runtime-dir@"), _USERS),
    **dict.fromkeys(("migd", "migd-boot", "migd-hold"), _ITSELF),
    "nvidia-cdi-refresh": "what migd itself runs after a change, before clients start again",
    "nvidia-fabricmanager": (
        "a service that migd is started after, and it lets go of GPUs for a reset by itself"
    ),
}  # fmt: skip
_NEVER_KINDS = {
    "target": "a target: starting it again may start more than was stopped",
    "slice": "a slice: all that runs in it would stop",
}
# They mind nothing less than a reset, and stopping them for less does harm.
_RESET_ONLY = ("nvidia-persistenced", "nv_peer_mem")


def forbidden(unit: str) -> str:
    """Why a unit must never be stopped, for a sentence with "it is"; "" if it may be."""
    if unit == "init.scope":
        return "systemd itself"
    name, _, kind = unit.rpartition(".")
    name, instance, _ = name.partition("@")
    return _NEVER_KINDS.get(kind) or _NEVER.get(name) or _NEVER.get(name + instance, "")


def runs_users(unit: str) -> bool:
    """Whether it is the manager of a user's units; these are the user's processes."""
    return forbidden(unit) == _USERS


def unit(item: Field) -> ListedUnit | None:
    """A unit as it is listed: its name alone, as the GPU Operator has it, or with migd's keys."""
    if isinstance(item.node.value, dict):
        return _with_keys(item)
    name = item.text(_RIGHT)
    if name is None or not _named(item, name):
        return None
    return ListedUnit(name, _since(None, name))


def _with_keys(item: Field) -> ListedUnit | None:
    members = item.record(KEYS, _RIGHT) or {}
    name = members["unit"].text("write the name of a unit") if "unit" in members else None
    if "unit" not in members:
        item.wrong("has no unit; write unit: and its name")
    good = name is not None and _named(members["unit"], name)
    made = ListedUnit(
        name or "",
        _since(members.get("stop-for"), name or ""),
        seconds(members.get("stop-timeout"), "client-stop"),
        seconds(members.get("start-timeout"), "client-start"),
        switch(members.get("kill")),
    )
    return made if good else None


def _since(value: Field | None, name: str) -> From:
    if name.rpartition(".")[0] not in _RESET_ONLY:
        return word(value, From.ANY)
    since = word(value, From.RESET)
    if value and since is not From.RESET:
        value.wrong(
            f"must be reset for {name}, which is in the way of nothing less; write reset, "
            "or leave the key out"
        )
    return since


def seconds(value: Field | None, limit: str) -> int | None:
    """limit: the key of migd.yaml's time-limits that counts where there is no value."""
    return TIME_LIMITS[limit].seconds(value) if value else None


def switch(value: Field | None) -> bool:
    return bool(value and value.boolean("write true or false"))


def _named(value: Field, name: str) -> bool:
    """Whether it is a unit that can be a client; adds a fault if not."""
    if wrong := wrong_name(name):
        value.wrong(wrong)
    return not wrong


def wrong_name(unit: str) -> str:
    """What is wrong with the name of a unit that is to be stopped, or ""."""
    match = _UNIT.fullmatch(unit) if len(unit) <= _LONGEST else None
    shown = f'"{shortened(unit)}"'
    if match is None or match["kind"] not in _EVERY_KIND:
        plain = len(unit) <= _LONGEST and re.fullmatch(r"[A-Za-z0-9:_@-]+", unit)
        hint = f"write {unit}.service" if plain else "write one such as nvidia-dcgm.service"
        return f"{shown} is not the name of a systemd unit; {hint}"
    if match["kind"] not in _KINDS:
        return (
            f"{shown} is a {match['kind']}, which cannot be stopped and started as a client; "
            "write the services in it"
        )
    if match["instance"] == "":
        return f"{shown} is a template; write an instance of it, with a name behind the @"
    if why := forbidden(unit):
        return f"{shown} must not be stopped: it is {why}; remove it"
    return ""
