"""Hypothesis strategies: what may be on a board, and what may be wanted of it."""

from collections.abc import Sequence

from hypothesis import strategies as st

from migd.core.model import Gpu, GpuInstance, Mode, Placement, Process, Target, Wanted
from tests.support import boards
from tests.unit import oracle

DRAW = st.DrawFn


def inside(key: str, profile_id: int) -> list[tuple[int, ...]]:
    """Sets of compute instances that such an instance can hold."""
    offered, default = boards.compute_profiles(key, profile_id)
    slices = next(p.slices for p in boards.profiles(key) if p.id == profile_id)
    narrow = [c for c in offered if 2 * c.slices <= slices and c.instances > 1]
    pairs = [(c.id, c.id) for c in narrow]
    return [(default,), (), *[(c.id,) for c in narrow], *pairs]


@st.composite
def spots(draw: DRAW, key: str, most: int = 9) -> list[tuple[int, Placement]]:
    """Profiles at placements that can all be on the board at once."""
    gpu = boards.gpu(key)
    every = [(p.id, spot) for p in gpu.profiles for spot in p.placements]
    chosen: list[tuple[int, Placement]] = []
    for profile_id, spot in draw(st.lists(st.sampled_from(every), max_size=most, unique=True)):
        more = [*chosen, (profile_id, spot)]
        if oracle.disjoint(s for _, s in more) and oracle.allowed(gpu, [p for p, _ in more]):
            chosen = more
    return chosen


@st.composite
def gpus(draw: DRAW, key: str) -> Gpu:
    """The board with MIG on, with instances, some of them in use."""
    placed = draw(spots(key))
    ids = draw(st.permutations(range(1, len(placed) + 1)))
    instances = [
        boards.instance(
            key, gi, profile_id, spot.start, draw(st.sampled_from(inside(key, profile_id)))
        )
        for gi, (profile_id, spot) in zip(ids, placed, strict=True)
    ]
    return boards.gpu(key, instances, processes=draw(processes(instances)))


@st.composite
def processes(draw: DRAW, instances: Sequence[GpuInstance]) -> list[Process]:
    places: list[tuple[int | None, int | None]] = [(None, None)]
    places += [(i.id, c.id) for i in instances for c in i.compute]
    chosen = draw(st.lists(st.sampled_from(places), max_size=4))
    return [Process(1000 + n, gi, ci) for n, (gi, ci) in enumerate(chosen)]


@st.composite
def wants(draw: DRAW, key: str, gpu: Gpu | None = None) -> list[Wanted]:
    """Instances wanted of the board, some at a placement; they may not fit.

    gpu: take some of what is on it into the wish
    """
    every = [(p.id, s) for p in boards.profiles(key) for s in p.placements]
    pool: list[tuple[int, Placement]] = draw(
        st.one_of(spots(key), st.lists(st.sampled_from(every), max_size=5))
    )
    if gpu is not None and gpu.instances and draw(st.booleans()):
        present = [(i.profile_id, i.placement) for i in gpu.instances]
        kept = draw(st.lists(st.sampled_from(present), unique=True))
        pool = kept + pool[: draw(st.integers(0, 2))]
    often_none = st.sampled_from([True, True, False])
    return [
        Wanted(
            profile_id,
            draw(st.none() | st.sampled_from(inside(key, profile_id))),
            None if draw(often_none) else spot,
            draw(st.none() | st.integers(0, 14)),
        )
        for profile_id, spot in pool
    ]


@st.composite
def feasible(draw: DRAW, key: str) -> list[Wanted]:
    """Instances wanted of the board that do fit, some at a placement."""
    placed = draw(spots(key))
    return [
        Wanted(
            profile_id,
            draw(st.none() | st.sampled_from(inside(key, profile_id))),
            draw(st.sampled_from([None, spot])),
        )
        for profile_id, spot in placed
    ]


@st.composite
def states(draw: DRAW, key: str) -> Gpu:
    """Any state of the board: MIG on or off, and perhaps about to change."""
    if draw(st.sampled_from([True, True, True, False])):
        return draw(gpus(key))
    mode = draw(st.sampled_from([Mode.ENABLED, Mode.DISABLED]))
    pending = draw(st.sampled_from([Mode.ENABLED, Mode.DISABLED]))
    return boards.gpu(key, mode=mode, pending=pending, processes=draw(processes([])))


@st.composite
def targets(draw: DRAW, key: str) -> Target:
    """Anything that may be asked of the board and fits."""
    mode = draw(st.sampled_from([Mode.ENABLED, Mode.ENABLED, Mode.ENABLED, Mode.DISABLED]))
    if draw(st.integers(0, 5)) == 0:
        return Target(mode, None)
    return Target(mode, tuple(draw(feasible(key))))
