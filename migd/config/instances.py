"""The instances that an entry wants: counts by profile, or each at its place. Judges form alone."""

import re
from collections import Counter
from dataclasses import dataclass

from migd.config.faults import shortened
from migd.config.fields import Field
from migd.core.profiles import ProfileName

# Far more than any GPU holds, and few enough to write out one by one.
_MOST_INSTANCES = 100
_MOST_COMPUTE = 16
_LAST = 99  # of slices and of ids; no GPU comes near it
_LONGEST_PROFILE = 40
# `.` stands for `+` where names of Kubernetes resources are copied from.
_DOTTED = re.compile(r"(.*gb)\.([A-Za-z][^+-]*)")

_NO_DEVICES = "write mig-devices: {} for MIG mode without instances"
_PLACED = "write a list such as mig-instances: [{profile: 3g.40gb, start: 4}]"
_COMPUTE = "write a list such as compute: [1c.3g.40gb, 2c.3g.40gb], or leave compute out"


@dataclass(frozen=True)
class Instance:
    """A GPU instance at its place.

    profile: of the GPU instance, its name in the canonical form
    start: its first memory slice
    compute: names of compute instances in the canonical form, or the ids of compute profiles
        where no name tells them; None for the one that fills it
    """

    profile: str
    start: int
    compute: tuple[str | int, ...] | None = None


def canonical_profile(text: str) -> ProfileName:
    """The profile that `text` names, in any spelling. Raises ValueError with what is wrong."""
    if len(text) > _LONGEST_PROFILE:
        raise ValueError(f'"{shortened(text)}" is longer than any profile name')
    return ProfileName.parse(_DOTTED.sub(r"\1+\2", text))


def read_counts(value: Field | None, enabled: bool | None, entry: Field) -> dict[str, int] | None:  # noqa: FBT001
    """Counts above 0 by profile name, in its canonical form; None when they have faults."""
    if value is None or value.empty:
        if enabled:
            entry.wrong(f"has no mig-devices; {_NO_DEVICES}")
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
        value.wrong(f"has no count above 0; {_NO_DEVICES}")
    return dict(+counts)


def read_placed(value: Field, enabled: bool | None) -> tuple[Instance, ...] | None:  # noqa: FBT001
    """Instances at their places; None when they have faults."""
    items = value.items(_PLACED)
    if items is None:
        return None
    if enabled is False and items:
        value.wrong("must be empty where mig-enabled is false; remove the instances in it")
    if len(items) > _MOST_INSTANCES:
        value.wrong(f"has {len(items)} instances; no GPU has more than {_MOST_INSTANCES}")
        return None
    found: dict[int, Instance] = {}
    for item in items:
        instance = _instance(item)
        if instance and instance.start in found:
            item.wrong(
                f"starts at slice {instance.start}, as {found[instance.start].profile} before it; "
                "two instances share no slice"
            )
        elif instance:
            found[instance.start] = instance
    return tuple(found.values())


def _count(value: Field) -> int | None:
    number = value.integer("write how many there should be, without quotes")
    if number is not None and not 0 <= number <= _MOST_INSTANCES:
        value.wrong(
            f"{shortened(value.node.text)} is no count of instances; write 0 to {_MOST_INSTANCES}"
        )
        return None
    return number


def _instance(item: Field) -> Instance | None:
    right = "write it as {profile: 3g.40gb, start: 4}"
    members = item.record(("profile", "start", "compute"), right)
    if members is None:
        return None
    for key in ("profile", "start"):
        if key not in members:
            item.wrong(f"has no {key}; {right}")
    name = start = compute = None
    if "profile" in members:
        name = _profile(members["profile"])
    if "start" in members:
        start = _number(members["start"], "slice of memory", "write the first slice of memory")
    if name and "compute" in members and not members["compute"].empty:
        compute = _compute(members["compute"], name)
    return None if name is None or start is None else Instance(str(name), start, compute)


def _profile(value: Field) -> ProfileName | None:
    name = _name(value, "write the name of a profile, such as 3g.40gb")
    if name and name != name.gpu_instance:
        value.wrong(
            f"{name} is a compute instance; write profile: {name.gpu_instance}, "
            f"compute: [{name}, ...]"
        )
        return None
    return name


def _compute(value: Field, profile: ProfileName) -> tuple[str | int, ...] | None:
    items = value.items(_COMPUTE)
    if items and len(items) > _MOST_COMPUTE:
        value.wrong(f"has {len(items)} compute instances; no GPU instance has so many")
        items = None
    found: list[str | int | None] = []
    for item in items or ():
        if type(item.node.value) in (int, float):
            found.append(_number(item, "compute profile", "write a name, or an id"))
            continue
        name = _name(item, "write the name or the id of a compute profile")
        if name and name.gpu_instance != profile:
            item.wrong(f"{name} is not for {profile}; write one such as 1c.{profile}")
        found.append(None if name is None else str(name))
    return None if items is None else tuple(c for c in found if c is not None)


def _name(value: Field, right: str) -> ProfileName | None:
    text = value.text(right)
    try:
        return None if text is None else canonical_profile(text)
    except ValueError as error:
        value.wrong(str(error))
        return None


def _number(value: Field, what: str, right: str) -> int | None:
    number = value.integer(right)
    if number is not None and not 0 <= number <= _LAST:
        value.wrong(f"{shortened(value.node.text)} is no {what}; they are 0 to {_LAST}")
        return None
    return number
