"""What has drifted, in words; what real GPUs do is for tests/faults/test_drift.py."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given

from migd.core.drift import difference, drifted
from migd.core.model import Gpu, Layout, Mode, layout
from migd.errors import Nvml
from migd.service.drift import Drift
from migd.service.view import View
from tests.support import boards
from tests.unit import strategies
from tests.unit.hands import picture

H100 = "h100-80gb-sxm5"
# 1g.10gb, 2g.20gb, 3g.40gb; compute profiles 1c, 2c, and the default of 3g
ONE, TWO, THREE = 19, 14, 9


def h100(*instances: tuple[int, int, int], mode: Mode = Mode.ENABLED, index: int = 0) -> Gpu:
    """Instances by id, profile and start."""
    made = [boards.instance(H100, gi, profile, start) for gi, profile, start in instances]
    return boards.gpu(H100, made, mode=mode, index=index)


def renamed(gpu: Gpu, uuid: str) -> Gpu:
    """With another UUID of the first compute instance of the first GPU instance."""
    first, *others = gpu.instances
    ci = replace(first.compute[0], uuid=uuid)
    return replace(gpu, instances=(replace(first, compute=(ci, *first.compute[1:])), *others))


SETTLED = h100((7, ONE, 0), (8, ONE, 1), (1, THREE, 4))


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (SETTLED, ""),
        # In whatever order NVML lists them, and with whatever id, as long as the UUID is the same.
        (h100((1, THREE, 4), (8, ONE, 1), (9, ONE, 0)), ""),
        (h100((7, ONE, 0), (1, THREE, 4)), "GPU instance 8 (1g.10gb at 1:1) is gone"),
        (
            h100(),
            "GPU instances 7 (1g.10gb at 0:1), 8 (1g.10gb at 1:1) and 1 (3g.40gb at 4:4) are gone",
        ),
        (
            h100((7, ONE, 0), (8, ONE, 1), (1, THREE, 4), (4, TWO, 2)),
            "GPU instance 4 (2g.20gb at 2:2) is new",
        ),
        # The same id elsewhere is another instance.
        (
            h100((7, ONE, 2), (8, ONE, 1), (1, THREE, 4)),
            "GPU instance 7 (1g.10gb at 0:1) is gone; GPU instance 7 (1g.10gb at 2:1) is new",
        ),
        (
            h100(mode=Mode.DISABLED),
            (
                "MIG mode is disabled, and was enabled; with it went GPU instances "
                "7 (1g.10gb at 0:1), 8 (1g.10gb at 1:1) and 1 (3g.40gb at 4:4)"
            ),
        ),
        (renamed(SETTLED, "MIG-other"), "GPU instance 7 (1g.10gb at 0:1) has other MIG UUIDs"),
        # NVML does not show it yet.
        (renamed(SETTLED, ""), ""),
    ],
)
def test_differences(there: Gpu, told: str) -> None:
    assert difference(there, layout(SETTLED)) == told


def test_other_compute_instances() -> None:
    there = boards.gpu(H100, [boards.instance(H100, 1, THREE, 4, [0, 1])])
    was = boards.gpu(H100, [boards.instance(H100, 1, THREE, 4)])
    told = "GPU instance 1 (3g.40gb at 4:4) has other compute instances"
    assert difference(there, layout(was)) == told


def test_mode_that_was_switched_on() -> None:
    told = "MIG mode is enabled, and was disabled; GPU instance 7 (1g.10gb at 0:1) is new"
    assert difference(h100((7, ONE, 0)), layout(h100(mode=Mode.DISABLED))) == told


def test_what_was_never_settled_is_no_drift() -> None:
    other = h100((7, ONE, 0), index=1)
    assert drifted([SETTLED, other], {SETTLED.uuid: layout(SETTLED)}) == {}
    assert list(drifted([SETTLED, other], {other.uuid: layout(SETTLED)})) == [other.uuid]


@given(strategies.gpus(H100), strategies.gpus(H100))
def test_it_has_drifted_if_the_pictures_differ(there: Gpu, other: Gpu) -> None:
    assert difference(there, layout(there)) == ""
    assert bool(difference(there, layout(other))) == (picture(there) != picture(other))


# -- as it is shown and logged ---------------------------------------------------------------

GPUS = (SETTLED, h100((7, ONE, 0), index=1))
KEPT: Mapping[str, Layout] = {gpu.uuid: layout(gpu) for gpu in GPUS}


def view(*gpus: Gpu, **different: object) -> View:
    return replace(View("580", gpus or GPUS), **different)  # type: ignore[arg-type]


def lost(gpu: Gpu) -> Gpu:
    return replace(gpu, instances=gpu.instances[1:])


def nobody() -> None:
    """Whoever would be told that there is something to show."""


def said(drift: Drift) -> list[str]:
    return list(drift.sentences)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_nothing_is_said_before_it_begins(told: pytest.LogCaptureFixture) -> None:
    drift = Drift(nobody)
    drift.saw(view(lost(GPUS[0]), GPUS[1]), KEPT)
    assert (said(drift), drift.since, told.messages) == ([], 0, [])
    drift.begin()
    assert said(drift) == [f"{GPUS[0]}: GPU instance 7 (1g.10gb at 0:1) is gone"]
    assert drift.since
    assert drift.gpus == {GPUS[0].uuid}


def test_each_is_logged_once_and_so_is_its_end(told: pytest.LogCaptureFixture) -> None:
    drift = Drift(nobody)
    drift.begin()
    first = f"{GPUS[0]}: GPU instance 7 (1g.10gb at 0:1) is gone"
    for _ in range(3):
        drift.saw(view(lost(GPUS[0]), GPUS[1]), KEPT)
    since = drift.since
    second = f"{GPUS[1]}: GPU instance 7 (1g.10gb at 0:1) is gone"
    drift.saw(view(lost(GPUS[0]), lost(GPUS[1])), KEPT)
    assert said(drift) == [first, second]
    drift.saw(view(GPUS[0], lost(GPUS[1])), KEPT)
    assert (said(drift), drift.since) == ([second], since)
    drift.saw(view(), KEPT)
    assert (said(drift), drift.since) == ([], 0)
    assert told.messages == [
        f"drift: {first}",
        f"drift: {second}",
        f"no drift any more: {GPUS[0]}",
        f"no drift any more: {GPUS[1]}",
    ]


def test_a_gpu_that_is_gone_keeps_its_name() -> None:
    drift = Drift(nobody)
    drift.begin()
    drift.saw(view(), KEPT)
    drift.saw(view(GPUS[0]), KEPT)
    assert said(drift) == [f"{GPUS[1]} is not there any more"]
    assert not drift.gpus
    # Nobody has seen it since the start.
    anew = Drift(nobody)
    anew.begin()
    anew.saw(view(GPUS[0]), KEPT)
    assert said(anew) == [f"GPU {GPUS[1].uuid} is not there any more"]


def test_of_a_gpu_that_cannot_be_seen_no_more_is_said() -> None:
    drift = Drift(nobody)
    drift.begin()
    error = Nvml("it is lost", call="nvmlX", code=15, name="GPU_IS_LOST")
    drift.saw(view(lost(GPUS[0]), GPUS[1], troubled={GPUS[0].uuid: error}), KEPT)
    assert said(drift) == [f"{GPUS[0]} does not answer: it is lost"]
    assert not drift.gpus
    drift.saw(view(GPUS[1], unseen=(error,)), KEPT)
    assert said(drift) == []


def test_without_a_driver_there_is_one_sentence(told: pytest.LogCaptureFixture) -> None:
    drift = Drift(nobody)
    drift.begin()
    drift.saw(view(), KEPT)
    drift.saw(View(), KEPT, "the driver is not loaded")
    out = f"nothing is to be seen of {GPUS[0]}, {GPUS[1]}: the driver is not loaded"
    assert (said(drift), drift.blind) == ([out], True)
    drift.saw(view(), KEPT)
    assert (said(drift), drift.blind) == ([], False)
    assert told.messages == [f"drift: {out}", "no drift any more: the node"]
    # Where nothing is settled there is nothing to miss.
    drift.saw(View(), {}, "the driver is not loaded")
    assert not said(drift)


def test_why_it_is_left(told: pytest.LogCaptureFixture) -> None:
    drift = Drift(nobody)
    drift.begin()
    drift.saw(view(lost(GPUS[0]), GPUS[1]), KEPT)
    (plain,) = said(drift)
    for _ in range(2):
        drift.left({GPUS[0].uuid: "it is held", GPUS[1].uuid: "not asked"})
        drift.saw(view(lost(GPUS[0]), GPUS[1]), KEPT)
    assert said(drift) == [f"{plain}; it is left so: it is held"]
    assert told.messages[1:] == [f"{GPUS[0]} is not put right: it is held"]
    drift.saw(view(lost(lost(GPUS[0])), GPUS[1]), KEPT)
    assert "left so" not in said(drift)[0]  # it is another drift now
