# SPDX-License-Identifier: Apache-2.0
"""Calls that fail, hang, die or lie on request, and calls that take time under a lock."""

import os
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from migd.simulator.errors import SimulatorError
from migd.simulator.node import DEFAULT_LATENCIES
from tests.simulator.nvml_help import (
    GPU_IS_LOST,
    IN_USE,
    INVALID_ARGUMENT,
    UNKNOWN,
    create,
    enabled,
    gpu,
    instances,
    refused,
)
from tests.simulator.test_sessions import OPEN, python
from tests.support.node import Node, wait_for

CREATE = "nvmlDeviceCreateGpuInstance"
MODE = "nvmlDeviceGetMigMode"


def test_the_nth_call_fails_and_only_that(h100: Node, nvml: Any) -> None:
    nvml(h100)
    device = enabled()
    create(device, 19)
    h100.fault(CREATE, nth=2, returns="IN_USE")
    create(device, 19)
    with refused(IN_USE):
        create(device, 19)
    create(device, 19)
    assert len(h100.layout(0)) == 3
    assert [fault["seen"] for fault in h100.show()["faults"]] == [3]


def test_several_rules_each_with_its_own_count(h100: Node, nvml: Any) -> None:
    nvml(h100)
    device = enabled()
    h100.fault(CREATE + "...", nth=2, returns="NVML_ERROR_GPU_IS_LOST")
    h100.fault(MODE, returns="UNKNOWN", gpu=1)
    create(device, 19, 0, 1)
    with refused(GPU_IS_LOST):
        create(device, 19)
    with refused(UNKNOWN):
        nvml(h100).nvmlDeviceGetMigMode(gpu(1))
    assert nvml(h100).nvmlDeviceGetMigMode(gpu(0)) == [1, 1]
    h100.clear_faults()
    assert nvml(h100).nvmlDeviceGetMigMode(gpu(1)) == [0, 0]


