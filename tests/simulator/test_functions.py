# SPDX-License-Identifier: Apache-2.0
"""Every function of the library by group, called through pynvml; and what it does not have."""

import ctypes
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml
import pytest

import migd.simulator
from tests.simulator.conftest import MakeNode
from tests.simulator.nvml_help import (
    ARGUMENT_VERSION_MISMATCH,
    INVALID_ARGUMENT,
    NOT_FOUND,
    NOT_SUPPORTED,
    compute_instances,
    create,
    enabled,
    gpu,
    instances,
    placements,
    refused,
)
from tests.support.node import Node, wait_for

SOURCES = Path(migd.simulator.__file__).parent / "nvml"
DEFINED = re.compile(
    r"^(?:EXPORT [\w ]+[ *]|UNSUPPORTED\(|UNSUPPORTED_HERE\(|PROPERTY\(|PROCESS_LIST\()(nvml\w+)",
    re.MULTILINE,
)


def defined() -> set[str]:
    return {name for path in SOURCES.glob("*.c") for name in DEFINED.findall(path.read_text())}


UNSUPPORTED = sorted(DEFINED.findall((SOURCES / "unsupported.c").read_text()))


@dataclass
class Scene:
    """GPU 0: MIG on, a 3g instance that is full and a 1g that is empty. GPU 1: MIG off."""

    device: Any
    instance: Any
    compute: Any
    mig: Any
    free: Any
    other: Any
    uuid: str
    bus: str


@pytest.fixture
def scene(h100: Node, nvml: Any) -> Scene:
    api = nvml(h100)
    device = enabled()
    instance = create(device, 9)
    compute = api.nvmlGpuInstanceCreateComputeInstance(instance, 2)
    mig = api.nvmlComputeInstanceGetInfo(compute).device
    return Scene(
        device=device,
        instance=instance,
        compute=compute,
        mig=mig,
        free=create(device, 19),
        other=gpu(1),
        uuid=h100.gpus()[1]["uuid"],
        bus=h100.gpus()[1]["pci"],
    )


def by_uuid(scene: Scene) -> Any:
    whole = uuid.UUID(scene.uuid.removeprefix("GPU-"))
    return [
        pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUIDV(value, kind))
        for kind, value in ((1, scene.uuid.encode()), (2, whole.bytes))
    ]


def pci_ext(scene: Scene) -> Any:
    words = (ctypes.c_uint * 16)(0x01000040)
    pynvml.nvmlDeviceGetPciInfoExt(scene.other, words)
    return words[2], words[6]


def set_mode(scene: Scene) -> Any:
    return pynvml.nvmlDeviceSetMigMode(scene.other, 1)


def place(kind: Any, start: int, size: int) -> Any:
    return ctypes.byref(kind(start, size))


def field(scene: Scene) -> Any:
    (value,) = pynvml.nvmlDeviceGetFieldValues(scene.device, [184])
    assert value.nvmlReturn == 0
    return value.value.uiVal


Call = Callable[[Scene], Any]
GI_PLACE, CI_PLACE = pynvml.c_nvmlGpuInstancePlacement_t, pynvml.c_nvmlComputeInstancePlacement_t

