"""The worker as a process: its end, its death, its nonsense, its hanging; and the lock."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from migd.core.model import Mode, Placement
from migd.core.steps import CreateInstance, SetMode
from migd.errors import Hung, NoDriver, Nvml
from migd.nvml.client import NvmlClient
from migd.simulator.errors import SimulatorError
from tests.nvml.support import children, is_true, nvml
from tests.support.bus import run
from tests.support.node import Node, wait_for

CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
ON = SetMode(Mode.ENABLED, reset=False)


async def until(condition: object, limit_s: float = 20) -> None:
    assert callable(condition)
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


def sessions(node: Node) -> list[int]:
    """Processes that have NVML open."""
    found: list[int] = node.show()["sessions"]
    return found


def status(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


# -- its life ----------------------------------------------------------------------------------


def test_there_is_none_before_it_is_needed(node: Node, lock: Path) -> None:
    before = children()

    async def main() -> None:
        async with nvml(lock):
            assert children() == before
            assert not lock.exists()

    run(main())
    assert sessions(node) == []


def test_it_ends_when_idle_and_comes_again(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock, idle_s=0.1) as client:
            pids = []
            for _ in range(2):
                first, second = await asyncio.gather(client.observe(), client.observe())
                assert first == second
                (pid,) = sessions(node)
                pids.append(pid)
                await until(lambda: sessions(node) == [])
            assert pids[0] != pids[1]

    run(main())


def test_one_worker_serves_what_comes_soon(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock, idle_s=30) as client:
            await client.observe()
            (pid,) = sessions(node)
            gpu = (await client.observe()).gpus[0]
            await client.perform(gpu, ON)
            assert sessions(node) == [pid]
            assert node.calls()["nvmlInitWithFlags"] == 1

    run(main())


def test_the_session_ends_before_an_unload(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock) as client:
            await client.observe()
            with pytest.raises(SimulatorError, match="in use by"):
                node.unload()
            await client.end_session()
            assert sessions(node) == []
            node.unload()
            with pytest.raises(NoDriver, match="not loaded"):
                await client.observe()
            node.load()
            assert len((await client.observe()).gpus) == 2

    run(main())


def test_this_process_never_maps_the_library(node: Node, lock: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\n"
        "from migd.nvml.client import NvmlClient\n"
        "async def main():\n"
        "    client = NvmlClient(pathlib.Path(sys.argv[1]))\n"
        "    print(len((await client.observe()).gpus))\n"
        "    await client.close()\n"
        "asyncio.run(main())\n"
        "assert 'libnvidia-ml' not in pathlib.Path('/proc/self/maps').read_text()\n"
        "assert 'pynvml' not in sys.modules\n"
    )
    assert node.python(script, str(lock)).strip() == "2"


def test_its_environment_is_clean(node: Node, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("SECRET", "7")

    async def main() -> None:
        async with nvml(lock) as client:
            await client.observe()
            (pid,) = sessions(node)
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert {e.split(b"=")[0] for e in environment if e} == {b"LD_LIBRARY_PATH"}
            assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
            # Nothing of the daemon but the socket, the lock, and the error output.
            opened = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
            assert str(lock) in opened
            assert len([o for o in opened if o.startswith("socket:")]) <= 2

    run(main())


def test_it_gives_up_what_only_the_daemon_needs(node: Node, lock: Path) -> None:
    """And yet it changes MIG for a driver that goes by capabilities."""
    of_the_daemon = 1 << 2 | 1 << 5 | 1 << 19  # CAP_DAC_READ_SEARCH, CAP_KILL, CAP_SYS_PTRACE
    if os.geteuid() == 0:
        node.surprise("sys-admin-needed")

    async def main() -> None:
        async with nvml(lock) as client:
            gpu = (await client.observe()).gpus[0]
            await client.perform(gpu, ON)
            (pid,) = sessions(node)
            for thread in Path(f"/proc/{pid}/task").iterdir():
                told = status(thread)
                ours = status(Path("/proc/self"))
                for name in ("CapPrm", "CapEff", "CapInh"):
                    assert int(told[name], 16) == int(ours[name], 16) & ~of_the_daemon
                assert told["Umask"] == "0022"

    before = os.umask(0o077)
    try:
        run(main())
    finally:
        os.umask(before)


# -- its death ---------------------------------------------------------------------------------


def test_killed_while_idle(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock) as client:
            await client.observe()
            (pid,) = sessions(node)
            os.kill(pid, signal.SIGKILL)
            # Whoever asks in the very moment may be told; the next one is not.
            try:
                seen = await client.observe()
            except Nvml:
                seen = await client.observe()
            assert len(seen.gpus) == 2
            assert pid not in sessions(node)

    run(main())


def test_killed_in_a_call(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock) as client:
            gpu = (await client.observe()).gpus[0]
            await client.perform(gpu, ON)
            (pid,) = sessions(node)
            node.fault(CREATE, hang=True)
            step = asyncio.create_task(
                client.perform(gpu, CreateInstance(19, Placement(0, 1), None))
            )
            other = asyncio.create_task(client.perform(gpu, ON))
            await until(lambda: node.calls().get(CREATE) or _in_call(node))
            os.kill(pid, signal.SIGKILL)
            for task in (step, other):
                with pytest.raises(Nvml, match=f"pid {pid}") as error:
                    await task
                assert error.value.name == "WORKER_GONE"
            node.clear_faults()
            is_true((await client.observe()).gpus[0], node.gpus()[0])

    run(main())


def _in_call(node: Node) -> bool:
    """A hanging call is not counted yet: the worker has read the GPU's UUID for it."""
    return sum(c.name == "nvmlDeviceGetUUID" for c in node.log()) >= 4


