"""One NVML call fails or lies, once or for good: its GPU goes back, the others do not notice."""

from pathlib import Path
from typing import Any

import pytest

from migd.simulator.node import RETURN_CODES
from tests.faults.recovery import check_next_job, positions, undisturbed
from tests.faults.scenes import A100_OFF, A100_ON, THREE_H100, Stage, Truth, staged, truths
from tests.support.daemon import Daemon

ONCE = ["IN_USE", "INSUFFICIENT_RESOURCES", "UNKNOWN", "NO_PERMISSION", "GPU_IS_LOST", "no-effect"]
FOR_GOOD = ["INSUFFICIENT_RESOURCES", "GPU_IS_LOST", "no-effect"]
# Tried again while they say IN_USE, so that one such answer does no harm.
PATIENT = {
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceDestroy",
    "nvmlComputeInstanceDestroy",
}


def fault(stage: Stage, call: str, kind: str, gpu: int | None, nth: int) -> None:
    if kind == "no-effect":
        stage.node.fault(call, nth=nth, no_effect=True, gpu=gpu)
    else:
        stage.node.fault(call, nth=nth, returns=kind, gpu=gpu)


def check_one_back(
    stage: Stage, goal: list[Truth], victim: int | None, details: dict[str, Any]
) -> dict[str, Any]:
    """The GPU with the fault is as before, all others are at the goal; its outcome."""
    assert victim is not None
    results = ["rolled-back" if n == victim else "done" for n in range(len(goal))]
    assert [outcome["result"] for outcome in details["gpus"]] == results, details
    expected = [*goal[:victim], stage.before[victim], *goal[victim + 1 :]]
    assert truths(stage.node) == expected, details
    stage.check_holder()
    outcome: dict[str, Any] = details["gpus"][victim]
    return outcome


@pytest.mark.parametrize("kind", ONCE)
@pytest.mark.parametrize("victim", [0, 1])
def test_once(kind: str, victim: int, tmp_path: Path, address: str) -> None:
    goal, calls = undisturbed(THREE_H100)
    own = [call for call in calls if call.gpu == victim]
    for number, (call, nth) in enumerate(positions(own)):
        folder = tmp_path / str(number)
        with (
            staged(THREE_H100, folder / "node") as stage,
            Daemon(stage.node, address, folder / "migd", config=THREE_H100.config) as daemon,
        ):
            fault(stage, call.name, kind, victim, nth)
            result, details = daemon.applied("goal")
            if kind == "IN_USE" and call.name in PATIENT:
                assert result == "done", details
                assert truths(stage.node) == goal
                continue
            assert result == "partial", details
            outcome = check_one_back(stage, goal, victim, details)
            assert outcome["error"].startswith("org.migd1.Error.")
            if kind != "no-effect":
                told = (outcome["call"], outcome["code"], outcome["code-name"])
                assert told == (call.name, RETURN_CODES[kind], kind)
            assert "left" not in outcome
            assert not daemon.journal.exists()
            stage.node.clear_faults()
            check_next_job(stage, daemon, goal, 1)


SCENES = {"three-h100": THREE_H100, "a100-on": A100_ON, "a100-off": A100_OFF}


@pytest.mark.parametrize("kind", FOR_GOOD)
@pytest.mark.parametrize(
    ("name", "victim"), [("three-h100", 0), ("three-h100", 1), ("a100-on", 0), ("a100-off", 0)]
)
def test_for_good(kind: str, name: str, victim: int, tmp_path: Path, address: str) -> None:
    """The way back needs calls that fail, too: what is left there is told as it is."""
    scene = SCENES[name]
    goal, calls = undisturbed(scene)
    names = sorted({call.name for call in calls if call.gpu == victim})
    endings = set()
    for call in names:
        folder = tmp_path / call
        with (
            staged(scene, folder / "node") as stage,
            Daemon(stage.node, address, folder / "migd", config=scene.config) as daemon,
        ):
            fault(stage, call, kind, victim, 0)
            result, details = daemon.applied("goal", **scene.options)
            check_told(stage, goal, victim, result, details)
            endings.add(details["gpus"][victim]["result"])
            assert daemon.running
            stage.node.clear_faults()
            check_next_job(stage, daemon, goal, 1)
    if (name, victim) == ("three-h100", 0):
        assert endings == {"rolled-back", "failed"}


def check_told(
    stage: Stage, goal: list[Truth], victim: int, result: str, details: dict[str, Any]
) -> None:
    """The victim is as before, or what it has instead is told; the others are at the goal."""
    outcome = details["gpus"][victim]
    assert result == ("partial" if len(goal) > 1 else "failed"), details
    if outcome["result"] == "rolled-back":
        check_one_back(stage, goal, victim, details)
        return
    found = truths(stage.node)
    assert found[:victim] + found[victim + 1 :] == goal[:victim] + goal[victim + 1 :]
    stage.check_holder()
    assert outcome["result"] == "failed"
    assert found[victim] != stage.before[victim], outcome
    there = stage.node.gpus()[victim]["instances"]
    has = sorted(
        f"{i['profile']} at {i['placement']['start']}:{i['placement']['size']}" for i in there
    )
    told = outcome["left"].removeprefix("not as before: ").partition(": ")[0]
    assert told.startswith(f"MIG mode {found[victim].mode}, "), outcome["left"]
    for instance in has:
        assert instance in outcome["left"]
    assert ("no instances" in outcome["left"]) == (not there)
