"""Plans, carried out step by step on a driver of paper, whole and cut off anywhere."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migd.core.model import (
    Gpu,
    GpuInstance,
    Impact,
    Layout,
    Mode,
    Placement,
    Process,
    SettledInstance,
    Target,
    Wanted,
    layout,
)
from migd.core.plan import GpuPlan, Plan, plan, plan_gpu
from migd.core.steps import (
    CreateCompute,
    CreateInstance,
    DestroyCompute,
    DestroyInstance,
    SetMode,
)
from migd.errors import NoSpace, NoSuchProfile, NotSupported
from tests.support import boards
from tests.unit import hands, oracle, strategies

A30, A100, H100 = "a30-24gb", "a100-40gb", "h100-80gb-sxm5"

every_board = pytest.mark.parametrize("key", boards.boards())


def on(*instances: Wanted) -> Target:
    return Target(Mode.ENABLED, instances)


def off() -> Target:
    return Target(Mode.DISABLED, ())


def reached(gpu: Gpu, target: Target, before: Gpu) -> None:
    """That `gpu` is what was wanted of it."""
    assert gpu.mode == gpu.pending == target.mode
    if target.mode is Mode.DISABLED:
        assert not gpu.instances
        return
    if target.instances is None:
        assert gpu.instances == before.instances
        return
    assert len(gpu.instances) == len(target.instances)
    left = list(gpu.instances)
    for want in sorted(target.instances, key=lambda w: (w.placement is None, w.compute is None)):
        served = next(
            i
            for i in left
            if i.profile_id == want.profile_id
            and want.placement in (None, i.placement)
            and oracle.unchanged(i, want.compute)
        )
        left.remove(served)


def holders(planned: GpuPlan) -> tuple[Process, ...]:
    """Those that use what the steps destroy, by NVML's list."""
    return tuple(
        p
        for p in planned.gpu.processes
        if planned.whole or p.gi in planned.gone or (p.gi, p.ci) in planned.parts
    )


def in_the_way(key: str, planned: GpuPlan) -> set[Process]:
    """Whom each step ends or cannot do with, seen while the steps are carried out."""
    found: set[Process] = set()
    gpu = planned.gpu
    for step in planned.steps:
        match step:
            case DestroyInstance(gi):
                found |= {p for p in planned.gpu.processes if p.gi == gi}
            case DestroyCompute(gi, ci):
                found |= {p for p in planned.gpu.processes if (p.gi, p.ci) == (gi, ci)}
            case SetMode(mode) if mode != gpu.mode:
                found |= set(planned.gpu.processes)
            case CreateInstance() if not gpu.instances:
                found |= set(planned.gpu.processes)
        gpu = hands.carry_out(key, gpu, step)
    return found


@every_board
@given(data=st.data())
def test_the_steps_lead_to_the_target_and_no_further(key: str, data: st.DataObject) -> None:
    gpu = data.draw(strategies.states(key))
    target = data.draw(strategies.targets(key))
    planned = plan_gpu(gpu, target)
    after = hands.carry_all_out(key, gpu, planned.steps)
    reached(after, target, gpu)
    assert planned.gpu == gpu

    again = plan_gpu(after, target)
    assert again.steps == ()
    assert holders(again) == ()
    assert again.impact is Impact.NONE
    assert set(again.kept) == {i.id for i in after.instances}
    nothing = plan_gpu(boards.gpu(key), Target(Mode.ENABLED, None))
    assert Plan((again,)).digest == Plan((nothing,)).digest


@every_board
@given(data=st.data())
def test_no_more_is_destroyed_than_must_be(key: str, data: st.DataObject) -> None:
    gpu = data.draw(strategies.gpus(key))
    wanted = data.draw(strategies.wants(key, gpu))
    best = oracle.best_kept(gpu, wanted)
    if best is None:
        with pytest.raises(NoSpace):
            plan_gpu(gpu, on(*wanted))
        return
    planned = plan_gpu(gpu, on(*wanted))
    destroyed = {s.gi for s in planned.steps if isinstance(s, DestroyInstance)}
    assert {i.id for i in gpu.instances} - destroyed == set(planned.kept)
    busy = {p.gi for p in gpu.processes}
    assert (len(busy & set(planned.kept)), len(planned.kept)) == best[:2]
    exactly = {(w.profile_id, w.placement) for w in wanted}
    stay = {i.id for i in gpu.instances if (i.profile_id, i.placement) in exactly}
    assert not stay & destroyed
    changed = {s.gi for s in planned.steps if isinstance(s, DestroyCompute | CreateCompute)}
    assert changed <= set(planned.kept)
    assert len(set(planned.kept) - changed) == best[3]


