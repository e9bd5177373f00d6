"""The daemon is killed at each point where it has just written something down, and in each call."""

import os
import signal
from pathlib import Path

import pytest

from migd import names
from migd.bus.connection import BusError
from tests.faults.recovery import (
    check_as_told,
    check_next_job,
    check_recovered,
    job_on_disk,
    positions,
    undisturbed,
    wait_until_quiet,
)
from tests.faults.scenes import A100_OFF, A100_ON, TWO_H100, Scene, staged, truths
from tests.faults.syncs import starting_stops, stops
from tests.support.daemon import Daemon
from tests.support.node import Node, wait_for

SCENES = {"two-h100": TWO_H100, "a100-on": A100_ON, "a100-off": A100_OFF}
# Of the syncs of an undisturbed job: the first record with its folder, one for each step but those
# of two GPUs that go together, one for each end, the state with its folder, the journal's end.
LEAST = {"two-h100": 9, "a100-on": 8, "a100-off": 8}
SHARES = 3


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("name", SCENES)
def test_at_each_sync(name: str, share: int, tmp_path: Path, address: str) -> None:
    scene = SCENES[name]
    number = share + 1
    while _killed_at(scene, number, tmp_path / str(number), address):
        number += SHARES
    assert number > LEAST[name]


def _killed_at(scene: Scene, number: int, folder: Path, address: str) -> bool:
    """False when the job was over before it came to that sync."""
    goal, _ = undisturbed(scene)
    with staged(scene, folder / "node") as stage:
        daemon = Daemon(stage.node, address, folder / "migd", config=scene.config).start()
        with stops(daemon, lambda: daemon.applied("goal", **scene.options)) as (syncs, work):
            reached = syncs.reach(number)
            if reached:
                daemon.kill()
                assert isinstance(work.exception(), BusError)
        if reached:
            check_recovered(stage, daemon, goal)
        else:
            assert work.result()[0] == "done"
            assert daemon.stop() == 0
    return reached


@pytest.mark.parametrize("name", SCENES)
def test_in_each_call(name: str, tmp_path: Path, address: str) -> None:
    """The call is under way and has had no effect; the worker dies with the daemon."""
    scene = SCENES[name]
    goal, calls = undisturbed(scene)
    for number, (call, nth) in enumerate(positions(calls)):
        folder = tmp_path / str(number)
        with staged(scene, folder / "node") as stage:
            stage.node.fault(call.name, nth=nth, hang=True, gpu=call.gpu)
            daemon = Daemon(stage.node, address, folder / "migd", config=scene.config).start()
            daemon.apply("goal", **scene.options)
            wait_for(lambda: _has_met_its_fault(stage.node), what=f"{call} does not come")
            daemon.kill()
            stage.node.clear_faults()
            check_recovered(stage, daemon, goal)


def _has_met_its_fault(node: Node) -> bool:
    (fault,) = node.show()["faults"]
    return bool(fault["seen"] >= fault["nth"])


def test_while_recovering(tmp_path: Path, address: str) -> None:
    """Killed in the middle of a job, and once more at each sync of the daemon that takes over."""
    number = 1
    while _killed_twice(number, tmp_path / str(number), address):
        number += 1
    assert number > 8


def _killed_twice(number: int, folder: Path, address: str) -> bool:
    scene = TWO_H100
    goal, _ = undisturbed(scene)
    with staged(scene, folder / "node") as stage:
        daemon = Daemon(stage.node, address, folder / "migd", config=scene.config).start()
        with stops(daemon, lambda: daemon.applied("goal")) as (syncs, _):
            assert syncs.reach(6)
            daemon.kill()
        job = job_on_disk(daemon)[0]
        with starting_stops(daemon, lambda: daemon.wait(job)) as syncs:
            reached = syncs.reach(number)
            daemon.kill()
        check_recovered(stage, daemon, goal)
    return reached


def test_its_worker_lingers(tmp_path: Path, address: str) -> None:
    """The worker of the daemon that died is in a call yet when the next daemon starts."""
    scene = TWO_H100
    goal, _ = undisturbed(scene)
    with staged(scene, tmp_path / "node") as stage:
        daemon = Daemon(stage.node, address, tmp_path / "migd", config=scene.config).start()
        with stops(daemon, lambda: daemon.applied("goal")) as (syncs, _):
            assert syncs.reach(6)
            (worker,) = daemon.worker_pids()
            wait_until_quiet(stage.node)
            os.kill(worker, signal.SIGSTOP)
            daemon.kill()
        between = truths(stage.node)
        assert between not in (stage.before, goal)
        count = stage.node.mutating_calls()
        job = job_on_disk(daemon)[0]
        with daemon:
            path = names.job_path(job)
            assert daemon.property("Phase", path=path, interface=names.JOB) == "journal"
            assert daemon.refused("Apply", "sa{sv}", "goal", {})[0] == "org.migd1.Error.Busy"
            assert (truths(stage.node), stage.node.mutating_calls()) == (between, count)
            os.kill(worker, signal.SIGCONT)
            result, details = daemon.wait(job)
            assert result == "interrupted"
            check_as_told(stage, goal, details["gpus"])
            check_next_job(stage, daemon, goal, job)
