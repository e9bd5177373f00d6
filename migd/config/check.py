"""Judges a file of any kind by its form, for who has neither a daemon nor a GPU at hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePath
from typing import Any

from migd.config import clients, configs, hooks, settings
from migd.config.configs import Configs
from migd.config.document import MOST_BYTES, decoded, document
from migd.config.faults import Fault, Faults, Position, shortened
from migd.core.hooks import Hooks
from migd.errors import ConfigRefused

__all__ = ["MOST_BYTES", "Judged", "Kind", "judged", "lacking", "unreadable"]


class Kind(StrEnum):
    """What a file is about."""

    CONFIG = "config"
    CLIENTS = "clients"
    SETTINGS = "settings"
    HOOKS = "hooks"


_LOAD: Mapping[Kind, Callable[[str, str], Any]] = {
    Kind.CONFIG: configs.load,
    Kind.CLIENTS: clients.load,
    Kind.SETTINGS: settings.load,
    Kind.HOOKS: hooks.load,
}
_KEYS = {
    "mig-configs": Kind.CONFIG,
    **dict.fromkeys(("systemd-services", "processes", "unlisted"), Kind.CLIENTS),
    "hooks": Kind.HOOKS,
    **dict.fromkeys(settings.KEYS, Kind.SETTINGS),
}
# A file whose keys tell nothing, because it has none or none that is known, is what it is called.
_NAMES = {
    "config.yaml": Kind.CONFIG,
    "clients.yaml": Kind.CLIENTS,
    "migd.yaml": Kind.SETTINGS,
    "hooks.yaml": Kind.HOOKS,
}


@dataclass(frozen=True)
class Judged:
    """A file, what it was taken for (None where that cannot be told), and what is wrong with it.

    configs: the names of those in it; notes: what to know of a good one, in sentences
    """

    source: str
    kind: Kind | None
    faults: tuple[Fault, ...] = ()
    configs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def unreadable(source: str, why: str) -> Judged:
    return Judged(source, None, (Fault(Position(source), "", f"cannot be read: {why}"),))


def judged(data: bytes, source: str, kind: Kind | None = None) -> Judged:
    """Judge a file as `kind`, or as what its keys or its name make of it."""
    try:
        text = decoded(data, source)
        kind = kind or _kind(text, source)
        loaded = _LOAD[kind](text, source)
    except ConfigRefused as refused:
        return Judged(source, kind, tuple(refused.faults))
    match loaded:
        case Configs():
            return Judged(source, kind, configs=tuple(loaded.configs))
        case Hooks() if note := hooks.skipped(loaded, source):
            return Judged(source, kind, notes=(note,))
    return Judged(source, kind)


def lacking(files: Sequence[Judged], config: str) -> list[Judged]:
    """The same, with a fault where `config` should be if none of them has it."""
    if any(config in file.configs for file in files):
        return list(files)
    blamed = [file for file in files if file.kind is Kind.CONFIG] or files
    return [
        replace(file, faults=(_lack(file, config),)) if file in blamed and not file.faults else file
        for file in files
    ]


def _lack(file: Judged, config: str) -> Fault:
    offered = ", ".join(shortened(name) for name in sorted(file.configs)) or "none"
    sentence = f'has no config "{shortened(config)}"; there is {offered}'
    return Fault(Position(file.source), "mig-configs", sentence)


def _kind(text: str, source: str) -> Kind:
    """What a file is, or ConfigRefused."""
    faults = Faults()
    root = document(text, source, faults)
    keys = root.keys if root is not None else {}
    found = {_KEYS[key]: position for key, position in keys.items() if key in _KEYS}
    if len(found) == 1:
        return next(iter(found))
    name = PurePath(source).name
    if name not in _NAMES:
        told = " and of ".join(found)
        sentence = (
            f"has keys of {told}; make a file of each, or say what it is with --as"
            if found
            else f"has none of the keys {', '.join(_KEYS)}; say what it is with --as"
        )
        faults.refuse(Position(source), "", sentence)
    return _NAMES[name]