@every_board
@given(data=st.data())
def test_the_holders_are_those_in_the_way(key: str, data: st.DataObject) -> None:
    gpu = data.draw(strategies.states(key))
    planned = plan_gpu(gpu, data.draw(strategies.targets(key)))
    assert list(holders(planned)) == [p for p in gpu.processes if p in in_the_way(key, planned)]


@every_board
@given(data=st.data())
def test_from_anywhere_on_the_way_it_goes_back(key: str, data: st.DataObject) -> None:
    old = data.draw(strategies.states(key).filter(lambda gpu: gpu.mode == gpu.pending))
    target = data.draw(strategies.targets(key))
    back = layout(old).target()
    in_place = {(i.profile_id, i.placement) for i in old.instances}
    now = old
    for step in (*plan_gpu(old, target).steps, None):
        stops = [now, *(hands.half_done(key, now, step) if step else ())]
        for stop in stops:
            undo = plan_gpu(stop, back)
            for undone in undo.steps:
                if isinstance(undone, DestroyInstance):
                    assert (undone.profile_id, undone.placement) not in in_place
            returned = hands.carry_all_out(key, stop, undo.steps)
            assert hands.picture(returned) == hands.picture(old)
            assert hands.picture(layout(returned)) == hands.picture(layout(old))
            assert returned.pending == old.mode
        if step:
            now = hands.carry_out(key, now, step)


@every_board
@given(data=st.data())
def test_the_digest_names_the_steps(key: str, data: st.DataObject) -> None:
    gpu = data.draw(strategies.states(key))
    one, other = (plan_gpu(gpu, data.draw(strategies.targets(key))) for _ in range(2))
    assert (Plan((one,)).digest == Plan((other,)).digest) == (one.steps == other.steps)


@every_board
@given(data=st.data())
def test_all_that_was_lost_comes_back_as_it_was(key: str, data: st.DataObject) -> None:
    """After a reboot, when the wish names no placements: those of before, in the order of ids."""
    before = data.draw(strategies.gpus(key))
    mode = data.draw(st.sampled_from([Mode.ENABLED, Mode.DISABLED]))
    wanted = data.draw(st.permutations([Wanted(i.profile_id) for i in before.instances]))
    planned = plan_gpu(boards.gpu(key, mode=mode), on(*wanted), layout(before))
    created = [s for s in planned.steps if isinstance(s, CreateInstance)]
    was = {(i.profile_id, i.placement): i.id for i in before.instances}
    ids = [was[s.profile_id, s.placement] for s in created]
    assert sorted(ids) == sorted(was.values())
    order = [(-s.placement.size, gi) for s, gi in zip(created, ids, strict=True)]
    assert order == sorted(order)


def test_ids_come_back_with_the_placements() -> None:
    """Ids of a size class that do not follow the placements, as after a history of changes."""
    settled = Layout(
        Mode.ENABLED,
        tuple(
            SettledInstance(gi, 19, "1g.10gb", Placement(start, 1), (0,), ())
            for gi, start in ((7, 5), (8, 0), (9, 3))
        ),
    )
    planned = plan_gpu(boards.gpu(H100), on(*[Wanted(19)] * 3), settled)
    assert [s.placement.start for s in planned.steps if isinstance(s, CreateInstance)] == [5, 0, 3]
    exactly = plan_gpu(boards.gpu(H100), settled.target())
    assert [s.placement.start for s in exactly.steps if isinstance(s, CreateInstance)] == [5, 0, 3]
    partly = boards.gpu(H100, [boards.instance(H100, 8, 19, 0)])
    planned = plan_gpu(partly, on(*[Wanted(19)] * 4), settled)
    starts = [s.placement.start for s in planned.steps if isinstance(s, CreateInstance)]
    assert starts[:2] == [5, 3]
    assert len(starts) == 3


def test_a_settled_placement_that_is_offered_no_more_is_not_taken() -> None:
    settled = Layout(Mode.ENABLED, (SettledInstance(7, 19, "1g.10gb", Placement(7, 1), (0,), ()),))
    planned = plan_gpu(boards.gpu(H100), on(Wanted(19)), settled)
    assert [s.placement for s in planned.steps if isinstance(s, CreateInstance)] == [
        Placement(6, 1)
    ]


