"""Each step on a simulated GPU, read back; and the refusal to touch what is not what was meant."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from migd.core.model import Gpu, Mode, Placement
from migd.core.steps import (
    CreateCompute,
    CreateInstance,
    DestroyCompute,
    DestroyInstance,
    SetMode,
    Step,
)
from migd.errors import MigdError, NoDriver, Nvml
from migd.nvml.calls import CallFailed
from migd.nvml.protocol import Performed
from tests.nvml.conftest import MakeNode
from tests.nvml.support import A100, FILL, REPLACE, is_true, nvml
from tests.support.bus import run
from tests.support.node import MUTATING, Node

CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
ON = SetMode(Mode.ENABLED, reset=False)
OFF = SetMode(Mode.DISABLED, reset=False)
UUID = "GPU-00000000-0000-4000-8000-000000000000"


def performed(node: Node, lock: Path, steps: Sequence[Step], *, gpu: int = 0) -> list[Performed]:
    """Do the steps; after each a snapshot must be what is there."""

    async def main() -> list[Performed]:
        async with nvml(lock) as client:
            there = (await client.observe()).gpus[gpu]
            answers = []
            for step in steps:
                answers.append(await client.perform(there, step))
                is_true(await client.snapshot(there), node.gpus()[gpu])
            return answers

    return run(main())


def failed(lock: Path, step: Step, *, gpu: int = 0, other: str = "", retry_s: int = 1) -> MigdError:
    """Do a step that must fail; `other`: a UUID that the GPU does not have."""

    async def main() -> MigdError:
        async with nvml(lock, retry_s=retry_s) as client:
            there: Gpu = (await client.observe()).gpus[gpu]
            if other:
                there = replace(there, uuid=other)
            with pytest.raises(MigdError) as error:
                await client.perform(there, step)
            return error.value

    return run(main())


def test_the_mode_and_back(node: Node, lock: Path) -> None:
    on, off = performed(node, lock, [ON, OFF], gpu=1)
    assert (on.mode, on.pending, on.activation) == (Mode.ENABLED, Mode.ENABLED, 0)
    assert (off.mode, off.pending, off.activation) == (Mode.DISABLED, Mode.DISABLED, 0)
    assert node.gpus()[0]["mode"]["current"] == "disabled"
    assert node.calls()["nvmlDeviceSetMigMode"] == 2


def test_instances_at_their_placements(node: Node, lock: Path) -> None:
    steps: list[Step] = [
        ON,
        CreateInstance(5, Placement(0, 4), None),
        CreateInstance(15, Placement(6, 2), None),
        CreateInstance(19, Placement(5, 1), None),
    ]
    answers = performed(node, lock, steps)
    assert node.layout(0) == [(5, 0, [3]), (19, 5, [0]), (15, 6, [7])]
    ids = {i["placement"]["start"]: i["gi"] for i in node.gpus()[0]["instances"]}
    assert [a.gi for a in answers[1:]] == [ids[0], ids[6], ids[5]]
    performed(node, lock, [DestroyInstance(ids[6], 15, Placement(6, 2))])
    assert node.layout(0) == [(5, 0, [3]), (19, 5, [0])]
    performed(node, lock, [DestroyInstance(ids[0], 5, Placement(0, 4))])
    performed(node, lock, [DestroyInstance(ids[5], 19, Placement(5, 1)), OFF])
    assert node.gpus()[0]["mode"]["current"] == "disabled"


def test_compute_instances(node: Node, lock: Path) -> None:
    (_, made) = performed(node, lock, [ON, CreateInstance(9, Placement(4, 4), (0, 1))])
    assert made.gi is not None
    assert sorted(node.layout(0)[0][2]) == [0, 1]
    steps: list[Step] = [
        DestroyCompute(made.gi, 0),
        DestroyCompute(made.gi, 1),
        CreateCompute(made.gi, None),
    ]
    performed(node, lock, steps)
    assert node.layout(0) == [(9, 4, [2])]
    performed(node, lock, [DestroyCompute(made.gi, 0), CreateCompute(made.gi, (0, 0, 0))])
    assert node.layout(0) == [(9, 4, [0, 0, 0])]
    performed(node, lock, [DestroyInstance(made.gi, 9, Placement(4, 4))])
    assert node.layout(0) == []


def test_an_instance_without_compute(node: Node, lock: Path) -> None:
    performed(node, lock, [ON, CreateInstance(19, Placement(3, 1), ())])
    assert node.layout(0) == [(19, 3, [])]


def test_the_mode_of_a_board_that_needs_a_reset(make_node: MakeNode, lock: Path) -> None:
    node = make_node((A100, 1))
    (on,) = performed(node, lock, [SetMode(Mode.ENABLED, reset=True)])
    assert (on.mode, on.pending) == (Mode.ENABLED, Mode.ENABLED)
    performed(node, lock, [CreateInstance(19, Placement(0, 1), None)])
    (gi,) = (i["gi"] for i in node.gpus()[0]["instances"])
    steps: list[Step] = [
        DestroyInstance(gi, 19, Placement(0, 1)),
        SetMode(Mode.DISABLED, reset=True),
    ]
    performed(node, lock, steps)
    with node.hold(0, hidden=True):
        (on,) = performed(node, lock, [SetMode(Mode.ENABLED, reset=True)])
        assert (on.mode, on.pending, on.activation) == (Mode.DISABLED, Mode.ENABLED, 19)


def test_what_is_gone_already_is_destroyed(node: Node, lock: Path) -> None:
    performed(node, lock, [ON])
    calls = node.mutating_calls()
    performed(node, lock, [DestroyInstance(7, 19, Placement(0, 1))])
    assert node.mutating_calls() == calls


@pytest.mark.parametrize(
    "call",
    [CREATE, "nvmlGpuInstanceDestroy", "nvmlComputeInstanceDestroy"],
)
def test_in_use_for_a_moment(node: Node, lock: Path, call: str) -> None:
    performed(node, lock, [ON, CreateInstance(19, Placement(0, 1), None)])
    (gi,) = (i["gi"] for i in node.gpus()[0]["instances"])
    node.fault(call, returns="IN_USE", nth=1)
    performed(node, lock, [DestroyInstance(gi, 19, Placement(0, 1))])
    performed(node, lock, [CreateInstance(14, Placement(2, 2), None)])
    assert node.layout(0) == [(14, 2, [1])]
    results = [c.result for c in node.log() if c.name == call]
    assert results.count("IN_USE") == 1


@pytest.mark.parametrize(
    ("call", "creates"),
    [(CREATE, True), ("nvmlGpuInstanceDestroy", False), ("nvmlComputeInstanceDestroy", False)],
)
def test_in_use_for_ever(node: Node, lock: Path, call: str, *, creates: bool) -> None:
    performed(node, lock, [ON, CreateInstance(19, Placement(0, 1), None)])
    (gi,) = (i["gi"] for i in node.gpus()[0]["instances"])
    node.fault(call, returns="IN_USE")
    begun = time.monotonic()
    error = failed(
        lock,
        CreateInstance(14, Placement(2, 2), None)
        if creates
        else DestroyInstance(gi, 19, Placement(0, 1)),
    )
    assert 1 < time.monotonic() - begun < 5
    assert isinstance(error, Nvml)
    assert (error.call, error.code, error.name) == (call, 19, "IN_USE")
    for part in (call, "IN_USE", node.gpus()[0]["uuid"], "GPU 0"):
        assert part in str(error)


def test_a_subscriber_that_nobody_lists(node: Node, lock: Path) -> None:
    performed(node, lock, [ON, CreateInstance(19, Placement(0, 1), None)])
    (gi,) = (i["gi"] for i in node.gpus()[0]["instances"])
    with node.hold(0, gi, hidden=True):
        error = failed(lock, DestroyInstance(gi, 19, Placement(0, 1)), retry_s=0)
        assert isinstance(error, Nvml)
        assert error.name == "IN_USE"
        assert node.layout(0) == [(19, 0, [0])]
    performed(node, lock, [DestroyInstance(gi, 19, Placement(0, 1))])


@pytest.mark.parametrize(
    ("code", "number"),
    [("INSUFFICIENT_RESOURCES", 23), ("GPU_IS_LOST", 15), ("UNKNOWN", 999), ("NO_PERMISSION", 4)],
)
def test_other_codes_are_not_tried_again(node: Node, lock: Path, code: str, number: int) -> None:
    performed(node, lock, [ON])
    node.fault(CREATE, returns=code)
    error = failed(lock, CreateInstance(14, Placement(2, 2), None))
    assert isinstance(error, Nvml)
    assert (error.call, error.code, error.name) == (CREATE, number, code)
    assert node.calls()[CREATE] == 1


def test_a_code_that_has_no_name() -> None:
    """A driver may be newer than this migd's list of codes."""
    assert CallFailed("nvmlInit", 4711, "?").failure.code == 4711
    assert CallFailed("nvmlInit", 4711, "?").failure.name


