# SPDX-License-Identifier: Apache-2.0
"""Processes that hold a GPU or an instance, seen in lists or not, and what they block."""

import ctypes
import os
import signal
from typing import Any

import pytest

from migd.simulator.errors import SimulatorError
from tests.simulator.nvml_help import (
    IN_USE,
    INSUFFICIENT_SIZE,
    INVALID_ARGUMENT,
    create,
    enabled,
    gpu,
    refused,
)
from tests.support.node import Node, wait_for

NO_INSTANCE = 0xFFFFFFFF


@pytest.mark.parametrize("hidden", [False, True])
def test_the_first_instance_needs_an_idle_gpu(hidden: bool, h100: Node, nvml: Any) -> None:
    nvml(h100)
    device = enabled()
    enabled(1)
    with h100.hold(0, hidden=hidden):
        with refused(IN_USE):
            create(device, 9)
        create(gpu(1), 9)
    create(device, 9)


def test_later_instances_do_not_care_about_neighbours(h100: Node, nvml: Any) -> None:
    nvml(h100)
    device = enabled()
    create(device, 9)
    with h100.hold(0, 1):
        create(device, 9)


@pytest.mark.parametrize("hidden", [False, True])
def test_what_is_held_cannot_be_destroyed(hidden: bool, h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    instance = create(device, 9)
    held = api.nvmlGpuInstanceCreateComputeInstance(instance, 0)
    free = api.nvmlGpuInstanceCreateComputeInstance(instance, 0)
    with h100.hold(0, 1, hidden=hidden) as holder:
        with refused(IN_USE):
            api.nvmlComputeInstanceDestroy(held)
        api.nvmlComputeInstanceDestroy(free)
        with refused(IN_USE):
            api.nvmlGpuInstanceDestroy(instance)
        assert h100.gpus()[0]["instances"][0]["holders"] == [holder.pid]
    api.nvmlComputeInstanceDestroy(held)
    api.nvmlGpuInstanceDestroy(instance)


def test_process_lists(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    with h100.hold(0) as holder, h100.hold(0, hidden=True), h100.hold(1):
        for ask in (
            api.nvmlDeviceGetComputeRunningProcesses_v2,
            api.nvmlDeviceGetComputeRunningProcesses_v3,
        ):
            (process,) = ask(gpu())
            assert process.pid == holder.pid
            assert process.usedGpuMemory == api.nvmlDeviceGetMemoryInfo(gpu()).used > 0
            assert process.gpuInstanceId == process.computeInstanceId == NO_INSTANCE
        assert api.nvmlDeviceGetGraphicsRunningProcesses(gpu()) == []
        assert api.nvmlDeviceGetMPSComputeRunningProcesses(gpu()) == []


def test_process_lists_of_mig_devices(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    migs = []
    for _ in range(2):
        made = api.nvmlGpuInstanceCreateComputeInstance(create(device, 9), 2)
        migs.append(api.nvmlComputeInstanceGetInfo(made).device)
    with h100.hold(0, 2) as holder:
        assert api.nvmlDeviceGetComputeRunningProcesses(migs[0]) == []
        for handle in (migs[1], device):
            (process,) = api.nvmlDeviceGetComputeRunningProcesses(handle)
            found = (process.pid, process.gpuInstanceId, process.computeInstanceId)
            assert found == (holder.pid, 2, 0)


def test_count_then_fill(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    ask = api.nvmlLib.nvmlDeviceGetComputeRunningProcesses_v3
    count = ctypes.c_uint(0)
    assert ask(gpu(), ctypes.byref(count), None) == 0
    with h100.hold(0), h100.hold(0):
        assert ask(gpu(), ctypes.byref(count), None) == INSUFFICIENT_SIZE
        assert count.value == 2
        count.value = 1
        one = (api.c_nvmlProcessInfo_v3_t * 1)()
        assert ask(gpu(), ctypes.byref(count), one) == INSUFFICIENT_SIZE
        assert ask(gpu(), ctypes.byref(count), None) == INVALID_ARGUMENT
        old = (ctypes.c_ubyte * 32)()
        first = api.nvmlLib.nvmlDeviceGetComputeRunningProcesses
        assert first(gpu(), ctypes.byref(count), old) == 0
        pids = {int.from_bytes(bytes(old)[at : at + 4], "little") for at in (0, 16)}
        assert pids == {row["pid"] for row in h100.gpus()[0]["holders"]}


def test_a_holder_is_gone_with_its_process(h100: Node) -> None:
    holder = h100.hold(0)
    holder.end()
    assert h100.gpus()[0]["holders"] == []


def test_a_child_that_inherits_the_hold_keeps_it(h100: Node, tmp_path: Any) -> None:
    pipe = tmp_path / "end"
    holder = h100.hold(0, command=["sh", "-c", f"sleep infinity & echo $! > {pipe}; wait"])
    wait_for(lambda: pipe.exists() and pipe.read_text().strip())
    holder.end()
    assert len(h100.gpus()[0]["holders"]) == 1
    os.kill(int(pipe.read_text()), signal.SIGKILL)
    wait_for(lambda: h100.gpus()[0]["holders"] == [])


def test_a_hold_of_what_does_not_exist_is_refused(h100: Node) -> None:
    with pytest.raises(SimulatorError, match="there is no GPU 2"):
        h100.simulated.hold(2)
    with pytest.raises(SimulatorError, match="there is no GPU instance 1 on GPU 0"):
        h100.simulated.hold(0, 1)