@pytest.mark.parametrize("after", [False, True])
def test_dies_within_a_call(node: Node, lock: Path, *, after: bool) -> None:
    """The call may have had its effect, or not: only a look tells."""

    async def main() -> None:
        async with nvml(lock) as client:
            gpu = (await client.observe()).gpus[0]
            await client.perform(gpu, ON)
            node.fault(CREATE, die=not after, die_after=after)
            with pytest.raises(Nvml) as error:
                await client.perform(gpu, CreateInstance(19, Placement(0, 1), None))
            assert error.value.name == "WORKER_GONE"
            node.clear_faults()
            now = await client.snapshot(gpu)
            assert len(now.instances) == int(after)
            is_true(now, node.gpus()[0])

    run(main())


# -- its nonsense ------------------------------------------------------------------------------

NONSENSE = {
    "no JSON": "stream.write(b'garbage\\n')",
    "no list": "stream.write(b'{}\\n')",
    "unknown kind": "stream.write(b'[1, \"nothing\", {}]\\n')",
    "a kind that is no text": "stream.write(b'[1, [], {}]\\n')",
    "wrong fields": 'stream.write(b\'[1, "opened", {"driver": 7}]\\n\')',
    "null": "stream.write(b'[1, \"opened\", null]\\n')",
    "not UTF-8": "stream.write(b'[1, \"\\xff\\xfe\", {}]\\n')",
    "deep": "stream.write(b'[' * 100000 + b'\\n')",
    "an endless line": "stream.write(b'x' * (3 << 20))",
    "the end": "pass",
    "half a line": "stream.write(b'[1, \"opened\"')",
}


