# SPDX-License-Identifier: Apache-2.0
"""Documented facts: return codes by function, permissions, capabilities, process lists.

Codes are those of nvml.h's comments where no other source is named; sources as in test_facts.py.
"""

import ctypes
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.simulator.nvml_help import (
    IN_USE,
    INSUFFICIENT_RESOURCES,
    INSUFFICIENT_SIZE,
    INVALID_ARGUMENT,
    NO_PERMISSION,
    NOT_FOUND,
    NOT_SUPPORTED,
    create,
    enabled,
    gpu,
    refused,
)
from tests.support.node import Node

UNINITIALIZED = 1
NO_INSTANCE = 0xFFFFFFFF

# Every MIG function with the arguments after its handle; "out" is room for an answer.
OF_DEVICES: dict[str, list[Any]] = {
    "nvmlDeviceSetMigMode": [1, "out"],
    "nvmlDeviceGetMigMode": ["out", "out"],
    "nvmlDeviceGetGpuInstanceProfileInfo": [0, "out"],
    "nvmlDeviceGetGpuInstanceProfileInfoV": [0, "v2"],
    "nvmlDeviceGetGpuInstanceProfileInfoByIdV": [19, "v2"],
    "nvmlDeviceGetGpuInstancePossiblePlacements_v2": [19, None, "out"],
    "nvmlDeviceGetGpuInstanceRemainingCapacity": [19, "out"],
    "nvmlDeviceCreateGpuInstance": [19, "out"],
    "nvmlDeviceCreateGpuInstanceWithPlacement": [19, "place", "out"],
    "nvmlDeviceGetGpuInstances": [19, "out", "out"],
    "nvmlDeviceGetGpuInstanceById": [7, "out"],
    "nvmlDeviceIsMigDeviceHandle": ["out"],
    "nvmlDeviceGetGpuInstanceId": ["out"],
    "nvmlDeviceGetComputeInstanceId": ["out"],
    "nvmlDeviceGetMaxMigDeviceCount": ["out"],
    "nvmlDeviceGetMigDeviceHandleByIndex": [0, "out"],
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": ["out"],
}
OF_INSTANCES: dict[str, list[Any]] = {
    "nvmlGpuInstanceDestroy": [],
    "nvmlGpuInstanceGetInfo": ["out"],
    "nvmlGpuInstanceGetComputeInstanceProfileInfo": [0, 0, "out"],
    "nvmlGpuInstanceGetComputeInstanceProfileInfoV": [0, 0, "ci-v2"],
    "nvmlGpuInstanceGetComputeInstanceRemainingCapacity": [0, "out"],
    "nvmlGpuInstanceGetComputeInstancePossiblePlacements": [0, None, "out"],
    "nvmlGpuInstanceCreateComputeInstance": [0, "out"],
    "nvmlGpuInstanceCreateComputeInstanceWithPlacement": [0, "place", "out"],
    "nvmlGpuInstanceGetComputeInstances": [0, "out", "out"],
    "nvmlGpuInstanceGetComputeInstanceById": [0, "out"],
    "nvmlComputeInstanceDestroy": [],
    "nvmlComputeInstanceGetInfo_v2": ["out"],
}
MIG_FUNCTIONS = OF_DEVICES | OF_INSTANCES
WORDS = {"out": 0, "v2": 0x02000098, "ci-v2": 0x02000088}


def arguments(name: str) -> list[Any]:
    made: list[Any] = []
    for word in MIG_FUNCTIONS[name]:
        if word == "place":
            made.append((ctypes.c_uint * 2)(0, 1))
        else:
            made.append((ctypes.c_uint * 64)(WORDS[word]) if word in WORDS else word)
    return made


def ask(name: str, handle: Any) -> int:
    return int(getattr(pynvml.nvmlLib, name)(handle, *arguments(name)))


@pytest.mark.parametrize("name", MIG_FUNCTIONS)
def test_without_a_session_and_with_bad_handles(name: str, h100: Node, nvml: Any) -> None:
    nvml(h100)
    device = enabled()
    instance = create(device, 19)
    wrong = device if name in OF_INSTANCES else instance
    for handle in (None, ctypes.c_void_p(0x1234), wrong):
        assert ask(name, handle) == INVALID_ARGUMENT
    pynvml.nvmlShutdown()
    assert ask(name, device) == UNINITIALIZED


@pytest.mark.parametrize("name", MIG_FUNCTIONS)
def test_without_room_for_the_answer(name: str, h100: Node, nvml: Any) -> None:
    nvml(h100)
    device = enabled()
    instance = create(device, 19)
    inner = pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 0)
    handle = device if name in OF_DEVICES else inner if "ComputeInstanceD" in name else instance
    handle = inner if name.startswith("nvmlComputeInstance") else handle
    given = arguments(name)
    for index, word in enumerate(MIG_FUNCTIONS[name]):
        if word in WORDS:
            without = [None if at == index else one for at, one in enumerate(given)]
            code = getattr(pynvml.nvmlLib, name)(handle, *without)
            assert code == INVALID_ARGUMENT


