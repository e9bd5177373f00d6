"""What is seen right after an instance was destroyed: it lingers, or its GPU instance is in use."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.recovery import check_next_job, undisturbed
from tests.faults.scenes import TWO_H100, Stage, staged, truths
from tests.support.daemon import Daemon

VISIBLE = "destroyed-stay-visible"
BUSY = "gi-busy-after-ci-destroy"
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(TWO_H100, tmp_path / "node") as stage:
        yield stage


@pytest.fixture
def daemon(stage: Stage, tmp_path: Path, address: str) -> Iterator[Daemon]:
    with Daemon(stage.node, address, tmp_path / "migd", config=TWO_H100.config) as daemon:
        yield daemon


def check_back(stage: Stage, result: str, details: dict[str, Any]) -> dict[str, Any]:
    """GPU 0 is as before, nothing on it is only shown, and GPU 1 is done; the outcome of GPU 0."""
    assert result == "partial", details
    assert [o["result"] for o in details["gpus"]] == ["rolled-back", "done"], details
    assert truths(stage.node)[0] == stage.before[0]
    stage.check_holder()
    outcome: dict[str, Any] = details["gpus"][0]
    return outcome


@pytest.mark.parametrize(("surprise", "times"), [(VISIBLE, 1), (VISIBLE, 4), (BUSY, 1), (BUSY, 4)])
def test_for_a_moment(surprise: str, times: int, stage: Stage, daemon: Daemon) -> None:
    """go-nvml issue 146, DRA issue 907: looked for and tried again until it is over."""
    goal, _ = undisturbed(TWO_H100)
    stage.node.surprise(surprise, times)
    result, details = daemon.applied("goal")
    assert result == "done", details
    assert truths(stage.node) == goal
    assert not any(i["destroyed"] for gpu in stage.node.gpus() for i in gpu["instances"])
    stage.check_holder()


@pytest.mark.parametrize("surprise", [VISIBLE, BUSY])
def test_for_a_moment_on_the_way_back(surprise: str, stage: Stage, daemon: Daemon) -> None:
    """What still shows, and is gone a moment later, must not be taken for what was kept."""
    stage.node.surprise(surprise, 4)
    stage.node.fault(CREATE, returns="INSUFFICIENT_RESOURCES", nth=1, gpu=0)
    outcome = check_back(stage, *daemon.applied("goal"))
    assert outcome["code-name"] == "INSUFFICIENT_RESOURCES"
    check_next_job(stage, daemon, undisturbed(TWO_H100)[0], 1)


def test_visible_for_good(stage: Stage, daemon: Daemon) -> None:
    """Nobody can tell it from one that is there: it counts as not destroyed, and that is told."""
    stage.node.surprise(VISIBLE, gpu=0)
    result, details = daemon.applied("goal")
    assert result == "partial", details
    (outcome, other) = details["gpus"]
    assert (outcome["result"], other["result"]) == ("rolled-back", "done")
    assert (outcome["call"], outcome["code"], outcome["code-name"]) == (
        "nvmlComputeInstanceDestroy",
        0,
        "NO_EFFECT",
    )
    assert "still there" in outcome["message"]
    stage.check_holder()


def test_compute_instance_gone_and_its_gpu_instance_not(stage: Stage, daemon: Daemon) -> None:
    """The way back finds an empty GPU instance, and fills it."""
    stage.node.surprise(BUSY, gpu=0)
    outcome = check_back(stage, *daemon.applied("goal"))
    assert (outcome["call"], outcome["code-name"]) == ("nvmlGpuInstanceDestroy", "IN_USE")
    stage.node.surprise(BUSY, False)
    check_next_job(stage, daemon, undisturbed(TWO_H100)[0], 1)


@pytest.mark.parametrize(
    ("lost", "nth"),
    [
        ("nvmlComputeInstanceDestroy", 1),
        ("nvmlGpuInstanceDestroy", 1),
        ("nvmlGpuInstanceGetComputeInstanceById", 2),
    ],
)
def test_for_a_moment_and_nobody_knows(lost: str, nth: int, stage: Stage, daemon: Daemon) -> None:
    """The worker dies before it has seen that the instance is gone; the next one still sees it."""
    stage.node.surprise(VISIBLE, 3, gpu=0)
    stage.node.fault(lost, die_after=True, nth=nth, gpu=0)
    _, details = daemon.applied("goal")
    assert details["gpus"][0]["result"] == "rolled-back", details
    assert details["gpus"][0]["code-name"] == "WORKER_GONE"
    assert truths(stage.node)[0] == stage.before[0]
    assert not any(i["destroyed"] for i in stage.node.gpus()[0]["instances"])
    stage.check_holder()


def test_a_call_that_fails_once_on_the_way_back(stage: Stage, daemon: Daemon) -> None:
    """The GPU is not left in between for it: the way back is tried once more."""
    stage.node.fault("nvmlGpuInstanceCreateComputeInstance", returns="UNKNOWN", nth=1, gpu=0)
    stage.node.fault(CREATE, returns="UNKNOWN", nth=1, gpu=0)
    outcome = check_back(stage, *daemon.applied("goal"))
    assert outcome["call"] == "nvmlGpuInstanceCreateComputeInstance"
    results = [c.result for c in stage.node.log() if (c.name, c.gpu) == (CREATE, 0)]
    assert results.count("UNKNOWN") == 1
    check_next_job(stage, daemon, undisturbed(TWO_H100)[0], 1)
