"""Between jobs nothing of the driver is in use: it can be unloaded, exchanged, and loaded again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from migd.simulator.errors import SimulatorError
from tests.faults.scenes import TWO_H100, Stage, staged, truths
from tests.support.daemon import Daemon
from tests.support.node import wait_for


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    scene = TWO_H100
    with staged(scene, tmp_path / "node") as stage:
        assert stage.holder
        stage.holder.end()
        yield stage


@pytest.fixture
def daemon(stage: Stage, tmp_path: Path, address: str) -> Iterator[Daemon]:
    with Daemon(stage.node, address, tmp_path / "migd", config=TWO_H100.config) as daemon:
        yield daemon


def unloads(stage: Stage) -> bool:
    try:
        stage.node.unload()
    except SimulatorError:
        return False
    return True


def maps_nvml(pid: int) -> bool:
    return "libnvidia-ml" in Path(f"/proc/{pid}/maps").read_text()


def test_driver_is_exchanged(stage: Stage, daemon: Daemon) -> None:
    assert not maps_nvml(daemon.pid)
    (worker,) = daemon.worker_pids()
    assert maps_nvml(worker)
    version = daemon.property("Driver")
    wait_for(lambda: unloads(stage), what="the driver is in use for ever")
    assert not daemon.worker_pids()
    assert not maps_nvml(daemon.pid)
    assert daemon.running
    assert daemon.refused("Plan", "sa{sv}", "all-enabled", {})[0] == "org.migd1.Error.NoDriver"
    assert daemon.property("Driver") == ""

    stage.node.load("575.57.08")
    wait_for(lambda: not daemon.worker_pids(), what="a worker stays that had no driver")
    daemon.plan("goal")
    assert daemon.property("Driver") == "575.57.08" != version
    (new,) = daemon.worker_pids()
    assert new != worker
    assert daemon.applied("goal")[0] == "done"


def test_library_is_newer_than_the_module(stage: Stage, daemon: Daemon) -> None:
    """A package was upgraded, and the module not reloaded."""
    wait_for(lambda: not daemon.worker_pids())
    before = truths(stage.node)
    stage.node.upgrade("575.57.08")
    name, text = daemon.refused("Apply", "sa{sv}", "goal", {})
    assert name == "org.migd1.Error.NoDriver"
    assert "reload the driver" in text
    assert truths(stage.node) == before
    wait_for(lambda: unloads(stage))
    stage.node.load()
    assert daemon.applied("goal")[0] == "done"
