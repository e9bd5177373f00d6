"""A call that does not come back: its GPU waits, the others do not. In-process: short limits."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from migd.core.model import Gpu, Placement
from migd.core.steps import CreateInstance
from migd.errors import Hung
from migd.nvml.client import Limits, NvmlClient
from migd.nvml.process import WorkerProcess
from migd.nvml.protocol import Performed
from tests.faults.scenes import H100, build, truths
from tests.support.bus import children, run
from tests.support.node import Node

CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
SLICE = CreateInstance(19, Placement(0, 1), None)
NEXT_SLICE = CreateInstance(19, Placement(1, 1), None)
LIMITS = Limits(open_s=10, snapshot_s=10, perform_s=1, idle_s=0.1)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node.new(tmp_path / "node", (H100, 3))
    build(node, {0: [], 1: [], 2: []})
    monkeypatch.setenv("LD_LIBRARY_PATH", node.environment()["LD_LIBRARY_PATH"])
    return node


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def refuses(client: NvmlClient, gpu: Gpu) -> bool:
    try:
        await client.snapshot(gpu)
    except Hung:
        return True
    return False


async def works_again(client: NvmlClient, gpu: Gpu) -> None:
    async with asyncio.timeout(10):
        while await refuses(client, gpu):
            await asyncio.sleep(0.01)
    assert not (await client.observe()).troubled


def calls_of(node: Node, gpu: int) -> int:
    return sum(call.gpu == gpu for call in node.log())


def test_one_gpu(node: Node, tmp_path: Path) -> None:
    async def main() -> None:
        client = NvmlClient(tmp_path / "lock", LIMITS)
        gpus = (await client.observe()).gpus
        node.fault(CREATE, hang=True, gpu=1)
        results = await asyncio.gather(
            *(client.perform(gpu, SLICE) for gpu in gpus), return_exceptions=True
        )
        assert [type(result) for result in results] == [Performed, Hung, Performed]
        node.clear_faults()
        await works_again(client, gpus[1])
        await client.perform(gpus[1], SLICE)
        assert [len(truth.instances) for truth in truths(node)] == [1, 1, 1]
        await client.close()

    before = children()
    run(main(), timeout_s=30)
    assert children() <= before


def test_a_worker_that_cannot_be_killed(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process in an uninterruptible sleep: its GPU stays hung as long as it is there."""
    monkeypatch.setattr(WorkerProcess, "kill", lambda _: None)
    before = children()

    def workers() -> set[str]:
        return children() - before

    async def main() -> None:
        client = NvmlClient(tmp_path / "lock", LIMITS)
        gpus = (await client.observe()).gpus
        node.fault(CREATE, hang=True, gpu=1)
        with pytest.raises(Hung):
            await client.perform(gpus[1], SLICE)
        (stuck,) = workers()
        count = calls_of(node, 1)
        begun = time.monotonic()
        for _ in range(3):
            # The others go on, in one more worker; the one that hangs is asked nothing.
            observed = await client.observe()
            assert set(observed.troubled) == {gpus[1].uuid}
            assert [gpu.uuid for gpu in observed.gpus] == [gpu.uuid for gpu in gpus]
            with pytest.raises(Hung):
                await client.perform(gpus[1], SLICE)
            assert len(workers()) <= 2
            await until(lambda: workers() == {stuck})
        await client.perform(gpus[0], SLICE)
        assert calls_of(node, 1) == count
        assert time.monotonic() - begun < 10

        node.clear_faults()
        os.kill(int(stuck), signal.SIGKILL)
        await works_again(client, gpus[1])
        await client.perform(gpus[1], SLICE)
        assert [len(truth.instances) for truth in truths(node)] == [1, 1, 0]
        await client.close()

    run(main(), timeout_s=40)
    assert not workers()


def test_several(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more workers than GPUs that hang, and one."""
    monkeypatch.setattr(WorkerProcess, "kill", lambda _: None)
    before = children()

    async def main() -> None:
        client = NvmlClient(tmp_path / "lock", LIMITS)
        gpus = (await client.observe()).gpus
        for gpu in gpus[:2]:
            node.fault(CREATE, hang=True, gpu=gpu.index)
        for step in (SLICE, NEXT_SLICE):
            results = await asyncio.gather(
                *(client.perform(gpu, step) for gpu in gpus), return_exceptions=True
            )
            assert isinstance(results[2], Performed)
            assert all(isinstance(result, Hung) for result in results[:2])
            assert len(children() - before) <= 3
        node.clear_faults()
        await until(lambda: len(children() - before) <= 2)
        for pid in children() - before:
            os.kill(int(pid), signal.SIGKILL)
        for gpu in gpus[:2]:
            await works_again(client, gpu)
        await client.close()

    run(main(), timeout_s=40)
    assert children() <= before
    assert [len(truth.instances) for truth in truths(node)] == [0, 0, 2]