def test_the_settled_layout_moves_nothing_that_is_there() -> None:
    settled = layout(boards.gpu(H100, [boards.instance(H100, 1, 9, 0)]))
    now = boards.gpu(H100, [boards.instance(H100, 2, 9, 4)])
    assert plan_gpu(now, on(Wanted(9)), settled).steps == ()


def test_four_one_one_one() -> None:
    """4g.40gb:1, 1g.20gb:1, 1g.10gb:2 on an H100: it fits, in one way only."""
    wanted = [Wanted(5), Wanted(15), Wanted(19), Wanted(19)]
    steps = plan_gpu(boards.gpu(H100, mode=Mode.DISABLED), on(*wanted)).steps
    assert steps[0] == SetMode(Mode.ENABLED, reset=False)
    made = {(s.profile_id, s.placement) for s in steps[1:] if isinstance(s, CreateInstance)}
    assert made == {
        (5, Placement(0, 4)),
        (15, Placement(6, 2)),
        (19, Placement(4, 1)),
        (19, Placement(5, 1)),
    }


def test_the_greedy_dead_end_is_none() -> None:
    """19,19,14 then 9, which the user guide lists as a known issue of creating in that order."""
    steps = plan_gpu(boards.gpu(A100), on(*map(Wanted, (19, 19, 14, 9)))).steps
    sizes = [s.placement.size for s in steps if isinstance(s, CreateInstance)]
    assert sizes == [4, 2, 1, 1]


def test_too_many_are_refused_with_the_limit() -> None:
    gpu = boards.gpu(H100, index=3)
    with pytest.raises(NoSpace) as caught:
        plan_gpu(gpu, on(*[Wanted(9)] * 3))
    assert str(caught.value) == (
        f"3g.40gb: 3 do not fit on GPU 3 (NVIDIA H100 80GB HBM3, {gpu.uuid}): "
        "at most 2 x 3g.40gb fit; with one 3g.40gb less they do. It has 1g.10gb (x7), "
        "1g.10gb+me (x1), 1g.20gb (x4), 2g.20gb (x3), 3g.40gb (x2), 4g.40gb (x1), 7g.80gb (x1)"
    )


def test_too_large_together_is_refused_with_what_would_fit() -> None:
    gpu = boards.gpu(H100)
    with pytest.raises(NoSpace) as caught:
        plan_gpu(gpu, on(Wanted(9), Wanted(9), Wanted(19)))
    message = str(caught.value)
    assert message.startswith(f"1g.10gb: 1, 3g.40gb: 2 do not fit on {gpu}: ")
    assert "no arrangement of its 8 memory slices holds them all" in message
    assert "; with one 1g.10gb or one 3g.40gb less they do. It has 1g.10gb (x7)," in message

    with pytest.raises(NoSpace) as caught:
        plan_gpu(gpu, on(Wanted(0), Wanted(5), Wanted(9), Wanted(9)))
    assert "less they do" not in str(caught.value)


def test_engines_are_named_when_they_are_the_limit() -> None:
    gpu = boards.gpu("rtx-pro-6000-blackwell-96gb")
    with pytest.raises(NoSpace, match=r"they need 5 decoder engines of 4; with one"):
        plan_gpu(gpu, on(Wanted(65), Wanted(14)))


def test_placements_that_clash_are_refused_as_such() -> None:
    gpu = boards.gpu(H100)
    clash = on(Wanted(9, None, Placement(0, 4)), Wanted(19, None, Placement(2, 1)))
    with pytest.raises(NoSpace, match=r"at the placements asked for\. It has 1g\.10gb \(x7\)"):
        plan_gpu(gpu, clash)
    with pytest.raises(NoSpace, match="at the placements asked for"):
        plan_gpu(gpu, on(Wanted(9, None, Placement(2, 4))))


def test_a_gpu_whose_profiles_have_no_placements() -> None:
    known = boards.gpu(A30)
    bare = replace(known, profiles=tuple(replace(p, placements=()) for p in known.profiles))
    with pytest.raises(NoSpace, match="no arrangement of its 0 memory slices"):
        plan_gpu(bare, on(Wanted(14)))


