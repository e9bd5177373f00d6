"""How a GPU differs from what was settled: by whatever cause, migd did not do it, or not well."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from migd.core.model import Gpu, Layout, Mode, SettledInstance, layout


def drifted(gpus: Sequence[Gpu], settled: Mapping[str, Layout]) -> dict[str, str]:
    """By UUID, how each of these GPUs differs from what was settled of it; none where it is so."""
    found = {g.uuid: difference(g, settled[g.uuid]) for g in gpus if g.uuid in settled}
    return {uuid: told for uuid, told in found.items() if told}


def difference(gpu: Gpu, settled: Layout) -> str:
    """In words, without the GPU's name; "" where all is as it was settled.

    An instance is the same if it has the profile and the placement; then what is in it counts.
    """
    return "; ".join(_parts(layout(gpu), settled))


def _parts(there: Layout, settled: Layout) -> Iterator[str]:
    if there.mode != settled.mode:
        yield f"MIG mode is {there.mode}, and was {settled.mode}"
        if there.mode is not Mode.ENABLED and settled.instances:
            yield f"with it went {_named(settled.instances)}"
            return
    known = {_place(i): i for i in settled.instances}
    found = {_place(i): i for i in there.instances}
    if gone := [i for place, i in known.items() if place not in found]:
        yield f"{_named(gone)} {_is(gone)} gone"
    if new := [i for place, i in found.items() if place not in known]:
        yield f"{_named(new)} {_is(new)} new"
    same = [(i, known[place]) for place, i in found.items() if place in known]
    if other := [i for i, was in same if i.compute != was.compute]:
        yield f"{_named(other)} {_has(other)} other compute instances"
    if renamed := [i for i, was in same if i.compute == was.compute and _other_uuids(i, was)]:
        yield f"{_named(renamed)} {_has(renamed)} other MIG UUIDs"


def _place(instance: SettledInstance) -> tuple[int, int, int]:
    return instance.placement.start, instance.placement.size, instance.profile_id


def _other_uuids(one: SettledInstance, other: SettledInstance) -> bool:
    """NVML may show none for a while, which says nothing."""
    return all((*one.uuids, *other.uuids)) and sorted(one.uuids) != sorted(other.uuids)


def _named(instances: Iterable[SettledInstance]) -> str:
    ordered = sorted(instances, key=lambda i: i.placement)
    names = [f"{i.gi} ({i.profile} at {i.placement})" for i in ordered]
    if len(names) == 1:
        return f"GPU instance {names[0]}"
    return f"GPU instances {', '.join(names[:-1])} and {names[-1]}"


def _is(instances: Sequence[SettledInstance]) -> str:
    return "is" if len(instances) == 1 else "are"


def _has(instances: Sequence[SettledInstance]) -> str:
    return "has" if len(instances) == 1 else "have"
