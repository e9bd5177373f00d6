"""What must hold once a daemon has been killed in the middle of a job and started again."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.faults.ear import Ear
from tests.faults.scenes import Scene, Stage, Truth, check_reached, staged, truths
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon
from tests.support.node import MUTATING, Call, Node, wait_for


@cache
def undisturbed(scene: Scene) -> tuple[list[Truth], list[Call]]:
    """What a job that nobody disturbs makes of the scene, and the calls that change something."""
    with (
        TemporaryDirectory() as folder,
        PrivateBus() as bus,
        staged(scene, Path(folder, "node")) as stage,
    ):
        count = len(stage.node.log())
        with Daemon(stage.node, bus.address, Path(folder, "migd"), config=scene.config) as daemon:
            result, details = daemon.applied("goal", **scene.options)
            assert result == "done", details
        stage.check_holder()
        goal = truths(stage.node)
        check_reached(scene, goal)
        return goal, [call for call in stage.node.log()[count:] if call.name in MUTATING]


def job_on_disk(daemon: Daemon) -> tuple[int, bool, str]:
    """The id of the job that ran, whether the journal tells of it, and how the state says it ended.

    "": the state does not. 0 for the id: nothing does, the job had not begun.
    """
    ended = {p["id"]: p["result"] for p in json.loads(daemon.state.read_text())["jobs"]}
    if not daemon.journal.exists():
        last = max(ended, default=0)
        return last, False, ended.get(last, "")
    kind, begun = json.loads(daemon.journal.read_bytes().splitlines()[0])
    assert kind == "begun"
    return begun["id"], True, ended.get(begun["id"], "")


def check_recovered(stage: Stage, daemon: Daemon, goal: Sequence[Truth]) -> None:
    """Start the daemon again: each GPU must get to where it was, or to the goal."""
    job, open_, ended = job_on_disk(daemon)
    with Ear(daemon.address) as ear, daemon:
        if job:
            result, details = daemon.wait(job)
            assert result == (ended or "interrupted"), details
            check_as_told(stage, goal, details["gpus"])
            if open_:
                removed = ear.removed(job)
                assert removed.pid == daemon.pid
                assert removed.body[3:] == [result, details]
        else:
            assert truths(stage.node) == stage.before
        wait_for(lambda: not daemon.journal.exists(), what="the journal stays")
        check_next_job(stage, daemon, goal, job)
        (jobs,) = daemon.call("ListJobs", "a{sv}", {})
        ids = [past["id"] for past in jobs]
        assert len(ids) == len(set(ids)), jobs


def check_as_told(
    stage: Stage, goal: Sequence[Truth], outcomes: Sequence[dict[str, object]]
) -> None:
    """Each GPU is at the goal or as before, and that is what was told."""
    for outcome, before, wanted, found in zip(
        outcomes, stage.before, goal, truths(stage.node), strict=True
    ):
        expected = {"done": wanted, "rolled-back": before}
        assert outcome["result"] in expected, json.dumps(outcome)
        assert found == expected[str(outcome["result"])], outcome
    stage.check_holder()


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


def positions(calls: Sequence[Call]) -> list[tuple[Call, int]]:
    """Each call with its number among those of the same function on the same GPU."""
    return [
        (call, sum((c.name, c.gpu) == (call.name, call.gpu) for c in calls[: n + 1]))
        for n, call in enumerate(calls)
    ]


def check_next_job(stage: Stage, daemon: Daemon, goal: Sequence[Truth], job: int) -> None:
    """The next job has a new id, and reaches the goal."""
    number, _ = daemon.apply("goal", **stage.scene.options)
    assert number > job
    result, details = daemon.wait(number)
    assert result == "done", details
    assert truths(stage.node) == goal
    stage.check_holder()


def wait_until_quiet(node: Node) -> None:
    """Until what a worker was at when its daemon was stopped is done: no call in 25 looks."""
    last, same = -1, 0

    def quiet() -> bool:
        nonlocal last, same
        calls = sum(node.calls().values())
        last, same = calls, same + 1 if calls == last else 0
        return same == 25

    wait_for(quiet, what="the worker goes on")