def test_an_id_that_has_become_another_instance(node: Node, lock: Path) -> None:
    node.python(FILL, "19", "0")
    (old,) = node.gpus()[0]["instances"]
    start = old["placement"]["start"]
    planned = DestroyInstance(old["gi"], 19, Placement(start, 1))
    for profile, place in ((20, start), (19, (start + 3) % 7)):
        (there,) = node.gpus()[0]["instances"]
        node.python(REPLACE, "0", str(there["gi"]), str(profile), str(place), "1")
        (new,) = node.gpus()[0]["instances"]
        assert new["gi"] == old["gi"], "the simulator gave another id: no test"
        before, calls = node.gpus(), node.mutating_calls()
        error = failed(lock, planned)
        assert isinstance(error, Nvml)
        assert error.name == "STALE"
        assert f"GPU instance {old['gi']}" in str(error)
        assert (node.gpus(), node.mutating_calls()) == (before, calls)


@pytest.mark.parametrize(
    "step",
    [
        OFF,
        CreateInstance(19, Placement(6, 1), None),
        DestroyInstance(7, 19, Placement(0, 1)),
        DestroyCompute(7, 0),
        CreateCompute(7, None),
    ],
)
def test_another_gpu_at_the_index(node: Node, lock: Path, step: Step) -> None:
    node.python(FILL, "19", "0")
    before = node.gpus()
    error = failed(lock, step, other=UUID)
    assert isinstance(error, Nvml)
    assert error.name == "STALE"
    assert UUID in str(error)
    assert before[0]["uuid"] in str(error)
    assert node.gpus() == before