def fake(folder: Path, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in the place of the worker's interpreter."""
    script = folder / "fake"
    script.write_text(
        f"#!{sys.executable}\n"
        "import socket, sys\n"
        "end = socket.socket(fileno=int(sys.argv[-1]))\n"
        "stream = end.makefile('rwb')\n"
        "stream.readline()\n"
        "try:\n"
        f"    {answer}\n"
        "    stream.flush()\n"
        "except OSError:\n"
        "    pass\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_worker_that_talks_nonsense(
    answer: str, tmp_path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, answer, monkeypatch)

    async def main() -> None:
        async with nvml(lock, open_s=10) as client:
            for _ in range(2):
                with pytest.raises(Nvml) as error:
                    await client.observe()
                assert error.value.name == "WORKER_GONE"

    run(main(), timeout_s=30)


def test_a_worker_that_answers_another_request(
    tmp_path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = """stream.write(b'[99, "opened", {"driver": "1", "gpus": 0}]\\n')"""
    fake(tmp_path, answer, monkeypatch)

    async def main() -> None:
        async with nvml(lock, open_s=10) as client:
            with pytest.raises(Nvml) as error:
                await client.observe()
            assert error.value.name == "WORKER_GONE"

    run(main(), timeout_s=30)


def test_a_worker_that_cannot_be_started(
    tmp_path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))

    async def main() -> None:
        async with nvml(lock) as client:
            with pytest.raises(Nvml, match="no NVML worker can be started") as error:
                await client.observe()
            assert error.value.name == "NO_WORKER"

    run(main())


# -- its hanging -------------------------------------------------------------------------------


def test_a_call_that_hangs_keeps_only_its_gpu(node: Node, lock: Path) -> None:
    before = children()

    async def main() -> None:
        async with nvml(lock, snapshot_s=0.5) as client:
            first = await client.observe()
            node.fault("nvmlDeviceGetName", hang=True, gpu=1)
            most = 0
            for _ in range(4):
                seen = await client.observe()
                # What was last known of it is still shown, with the reason.
                assert seen.gpus == first.gpus
                assert list(seen.troubled) == [first.gpus[1].uuid]
                assert "GPU 1 did not answer within 0.5 s" in str(seen.troubled[first.gpus[1].uuid])
                # The other one is changed meanwhile.
                await client.perform(first.gpus[0], ON)
                assert (await client.snapshot(first.gpus[0])).mode is Mode.ENABLED
                await client.perform(first.gpus[0], SetMode(Mode.DISABLED, reset=False))
                most = max(most, len(children() - before))
            assert most <= 2
            node.clear_faults()
            async with asyncio.timeout(10):
                while (await client.observe()).troubled:
                    await asyncio.sleep(0.01)
            is_true((await client.observe()).gpus[1], node.gpus()[1])

    run(main(), timeout_s=60)


def test_a_gpu_that_hangs_gets_no_further_call(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock, snapshot_s=0.3) as client:
            gpus = (await client.observe()).gpus
            await client.perform(gpus[0], ON)
            node.latency(CREATE, 1000)
            node.fault("nvmlDeviceGetName", hang=True, gpu=1, nth=1)
            # While GPU 0 is at work in the same worker, that worker is not ended.
            work = asyncio.create_task(
                client.perform(gpus[0], CreateInstance(19, Placement(0, 1), None))
            )
            with pytest.raises(Hung):
                await client.snapshot(gpus[1])
            begun = time.monotonic()
            for _ in range(3):
                with pytest.raises(Hung, match="no further call"):
                    await client.perform(gpus[1], ON)
                with pytest.raises(Hung):
                    await client.snapshot(gpus[1])
            assert time.monotonic() - begun < 0.2
            assert (await work).gi is not None
            assert node.gpus()[1]["mode"]["current"] == "disabled"
            # Once the worker is gone, it is looked at again.
            async with asyncio.timeout(10):
                while True:
                    try:
                        await client.snapshot(gpus[1])
                        break
                    except Hung:
                        await asyncio.sleep(0.01)

    run(main(), timeout_s=60)


def test_a_step_that_hangs(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock, perform_s=0.5) as client:
            gpu, other = (await client.observe()).gpus
            await client.perform(gpu, ON)
            node.fault(CREATE, hang=True, gpu=0)
            with pytest.raises(Hung, match=r"create 1g\.10gb at 0:1"):
                await client.perform(gpu, CreateInstance(19, Placement(0, 1), None))
            await client.perform(other, ON)
            await client.perform(other, CreateInstance(19, Placement(0, 1), None))
            assert node.layout(1) == [(19, 0, [0])]
            assert node.layout(0) == []

    run(main(), timeout_s=30)


def test_a_gpu_that_hangs_from_the_start(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock, snapshot_s=0.5) as client:
            node.fault("nvmlDeviceGetName", hang=True, gpu=1)
            seen = await client.observe()
            assert [g.uuid for g in seen.gpus] == [node.gpus()[0]["uuid"]]
            (why,) = seen.unseen
            assert "GPU 1 did not answer within 0.5 s" in str(why)
            await client.perform(seen.gpus[0], ON)

    run(main(), timeout_s=30)


def test_nvml_hangs_as_a_whole(node: Node, lock: Path) -> None:
    before = children()

    async def main() -> None:
        async with nvml(lock, open_s=0.5) as client:
            node.fault("nvmlInitWithFlags", hang=True)
            for _ in range(3):
                with pytest.raises(Hung, match="NVML did not answer"):
                    await client.observe()
                assert len(children() - before) <= 2
            node.clear_faults()
            assert len((await client.observe()).gpus) == 2

    run(main(), timeout_s=30)


@pytest.mark.parametrize("how", [{"returns": "UNKNOWN"}, {"die": True}], ids=["fails", "dies"])
def test_what_fails_before_there_is_a_gpu(node: Node, lock: Path, how: dict[str, Any]) -> None:
    async def main() -> None:
        async with nvml(lock) as client:
            node.fault("nvmlInitWithFlags", **how)
            with pytest.raises(Nvml, match=r"open NVML[:;]"):
                await client.observe()

    run(main(), timeout_s=30)


def test_close_while_a_call_hangs(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock) as client:
            await client.observe()
            node.fault("nvmlDeviceGetName", hang=True, gpu=0)
            look = asyncio.create_task(client.observe())
            reads = node.calls()["nvmlDeviceGetUUID"]
            await until(lambda: node.calls()["nvmlDeviceGetUUID"] > reads)
            await client.close()
            assert node.gpus()[0]["uuid"] in (await look).troubled

    run(main(), timeout_s=30)
    wait_for(lambda: not sessions(node))


# -- the lock ----------------------------------------------------------------------------------


def test_two_clients_on_one_lock(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock) as second:
            async with nvml(lock) as first:
                await first.observe()
                with pytest.raises(Hung, match="worker of another migd") as error:
                    await second.observe()
                assert str(lock) in str(error.value)
                assert len((await first.observe()).gpus) == 2
            assert len((await second.observe()).gpus) == 2

    run(main())


def test_the_lock_is_private(node: Node, lock: Path) -> None:
    async def main() -> None:
        async with nvml(lock) as client:
            await client.observe()
            assert stat.S_IMODE(lock.stat().st_mode) == 0o600

    run(main())


def test_a_worker_that_outlives_its_daemon_keeps_the_lock(node: Node, lock: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\n"
        "from migd.nvml.client import NvmlClient\n"
        "async def main():\n"
        "    client = NvmlClient(pathlib.Path(sys.argv[1]))\n"
        "    await client.observe()\n"
        "    print(flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], env=node.environment(), stdout=subprocess.PIPE
    ) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        (pid,) = sessions(node)
        # Stopped, it cannot see that its daemon has died: as one that hangs in the driver.
        os.kill(pid, signal.SIGSTOP)
        daemon.kill()
    try:

        async def main() -> None:
            async with nvml(lock) as client:
                with pytest.raises(Hung, match="fuser"):
                    await client.observe()
                os.kill(pid, signal.SIGCONT)
                await until(lambda: pid not in sessions(node))
                assert len((await client.observe()).gpus) == 2

        run(main())
    finally:
        if pid in sessions(node):
            os.kill(pid, signal.SIGKILL)


def test_a_client_that_is_closed_unused(lock: Path) -> None:
    async def main() -> None:
        client = NvmlClient(lock)
        await client.close()
        await client.close()

    run(main())


# -- no driver ---------------------------------------------------------------------------------


def test_no_library(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(
        Path(d, "libnvidia-ml.so.1").exists() for d in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64")
    ):
        pytest.skip("this host has an NVIDIA driver")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    async def main() -> None:
        async with nvml(lock) as client:
            with pytest.raises(NoDriver, match=r"libnvidia-ml\.so\.1 is not installed"):
                await client.observe()

    run(main())


def test_a_library_that_does_not_fit_the_module(node: Node, lock: Path) -> None:
    node.upgrade("590.10")

    async def main() -> None:
        async with nvml(lock) as client:
            with pytest.raises(NoDriver, match="LIB_RM_VERSION_MISMATCH"):
                await client.observe()

    run(main())