# By group: what pynvml names, how it is called, and what it must answer (None: anything).
GROUPS: dict[str, dict[str, tuple[Call, Any]]] = {
    "system": {
        "nvmlSystemGetDriverVersion": (lambda _: pynvml.nvmlSystemGetDriverVersion(), None),
        "nvmlSystemGetNVMLVersion": (
            lambda _: pynvml.nvmlSystemGetNVMLVersion().split(".")[0],
            "13",
        ),
        "nvmlSystemGetCudaDriverVersion": (
            lambda _: pynvml.nvmlSystemGetCudaDriverVersion(),
            13000,
        ),
        "nvmlSystemGetCudaDriverVersion_v2": (
            lambda _: pynvml.nvmlSystemGetCudaDriverVersion_v2(),
            13000,
        ),
        "nvmlSystemGetProcessName": (
            lambda _: bool(pynvml.nvmlSystemGetProcessName(os.getpid())),
            True,
        ),
        "nvmlErrorString": (lambda _: pynvml.nvmlErrorString(19), "In use by another client"),
        "nvmlUnitGetCount": (lambda _: pynvml.nvmlUnitGetCount(), 0),
        "nvmlGetExcludedDeviceCount": (lambda _: pynvml.nvmlGetExcludedDeviceCount(), 0),
        "nvmlDeviceGetCount_v2": (lambda _: pynvml.nvmlDeviceGetCount(), 2),
    },
    "handles": {
        "nvmlDeviceGetHandleByIndex_v2": (lambda _: pynvml.nvmlDeviceGetHandleByIndex(1), None),
        "nvmlDeviceGetHandleByUUID": (lambda s: pynvml.nvmlDeviceGetHandleByUUID(s.uuid), None),
        "nvmlDeviceGetHandleByUUIDV": (by_uuid, [1, 1]),
        "nvmlDeviceGetHandleByPciBusId_v2": (
            lambda s: pynvml.nvmlDeviceGetHandleByPciBusId(s.bus),
            None,
        ),
    },
    "identity": {
        "nvmlDeviceGetName": (
            lambda s: pynvml.nvmlDeviceGetName(s.mig),
            "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        ),
        "nvmlDeviceGetUUID": (lambda s: pynvml.nvmlDeviceGetUUID(s.mig)[:4], "MIG-"),
        "nvmlDeviceGetIndex": (lambda s: pynvml.nvmlDeviceGetIndex(s.other), 1),
        "nvmlDeviceGetMinorNumber": (lambda s: pynvml.nvmlDeviceGetMinorNumber(s.other), 1),
        "nvmlDeviceGetPciInfo_v3": (lambda s: pynvml.nvmlDeviceGetPciInfo(s.other).bus, 0x43),
        "nvmlDeviceGetPciInfoExt": (pci_ext, (0x43, 3)),
        "nvmlDeviceGetSerial": (lambda s: len(pynvml.nvmlDeviceGetSerial(s.device)), 13),
        "nvmlDeviceGetPdi": (lambda s: pynvml.nvmlDeviceGetPdi(s.device) > 0, True),
        "nvmlDeviceGetBoardId": (lambda s: pynvml.nvmlDeviceGetBoardId(s.other), 0x4300),
        "nvmlDeviceGetMultiGpuBoard": (lambda s: pynvml.nvmlDeviceGetMultiGpuBoard(s.device), 0),
        "nvmlDeviceOnSameBoard": (
            lambda s: pynvml.nvmlDeviceOnSameBoard(s.device, s.other),
            False,
        ),
        "nvmlDeviceGetBrand": (lambda s: pynvml.nvmlDeviceGetBrand(s.device), 14),
        "nvmlDeviceGetBusType": (lambda s: pynvml.nvmlDeviceGetBusType(s.device), 2),
        "nvmlDeviceGetArchitecture": (lambda s: pynvml.nvmlDeviceGetArchitecture(s.mig), 9),
        "nvmlDeviceGetCudaComputeCapability": (
            lambda s: pynvml.nvmlDeviceGetCudaComputeCapability(s.mig),
            (9, 0),
        ),
        "nvmlDeviceGetNumGpuCores": (
            lambda s: pynvml.nvmlDeviceGetNumGpuCores(s.other),
            132 * 128,
        ),
    },
    "resources": {
        "nvmlDeviceGetMemoryInfo": (
            lambda s: pynvml.nvmlDeviceGetMemoryInfo(s.mig).total,
            40448 << 20,
        ),
        "nvmlDeviceGetMemoryInfo_v2": (
            lambda s: pynvml.nvmlDeviceGetMemoryInfo(s.device, version=pynvml.nvmlMemory_v2).total,
            81559 << 20,
        ),
        "nvmlDeviceGetBAR1MemoryInfo": (
            lambda s: [
                pynvml.nvmlDeviceGetBAR1MemoryInfo(handle).bar1Total >> 30
                for handle in (s.device, s.mig)
            ],
            [128, 64],
        ),
        "nvmlDeviceGetAttributes_v2": (
            lambda s: pynvml.nvmlDeviceGetAttributes_v2(s.mig).multiprocessorCount,
            60,
        ),
        "nvmlDeviceGetFieldValues": (field, 1),
    },
    "modes": {
        "nvmlDeviceGetPersistenceMode": (
            lambda s: pynvml.nvmlDeviceGetPersistenceMode(s.device),
            0,
        ),
        "nvmlDeviceSetPersistenceMode": (
            lambda s: pynvml.nvmlDeviceSetPersistenceMode(s.device, 1),
            None,
        ),
        "nvmlDeviceGetComputeMode": (lambda s: pynvml.nvmlDeviceGetComputeMode(s.mig), 0),
        "nvmlDeviceGetPerformanceState": (
            lambda s: pynvml.nvmlDeviceGetPerformanceState(s.device),
            0,
        ),
        "nvmlDeviceGetMigMode": (lambda s: pynvml.nvmlDeviceGetMigMode(s.device), [1, 1]),
        "nvmlDeviceSetMigMode": (set_mode, 0),
    },
    "processes": {
        f"nvmlDeviceGet{kind}RunningProcesses{version}": (
            lambda s, name=f"nvmlDeviceGet{kind}RunningProcesses{version}": getattr(pynvml, name)(
                s.mig
            ),
            [],
        )
        for kind in ("Compute", "Graphics", "MPSCompute")
        for version in ("_v2", "_v3")
    }
    | {
        "nvmlDeviceGetRunningProcessDetailList": (
            lambda s: pynvml.nvmlDeviceGetRunningProcessDetailList(s.device, 0x01000018, 0),
            [],
        ),
    },
    "gpu instances": {
        "nvmlDeviceGetGpuInstanceProfileInfo": (
            lambda s: pynvml.nvmlDeviceGetGpuInstanceProfileInfo(s.other, 2, version=1).id,
            9,
        ),
        "nvmlDeviceGetGpuInstanceProfileInfoV": (
            lambda s: pynvml.nvmlDeviceGetGpuInstanceProfileInfo(s.device, 2).name,
            "MIG 3g.40gb",
        ),
        "nvmlDeviceGetGpuInstanceProfileInfoByIdV": (
            lambda s: pynvml.nvmlDeviceGetGpuInstanceProfileInfoById(s.device, 9).name,
            "MIG 3g.40gb",
        ),
        "nvmlDeviceGetGpuInstancePossiblePlacements_v2": (
            lambda s: placements(s.device, 9),
            [(0, 4), (4, 4)],
        ),
        "nvmlDeviceGetGpuInstanceRemainingCapacity": (
            lambda s: pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity(s.device, 19),
            3,
        ),
        "nvmlDeviceCreateGpuInstance": (lambda s: create(s.device, 19), None),
        "nvmlDeviceCreateGpuInstanceWithPlacement": (lambda s: create(s.device, 19, 2, 1), None),
        "nvmlGpuInstanceDestroy": (lambda s: pynvml.nvmlGpuInstanceDestroy(s.free), None),
        "nvmlDeviceGetGpuInstances": (lambda s: len(instances(s.device, 9)), 1),
        "nvmlDeviceGetGpuInstanceById": (
            lambda s: pynvml.nvmlDeviceGetGpuInstanceById(s.device, 1),
            None,
        ),
        "nvmlGpuInstanceGetInfo": (
            lambda s: pynvml.nvmlGpuInstanceGetInfo(s.instance).placement.start,
            4,
        ),
    },
    "compute instances": {
        "nvmlGpuInstanceGetComputeInstanceProfileInfo": (
            lambda s: (
                pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                    s.instance, 2, 0, version=1
                ).multiprocessorCount
            ),
            60,
        ),
        "nvmlGpuInstanceGetComputeInstanceProfileInfoV": (
            lambda s: pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(s.instance, 0, 0).name,
            "MIG 1c.3g.40gb",
        ),
        "nvmlGpuInstanceGetComputeInstanceRemainingCapacity": (
            lambda s: pynvml.nvmlGpuInstanceGetComputeInstanceRemainingCapacity(s.instance, 0),
            0,
        ),
        "nvmlGpuInstanceGetComputeInstancePossiblePlacements": (
            lambda s: pynvml.nvmlGpuInstanceGetComputeInstancePossiblePlacements(
                s.instance, 0, (CI_PLACE * 8)(), ctypes.byref(ctypes.c_uint())
            ),
            None,
        ),
        "nvmlGpuInstanceCreateComputeInstance": (
            lambda s: pynvml.nvmlGpuInstanceCreateComputeInstance(s.free, 0),
            None,
        ),
        "nvmlGpuInstanceCreateComputeInstanceWithPlacement": (
            lambda s: pynvml.nvmlGpuInstanceCreateComputeInstanceWithPlacement(
                create(s.device, 19), 0, place(CI_PLACE, 0, 1)
            ),
            None,
        ),
        "nvmlComputeInstanceDestroy": (
            lambda s: pynvml.nvmlComputeInstanceDestroy(
                pynvml.nvmlGpuInstanceCreateComputeInstance(create(s.device, 19), 0)
            ),
            None,
        ),
        "nvmlGpuInstanceGetComputeInstances": (lambda s: len(compute_instances(s.instance, 2)), 1),
        "nvmlGpuInstanceGetComputeInstanceById": (
            lambda s: pynvml.nvmlGpuInstanceGetComputeInstanceById(s.instance, 0),
            None,
        ),
        "nvmlComputeInstanceGetInfo_v2": (
            lambda s: pynvml.nvmlComputeInstanceGetInfo(s.compute).profileId,
            2,
        ),
    },
    "MIG devices": {
        "nvmlDeviceIsMigDeviceHandle": (
            lambda s: pynvml.nvmlDeviceIsMigDeviceHandle(s.mig).value,
            1,
        ),
        "nvmlDeviceGetGpuInstanceId": (lambda s: pynvml.nvmlDeviceGetGpuInstanceId(s.mig), 1),
        "nvmlDeviceGetComputeInstanceId": (
            lambda s: pynvml.nvmlDeviceGetComputeInstanceId(s.mig),
            0,
        ),
        "nvmlDeviceGetMaxMigDeviceCount": (
            lambda s: pynvml.nvmlDeviceGetMaxMigDeviceCount(s.device),
            7,
        ),
        "nvmlDeviceGetMigDeviceHandleByIndex": (
            lambda s: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(s.device, 0),
            None,
        ),
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": (
            lambda s: pynvml.nvmlDeviceGetIndex(
                pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(s.mig)
            ),
            0,
        ),
    },
    "events": {
        "nvmlEventSetCreate": (lambda _: pynvml.nvmlEventSetCreate(), None),
        "nvmlEventSetFree": (
            lambda _: pynvml.nvmlEventSetFree(pynvml.nvmlEventSetCreate()),
            None,
        ),
        "nvmlDeviceGetSupportedEventTypes": (
            lambda s: pynvml.nvmlDeviceGetSupportedEventTypes(s.device) & 0x100,
            0x100,
        ),
    },
}