def test_a_profile_that_the_gpu_does_not_offer() -> None:
    gpu = boards.gpu(A30)
    with pytest.raises(NoSuchProfile) as caught:
        plan_gpu(gpu, on(Wanted(14), Wanted(19)))
    assert str(caught.value) == (
        f"{gpu} does not offer profile 19; it has 1g.6gb (x4), 1g.6gb+me (x1), 2g.12gb (x2), "
        "2g.12gb+me (x1), 4g.24gb (x1)"
    )
    none = replace(gpu, profiles=())
    with pytest.raises(NoSuchProfile, match="it has no MIG profiles"):
        plan_gpu(none, on(Wanted(14)))


def test_a_gpu_without_mig() -> None:
    gpu = boards.without_mig(2)
    with pytest.raises(NotSupported) as caught:
        plan_gpu(gpu, on())
    assert str(caught.value) == f"{gpu} has no MIG; leave it out of the configuration"
    for target in (off(), Target(Mode.DISABLED, None), layout(gpu).target()):
        planned = plan_gpu(gpu, target)
        assert (planned.steps, planned.impact) == ((), Impact.NONE)


@pytest.mark.parametrize(
    ("key", "mode", "pending", "wish", "steps", "impact"),
    [
        (A100, "disabled", "disabled", "enabled", [("enabled", True)], Impact.RESET),
        (A100, "enabled", "enabled", "disabled", [("disabled", True)], Impact.RESET),
        (H100, "disabled", "disabled", "enabled", [("enabled", False)], Impact.GPU),
        (H100, "enabled", "enabled", "disabled", [("disabled", False)], Impact.GPU),
        # Pending from before: finish it, or take it back without a reset.
        (A100, "disabled", "enabled", "enabled", [("enabled", True)], Impact.RESET),
        (A100, "disabled", "enabled", "disabled", [("disabled", False)], Impact.INSTANCES),
        (A100, "enabled", "disabled", "enabled", [("enabled", False)], Impact.INSTANCES),
        (A100, "enabled", "disabled", "disabled", [("disabled", True)], Impact.RESET),
        (A100, "enabled", "enabled", "enabled", [], Impact.NONE),
        (H100, "disabled", "disabled", "disabled", [], Impact.NONE),
    ],
)
def test_the_mode(
    key: str, mode: str, pending: str, wish: str, steps: list[tuple[str, bool]], impact: Impact
) -> None:
    whole = Process(1, None, None)
    gpu = boards.gpu(key, mode=Mode(mode), pending=Mode(pending), processes=[whole])
    for instances in ((), None):
        planned = plan_gpu(gpu, Target(Mode(wish), instances))
        assert planned.steps == tuple(SetMode(Mode(to), reset) for to, reset in steps)
        assert planned.impact is impact
        assert holders(planned) == ((whole,) if impact.rank >= Impact.GPU.rank else ())


@pytest.mark.parametrize("wish", [Mode.ENABLED, Mode.DISABLED])
def test_without_a_reset_the_mode_is_left_pending(wish: Mode) -> None:
    there = Mode.DISABLED if wish is Mode.ENABLED else Mode.ENABLED
    had = [boards.instance(A100, 1, 9, 0)] if there is Mode.ENABLED else []
    whole = Process(1, None, None)
    gpu = boards.gpu(A100, had, mode=there, pending=there, processes=[whole])
    target = Target(wish, (Wanted(9), Wanted(19)), no_reset=True)
    planned = plan_gpu(gpu, target)
    *destroys, mode = planned.steps
    assert mode == SetMode(wish, reset=False, pending=True)
    assert [type(s) for s in destroys] == [DestroyInstance] * len(had)
    assert planned.impact is Impact.INSTANCES
    assert holders(planned) == ()
    waiting = replace(gpu, instances=(), pending=wish)
    assert plan_gpu(waiting, target).steps == plan_gpu(waiting, planned.goal).steps == ()
    # Once it is in force, the goal still says what is to be there.
    forced = replace(waiting, mode=wish)
    kinds = [type(s) for s in plan_gpu(forced, planned.goal).steps]
    assert kinds == ([CreateInstance] * 2 if wish is Mode.ENABLED else [])


def test_without_a_reset_is_as_ever_where_none_is_needed() -> None:
    gpu = boards.gpu(H100, mode=Mode.DISABLED, pending=Mode.DISABLED)
    target = on(Wanted(9), Wanted(19))
    assert plan_gpu(gpu, replace(target, no_reset=True)).steps == plan_gpu(gpu, target).steps


