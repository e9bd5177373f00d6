"""One entry of a config: the GPUs it is for, and what they should have. Judges form alone.

Follows mig-parted's reader, and is stricter where a value is null and where a filter or an index
can match nothing. `mig-instances` is a key of ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from migd.config.devices import Filter, canonical_device
from migd.config.faults import Position, shortened
from migd.config.fields import Field
from migd.config.instances import Instance, read_counts, read_placed

Devices = Literal["all"] | tuple[int | str, ...]


@dataclass(frozen=True)
class Entry:
    """One entry of a config.

    filter: the boards it is for; empty for all
    devices: all, or indices, UUIDs and PCI addresses
    instances: counts above 0 by profile name, in its canonical form
    placed: the instances at their places, where those and not counts are given
    """

    filter: tuple[Filter, ...]
    devices: Devices
    enabled: bool
    instances: Mapping[str, int]
    where: Position = field(compare=False)
    placed: tuple[Instance, ...] = ()


def read_entry(entry: Field) -> Entry | None:
    """The entry, or None when it has faults."""
    keys = ("device-filter", "devices", "mig-enabled", "mig-devices", "mig-instances")
    members = entry.record(keys, "write devices: and mig-enabled: in it")
    if members is None:
        return None
    boards = _filters(members["device-filter"]) if "device-filter" in members else ()
    devices: Devices | None = None
    if "devices" in members:
        devices = _devices(members["devices"])
    else:
        entry.wrong("has no devices; write devices: all, or a list such as devices: [0, 1]")
    enabled = None
    if "mig-enabled" in members:
        enabled = members["mig-enabled"].boolean("write mig-enabled: true or mig-enabled: false")
    else:
        entry.wrong("has no mig-enabled; write mig-enabled: true or mig-enabled: false")
    counts, exact = (members.get(key) for key in ("mig-devices", "mig-instances"))
    placed: tuple[Instance, ...] | None = ()
    instances: dict[str, int] | None = {}
    if exact is None or exact.empty:
        instances = read_counts(counts, enabled, entry)
    else:
        placed = read_placed(exact, enabled)
        if counts is not None and not counts.empty:
            exact.wrong("stands beside mig-devices; keep one of them")
    if devices is None or enabled is None or instances is None or placed is None:
        return None
    return Entry(boards, devices, enabled, instances, entry.position, placed)


def _filters(value: Field) -> tuple[Filter, ...]:
    if value.empty or value.node.value == "":
        return ()
    right = 'write it in quotes, such as "0x20B010DE"'
    boards = []
    for item in (value.items(right) or []) if value.is_list else [value]:
        if type(item.node.value) in (int, float):
            item.wrong(f'{item.shown} is read as a number; write "{item.shown}", in quotes')
        elif (text := item.text(right)) is not None:
            try:
                boards.append(Filter.parse(text))
            except ValueError as error:
                item.wrong(str(error))
    return tuple(boards)


def _devices(value: Field) -> Devices | None:
    if value.node.value == "all":
        return "all"
    right = f"write devices: all, or a list such as devices: [{_device_hint(value)}]"
    items = value.items(right)
    if items is None:
        return None
    found = [_device(item) for item in items]
    return tuple(dict.fromkeys(d for d in found if d is not None))


def _device_hint(value: Field) -> str:
    text = value.node.text
    if text.isdecimal() or canonical_device(text):
        return shortened(text)
    return "0, 1"


def _device(item: Field) -> int | str | None:
    text = item.node.value
    if isinstance(text, str):
        device = canonical_device(text)
        if device is None:
            hint = (
                f"write {shortened(text)} without quotes"
                if text.isdecimal()
                else "a GPU is named by its index, its UUID (GPU-...) or its PCI address "
                "(0000:3b:00.0)"
            )
            item.wrong(f'the text "{shortened(text)}" names no GPU; {hint}')
        return device
    index = item.integer("write an index, a UUID or a PCI address")
    if index is not None and index < 0:
        item.wrong(f"{shortened(str(index))} is no GPU; indices begin at 0")
    return index
