"""One entry of a config: the GPUs it is for, and what they should have. Judges form alone.

Follows mig-parted's reader, and is stricter where a value is null and where a filter or an index
can match nothing.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from migd.config.devices import Filter, canonical_device
from migd.config.faults import Position, shortened
from migd.config.fields import Field
from migd.core.profiles import ProfileName

# Far more than any GPU holds, and few enough to write out one by one.
_MOST_INSTANCES = 100
_LONGEST_PROFILE = 40
# `.` stands for `+` where names of Kubernetes resources are copied from.
_DOTTED = re.compile(r"(.*gb)\.([A-Za-z][^+-]*)")

Devices = Literal["all"] | tuple[int | str, ...]


@dataclass(frozen=True)
class Entry:
    """One entry of a config.

    filter: the boards it is for; empty for all
    devices: all, or indices, UUIDs and PCI addresses
    instances: counts above 0 by profile name, in its canonical form
    """

    filter: tuple[Filter, ...]
    devices: Devices
    enabled: bool
    instances: Mapping[str, int]
    where: Position = field(compare=False)


def canonical_profile(text: str) -> ProfileName:
    """The profile that `text` names, in any spelling. Raises ValueError with what is wrong."""
    if len(text) > _LONGEST_PROFILE:
        raise ValueError(f'"{shortened(text)}" is longer than any profile name')
    return ProfileName.parse(_DOTTED.sub(r"\1+\2", text))


def read_entry(entry: Field) -> Entry | None:
    """The entry, or None when it has faults."""
    keys = ("device-filter", "devices", "mig-enabled", "mig-devices")
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
    instances = _instances(members.get("mig-devices"), enabled, entry)
    if devices is None or enabled is None or instances is None:
        return None
    return Entry(boards, devices, enabled, instances, entry.position)


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


def _instances(value: Field | None, enabled: bool | None, entry: Field) -> dict[str, int] | None:  # noqa: FBT001
    right = "write mig-devices: {} for MIG mode without instances"
    if value is None or value.empty:
        if enabled:
            entry.wrong(f"has no mig-devices; {right}")
        return {}
    members = value.members('write profiles and counts, such as "1g.10gb": 7')
    if members is None:
        return None
    if enabled is False and members:
        value.wrong("must be empty where mig-enabled is false; remove the profiles in it")
    counts: Counter[str] = Counter()
    numbers = []
    for name, count in members.items():
        numbers.append(_count(count))
        try:
            counts[str(canonical_profile(name))] += numbers[-1] or 0
        except ValueError as error:
            value.wrong_key(name, str(error))
    if enabled and members and not any(number != 0 for number in numbers):
        value.wrong(f"has no count above 0; {right}")
    return dict(+counts)


def _count(value: Field) -> int | None:
    number = value.integer("write how many there should be, without quotes")
    if number is not None and not 0 <= number <= _MOST_INSTANCES:
        value.wrong(
            f"{shortened(value.node.text)} is no count of instances; write 0 to {_MOST_INSTANCES}"
        )
        return None
    return number