def test_what_will_not_fit_is_refused_before_the_mode_is_left_pending() -> None:
    gpu = boards.gpu(A100, mode=Mode.DISABLED, pending=Mode.DISABLED)
    with pytest.raises(NoSpace):
        plan_gpu(gpu, Target(Mode.ENABLED, (Wanted(9),) * 3, no_reset=True))


def test_instances_go_before_the_mode_and_come_after_it() -> None:
    gpu = boards.gpu(A100, [boards.instance(A100, 1, 9, 0)])
    kinds = [type(s) for s in plan_gpu(gpu, off()).steps]
    assert kinds == [DestroyInstance, SetMode]
    dark = boards.gpu(A100, mode=Mode.DISABLED)
    kinds = [type(s) for s in plan_gpu(dark, on(Wanted(9))).steps]
    assert kinds == [SetMode, CreateInstance]


def test_wanting_no_instances_in_particular_leaves_them() -> None:
    gpu = boards.gpu(A100, [boards.instance(A100, 1, 9, 0)])
    planned = plan_gpu(gpu, Target(Mode.ENABLED, None))
    assert (planned.steps, planned.kept) == ((), (1,))
    assert plan_gpu(gpu, Target(Mode.DISABLED, None)).steps == plan_gpu(gpu, off()).steps


def test_an_instance_without_compute_is_kept_and_gets_it() -> None:
    bare = boards.instance(H100, 1, 9, 0, ())
    planned = plan_gpu(boards.gpu(H100, [bare]), on(Wanted(9)))
    assert planned.steps == (CreateCompute(1, None),)
    assert planned.kept == (1,)
    assert planned.impact is Impact.INSTANCES
    planned = plan_gpu(boards.gpu(H100, [bare]), on(Wanted(9, (0, 1))))
    assert planned.steps == (CreateCompute(1, (0, 1)),)
    assert plan_gpu(boards.gpu(H100, [bare]), on(Wanted(9, ()))).steps == ()


def test_compute_instances_change_inside_an_instance_that_stays() -> None:
    split = boards.instance(H100, 1, 9, 0, (0, 1))
    other = boards.instance(H100, 2, 9, 4)
    users = [Process(10, 1, 1), Process(11, 2, 0), Process(12, None, None)]
    gpu = boards.gpu(H100, [split, other], processes=users)
    planned = plan_gpu(gpu, on(Wanted(9), Wanted(9)))
    assert planned.steps == (DestroyCompute(1, 0), DestroyCompute(1, 1), CreateCompute(1, None))
    assert planned.kept == (1, 2)
    assert holders(planned) == (users[0],)
    emptied = plan_gpu(gpu, on(Wanted(9, ()), Wanted(9)))
    assert emptied.steps == (DestroyCompute(1, 0), DestroyCompute(1, 1))


def test_compute_instances_stay_beside_those_that_go() -> None:
    inside = boards.compute((0, 0, 0))
    split = replace(boards.instance(H100, 1, 9, 0), compute=inside)
    users = [Process(10 + n, 1, n) for n in (0, 2)]
    gpu = boards.gpu(H100, [split], processes=users)
    # One less: the one that nobody uses.
    planned = plan_gpu(gpu, on(Wanted(9, (0, 0))))
    assert planned.steps == (DestroyCompute(1, 1),)
    assert (planned.gone, planned.parts, holders(planned)) == ((), ((1, 1),), ())
    # Or the one that is meant, whoever uses it.
    kept = (inside[0].uuid, inside[1].uuid)
    planned = plan_gpu(gpu, on(Wanted(9, (0, 0), uuids=kept)))
    assert planned.steps == (DestroyCompute(1, 2),)
    assert holders(planned) == (users[1],)
    # One more, where there is room for it beside the others.
    fewer = replace(gpu, instances=(replace(split, compute=inside[:2]),))
    assert plan_gpu(fewer, on(Wanted(9, (0, 0, 0)))).steps == (CreateCompute(1, (0,)),)
    # Two slices have no place beside the one in the middle; beside the last one they seem to have
    # it, which is only tried where that one is used.
    for ci, used, steps in (
        (1, True, (DestroyCompute(1, 1), CreateCompute(1, (0, 1)))),
        (2, False, (DestroyCompute(1, 2), CreateCompute(1, (0, 1)))),
        (2, True, (CreateCompute(1, (1,)),)),
    ):
        processes = (Process(10, 1, ci),) if used else ()
        only = replace(split, compute=inside[ci : ci + 1])
        found = plan_gpu(
            replace(gpu, instances=(only,), processes=processes), on(Wanted(9, (0, 1)))
        )
        assert found.steps == steps
    # Nothing is known to fit beside one of which the driver does not tell where it is.
    nowhere = replace(split, compute=(replace(inside[0], placement=Placement(0, 0)),))
    found = plan_gpu(replace(gpu, instances=(nowhere,)), on(Wanted(9, (0, 0))))
    assert found.steps == (DestroyCompute(1, 0), CreateCompute(1, (0, 0)))


