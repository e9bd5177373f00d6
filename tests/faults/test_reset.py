"""A board whose MIG mode takes a reset: migd must be out of its own way, and tell who is not."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.recovery import undisturbed
from tests.faults.scenes import A100_ON, Stage, Truth, staged, truths
from tests.support.daemon import Daemon, options

OFF = Truth("disabled", "disabled", ())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(A100_ON, tmp_path / "node") as stage:
        yield stage


@pytest.fixture
def daemon(stage: Stage, tmp_path: Path, address: str) -> Iterator[Daemon]:
    with Daemon(stage.node, address, tmp_path / "migd", config=A100_ON.config) as daemon:
        yield daemon


def test_there_and_back(stage: Stage, daemon: Daemon) -> None:
    pid = daemon.pid
    assert daemon.applied("goal", max_impact="reset")[0] == "done"
    assert truths(stage.node) == undisturbed(A100_ON)[0]
    assert daemon.applied("all-disabled", max_impact="reset")[0] == "done"
    assert truths(stage.node) == [OFF]
    assert daemon.pid == pid
    assert daemon.running


def test_nobody_allowed_it(stage: Stage, daemon: Daemon) -> None:
    name, text = daemon.refused("Apply", "sa{sv}", "goal", {})
    assert name == "org.migd1.Error.ImpactExceeded"
    assert "max-impact=reset" in text
    refusal = daemon.refused("Apply", "sa{sv}", "goal", options({"max_impact": "instances"}))
    assert refusal[0] == "org.migd1.Error.ImpactExceeded"
    assert truths(stage.node) == [OFF]
    assert stage.node.mutating_calls() == 0
    assert daemon.plan("goal")[0]["impact"] == "reset"


@pytest.mark.parametrize("way", ["on", "off"])
def test_held_by_somebody_unseen(way: str, stage: Stage, daemon: Daemon) -> None:
    if way == "off":
        assert daemon.applied("all-enabled", max_impact="reset")[0] == "done"
    before = truths(stage.node)
    config = {"on": "goal", "off": "all-disabled"}[way]
    with stage.node.hold(0, hidden=True) as holder:
        result, details = daemon.applied(config, max_impact="reset")
        assert result == "failed", details
        (outcome,) = details["gpus"]
        assert outcome["result"] == "rolled-back"
        assert outcome["error"] == "org.migd1.Error.InUse"
        assert "held, reset needed" in outcome["message"]
        assert truths(stage.node) == before
        assert holder.alive()
    assert daemon.property("RebootOwed") == ""
    assert daemon.applied(config, max_impact="reset")[0] == "done"


def test_the_driver_does_not_reset_and_there_is_no_systemd(stage: Stage, daemon: Daemon) -> None:
    stage.node.surprise("no-own-reset")
    result, details = daemon.applied("goal", max_impact="reset", reset_peers=True)
    assert result == "failed", details
    (outcome,) = details["gpus"]
    assert outcome["result"] == "rolled-back"
    assert outcome["error"] == "org.migd1.Error.InUse"
    # Which of the two is missed first depends on whether this machine has nvidia-smi.
    why = "nvidia-smi could not be run to reset it: (systemd|there is no nvidia-smi)"
    assert re.search(why, outcome["message"])
    assert truths(stage.node) == [OFF]
    assert daemon.property("RebootOwed") == ""


def test_held_and_cannot_be_withdrawn(stage: Stage, daemon: Daemon) -> None:
    """The driver keeps the mode pending: the GPU is not as before, and that is told."""
    stage.node.surprise("pending-sticks")
    with stage.node.hold(0, hidden=True):
        result, details = daemon.applied("goal", max_impact="reset")
        assert result == "failed", details
        assert truths(stage.node) == [Truth("disabled", "enabled", ())]
        (outcome,) = details["gpus"]
        assert outcome["result"] == "failed"
        assert "MIG mode disabled, enabled pending, no instances" in outcome["left"]
        assert "enabled is pending" in daemon.property("RebootOwed")


@pytest.mark.parametrize("surprise", ["passthrough", "passthrough-asks-reset"])
def test_the_host_allows_no_reset(surprise: str, stage: Stage, daemon: Daemon) -> None:
    stage.node.surprise(surprise)
    result, details = daemon.applied("goal", max_impact="reset")
    assert result == "failed", details
    assert details["gpus"][0]["result"] == "rolled-back"
    assert details["gpus"][0]["error"] == "org.migd1.Error.ResetRequired"
    assert truths(stage.node) == [OFF]
