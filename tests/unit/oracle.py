"""What is possible on a GPU, found by trying everything; shares nothing with the planner."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations, product

from migd.core.model import Gpu, GpuInstance, Placement, Wanted

Need = tuple[int, Placement | None]


def slices(spots: Iterable[Placement]) -> list[int]:
    return [n for spot in spots for n in range(spot.start, spot.start + spot.size)]


def disjoint(spots: Iterable[Placement]) -> bool:
    used = slices(spots)
    return len(used) == len(set(used))


def allowed(gpu: Gpu, profile_ids: Iterable[int]) -> bool:
    """Whether the counts and the engines of the GPU suffice, wherever the instances may go."""
    counts = Counter(profile_ids)
    if any(counts[p.id] > p.instances for p in gpu.profiles):
        return False
    for engine in ("copy", "decoder", "encoder", "jpeg", "ofa"):
        each = {p.id: int(getattr(p.engines, engine)) for p in gpu.profiles}
        board = max(each.values())
        believable = all(p.instances * each[p.id] <= board for p in gpu.profiles)
        if believable and sum(counts[p] * each[p] for p in counts) > board:
            return False
    return True


def placeable(gpu: Gpu, needs: Iterable[Need], beside: Sequence[Placement] = ()) -> bool:
    """Whether every need finds its place beside what stays; counts and engines aside."""
    kinds = Counter(needs)
    offered = {p.id: p.placements for p in gpu.profiles}
    choices = [
        combinations([s for s in offered[profile_id] if spot in (None, s)], count)
        for (profile_id, spot), count in kinds.items()
    ]
    room = len(set(slices(chain(*offered.values()))))
    return any(
        disjoint([*beside, *chain(*chosen)])
        for chosen in product(*choices)
        if len(slices([*beside, *chain(*chosen)])) <= room
    )


def fits(gpu: Gpu, wanted: Sequence[Wanted]) -> bool:
    return allowed(gpu, [w.profile_id for w in wanted]) and placeable(
        gpu, [(w.profile_id, w.placement) for w in wanted]
    )


def unchanged(instance: GpuInstance, compute: tuple[int, ...] | None) -> bool:
    inside = Counter(c.profile_id for c in instance.compute)
    return inside == Counter([instance.default_compute] if compute is None else compute)


Score = tuple[int, int, int, int]


def _kept(
    gpu: Gpu, instances: Sequence[GpuInstance], left: Counter[tuple[Need, tuple[int, ...] | None]]
) -> Iterator[tuple[Score, list[Placement], Counter[tuple[Need, tuple[int, ...] | None]]]]:
    if not instances:
        yield (0, 0, 0, 0), [], left
        return
    first, rest = instances[0], instances[1:]
    busy = int(any(p.gi == first.id for p in gpu.processes))
    yield from _kept(gpu, rest, left)
    for kind in left:
        (profile_id, spot), compute = kind
        if profile_id == first.profile_id and spot in (None, first.placement):
            same = int(unchanged(first, compute))
            for score, spots, over in _kept(gpu, rest, left - Counter([kind])):
                a, b, c, d = score
                yield (a + busy, b + 1, c + busy * same, d + same), [*spots, first.placement], over


def best_kept(gpu: Gpu, wanted: Sequence[Wanted]) -> Score | None:
    """The most of what is there that can stay: those in use, all, unchanged in use, unchanged."""
    if not allowed(gpu, [w.profile_id for w in wanted]):
        return None
    kinds = Counter(((w.profile_id, w.placement), w.compute) for w in wanted)
    ways: dict[Score, set[tuple[tuple[Placement, ...], tuple[tuple[Need, int], ...]]]] = {}
    for score, spots, left in _kept(gpu, gpu.instances, kinds):
        needs = Counter(need for need, _ in left.elements())
        ways.setdefault(score, set()).add((tuple(sorted(spots)), tuple(needs.items())))
    for score in sorted(ways, reverse=True):
        for beside, items in ways[score]:
            if placeable(gpu, chain(*([need] * count for need, count in items)), beside):
                return score
    return None
