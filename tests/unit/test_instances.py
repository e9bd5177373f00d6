"""One instance more or less: everything else stays, and what is not meant is never destroyed."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migd.config.configs import load
from migd.config.target import text_of
from migd.config.use import targets
from migd.core.inside import room_for
from migd.core.instances import added, emptied, filled, refuse_beyond, still_there, without
from migd.core.model import Gpu, Mode, Placement, Target, Wanted
from migd.core.plan import Plan, plan_gpu
from migd.core.steps import CreateCompute, CreateInstance, DestroyCompute, DestroyInstance
from migd.errors import (
    Changed,
    MigdError,
    MigDisabled,
    NoSpace,
    NoSuchInstance,
    NotSupported,
    ResetRequired,
)
from tests.support import boards
from tests.unit import hands, oracle, strategies

A100, H100, RTX = "a100-40gb", "h100-80gb-sxm5", "rtx-pro-6000-blackwell-96gb"

KEYS = st.sampled_from(boards.boards())


def fits_beside(gpu: Gpu, new: Wanted) -> bool:
    """By trying everything."""
    present = [i.placement for i in gpu.instances]
    ids = [*(i.profile_id for i in gpu.instances), new.profile_id]
    need = [(new.profile_id, new.placement)]
    return oracle.allowed(gpu, ids) and oracle.placeable(gpu, need, present)


@settings(max_examples=150)
@given(key=KEYS, data=st.data())
def test_one_more_goes_where_there_is_room_and_nowhere_else(key: str, data: st.DataObject) -> None:
    gpu = data.draw(strategies.gpus(key))
    profile = data.draw(st.sampled_from(gpu.profiles))
    spot = data.draw(st.none() | st.sampled_from(profile.placements))
    new = Wanted(profile.id, data.draw(st.sampled_from([None, ()])), spot)
    if not fits_beside(gpu, new):
        with pytest.raises(NoSpace) as refused:
            added(gpu, new)
        told = str(refused.value).partition("these profiles fit: ")[2]
        named = {words.split(" ")[0] for words in told.split("), ")} if told else set()
        assert named == {p.name for p in gpu.profiles if fits_beside(gpu, Wanted(p.id))}
        return
    planned = plan_gpu(gpu, added(gpu, new))
    (step,) = planned.steps
    assert isinstance(step, CreateInstance)
    assert (step.profile_id, step.compute) == (profile.id, new.compute)
    assert spot in (None, step.placement)
    assert set(planned.kept) == {i.id for i in gpu.instances}
    refuse_beyond(planned)
    assert Plan((planned,)).only_adds == bool(gpu.instances)
    wanted_again(key, gpu, planned.goal, hands.carry_out(key, gpu, step))


@settings(max_examples=150)
@given(key=KEYS, data=st.data())
def test_one_less_is_the_one_that_is_meant(key: str, data: st.DataObject) -> None:
    gpu = data.draw(strategies.gpus(key).filter(lambda gpu: bool(gpu.instances)))
    goes = data.draw(st.sampled_from(gpu.instances))
    planned = plan_gpu(gpu, without(gpu, goes))
    assert planned.steps == (DestroyInstance(goes.id, goes.profile_id, goes.placement),)
    refuse_beyond(planned, goes.id)
    with pytest.raises(Changed):
        refuse_beyond(planned)
    wanted_again(key, gpu, planned.goal, hands.carry_out(key, gpu, planned.steps[0]))


def wanted_again(key: str, gpu: Gpu, goal: Target, after: Gpu) -> None:
    """What is kept of it makes the same out of nothing, and leaves what it made."""
    text = text_of(gpu, goal)
    (config,) = load(text, "text").configs.values()
    found = targets(config, [after])[gpu.uuid]
    assert plan_gpu(after, found).steps == ()
    empty = replace(after, instances=())
    again = targets(config, [empty])[gpu.uuid]
    assert hands.picture(
        hands.carry_all_out(key, empty, plan_gpu(empty, again).steps)
    ) == hands.picture(after)


@settings(max_examples=150)
@given(key=KEYS, data=st.data())
def test_compute_instances_come_and_go_beside_others(key: str, data: st.DataObject) -> None:
    """In the order that is drawn, as the driver places them; nobody else is touched."""
    profile = data.draw(st.sampled_from(boards.profiles(key)))
    start = profile.placements[0].start
    instance = boards.instance(key, 1, profile.id, start, ())
    gpu = boards.gpu(key, [instance])
    for compute in data.draw(
        st.lists(st.sampled_from(instance.compute_profiles), max_size=profile.slices)
    ):
        (there,) = gpu.instances
        if not room_for(gpu, there, there.compute, (compute.id,)):
            with pytest.raises(NoSpace, match="does not fit beside"):
                filled(gpu, there, (compute.id,))
            continue
        planned = plan_gpu(gpu, filled(gpu, there, (compute.id,)))
        (step,) = planned.steps
        assert isinstance(step, CreateCompute)
        assert (step.gi, step.compute or (there.default_compute,)) == (1, (compute.id,))
        taken = [c.placement for c in there.compute]
        pace = compute.slices if compute.slices <= 2 else 4
        spot = next(
            s
            for s in (
                Placement(n, compute.slices)
                for n in range(0, profile.slices - compute.slices + 1, pace)
            )
            if oracle.disjoint([s, *taken])
        )
        (new,) = boards.compute((compute.id,))
        new = replace(new, id=len(there.compute), placement=spot, uuid=f"MIG-{len(there.compute)}")
        gpu = replace(gpu, instances=(replace(there, compute=(*there.compute, new)),))
    while gpu.instances[0].compute:
        (there,) = gpu.instances
        goes = data.draw(st.sampled_from(there.compute))
        planned = plan_gpu(gpu, emptied(gpu, there, goes))
        assert planned.steps == (DestroyCompute(1, goes.id),)
        refuse_beyond(planned, 1, goes.id)
        left = tuple(c for c in there.compute if c != goes)
        gpu = replace(gpu, instances=(replace(there, compute=left),))


def test_no_room_says_what_there_is() -> None:
    gpu = boards.gpu(H100, [boards.instance(H100, 1, 9, 0), boards.instance(H100, 5, 15, 6)])
    with pytest.raises(NoSpace) as refused:
        added(gpu, Wanted(9))
    assert str(refused.value) == (
        f"3g.40gb does not fit beside what is on {gpu}; free are slices 4-5, and these profiles "
        "fit: 1g.10gb (at 4, 5), 1g.10gb+me (at 4, 5), 1g.20gb (at 4), 2g.20gb (at 4)"
    )
    with pytest.raises(NoSpace, match=r"1g\.10gb at slice 6 does not fit"):
        added(gpu, Wanted(19, None, Placement(6, 1)))
    full = boards.gpu(H100, [boards.instance(H100, 0, 0, 0)])
    with pytest.raises(NoSpace, match="free are no slices, and no profile fits"):
        added(full, Wanted(19))
    media = boards.gpu(H100, [boards.instance(H100, 1, 20, 0)])
    with pytest.raises(NoSpace, match=r"\(at most 1 x 1g.10gb\+me fit\); free are slices 1-7"):
        added(media, Wanted(20))
    apart = boards.gpu(RTX, [boards.instance(RTX, 1, 14, 3)])
    with pytest.raises(NoSpace, match="free are slices 0-2, 6-11"):
        added(apart, Wanted(0))


def test_no_room_inside() -> None:
    split = boards.instance(H100, 1, 9, 0, (0, 0))
    (fills,) = boards.compute((2,))
    whole = replace(split, compute=(replace(fills, placement=Placement(0, 3)),))
    gpu = boards.gpu(H100, [split])
    with pytest.raises(
        NoSpace, match=r"beside the 2 in GPU instance 1 \(3g.40gb\).*fit 1c.3g.40gb$"
    ):
        filled(gpu, split, (1,))
    with pytest.raises(NoSpace, match=r"nothing more fits$"):
        filled(boards.gpu(H100, [whole]), whole, (0,))


def test_what_was_shown_is_what_is_meant() -> None:
    shown = boards.instance(H100, 7, 19, 0)
    empty = boards.gpu(H100)

    def destroyed(gpu: Gpu) -> Target:
        return without(gpu, shown)

    def extended(gpu: Gpu) -> Target:
        return filled(gpu, shown, (0,))

    for ask in (destroyed, extended):
        with pytest.raises(NoSuchInstance, match=r"GPU instance 7 \(1g.10gb at 0:1\) is not on"):
            ask(empty)
        for other in (boards.instance(H100, 7, 19, 3), boards.instance(H100, 7, 20, 0)):
            with pytest.raises(Changed, match=r"GPU instance 7 of .* is another one now"):
                ask(boards.gpu(H100, [other]))
    gpu = boards.gpu(H100, [shown])
    assert still_there(gpu, shown) == shown
    (compute,) = shown.compute
    with pytest.raises(NoSuchInstance, match="compute instance 0 is not in GPU instance 7"):
        emptied(boards.gpu(H100, [replace(shown, compute=())]), shown, compute)
    renamed = replace(shown, compute=(replace(compute, uuid="MIG-other"),))
    with pytest.raises(Changed, match="is MIG-other now and was MIG-0"):
        emptied(boards.gpu(H100, [renamed]), shown, compute)


@pytest.mark.parametrize(
    ("gpu", "error"),
    [
        (boards.without_mig(), NotSupported),
        (boards.gpu(A100, mode=Mode.DISABLED), MigDisabled),
        (boards.gpu(A100, mode=Mode.DISABLED, pending=Mode.ENABLED), MigDisabled),
        (boards.gpu(A100, pending=Mode.DISABLED), ResetRequired),
    ],
)
def test_the_mode_is_refused_first(gpu: Gpu, error: type[MigdError]) -> None:
    shown = boards.instance(A100, 7, 19, 0)
    with pytest.raises(error):
        without(gpu, shown)
    if gpu.profiles:
        with pytest.raises(error):
            added(gpu, Wanted(19))


def test_what_is_kept_as_wanted() -> None:
    instances = [boards.instance(H100, 1, 9, 0, (0, 1)), boards.instance(H100, 5, 15, 6)]
    gpu = boards.gpu(H100, instances)
    planned = plan_gpu(gpu, added(gpu, Wanted(19, None, Placement(4, 1))))
    assert text_of(gpu, planned.goal) == (
        f"version: v1\nmig-configs:\n  current:\n  - devices: [{gpu.uuid}]\n"
        "    mig-enabled: true\n    mig-instances:\n"
        "    - {profile: 3g.40gb, start: 0, compute: [1c.3g.40gb, 2c.3g.40gb]}\n"
        "    - {profile: 1g.10gb, start: 4}\n    - {profile: 1g.20gb, start: 6}\n"
    )
