# SPDX-License-Identifier: Apache-2.0
"""Event sets: who is told of a change of the MIG configuration, and who is not."""

import ctypes
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.simulator.nvml_help import (
    GPU_IS_LOST,
    INVALID_ARGUMENT,
    NOT_SUPPORTED,
    create,
    enabled,
    gpu,
    refused,
)
from tests.simulator.test_sessions import OPEN, python, tell
from tests.support.node import Node, wait_for

TIMEOUT = 10
CONFIG_CHANGE = 0x100
NO_INSTANCE = 0xFFFFFFFF
LONG_MS = 20_000


def watching(*indices: int) -> Any:
    events = pynvml.nvmlEventSetCreate()
    for index in indices:
        pynvml.nvmlDeviceRegisterEvents(gpu(index), CONFIG_CHANGE, events)
    return events


def pending(events: Any) -> list[int]:
    """The GPUs of the events that have come, in the order of their delivery."""
    found: list[int] = []
    while True:
        try:
            event = pynvml.nvmlEventSetWait_v2(events, 0)
        except pynvml.NVMLError_Timeout:
            return found
        assert (event.eventType, event.eventData) == (CONFIG_CHANGE, 0)
        assert event.gpuInstanceId == event.computeInstanceId == NO_INSTANCE
        found.append(pynvml.nvmlDeviceGetIndex(event.device))


def test_each_instance_that_is_made_or_destroyed_is_an_event(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    events = watching(0, 1)
    assert pending(events) == []  # the mode is none, and what came before is not recorded
    instance = create(device, 9)
    assert pending(events) == [0]
    inner = api.nvmlGpuInstanceCreateComputeInstance(instance, 2)
    create(enabled(1), 9)
    assert pending(events) == [0, 1]
    api.nvmlComputeInstanceDestroy(inner)
    api.nvmlGpuInstanceDestroy(instance)
    assert pending(events) == [0, 0]
    with refused(api.NVML_ERROR_INSUFFICIENT_RESOURCES):
        create(gpu(1), 0)
    assert pending(events) == []


def test_the_first_version_of_waiting(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    events = watching(0)
    create(enabled(), 9)
    room = (ctypes.c_uint64 * 4)(*[7] * 4)
    assert api.nvmlLib.nvmlEventSetWait(events, room, 0) == 0
    assert list(room)[1:] == [CONFIG_CHANGE, 0, 7]  # three words and no more
    assert api.nvmlLib.nvmlEventSetWait(events, room, 0) == TIMEOUT


def test_a_waiter_in_another_process_wakes_up(h100: Node, nvml: Any) -> None:
    nvml(h100)
    device = enabled()
    with python(h100, OPEN) as waiter:
        tell(
            waiter,
            "s = pynvml.nvmlEventSetCreate(); pynvml.nvmlDeviceRegisterEvents("
            f"pynvml.nvmlDeviceGetHandleByIndex(0), {CONFIG_CHANGE}, s)",
        )
        assert waiter.stdin is not None
        assert waiter.stdout is not None
        waiter.stdin.write(f"print(pynvml.nvmlEventSetWait_v2(s, {LONG_MS}).eventType)\n")
        waiter.stdin.flush()
        wait_for(lambda: h100.calls().get("nvmlEventSetWait_v2"))
        create(device, 9)
        assert waiter.stdout.readline() == f"{CONFIG_CHANGE}\n"


@pytest.mark.parametrize("lock", ["gpu", "node"])
def test_who_waits_keeps_nobody_from_working(lock: str, h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    h100.latency("nvmlEventSetWait_v2", 1, lock=lock)
    device = enabled()
    events = watching(0)
    came = threading.Thread(target=api.nvmlEventSetWait_v2, args=(events, LONG_MS))
    came.start()
    wait_for(lambda: h100.calls().get("nvmlEventSetWait_v2"))
    assert api.nvmlDeviceGetMigMode(device) == [1, 1]
    create(device, 9)
    came.join(20)
    assert not came.is_alive()


def test_an_event_set_of_nothing_times_out(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    events = api.nvmlEventSetCreate()
    with refused(TIMEOUT):
        api.nvmlEventSetWait_v2(events, 1)


def test_wrong_use(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    made = api.nvmlGpuInstanceCreateComputeInstance(create(device, 9), 2)
    mig = api.nvmlComputeInstanceGetInfo(made).device
    events = api.nvmlEventSetCreate()
    with refused(NOT_SUPPORTED):  # no events per instance (nvml.h)
        api.nvmlDeviceRegisterEvents(mig, CONFIG_CHANGE, events)
    with refused(NOT_SUPPORTED):  # PState changes are not offered
        api.nvmlDeviceRegisterEvents(device, CONFIG_CHANGE | 4, events)
    with refused(INVALID_ARGUMENT):
        api.nvmlDeviceRegisterEvents(device, 1 << 40, events)
    with refused(INVALID_ARGUMENT):
        api.nvmlDeviceRegisterEvents(device, CONFIG_CHANGE, None)
    api.nvmlEventSetFree(events)
    for use in (api.nvmlEventSetFree, lambda freed: api.nvmlEventSetWait_v2(freed, 0)):
        with refused(INVALID_ARGUMENT):
            use(events)
    events = watching(0)
    api.nvmlShutdown()
    api.nvmlInit()
    with refused(INVALID_ARGUMENT):  # of a session that has ended
        api.nvmlEventSetWait_v2(events, 0)


def test_sets_do_not_run_out(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    for _ in range(3):
        sets = [api.nvmlEventSetCreate() for _ in range(64)]
        with refused(api.NVML_ERROR_MEMORY):
            api.nvmlEventSetCreate()
        for one in sets:
            api.nvmlEventSetFree(one)


def test_a_reboot_wakes_the_waiter(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    events = watching(0)
    codes = []

    def wait() -> None:
        try:
            api.nvmlEventSetWait_v2(events, LONG_MS)
        except api.NVMLError as error:
            codes.append(error.value)

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_for(lambda: h100.calls().get("nvmlEventSetWait_v2"))
    h100.reboot()
    waiter.join(20)
    assert codes == [GPU_IS_LOST]


@pytest.fixture
def open_to_all() -> Iterator[Node]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Node.new(Path(folder) / "node", ("h100-80gb-sxm5", 1))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_waiters_without_privilege_hear_nothing_of_instances(open_to_all: Node, nvml: Any) -> None:
    nvml(open_to_all)
    device = enabled()
    script = (
        "import os, pynvml as p; os.setuid(65534); p.nvmlInit(); s = p.nvmlEventSetCreate();"
        f"p.nvmlDeviceRegisterEvents(p.nvmlDeviceGetHandleByIndex(0), {CONFIG_CHANGE}, s);"
        "print('open', flush=True); input();\n"
        "try: p.nvmlEventSetWait_v2(s, 0)\n"
        "except p.NVMLError as error: print(error.value)"
    )
    with python(open_to_all, script) as waiter:
        create(device, 9)
        assert waiter.stdin is not None
        assert waiter.stdout is not None
        waiter.stdin.write("\n")
        waiter.stdin.flush()
        assert waiter.stdout.readline() == f"{TIMEOUT}\n"