WITH_MIG_OFF = {
    "nvmlDeviceGetMigMode": 0,
    "nvmlDeviceGetGpuInstanceProfileInfo": 0,
    "nvmlDeviceGetGpuInstanceProfileInfoV": NOT_SUPPORTED,
    "nvmlDeviceGetGpuInstanceProfileInfoByIdV": NOT_SUPPORTED,
    "nvmlDeviceGetGpuInstancePossiblePlacements_v2": 0,
    "nvmlDeviceGetGpuInstanceRemainingCapacity": NOT_SUPPORTED,
    "nvmlDeviceCreateGpuInstance": NOT_SUPPORTED,
    "nvmlDeviceCreateGpuInstanceWithPlacement": NOT_SUPPORTED,
    "nvmlDeviceGetGpuInstances": NOT_SUPPORTED,
    "nvmlDeviceGetGpuInstanceById": NOT_SUPPORTED,
    "nvmlDeviceIsMigDeviceHandle": 0,
    "nvmlDeviceGetGpuInstanceId": NOT_SUPPORTED,
    "nvmlDeviceGetComputeInstanceId": NOT_SUPPORTED,
    "nvmlDeviceGetMaxMigDeviceCount": 0,
    "nvmlDeviceGetMigDeviceHandleByIndex": NOT_SUPPORTED,
}


@pytest.mark.parametrize("name", WITH_MIG_OFF)
def test_with_mig_off(name: str, h100: Node, nvml: Any) -> None:
    nvml(h100)
    assert ask(name, gpu()) == WITH_MIG_OFF[name]


OTHERS: dict[str, tuple[int, Callable[[Any, Any], Any]]] = {
    "GetGpuInstanceById: NOT_FOUND": (
        NOT_FOUND,
        lambda device, _: pynvml.nvmlDeviceGetGpuInstanceById(device, 3),
    ),
    "GetComputeInstanceById: NOT_FOUND": (
        NOT_FOUND,
        lambda _, instance: pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 1),
    ),
    "GetMigDeviceHandleByIndex: NOT_FOUND": (
        NOT_FOUND,
        lambda device, _: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, 6),
    ),
    "GetHandleByUUID: NOT_FOUND": (
        NOT_FOUND,
        lambda *_: pynvml.nvmlDeviceGetHandleByUUID("GPU-0"),
    ),
    "CreateGpuInstance: INSUFFICIENT_RESOURCES": (
        INSUFFICIENT_RESOURCES,
        lambda device, _: create(device, 0),
    ),
    "CreateComputeInstance: INSUFFICIENT_RESOURCES": (
        INSUFFICIENT_RESOURCES,
        lambda _, instance: pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 0),
    ),
    "GpuInstanceDestroy: IN_USE": (
        IN_USE,
        lambda _, instance: pynvml.nvmlGpuInstanceDestroy(instance),
    ),
    "SetMigMode: INVALID_ARGUMENT": (
        INVALID_ARGUMENT,
        lambda device, _: pynvml.nvmlDeviceSetMigMode(device, 7),
    ),
    "compute profile that is not offered: NOT_SUPPORTED": (
        NOT_SUPPORTED,
        lambda _, instance: pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 4),
    ),
    "GetAttributes of a whole GPU: NOT_SUPPORTED": (
        NOT_SUPPORTED,
        lambda device, _: pynvml.nvmlDeviceGetAttributes_v2(device),
    ),
    "GetNumGpuCores with MIG on: NOT_SUPPORTED": (
        NOT_SUPPORTED,
        lambda device, _: pynvml.nvmlDeviceGetNumGpuCores(device),
    ),
    "GetUtilizationRates with MIG on: NOT_SUPPORTED": (
        NOT_SUPPORTED,
        lambda device, _: pynvml.nvmlDeviceGetUtilizationRates(device),
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_codes(case: str, h100: Node, nvml: Any) -> None:
    nvml(h100)
    device = enabled()
    instance = create(device, 9)
    pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 2)
    code, call = OTHERS[case]
    with refused(code):
        call(device, instance)