def test_a_look_at_a_gpu_that_is_gone(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock) as client:
            gpu = (await client.observe()).gpus[0]
            with pytest.raises(NoDriver, match="is gone"):
                await client.snapshot(replace(gpu, uuid=UUID))
            with pytest.raises(Nvml) as error:
                await client.snapshot(replace(gpu, index=9))
            assert error.value.call == "nvmlDeviceGetHandleByIndex"

    run(main())


def test_steps_for_one_gpu_go_in_order_and_gpus_side_by_side(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock) as client:
            gpus = (await client.observe()).gpus
            node.latency(CREATE, 100)
            for gpu in gpus:
                await client.perform(gpu, ON)
            await asyncio.gather(
                *(
                    client.perform(gpu, CreateInstance(19, Placement(start, 1), None))
                    for start in range(4)
                    for gpu in gpus
                )
            )

    run(main())
    made = [c for c in node.log() if c.name == CREATE]
    assert len(made) == 8
    for gpu in range(2):
        own = [c for c in made if c.gpu == gpu]
        assert all(a.ended <= b.begun for a, b in itertools.pairwise(own))
        assert [i["placement"]["start"] for i in node.gpus()[gpu]["instances"]] == [0, 1, 2, 3]
        # The ids are given in the order of creation.
        ids = [i["gi"] for i in node.gpus()[gpu]["instances"]]
        assert ids == sorted(ids)
    assert any(
        a.begun < b.ended and b.begun < a.ended
        for a in made
        for b in made
        if (a.gpu, b.gpu) == (0, 1)
    )


def test_a_create_that_made_the_instance_only(node: Node, lock: Path) -> None:
    """The GPU instance is there, its compute instance failed: the snapshot shows it."""
    performed(node, lock, [ON])
    node.fault("nvmlGpuInstanceCreateComputeInstance", returns="INSUFFICIENT_RESOURCES")
    error = failed(lock, CreateInstance(14, Placement(2, 2), None))
    assert isinstance(error, Nvml)
    assert error.call == "nvmlGpuInstanceCreateComputeInstance"
    node.clear_faults()
    assert node.layout(0) == [(14, 2, [])]

    async def main() -> None:
        async with nvml(lock) as client:
            is_true((await client.observe()).gpus[0], node.gpus()[0])

    run(main())


def test_calls_that_change_something_are_known_to_these_tests(node: Node, lock: Path) -> None:
    """The judge counts these: a step must not use another function that changes something."""
    performed(node, lock, [ON, CreateInstance(9, Placement(4, 4), (0, 0))])
    (gi,) = (i["gi"] for i in node.gpus()[0]["instances"])
    performed(node, lock, [DestroyInstance(gi, 9, Placement(4, 4)), OFF])
    changing = {
        name
        for name in node.calls()
        if any(word in name for word in ("Set", "Create", "Destroy", "Reset"))
    }
    assert changing <= set(MUTATING)
