"""Loads a configuration in mig-parted's format: what its form tells, whatever the hardware."""

from collections.abc import Mapping
from dataclasses import dataclass

from migd.config.document import document
from migd.config.entries import Entry, read_entry
from migd.config.faults import Faults, shortened
from migd.config.fields import Field
from migd.printable import printable

VERSION = "v1"
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Config:
    """A named configuration; of two entries for the same GPU the later one counts."""

    name: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Configs:
    """The configurations of one source, by name."""

    source: str
    configs: Mapping[str, Config]


def load(text: str, source: str) -> Configs:
    """The configurations that `text` defines; none where it is empty.

    source: the file's name, for the messages
    Raises ConfigRefused with every fault, one a line.
    """
    faults = Faults()
    root = document(text, source, faults)
    configs: dict[str, Config] = {}
    if root is not None and root.value not in (None, {}):
        configs = _root(Field(root, "", faults))
    faults.check()
    return Configs(source, configs)


def _root(root: Field) -> dict[str, Config]:
    right = f"write version: {VERSION} and mig-configs: with named lists below it"
    members = root.record(("version", "mig-configs"), right)
    if members is None:
        return {}
    if "version" not in members:
        root.wrong(f"has no version; write version: {VERSION}")
    elif (version := members["version"].text(f"write version: {VERSION}")) not in (None, VERSION):
        members["version"].wrong(
            f'"{shortened(str(version))}" is not known; write version: {VERSION}'
        )
    if "mig-configs" not in members:
        return {}
    named = members["mig-configs"].members("write a name, and below it a list of entries")
    if named == {}:
        members["mig-configs"].wrong("is empty; name at least one config, or leave the key out")
    for name in named or {}:
        if name != printable(name, _LONGEST_NAME):
            right = f"a name has at most {_LONGEST_NAME} characters, and each of them can be seen"
            members["mig-configs"].wrong_key(name, f"is no name for a config: {right}")
    return {name: Config(name, _entries(entries)) for name, entries in (named or {}).items()}


def _entries(entries: Field) -> tuple[Entry, ...]:
    right = "write at least one entry: - {devices: all, mig-enabled: false}"
    items = entries.items(right)
    if items == []:
        entries.wrong(f"is empty; {right}")
    return tuple(entry for item in items or () if (entry := read_entry(item)))