@pytest.mark.parametrize("present", [[], [(5, 0), (14, 4)]])
def test_the_first_instance_needs_the_whole_gpu(present: list[tuple[int, int]]) -> None:
    """Also where it is the first because all that were there go before."""
    instances: list[GpuInstance] = [
        boards.instance(H100, gi, profile_id, start)
        for gi, (profile_id, start) in enumerate(present)
    ]
    whole = Process(1, None, None)
    gpu = boards.gpu(H100, instances, processes=[whole])
    assert holders(plan_gpu(gpu, on(Wanted(9)))) == (whole,)
    beside = boards.gpu(H100, [boards.instance(H100, 1, 19, 0)], processes=[whole])
    assert holders(plan_gpu(beside, on(Wanted(9), Wanted(19)))) == ()


def test_a_plan_of_several_gpus() -> None:
    a100 = boards.gpu(A100, index=2, mode=Mode.DISABLED)
    h100 = boards.gpu(H100, index=0)
    left = boards.gpu(H100, index=1)
    wish = {a100.uuid: on(Wanted(9)), h100.uuid: on(Wanted(9))}
    both = plan([a100, left, h100], wish, {})
    assert [g.gpu.index for g in both.gpus] == [0, 2]
    assert [g.impact for g in both.gpus] == [Impact.INSTANCES, Impact.RESET]
    assert both.impact is Impact.RESET
    assert plan([h100, left, a100], wish, {}).digest == both.digest
    # The same steps on another GPU are another plan.
    one = plan([h100], {h100.uuid: on(Wanted(9))}, {})
    other = plan([left], {left.uuid: on(Wanted(9))}, {})
    assert one.gpus[0].steps == other.gpus[0].steps
    assert one.digest != other.digest
    dark = boards.gpu(H100, index=1, mode=Mode.DISABLED)
    milder = plan([h100, dark], {h100.uuid: on(Wanted(9)), dark.uuid: on()}, {})
    assert [g.impact for g in milder.gpus] == [Impact.INSTANCES, Impact.GPU]
    assert milder.impact is Impact.GPU
    nothing = plan([h100], {}, {})
    assert (nothing.gpus, nothing.impact) == ((), Impact.NONE)


def test_what_was_settled_is_found_by_uuid() -> None:
    gpus = [boards.gpu(H100, index=n) for n in (0, 1)]
    settled = {
        gpu.uuid: layout(boards.gpu(H100, [boards.instance(H100, 1, 14, start)]))
        for gpu, start in zip(gpus, (0, 2), strict=True)
    }
    planned = plan(gpus, {gpu.uuid: on(Wanted(14)) for gpu in gpus}, settled)
    assert [g.steps for g in planned.gpus] == [
        (CreateInstance(14, Placement(0, 2), None),),
        (CreateInstance(14, Placement(2, 2), None),),
    ]


def test_impacts_are_ranked_mildest_first() -> None:
    ranked = sorted(Impact, key=lambda i: i.rank)
    assert ranked == [Impact.NONE, Impact.INSTANCES, Impact.GPU, Impact.RESET, Impact.REBOOT]


def test_a_layout_keeps_what_is_needed_to_put_it_back() -> None:
    held = boards.instance(H100, 4, 9, 4, (1, 0))
    kept = layout(boards.gpu(H100, [held]))
    assert kept.mode is Mode.ENABLED
    (only,) = kept.instances
    assert (only.gi, only.profile_id, only.profile) == (4, 9, "3g.40gb")
    assert (only.placement, only.compute) == (Placement(4, 4), (0, 1))
    assert Counter(only.uuids) == Counter(c.uuid for c in held.compute)
    assert kept.target() == on(Wanted(9, (0, 1), Placement(4, 4), 4))
