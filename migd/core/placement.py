"""Where instances go on a GPU: an exact search over the placements that the driver offers."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import cache, lru_cache, reduce
from itertools import combinations, product
from operator import or_

from migd.core.model import Engines, Gpu, GpuInstance, Placement, Profile, Wanted


def arrange(
    gpu: Gpu, wanted: Sequence[Wanted], prefer: Iterable[tuple[int, Placement]] = ()
) -> tuple[tuple[GpuInstance | None, Wanted], ...] | None:
    """For each wanted instance the present one that serves it, or None and a spot for a new one.

    Keeps as many present instances as any arrangement can, those in use first, then those whose
    compute instances need no change. Every wanted one comes back with its placement set, in the
    order given. prefer: (profile id, placement) pairs taken for new instances when they are free.
    Returns None when there is no arrangement.
    """
    if exceeded(gpu, [w.profile_id for w in wanted]):
        return None
    options = _Options(gpu, frozenset(prefer))
    for kept in _keepable(gpu, wanted):
        taken = 0
        for instance in kept.values():
            taken |= instance.placement.mask
        rest = [n for n in range(len(wanted)) if n not in kept]
        placed = options.place([wanted[n] for n in rest], taken)
        if placed is not None:
            spots = {n: i.placement for n, i in kept.items()} | dict(zip(rest, placed, strict=True))
            return tuple(
                (kept.get(n), replace(w, placement=spots[n])) for n, w in enumerate(wanted)
            )
    return None


def exceeded(gpu: Gpu, profile_ids: Iterable[int]) -> str:
    """Which limit of the GPU, other than room, these profiles pass together; "" when none.

    A profile has a largest count, and engines are never shared (nvml.h). An engine is left out
    of the account where the driver's own figures do not add up: some drivers report counts that
    the largest count of a profile already passes.
    """
    counts = Counter(profile_ids)
    profiles = {p.id: p for p in gpu.profiles}
    for profile_id, count in counts.items():
        profile = profiles[profile_id]
        if count > profile.instances:
            return f"at most {profile.instances} x {profile.name} fit"
    for engine in fields(Engines):
        name = engine.name
        has: dict[int, int] = {p.id: getattr(p.engines, name) for p in gpu.profiles}
        total = max(has.values(), default=0)
        if any(p.instances * has[p.id] > total for p in gpu.profiles):
            continue
        needed = sum(count * has[profile_id] for profile_id, count in counts.items())
        if needed > total:
            return f"they need {needed} {name} engines of {total}"
    return ""


@lru_cache(maxsize=64)
def _by_fit(profiles: tuple[Profile, ...]) -> dict[int, tuple[Placement, ...]]:
    """The placements of each profile, best fit first: what stands in the way of the fewest others.

    Ties go to the upper end, as the drivers seen so far do. So a small instance leaves room for
    a large one.
    """
    everywhere = [spot.mask for p in profiles for spot in p.placements]

    def order(spot: Placement) -> tuple[int, int]:
        return sum(bool(spot.mask & mask) for mask in everywhere), -spot.start

    return {p.id: tuple(sorted(p.placements, key=order)) for p in profiles}


class _Options:
    """The search for one GPU: which placements a profile may take, best first."""

    def __init__(self, gpu: Gpu, prefer: frozenset[tuple[int, Placement]]) -> None:
        self._spots = _by_fit(gpu.profiles)
        self._room = reduce(or_, (s.mask for p in gpu.profiles for s in p.placements), 0)
        if prefer:
            # Preferred ones first, then those that take no other's preferred one.
            preferred = [spot.mask for _, spot in prefer]
            self._spots = {
                profile_id: tuple(
                    sorted(
                        spots,
                        key=lambda s: (
                            (profile_id, s) not in prefer,
                            any(s.mask & mask for mask in preferred),
                        ),
                    )
                )
                for profile_id, spots in self._spots.items()
            }

    def place(self, wanted: Sequence[Wanted], taken: int) -> list[Placement] | None:
        """A free placement for each, or None; exact, because every combination is tried."""
        spots = [
            tuple(s for s in self._spots[w.profile_id] if w.placement in (None, s)) for w in wanted
        ]
        if not all(spots):
            return None
        # Where they are too many, no combination has to be tried to know.
        if sum(min(s.size for s in ways) for ways in spots) > (self._room & ~taken).bit_count():
            return None
        # Those with the fewest choices first, and of them the largest.
        order = sorted(range(len(wanted)), key=lambda n: (len(spots[n]), -spots[n][0].size))

        # What is left to place and what is taken decide the rest: few pairs, each judged once.
        @cache
        def search(depth: int, mask: int) -> tuple[Placement, ...] | None:
            if depth == len(order):
                return ()
            for spot in spots[order[depth]]:
                if not mask & spot.mask:
                    rest = search(depth + 1, mask | spot.mask)
                    if rest is not None:
                        return (spot, *rest)
            return None

        found = search(0, taken)
        if found is None:
            return None
        placed = dict(zip(order, found, strict=True))
        return [placed[n] for n in range(len(wanted))]


def _keepable(gpu: Gpu, wanted: Sequence[Wanted]) -> Iterator[dict[int, GpuInstance]]:
    """Every way to let present instances serve wanted ones, best first, by wanted position."""
    busy = {p.gi for p in gpu.processes if p.gi is not None}
    # Those in use first, so that they are also the first to be served without a change.
    servable = sorted(
        (i for i in gpu.instances if any(_serves(i, w) for w in wanted)),
        key=lambda i: i.id not in busy,
    )

    def worth(assigned: dict[int, GpuInstance]) -> tuple[int, ...]:
        exact = [i for n, i in assigned.items() if matches(i, wanted[n])]
        return (
            sum(i.id in busy for i in assigned.values()),
            len(assigned),
            sum(i.id in busy for i in exact),
            len(exact),
        )

    # All of them, if that can be, are the most that can be kept, and most plans find just that.
    everything = _assign(tuple(servable), wanted)
    if everything is not None:
        yield everything
    subsets = (_assign(chosen, wanted) for chosen in _choices(servable, wanted))
    yield from sorted((s for s in subsets if s is not None), key=worth, reverse=True)


def _choices(
    servable: Sequence[GpuInstance], wanted: Sequence[Wanted]
) -> Iterator[tuple[GpuInstance, ...]]:
    """Every subset that has no more instances of a profile than are wanted."""
    most = Counter(w.profile_id for w in wanted)
    alike: dict[int, list[GpuInstance]] = {}
    for instance in servable:
        alike.setdefault(instance.profile_id, []).append(instance)
    groups = [
        [
            chosen
            for size in range(min(len(group), most[profile_id]), -1, -1)
            for chosen in combinations(group, size)
        ]
        for profile_id, group in alike.items()
    ]
    for parts in product(*groups):
        chosen = {i.id for part in parts for i in part}
        yield tuple(i for i in servable if i.id in chosen)


def _assign(
    chosen: tuple[GpuInstance, ...], wanted: Sequence[Wanted]
) -> dict[int, GpuInstance] | None:
    """Give each chosen instance a wanted one that it serves, an exact match where one is left.

    One that is wanted at a placement first: only the instance that is there can serve it.
    """
    assigned: dict[int, GpuInstance] = {}
    placed = [n for n, w in enumerate(wanted) if w.placement is not None]
    anywhere = [n for n, w in enumerate(wanted) if w.placement is None]
    for test, positions in ((_serves, placed), (matches, anywhere), (_serves, anywhere)):
        for instance in chosen:
            if instance not in assigned.values():
                fits = (n for n in positions if n not in assigned and test(instance, wanted[n]))
                if (n := next(fits, None)) is not None:
                    assigned[n] = instance
    return assigned if len(assigned) == len(chosen) else None


def _serves(instance: GpuInstance, wanted: Wanted) -> bool:
    """Whether it can become the wanted one by a change of its compute instances at most."""
    return instance.profile_id == wanted.profile_id and wanted.placement in (
        None,
        instance.placement,
    )


def matches(instance: GpuInstance, wanted: Wanted) -> bool:
    """Whether it is the wanted one already, compute instances included."""
    compute = (instance.default_compute,) if wanted.compute is None else wanted.compute
    return _serves(instance, wanted) and sorted(c.profile_id for c in instance.compute) == sorted(
        compute
    )
