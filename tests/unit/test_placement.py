"""Arrangements, against an oracle that tries everything."""

from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from migd.core.model import Engines, Gpu, GpuInstance, Placement, Process, Profile, Wanted
from migd.core.placement import arrange, exceeded, matches
from tests.support import boards
from tests.unit import oracle, strategies

Arrangement = tuple[tuple[GpuInstance | None, Wanted], ...]

every_board = pytest.mark.parametrize("key", boards.boards())


def wanted(key: str, **counts: int) -> list[Wanted]:
    """`wanted(board, _3g_40gb=2)`: that many of each profile, anywhere."""
    ids = {p.name.replace(".", "_"): p.id for p in boards.profiles(key)}
    return [Wanted(ids[name[1:]]) for name, count in counts.items() for _ in range(count)]


def sound(gpu: Gpu, asked: list[Wanted], found: Arrangement) -> None:
    """What every arrangement keeps to, whatever was asked."""
    assert len(found) == len(asked)
    kept = [instance for instance, _ in found if instance]
    assert len({i.id for i in kept}) == len(kept)
    offered = {p.id: p.placements for p in gpu.profiles}
    spots = []
    for (instance, got), want in zip(found, asked, strict=True):
        assert (got.profile_id, got.compute, got.gi) == (want.profile_id, want.compute, want.gi)
        assert got.placement is not None
        assert want.placement in (None, got.placement)
        if instance:
            assert instance in gpu.instances
            assert (instance.profile_id, instance.placement) == (got.profile_id, got.placement)
        else:
            assert got.placement in offered[got.profile_id]
        spots.append(got.placement)
    assert oracle.disjoint(spots)
    assert oracle.allowed(gpu, [w.profile_id for w in asked])


def score(gpu: Gpu, found: Arrangement) -> oracle.Score:
    busy = {p.gi for p in gpu.processes}
    kept = [(i.id in busy, oracle.unchanged(i, want.compute)) for i, want in found if i]
    return (
        sum(used for used, _ in kept),
        len(kept),
        sum(used and same for used, same in kept),
        sum(same for _, same in kept),
    )


def agrees(gpu: Gpu, asked: list[Wanted]) -> bool:
    found = arrange(gpu, asked)
    assert (found is not None) == oracle.fits(gpu, asked)
    if found is not None:
        sound(gpu, asked, found)
    return found is not None


@every_board
@given(data=st.data())
def test_an_arrangement_is_found_when_there_is_one(key: str, data: st.DataObject) -> None:
    agrees(boards.gpu(key), data.draw(strategies.wants(key)))


@every_board
@given(data=st.data())
def test_what_fits_alone_fits_beside_anything_that_may_go(key: str, data: st.DataObject) -> None:
    gpu = data.draw(strategies.gpus(key))
    agrees(gpu, data.draw(strategies.wants(key, gpu)))


def every_multiset(key: str, over: int) -> list[list[Wanted]]:
    """All of them up to `over` more than the largest count of each profile."""
    known = boards.profiles(key)
    counts = product(*(range(p.instances + 1 + over) for p in known))
    return [
        [Wanted(p.id) for p, n in zip(known, each, strict=True) for _ in range(n)]
        for each in counts
    ]


@pytest.mark.parametrize(("key", "over"), [("a30-24gb", 1), ("h100-80gb-sxm5", 0)])
def test_every_multiset(key: str, over: int) -> None:
    gpu = boards.gpu(key)
    multisets = every_multiset(key, over)
    found = sum(agrees(gpu, asked) for asked in multisets)
    assert 0 < found < len(multisets)


@every_board
@settings(max_examples=120)
@given(data=st.data())
def test_as_much_is_kept_as_can_be(key: str, data: st.DataObject) -> None:
    gpu = data.draw(strategies.gpus(key))
    asked = data.draw(strategies.wants(key, gpu))
    found = arrange(gpu, asked)
    if found is not None:
        assert score(gpu, found) == oracle.best_kept(gpu, asked)


@every_board
@given(data=st.data())
def test_what_is_there_is_kept_whole(key: str, data: st.DataObject) -> None:
    gpu = data.draw(strategies.gpus(key))
    found = arrange(gpu, [Wanted(i.profile_id) for i in gpu.instances])
    assert found is not None
    assert {i for i, _ in found} == set(gpu.instances)


@every_board
@given(data=st.data())
def test_what_is_lost_comes_back_where_it_was_preferred(key: str, data: st.DataObject) -> None:
    """Beside what is left of it, and whatever part of it is wanted again."""
    before = data.draw(strategies.gpus(key))
    is_left = [data.draw(st.booleans()) for _ in before.instances]
    left = [i for i, stays in zip(before.instances, is_left, strict=True) if stays]
    lost = [i for i, stays in zip(before.instances, is_left, strict=True) if not stays]
    again = [i for i in lost if data.draw(st.booleans())]
    prefer = [(i.profile_id, i.placement) for i in before.instances]
    found = arrange(boards.gpu(key, left), [Wanted(i.profile_id) for i in left + again], prefer)
    assert found is not None
    assert {i for i, _ in found if i} == set(left)
    assert all((w.profile_id, w.placement) in prefer for _, w in found)