# Called in tests of their own, or at each session.
ELSEWHERE = {
    "nvmlDeviceRegisterEvents": "test_events",
    "nvmlEventSetWait": "test_events",
    "nvmlEventSetWait_v2": "test_events",
    "nvmlInitWithFlags": "each test",
    "nvmlShutdown": "each test",
}

# Older names, which pynvml no longer asks for and go-nvml does.
OLD: dict[str, Callable[[Any, Scene], list[Any]]] = {
    "nvmlInit": lambda _a, _s: [],
    "nvmlInit_v2": lambda _a, _s: [],
    "nvmlDeviceGetCount": lambda a, _s: [a(4)],
    "nvmlDeviceGetHandleByIndex": lambda a, _s: [0, a(8)],
    "nvmlDeviceGetHandleByPciBusId": lambda a, s: [s.bus.encode(), a(8)],
    "nvmlDeviceGetPciInfo": lambda a, s: [s.device, a(52)],
    "nvmlDeviceGetPciInfo_v2": lambda a, s: [s.device, a(52)],
    "nvmlDeviceGetAttributes": lambda a, s: [s.mig, a(40)],
    "nvmlDeviceGetGpuInstancePossiblePlacements": lambda a, s: [s.device, 9, a(16), a(4)],
    "nvmlComputeInstanceGetInfo": lambda a, s: [s.compute, a(32)],
    "nvmlDeviceGetComputeRunningProcesses": lambda a, s: [s.mig, a(4), None],
    "nvmlDeviceGetGraphicsRunningProcesses": lambda a, s: [s.mig, a(4), None],
    "nvmlDeviceGetMPSComputeRunningProcesses": lambda a, s: [s.mig, a(4), None],
}