PRIVILEGED = """
import json, os, sys, ctypes
sys.path.insert(0, {root!r})
import pynvml
from tests.simulator.test_facts_codes import MIG_FUNCTIONS, OF_DEVICES, ask
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(0)
instance = pynvml.nvmlDeviceGetGpuInstanceById(device, 1)
inner = pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
os.setuid(65534)
of = lambda name: inner if name.startswith("nvmlComputeI") else instance
codes = {{name: ask(name, device if name in OF_DEVICES else of(name)) for name in MIG_FUNCTIONS}}
for name in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetBAR1MemoryInfo"):
    codes[name] = pynvml.nvmlLib[name](device, (ctypes.c_uint64 * 3)())
    codes[name + " of a MIG device"] = pynvml.nvmlLib[name](
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, 0), (ctypes.c_uint64 * 3)())
print(json.dumps(codes))
"""
FREE = {
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetGpuInstanceProfileInfo",
    "nvmlDeviceGetGpuInstanceProfileInfoV",
    "nvmlDeviceGetGpuInstanceProfileInfoByIdV",
    "nvmlDeviceIsMigDeviceHandle",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlGpuInstanceGetInfo",
    "nvmlGpuInstanceGetComputeInstanceProfileInfo",
    "nvmlGpuInstanceGetComputeInstanceProfileInfoV",
    "nvmlComputeInstanceGetInfo_v2",
    "nvmlDeviceGetMemoryInfo of a MIG device",
    "nvmlDeviceGetBAR1MemoryInfo of a MIG device",
}
NEITHER = {  # answered by the kind of the handle
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetComputeInstanceId",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
}


@pytest.fixture
def open_to_all() -> Iterator[Node]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Node.new(Path(folder) / "node", ("h100-80gb-sxm5", 1))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_needs_privilege(open_to_all: Node, nvml: Any) -> None:
    """nvml.h "Requires privileged user"; ogkm bGetAllPartitionInfo, HAMi#1044 for listing;
    nvidia-container-toolkit#842 for the memory of a parent."""
    nvml(open_to_all)
    pynvml.nvmlGpuInstanceCreateComputeInstance(create(enabled(), 9), 2)
    root = str(Path(__file__).parent.parent.parent)
    codes: dict[str, int] = json.loads(open_to_all.python(PRIVILEGED.format(root=root)))
    assert {name for name, code in codes.items() if code == 0} == FREE
    refused_ones = {name for name, code in codes.items() if code == NO_PERMISSION}
    assert refused_ones == set(codes) - FREE - NEITHER
    assert open_to_all.layout(0) == [(9, 4, [2])]


def test_minors_of_capabilities(h100: Node) -> None:
    """ogkm nv-caps.c: config 1, monitor 2, gpuN/giI 3 + 135 N + 9 I, its ciC one + C more."""
    lines = (h100.path / "view/driver/nvidia-caps/mig-minors").read_text().splitlines()
    table = dict(line.split() for line in lines)
    assert (table["config"], table["monitor"]) == ("1", "2")
    assert table["gpu0/gi0/access"] == "3"
    assert table["gpu2/gi7/access"] == str(3 + 2 * 135 + 7 * 9)
    assert table["gpu2/gi7/ci3/access"] == str(3 + 2 * 135 + 7 * 9 + 1 + 3)
    assert len(set(table.values())) == len(lines) == 2 + 32 * 15 * 9


def test_modes_of_capabilities(h100: Node) -> None:
    """mig-ug: config is 0400, monitor 0444. Without a driver there are none."""
    folder = h100.path / "view/driver/nvidia/capabilities/mig"
    for name, minor, mode in (("config", 1, 0o400), ("monitor", 2, 0o444)):
        text = (folder / name).read_text()
        assert text == f"DeviceFileMinor: {minor}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n"
    h100.unload()
    assert not folder.exists()


def test_process_lists(h100: Node, nvml: Any) -> None:
    """nvml.h: ids are 0xFFFFFFFF with MIG off; count 0 gives INSUFFICIENT_SIZE and the number."""
    nvml(h100)
    function = pynvml.nvmlLib.nvmlDeviceGetComputeRunningProcesses_v3
    count = ctypes.c_uint(0)
    assert function(gpu(), ctypes.byref(count), None) == 0
    with h100.hold(0) as holder:
        assert function(gpu(), ctypes.byref(count), None) == INSUFFICIENT_SIZE
        assert count.value == 1
        (row,) = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu())
        assert (row.pid, row.gpuInstanceId, row.computeInstanceId) == (
            holder.pid,
            NO_INSTANCE,
            NO_INSTANCE,
        )


def test_in_use_with_an_empty_process_list(h100: Node, nvml: Any) -> None:
    """DCGM#276, DCGM#95: the list shows contexts, what counts are subscriptions."""
    nvml(h100)
    device = enabled()
    instance = create(device, 9)
    inner = pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 2)
    with h100.hold(0, 1, hidden=True):
        with refused(IN_USE):
            pynvml.nvmlComputeInstanceDestroy(inner)
        mig = pynvml.nvmlComputeInstanceGetInfo(inner).device
        for handle in (device, mig):
            assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle) == []
            assert pynvml.nvmlDeviceGetMemoryInfo(handle).used == 0
    pynvml.nvmlComputeInstanceDestroy(inner)