def test_success_without_effect(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    h100.fault("nvmlDeviceSetMigMode", nth=1, no_effect=True)
    assert api.nvmlDeviceSetMigMode(gpu(), 1) == 0
    assert api.nvmlDeviceGetMigMode(gpu()) == [0, 0]
    device = enabled()
    h100.fault(CREATE, nth=1, no_effect=True)
    ghost = create(device, 9)
    with refused(INVALID_ARGUMENT):
        api.nvmlGpuInstanceGetInfo(ghost)
    instance = create(device, 9)
    h100.fault("nvmlGpuInstanceCreateComputeInstance", nth=1, no_effect=True)
    api.nvmlGpuInstanceCreateComputeInstance(instance, 2)
    assert h100.layout(0) == [(9, 4, [])]
    made = api.nvmlGpuInstanceCreateComputeInstance(instance, 2)
    h100.fault("nvmlComputeInstanceDestroy", nth=1, no_effect=True)
    api.nvmlComputeInstanceDestroy(made)
    assert h100.layout(0) == [(9, 4, [2])]
    api.nvmlComputeInstanceDestroy(made)
    h100.fault("nvmlGpuInstanceDestroy", nth=1, no_effect=True)
    api.nvmlGpuInstanceDestroy(instance)
    assert len(instances(device, 9)) == 1


def test_init_can_fail(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    api.nvmlShutdown()
    h100.fault("nvmlInit*", nth=1, returns="DRIVER_NOT_LOADED")
    with refused(api.NVML_ERROR_DRIVER_NOT_LOADED):
        api.nvmlInit()
    assert h100.show()["sessions"] == []
    api.nvmlInit()


@pytest.mark.parametrize(("after", "made"), [(False, 0), (True, 1)])
def test_dying_before_and_after_the_effect(after: bool, made: int, h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    h100.fault(CREATE, nth=1, die=not after, die_after=after)
    done = h100.run(
        sys.executable,
        "-c",
        "from pynvml import *; nvmlInit();"
        "nvmlDeviceCreateGpuInstance(nvmlDeviceGetHandleByIndex(0), 9)",
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(h100.layout(0)) == made
    create(device, 9)
    assert api.nvmlDeviceGetMigMode(device) == [1, 1]


def ask_mode(node: Node, index: int) -> subprocess.Popen[bytes]:
    script = (
        "from pynvml import *; nvmlInit();"
        f"print(nvmlDeviceGetMigMode(nvmlDeviceGetHandleByIndex({index})))"
    )
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, env=node.environment(), stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("lock", ["gpu", "node"])
def test_a_hang_lasts_until_sigkill_and_holds_the_lock(lock: str, h100: Node) -> None:
    h100.latency(lock=lock)
    h100.fault(MODE, nth=1, hang=True, gpu=0)
    hung = ask_mode(h100, 0)
    wait_for(lambda: h100.calls().get(MODE) == 1)
    same, other = ask_mode(h100, 0), ask_mode(h100, 1)
    wait_for(lambda: h100.calls()[MODE] == 3)
    if lock == "gpu":
        assert other.wait(20) == 0
    hung.send_signal(signal.SIGTERM)
    hung.wait(20)
    assert [same.wait(20), other.wait(20)] == [0, 0]
    order = [call.gpu for call in h100.log() if call.name == MODE]
    assert sorted(map(str, order)) == ["0", "1"]
    if lock == "gpu":
        assert order == [1, 0]


def test_a_fault_needs_a_function_and_a_code_that_exist(h100: Node) -> None:
    with pytest.raises(SimulatorError, match="no function nvmlDeviceMakeCoffee"):
        h100.fault("nvmlDeviceMakeCoffee", returns="IN_USE")
    with pytest.raises(SimulatorError, match="'BUSY' is not a return code"):
        h100.fault(CREATE, returns="BUSY")


@pytest.mark.parametrize(("lock", "overlap"), [("gpu", True), ("node", False)])
def test_lock_models(lock: str, overlap: bool, h100: Node, nvml: Any) -> None:
    """Calls to two GPUs of one node run side by side or one after the other."""
    api = nvml(h100)
    devices = [gpu(0), gpu(1)]
    h100.latency(MODE, 60, lock=lock)
    barrier = threading.Barrier(2)

    def ask(device: Any) -> None:
        barrier.wait()
        api.nvmlDeviceGetMigMode(device)

    threads = [threading.Thread(target=ask, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = sorted(
        (call for call in h100.log() if call.name == MODE), key=lambda c: c.begun
    )
    assert (second.begun < first.ended) is overlap
    assert all(call.ended - call.begun >= 60_000_000 for call in (first, second))


def test_calls_to_one_gpu_wait_for_each_other(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = gpu()
    h100.latency(MODE, 30)
    threads = [threading.Thread(target=api.nvmlDeviceGetMigMode, args=(device,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = sorted((call for call in h100.log() if call.name == MODE), key=lambda call: call.begun)
    assert all(one.ended <= two.begun for one, two in pairwise(calls))


def test_latency_profiles(h100: Node) -> None:
    h100.latency(profile="default")
    shown = h100.show()["latencies"]
    assert {name: (row["ms"], row["assumed"]) for name, row in shown.items()} == DEFAULT_LATENCIES
    h100.latency(profile="none")
    assert h100.show()["latencies"] == {}
    with pytest.raises(SimulatorError, match="no function nvmlSleep"):
        h100.latency("nvmlSleep", 1)


def test_latency_by_generation_and_first_handle(a100: Node, h100: Node, nvml: Any) -> None:
    for node, expected in ((a100, 20_000_000), (h100, 0)):
        node.latency("nvmlDeviceSetMigMode@reset", 20)
        node.latency("first-handle", 5)
        nvml(node)
        enabled()
        enabled(1)
        took = {call.name: call.ended - call.begun for call in node.log()}
        assert took["nvmlDeviceSetMigMode"] >= expected
        if expected == 0:
            assert took["nvmlDeviceSetMigMode"] < 20_000_000
        handles = [c.ended - c.begun for c in node.log() if "HandleByIndex" in c.name]
        assert handles[0] >= 5_000_000 > handles[1]


def test_a_mode_that_is_in_force_takes_no_switch(h100: Node, nvml: Any) -> None:
    h100.latency("nvmlDeviceSetMigMode@resetless", 4000)
    h100.latency("nvmlDeviceSetMigMode@same", 1)
    api = nvml(h100)
    device = api.nvmlDeviceGetHandleByIndex(0)
    api.nvmlDeviceSetMigMode(device, 0)
    assert h100.modelled()["total_ms"] == 1
    h100.latency("nvmlDeviceSetMigMode@resetless", 2)
    api.nvmlDeviceSetMigMode(device, 1)
    api.nvmlDeviceSetMigMode(device, 1)
    assert h100.modelled()["total_ms"] == 4


def test_an_initialization_within_one_only_counts(h100: Node, nvml: Any) -> None:
    h100.latency("nvmlInitWithFlags", 5)
    api = nvml(h100)
    api.nvmlInit()
    assert h100.modelled() == {"calls": {"nvmlInitWithFlags": 5}, "total_ms": 5}
    api.nvmlShutdown()
    assert h100.calls()["nvmlInitWithFlags"] == 2


def test_modelled_time_is_the_sum_over_calls(h100: Node, nvml: Any) -> None:
    """What a benchmark holds a transition against: necessary calls times their latencies."""
    h100.latency(MODE, 0.5)
    h100.latency("nvmlDeviceSetMigMode@resetless", 2)
    h100.latency("nvmlDeviceSetMigMode@reset", 4000)
    h100.latency("first-handle", 3)
    assert h100.modelled() == {"calls": {}, "total_ms": 0}
    api = nvml(h100)
    device = enabled()
    enabled(1)
    for _ in range(3):
        api.nvmlDeviceGetMigMode(device)
    h100.fault(MODE, returns="UNKNOWN")
    with refused(UNKNOWN):  # a call that fails takes its time as well
        api.nvmlDeviceGetMigMode(device)
    h100.latency(profile="none")
    h100.clear_faults()
    api.nvmlDeviceGetMigMode(device)
    assert h100.modelled() == {
        "calls": {MODE: 2.0, "nvmlDeviceSetMigMode": 4.0, "nvmlDeviceGetHandleByIndex_v2": 3.0},
        "total_ms": 9.0,
    }


def test_every_surprise_is_tested(h100: Node) -> None:
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    for name in h100.simulated.surprises():
        assert any(f'"{name}"' in text for text in texts), name


def test_calls_are_counted_and_logged(h100: Node, nvml: Any) -> None:
    nvml(h100)
    device = enabled()
    create(device, 9)
    with refused(23):
        create(device, 0)
    calls = h100.calls()
    assert calls["nvmlInitWithFlags"] == 1
    assert calls[CREATE] == 2
    assert h100.mutating_calls() == 3
    logged = [(call.name, call.gpu, call.result, call.pid) for call in h100.log()][-2:]
    assert logged == [
        (CREATE, 0, "SUCCESS", os.getpid()),
        (CREATE, 0, "INSUFFICIENT_RESOURCES", os.getpid()),
    ]


def test_without_a_log_file_nothing_is_logged(h100: Node, nvml: Any) -> None:
    (h100.path / "calls.log").unlink()
    nvml(h100).nvmlDeviceGetCount()
    assert not (h100.path / "calls.log").exists()
    assert h100.calls()["nvmlDeviceGetCount_v2"] == 1


def test_counts_are_exact_over_processes(h100: Node) -> None:
    script = "\n".join(
        ("from pynvml import *", "nvmlInit()", "for _ in range(500):", "    nvmlDeviceGetCount()")
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script], env=h100.environment()) for _ in range(4)
    ]
    assert [process.wait() for process in running] == [0] * 4
    assert h100.calls()["nvmlDeviceGetCount_v2"] == 2000
    assert len(h100.log()) == 2004


def test_a_hung_thread_leaves_the_rest_of_its_process_alone(h100: Node) -> None:
    h100.fault(MODE, nth=1, hang=True, gpu=0)
    with python(h100, OPEN) as process:
        assert process.stdin is not None
        process.stdin.write(
            "import threading; d = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in (0, 1)];"
            "ask = pynvml.nvmlDeviceGetMigMode;"
            "threading.Thread(target=ask, args=(d[0],), daemon=True).start()\n"
            "print(pynvml.nvmlDeviceGetMigMode(d[1]))\n"
        )
        process.stdin.flush()
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines == ["done\n", "[0, 0]\n", "done\n"]
