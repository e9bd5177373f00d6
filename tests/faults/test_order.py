"""Each step is on disk before it is asked of the driver, there and back; and defects are noticed.

Each defect is one that would not show in a run that goes well: a copy of migd with it must fail
the checks that the other tests here rely on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migd.bus.connection import BusError
from tests.faults.mutant import mutant
from tests.faults.order import TRACE, check_order
from tests.faults.recovery import check_one_back, check_recovered, undisturbed
from tests.faults.scenes import THREE_H100, TWO_H100, Scene, Stage, staged
from tests.faults.syncs import Tracer, stops
from tests.support.daemon import Daemon

SYNC = ("host/files.py", "                os.fdatasync(descriptor)\n", "                pass\n")
WRITE_STEP = "            await self._write(Stepping(gpu.uuid, does))\n"
PERFORM = "        performed = await self._nvml.perform(gpu, step)\n"
BACK = "            await self._put_back(gpu)\n"


@contextmanager
def working(
    scene: Scene, folder: Path, address: str, package: Path | None = None
) -> Iterator[tuple[Stage, Daemon]]:
    with staged(scene, folder / "node") as stage:
        daemon = Daemon(stage.node, address, folder / "migd", config=scene.config, package=package)
        daemon.start()
        try:
            yield stage, daemon
        finally:
            if daemon.running:
                daemon.kill()


def traced_job(daemon: Daemon, *, ends: str) -> str:
    """The system calls of a daemon during one job."""
    tracer = Tracer(daemon, *TRACE)
    try:
        assert daemon.applied("goal")[0] == ends
    finally:
        trace = tracer.end()
    return trace


def test_order(tmp_path: Path, address: str) -> None:
    with working(TWO_H100, tmp_path, address) as (_, daemon):
        assert check_order(traced_job(daemon, ends="done")) == 8


def test_order_on_the_way_back(tmp_path: Path, address: str) -> None:
    with working(TWO_H100, tmp_path, address) as (stage, daemon):
        call = "nvmlDeviceCreateGpuInstanceWithPlacement"
        stage.node.fault(call, returns="UNKNOWN", nth=1, gpu=0)
        stage.node.fault(call, returns="UNKNOWN", nth=2, gpu=1)
        assert check_order(traced_job(daemon, ends="failed")) > 8


@pytest.mark.parametrize(
    "patches",
    [
        pytest.param([SYNC], id="no-sync-of-steps"),
        pytest.param(
            [("service/jobs.py", "await self._journal.begin(begun)", "pass")], id="no-start"
        ),
        pytest.param(
            [
                ("service/gpurun.py", WRITE_STEP, "            pass\n"),
                ("service/gpurun.py", PERFORM, PERFORM + WRITE_STEP[4:]),
            ],
            id="writes-after-acting",
        ),
    ],
)
def test_order_is_noticed(
    patches: list[tuple[str, str, str]], tmp_path: Path, address: str
) -> None:
    package = mutant(tmp_path, *patches)
    with working(TWO_H100, tmp_path, address, package) as (_, daemon):
        trace = traced_job(daemon, ends="done")
    with pytest.raises(AssertionError, match="before"):
        check_order(trace)


NO_WAY_BACK = ("service/gpurun.py", BACK, "            pass\n")
NO_RECOVERY = ("service/jobs.py", "left = unfinished(self._journal.read())", "left = None")


@pytest.mark.parametrize(
    "patches",
    [
        pytest.param([], id="none"),
        pytest.param([NO_WAY_BACK], id="no-way-back"),
        pytest.param([NO_RECOVERY], id="no-recovery"),
    ],
)
def test_recovery_is_noticed(
    patches: list[tuple[str, str, str]], tmp_path: Path, address: str
) -> None:
    package = mutant(tmp_path, *patches)
    goal, _ = undisturbed(TWO_H100)
    with working(TWO_H100, tmp_path, address, package) as (stage, daemon):
        with stops(daemon, lambda: daemon.applied("goal")) as (syncs, _):
            assert syncs.reach(7)
            daemon.kill()
        if not patches:
            check_recovered(stage, daemon, goal)
            return
        with pytest.raises((AssertionError, BusError)):
            check_recovered(stage, daemon, goal)


@pytest.mark.parametrize("patches", [[], [NO_WAY_BACK]], ids=["none", "no-way-back"])
def test_way_back_is_noticed(
    patches: list[tuple[str, str, str]], tmp_path: Path, address: str
) -> None:
    package = mutant(tmp_path, *patches)
    goal, _ = undisturbed(THREE_H100)
    with working(THREE_H100, tmp_path, address, package) as (stage, daemon):
        call = "nvmlDeviceCreateGpuInstanceWithPlacement"
        stage.node.fault(call, returns="UNKNOWN", nth=1, gpu=0)
        _, details = daemon.applied("goal")
        if not patches:
            check_one_back(stage, goal, 0, details)
            return
        with pytest.raises(AssertionError):
            check_one_back(stage, goal, 0, details)
