"""The worker dies: between calls, in a call that had no effect yet, after one that had."""

import os
import signal
from pathlib import Path

import pytest

from tests.faults.recovery import check_as_told, check_next_job, positions, undisturbed
from tests.faults.scenes import A100_OFF, A100_ON, TWO_H100, Scene, Stage, staged
from tests.faults.syncs import stops
from tests.support.daemon import Daemon

SCENES = {"two-h100": TWO_H100, "a100-on": A100_ON, "a100-off": A100_OFF}


def check_survived(stage: Stage, daemon: Daemon, answer: tuple[str, dict[str, object]]) -> None:
    """The daemon goes on, tells the truth, and can do it again."""
    goal, _ = undisturbed(stage.scene)
    result, details = answer
    outcomes = details["gpus"]
    assert isinstance(outcomes, list)
    check_as_told(stage, goal, outcomes)
    done = {outcome["result"] == "done" for outcome in outcomes}
    assert result == {(True,): "done", (False,): "failed"}.get(tuple(done), "partial")
    assert daemon.running
    assert not daemon.journal.exists()
    check_next_job(stage, daemon, goal, 1)


@pytest.mark.parametrize("name", ["two-h100", "a100-off"])
def test_at_each_sync(name: str, tmp_path: Path, address: str) -> None:
    number = 1
    while _killed_at(SCENES[name], number, tmp_path / str(number), address):
        number += 1
    assert number > 8


def _killed_at(scene: Scene, number: int, folder: Path, address: str) -> bool:
    with (
        staged(scene, folder / "node") as stage,
        Daemon(stage.node, address, folder / "migd", config=scene.config) as daemon,
    ):
        with stops(daemon, lambda: daemon.applied("goal", **scene.options)) as (syncs, work):
            reached = syncs.reach(number)
            if reached:
                (worker,) = daemon.worker_pids()
                os.kill(worker, signal.SIGKILL)
        check_survived(stage, daemon, work.result())
    return reached


@pytest.mark.parametrize("after", [False, True], ids=["before-it-acts", "after-it-acted"])
@pytest.mark.parametrize("name", SCENES)
def test_in_each_call(name: str, after: bool, tmp_path: Path, address: str) -> None:
    scene = SCENES[name]
    for number, (call, nth) in enumerate(positions(undisturbed(scene)[1])):
        folder = tmp_path / str(number)
        with (
            staged(scene, folder / "node") as stage,
            Daemon(stage.node, address, folder / "migd", config=scene.config) as daemon,
        ):
            stage.node.fault(call.name, nth=nth, die=not after, die_after=after, gpu=call.gpu)
            answer = daemon.applied("goal", **scene.options)
            assert answer[0] != "done"
            stage.node.clear_faults()
            check_survived(stage, daemon, answer)
