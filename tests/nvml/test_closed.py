"""NVML closed for the time of a reset: no session of ours, requests wait, and nothing for ever."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from migd.core.model import Mode
from migd.core.steps import SetMode
from migd.errors import Hung
from migd.nvml import client as client_module
from migd.nvml.gate import Gate
from migd.nvml.process import WorkerProcess
from tests.nvml.conftest import MakeNode
from tests.nvml.support import A100, nvml
from tests.support.bus import run
from tests.support.node import Node

SET_MODE = "nvmlDeviceSetMigMode"
ON = SetMode(Mode.ENABLED, reset=False)


def sessions(node: Node) -> list[int]:
    found: list[int] = node.show()["sessions"]
    return found


async def until(condition: object, limit_s: float = 20) -> None:
    assert callable(condition)
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


def test_no_session_and_requests_wait(make_node: MakeNode, lock: Path) -> None:
    node = make_node((A100, 2))

    async def main() -> None:
        async with nvml(lock) as client:
            gpus = (await client.observe()).gpus
            assert len(sessions(node)) == 1
            async with client.closed() as look:
                assert sessions(node) == []
                waiting = [
                    asyncio.create_task(client.observe()),
                    asyncio.create_task(client.snapshot(gpus[1])),
                ]
                node.reset(0)
                assert (await look()).gpus == gpus
                assert sessions(node) == []
                node.reset(1)
                assert not any(task.done() for task in waiting)
            await asyncio.gather(*waiting)
            assert len(sessions(node)) == 1

    run(main(), timeout_s=30)


def test_what_is_under_way_ends_first(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock) as client:
            gpu, other = (await client.observe()).gpus
            node.latency(SET_MODE, 300)
            work = asyncio.create_task(client.perform(gpu, ON))
            await until(lambda: node.calls().get(SET_MODE))
            async with client.closed():
                assert (await work).mode is Mode.ENABLED
                assert sessions(node) == []
                late = asyncio.create_task(client.perform(other, ON))
                await asyncio.sleep(0)
                assert node.calls()[SET_MODE] == 1
            assert (await late).mode is Mode.ENABLED

    run(main(), timeout_s=30)


def test_a_call_that_hangs_does_not_hold_it_up(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock, perform_s=0.5) as client:
            gpu = (await client.observe()).gpus[0]
            node.fault(SET_MODE, hang=True)
            work = asyncio.create_task(client.perform(gpu, ON))
            await until(lambda: node.calls().get(SET_MODE))
            async with client.closed():
                assert sessions(node) == []
            with pytest.raises(Hung):
                await work

    run(main(), timeout_s=30)


def test_a_worker_that_cannot_be_ended(
    node: Node, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_LET_GO_LIMIT_S", 0.2)

    async def main() -> None:
        async with nvml(lock) as client:
            await client.observe()
            (pid,) = sessions(node)
            # As one in a call that nothing interrupts: it neither ends nor dies.
            os.kill(pid, signal.SIGSTOP)
            with monkeypatch.context() as patched:
                patched.setattr(WorkerProcess, "kill", lambda self: None)
                with pytest.raises(Hung, match=f"worker {pid} hangs"):
                    async with client.closed():
                        pytest.fail("closed with a session")
                assert sessions(node) == [pid]
            # Others go on, in a new worker.
            assert len((await client.observe()).gpus) == 2
            os.kill(pid, signal.SIGKILL)
            await until(lambda: pid not in sessions(node))
            async with client.closed():
                assert sessions(node) == []

    run(main(), timeout_s=40)


def test_the_gate_takes_turns() -> None:
    async def main() -> None:
        gate = Gate()
        told = []

        async def close(name: str) -> None:
            async with gate.closed(5):
                told.append(f"{name} in")
                await asyncio.sleep(0)
                told.append(f"{name} out")

        async with gate.inside():
            closing = [asyncio.create_task(close("a")), asyncio.create_task(close("b"))]
            await asyncio.sleep(0)
            assert told == []
        await asyncio.gather(*closing)
        assert told == ["a in", "a out", "b in", "b out"]

    run(main(), timeout_s=10)


def test_the_gate_opens_again_when_somebody_stays_inside() -> None:
    async def main() -> None:
        gate = Gate()
        async with gate.inside():
            with pytest.raises(TimeoutError):
                async with gate.closed(0.01):
                    pytest.fail("closed with somebody inside")
            async with gate.inside():
                pass

    run(main(), timeout_s=10)