ABSENT = (
    "nvmlDeviceGetVgpuMetadata",
    "nvmlDeviceGetSupportedVgpus",
    "nvmlGpuInstanceGetActiveVgpus",
    "nvmlVgpuInstanceGetType",
    "nvmlUnitGetHandleByIndex",
    "nvmlGpmSampleAlloc",
    "nvmlEventSetWait_v3",
    "nvmlSystemEventSetCreate",
    "nvmlDeviceReadWritePRM_v1",
)


@pytest.mark.parametrize("group", GROUPS)
def test_functions_of(group: str, scene: Scene, h100: Node) -> None:
    before = h100.calls()
    for name, (call, expected) in GROUPS[group].items():
        answer = call(scene)
        assert expected is None or answer == expected, name
    counted = {name for name, count in h100.calls().items() if count > before.get(name, 0)}
    # Two answers need no driver and are not counted.
    uncounted = {"nvmlErrorString"} | {name for name in GROUPS[group] if "CudaDriver" in name}
    assert set(GROUPS[group]) - uncounted <= counted


def test_older_names(scene: Scene) -> None:
    buffers = []

    def room(size: int) -> Any:
        buffers.append(ctypes.create_string_buffer(size))
        return buffers[-1]

    for name, arguments in OLD.items():
        assert getattr(pynvml.nvmlLib, name)(*arguments(room, scene)) == 0, name
    for name in ("nvmlInit", "nvmlInit_v2"):
        assert pynvml.nvmlLib.nvmlShutdown() == 0, name