def test_a_new_instance_leaves_the_preferred_spots_of_others_free() -> None:
    key = "h100-80gb-sxm5"
    for start in range(7):
        prefer = [(19, Placement(start, 1))]
        found = arrange(boards.gpu(key), wanted(key, _3g_40gb=1, _1g_10gb=1), prefer)
        assert found is not None
        half = 4 if start < 4 else 0
        assert [w.placement for _, w in found] == [Placement(half, 4), Placement(start, 1)]


def test_a_preference_that_is_in_the_way_gives_way() -> None:
    key = "h100-80gb-sxm5"
    prefer = [(19, Placement(0, 1)), (14, Placement(0, 2)), (9, Placement(2, 2))]
    found = arrange(boards.gpu(key), wanted(key, _4g_40gb=1, _1g_10gb=1), prefer)
    assert found is not None
    assert found[0][1].placement == Placement(0, 4)


@pytest.mark.parametrize(
    ("key", "small", "large"),
    [
        ("a30-24gb", "1g_6gb", "2g_12gb"),
        ("h100-80gb-sxm5", "1g_10gb", "3g_40gb"),
        ("rtx-pro-6000-blackwell-96gb", "1g_24gb", "2g_48gb"),
    ],
)
def test_a_small_instance_leaves_room_for_a_large_one(key: str, small: str, large: str) -> None:
    first = arrange(boards.gpu(key), wanted(key, **{f"_{small}": 1}))
    assert first is not None
    spot = first[0][1].placement
    assert spot is not None
    present = boards.instance(key, 7, first[0][1].profile_id, spot.start)
    both = wanted(key, **{f"_{small}": 1, f"_{large}": 1})
    second = arrange(boards.gpu(key, [present]), both)
    assert second is not None
    assert second[0][0] == present


@pytest.mark.parametrize(
    ("key", "profile_id", "start"),
    [
        ("a30-24gb", 14, 3),
        ("a100-40gb", 19, 6),
        ("a100-40gb", 14, 4),
        ("a100-40gb", 9, 4),
        ("h100-80gb-sxm5", 15, 6),
        ("rtx-pro-6000-blackwell-96gb", 14, 9),
    ],
)
def test_the_upper_end_is_taken_first(key: str, profile_id: int, start: int) -> None:
    found = arrange(boards.gpu(key), [Wanted(profile_id)])
    assert found is not None
    assert found[0][1].placement is not None
    assert found[0][1].placement.start == start


def test_the_spot_that_is_in_the_way_of_the_fewest_is_taken_first() -> None:
    small = Profile(1, "1g.1gb", 1, 1024, 3, 2, Engines(), tuple(Placement(n, 1) for n in range(3)))
    large = Profile(2, "2g.2gb", 2, 2048, 1, 4, Engines(), (Placement(1, 2),))
    gpu = Gpu(**{**vars(boards.gpu("a30-24gb")), "profiles": (small, large)})
    found = arrange(gpu, [Wanted(1)])
    assert found is not None
    assert found[0][1].placement == Placement(0, 1)


def test_placements_asked_for_are_taken_or_refused() -> None:
    gpu = boards.gpu("h100-80gb-sxm5")
    for start in range(7):
        found = arrange(gpu, [Wanted(19, placement=Placement(start, 1)), Wanted(14)])
        assert found is not None
        assert found[0][1].placement == Placement(start, 1)
    assert arrange(gpu, [Wanted(19, placement=Placement(0, 1))] * 2) is None
    assert arrange(gpu, [Wanted(19, placement=Placement(7, 1))]) is None
    assert arrange(gpu, [Wanted(14, placement=Placement(1, 2))]) is None
    assert arrange(gpu, [Wanted(14, placement=Placement(0, 1))]) is None


def test_an_instance_where_one_is_wanted_serves_that_one() -> None:
    """Though another wanted one is nearer to what it holds."""
    key = "h100-80gb-sxm5"
    present = boards.instance(key, 1, 9, 0)
    gpu = boards.gpu(key, [present])
    asked = [Wanted(9), Wanted(9, (0, 0), Placement(0, 4))]
    found = arrange(gpu, asked)
    assert found is not None
    assert [(i and i.id, w.placement) for i, w in found] == [
        (None, Placement(4, 4)),
        (1, Placement(0, 4)),
    ]