@pytest.mark.parametrize("which", ["a GPU", "a MIG device"])
def test_what_a_simulated_card_cannot_say_is_not_supported(which: str, scene: Scene) -> None:
    device = scene.device if which == "a GPU" else scene.mig
    for name in UNSUPPORTED:
        function = pynvml._nvmlGetFunctionPointer(name)
        here = name.startswith("nvmlSystem") or name == "nvmlDeviceGetHandleBySerial"
        arguments = [] if here else [device]
        assert function(*arguments, *[None] * 4) == NOT_SUPPORTED, name
    with refused(NOT_SUPPORTED):
        pynvml.nvmlDeviceGetTemperature(device, 0)
    with refused(NOT_SUPPORTED):
        pynvml.nvmlDeviceGetUtilizationRates(device)
    assert pynvml._nvmlGetFunctionPointer("nvmlDeviceGetEccMode")(None) == INVALID_ARGUMENT


@pytest.mark.parametrize("name", ABSENT)
def test_the_rest_does_not_exist(name: str, h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    with refused(api.NVML_ERROR_FUNCTION_NOT_FOUND):
        api._nvmlGetFunctionPointer(name)


def test_no_function_is_in_no_group() -> None:
    named = {name for group in GROUPS.values() for name in group}
    assert named | set(OLD) | set(UNSUPPORTED) | set(ELSEWHERE) == defined()


def test_struct_sizes_are_pynvmls(scene: Scene, nvml: Any) -> None:
    """A version word with another size in it is refused where structs carry one."""
    words = (ctypes.c_uint * 64)(0x02000030)
    for name in ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetPciInfoExt", "nvmlDeviceGetPdi"):
        function = getattr(pynvml.nvmlLib, name)
        assert function(scene.device, words) == ARGUMENT_VERSION_MISMATCH, name
    assert ctypes.sizeof(pynvml.c_nvmlDeviceAttributes) == 40
    assert ctypes.sizeof(pynvml.c_nvmlGpuInstanceInfo_t) == 24
    assert ctypes.sizeof(pynvml.c_nvmlComputeInstanceInfo_t) == 32
    assert ctypes.sizeof(pynvml.c_nvmlEventData_t) == 32


def test_a_card_without_mig(make_node: MakeNode, nvml: Any) -> None:
    node = make_node(("t4-16gb", 1), ("h100-80gb-sxm5", 1))
    api = nvml(node)
    device = gpu()
    assert api.nvmlDeviceGetName(device) == "Tesla T4"
    assert api.nvmlDeviceGetMaxMigDeviceCount(device) == 0
    for call, arguments in (
        (api.nvmlDeviceGetMigMode, ()),
        (api.nvmlDeviceSetMigMode, (1,)),
        (api.nvmlDeviceGetGpuInstanceProfileInfo, (0,)),
        (api.nvmlDeviceCreateGpuInstance, (19,)),
        (api.nvmlDeviceGetGpuInstanceRemainingCapacity, (19,)),
        (api.nvmlDeviceGetGpuInstanceById, (1,)),
        (api.nvmlDeviceGetMigDeviceHandleByIndex, (0,)),
        (api.nvmlDeviceGetNumGpuCores, ()),
        (api.nvmlDeviceRegisterEvents, (0x100, api.nvmlEventSetCreate())),
    ):
        with refused(NOT_SUPPORTED):
            call(device, *arguments)
    (resetless,) = api.nvmlDeviceGetFieldValues(device, [184])
    assert resetless.value.uiVal == 0
    assert node.gpus()[0]["mode"] == {"current": "unsupported", "pending": "unsupported"}
    enabled(1)


def test_names_of_processes(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    with h100.hold(0) as holder:
        wait_for(lambda: api.nvmlSystemGetProcessName(holder.pid) == "sleep")  # after its exec
        listed = api.nvmlDeviceGetRunningProcessDetailList(gpu(), 0x01000018, 0)
        assert [row.pid for row in listed] == [holder.pid]
    with refused(NOT_FOUND):
        api.nvmlSystemGetProcessName(0x7FFFFFFF)


def test_persistence_mode_ends_with_a_reboot(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    api.nvmlDeviceSetPersistenceMode(gpu(), 1)
    assert api.nvmlDeviceGetPersistenceMode(gpu()) == 1
    h100.reboot()
    api = nvml(h100)
    assert api.nvmlDeviceGetPersistenceMode(gpu()) == 0