def test_those_in_use_are_kept_before_others_and_unchanged_before_others() -> None:
    key = "h100-80gb-sxm5"
    plain = [boards.instance(key, gi, 14, start) for gi, start in ((3, 0), (4, 2), (5, 4))]
    gpu = boards.gpu(key, plain, processes=[Process(1, 5, 0)])
    one = arrange(gpu, [Wanted(14)])
    assert one is not None
    assert one[0][0] == plain[2]
    asked = [Wanted(14, (0, 0)), Wanted(14)]
    two = arrange(gpu, asked)
    assert two is not None
    assert two[1][0] == plain[2]


def test_what_is_kept_where_not_all_can_be() -> None:
    """A 3g needs one half of the GPU, so what is in that half goes: in use, then number, decide."""
    key = "h100-80gb-sxm5"
    asked = wanted(key, _3g_40gb=1, _1g_10gb=2)

    def kept(present: list[GpuInstance], *busy: int) -> set[int]:
        found = arrange(
            boards.gpu(key, present, processes=[Process(1, gi, 0) for gi in busy]), asked
        )
        assert found is not None
        return {i.id for i, _ in found if i}

    def spot(start: int, inside: tuple[int, ...] | None = None) -> GpuInstance:
        return boards.instance(key, start, 19, start, inside)

    assert kept([spot(1), spot(4), spot(5)]) == {4, 5}
    assert kept([spot(1), spot(4), spot(5)], 1) == {1}
    # Then how many need no change, those in use before others.
    assert kept([spot(1), spot(4, ()), spot(5, ())]) == {4, 5}
    assert kept([spot(0, ()), spot(1, ()), spot(4), spot(5)]) == {4, 5}
    assert kept([spot(0), spot(1), spot(4, ()), spot(5, ())]) == {0, 1}
    assert kept([spot(4, ()), spot(5), spot(0), spot(1, ())], 4, 0) == {0, 1}
    assert kept([spot(0, ()), spot(1), spot(4), spot(5, ())], 0, 4) == {4, 5}


def test_what_matches() -> None:
    key = "h100-80gb-sxm5"
    full = boards.instance(key, 1, 9, 0)
    bare = boards.instance(key, 1, 9, 0, ())
    split = boards.instance(key, 1, 9, 0, (0, 1))
    wishes = [Wanted(9), Wanted(9, ()), Wanted(9, (1, 0)), Wanted(9, (2,)), Wanted(9, (0,))]
    assert [matches(full, w) for w in wishes] == [True, False, False, True, False]
    assert [matches(bare, w) for w in wishes] == [False, True, False, False, False]
    assert [matches(split, w) for w in wishes] == [False, False, True, False, False]
    assert not matches(full, Wanted(5))
    assert matches(full, Wanted(9, None, Placement(0, 4)))
    assert not matches(full, Wanted(9, None, Placement(4, 4)))


def test_a_profile_without_placements_has_no_room() -> None:
    nowhere = Profile(3, "1g.1gb", 1, 1024, 1, 2, Engines(), ())
    gpu = boards.gpu("a30-24gb")
    odd = Gpu(**{**vars(gpu), "profiles": (*gpu.profiles, nowhere)})
    assert arrange(odd, [Wanted(3)]) is None
    assert arrange(odd, [Wanted(14)]) is not None


def test_limits_other_than_room() -> None:
    h100 = boards.gpu("h100-80gb-sxm5")
    assert exceeded(h100, [9, 9]) == ""
    assert exceeded(h100, [9, 9, 9]) == "at most 2 x 3g.40gb fit"
    assert exceeded(h100, []) == ""
    rtx = boards.gpu("rtx-pro-6000-blackwell-96gb")
    assert exceeded(rtx, [65, 67, 67, 67]) == ""
    assert exceeded(rtx, [65, 14]) == "they need 5 decoder engines of 4"


def test_engines_are_counted_only_where_the_figures_add_up() -> None:
    spots = (Placement(0, 1), Placement(1, 1))
    small = Profile(1, "1g.1gb", 1, 1024, 2, 2, Engines(copy=2, decoder=1), spots)
    media = Profile(2, "1g.1gb+me", 1, 1024, 1, 2, Engines(copy=3, decoder=2), spots)
    gpu = Gpu(**{**vars(boards.gpu("a30-24gb")), "profiles": (small, media)})
    # Two of the small one would already pass the 3 copy engines, so only decoders count.
    assert exceeded(gpu, [1, 1]) == ""
    assert exceeded(gpu, [1, 2]) == "they need 3 decoder engines of 2"
    assert arrange(gpu, [Wanted(1), Wanted(2)]) is None


@example(starts=[6, 0, 3])
@given(starts=st.lists(st.integers(0, 6), max_size=7, unique=True))
def test_the_same_request_gives_the_same_arrangement(starts: list[int]) -> None:
    key = "h100-80gb-sxm5"
    present = [boards.instance(key, 7 + start, 19, start) for start in starts]
    gpu = boards.gpu(key, present)
    asked = wanted(key, _1g_10gb=3, _2g_20gb=1)
    again = boards.gpu(key, present)
    assert arrange(gpu, asked) == arrange(again, asked)
