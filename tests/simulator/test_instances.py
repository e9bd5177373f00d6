# SPDX-License-Identifier: Apache-2.0
"""The life of instances and of the handles that name them."""

import ctypes
import hashlib
import struct
import uuid
from random import Random
from typing import Any

import pytest

from tests.simulator.nvml_help import (
    IN_USE,
    INVALID_ARGUMENT,
    NOT_FOUND,
    NOT_SUPPORTED,
    compute_instances,
    create,
    enabled,
    gpu,
    id_of,
    instances,
    refused,
)
from tests.support.node import Node


def with_compute(api: Any, device: Any, profile: int, *inner: int) -> Any:
    instance = create(device, profile)
    for one in inner:
        api.nvmlGpuInstanceCreateComputeInstance(instance, one)
    return instance


def test_life(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    instance = with_compute(api, device, 9, 0, 0)
    assert h100.layout(0) == [(9, 4, [0, 0])]
    with refused(IN_USE):
        api.nvmlGpuInstanceDestroy(instance)
    for one in compute_instances(instance, 0):
        api.nvmlComputeInstanceDestroy(one)
    assert compute_instances(instance, 0) == []
    api.nvmlGpuInstanceDestroy(instance)
    assert instances(device, 9) == []
    assert h100.layout(0) == []


def test_listing_by_profile_and_by_id(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    made = [with_compute(api, device, profile) for profile in (9, 19, 19)]
    assert [id_of(one) for one in instances(device, 19)] == [7, 8]
    assert instances(device, 14) == []
    same = api.nvmlDeviceGetGpuInstanceById(device, id_of(made[0]))
    assert api.nvmlGpuInstanceGetInfo(same).profileId == 9
    with refused(NOT_FOUND):
        api.nvmlDeviceGetGpuInstanceById(device, 3)
    with refused(NOT_FOUND):
        api.nvmlGpuInstanceGetComputeInstanceById(made[0], 0)
    with refused(NOT_SUPPORTED):
        instances(gpu(1), 19)
    with refused(NOT_SUPPORTED):
        instances(device, 1)


def test_a_handle_of_what_is_gone_is_refused_also_when_the_id_is_used_again(
    h100: Node, nvml: Any
) -> None:
    api = nvml(h100)
    device = enabled()
    old = with_compute(api, device, 9, 2)
    inner = api.nvmlGpuInstanceGetComputeInstanceById(old, 0)
    mig = api.nvmlComputeInstanceGetInfo(inner).device
    api.nvmlComputeInstanceDestroy(inner)
    again = api.nvmlGpuInstanceCreateComputeInstance(old, 2)
    with refused(INVALID_ARGUMENT):
        api.nvmlComputeInstanceGetInfo(inner)
    with refused(INVALID_ARGUMENT):
        api.nvmlDeviceGetUUID(mig)
    api.nvmlComputeInstanceDestroy(again)
    api.nvmlGpuInstanceDestroy(old)
    new = create(device, 9)
    assert id_of(new) == 1
    for call in (api.nvmlGpuInstanceGetInfo, api.nvmlGpuInstanceDestroy):
        with refused(INVALID_ARGUMENT):
            call(old)
    with refused(INVALID_ARGUMENT):
        api.nvmlGpuInstanceGetInfo(device)
    with refused(INVALID_ARGUMENT):
        api.nvmlGpuInstanceGetInfo(None)


def test_compute_instances_at_placements(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    instance = create(enabled(), 0)
    count = ctypes.c_uint()
    places = (api.c_nvmlComputeInstancePlacement_t * 8)()
    ask = api.nvmlGpuInstanceGetComputeInstancePossiblePlacements
    ask(instance, 1, None, ctypes.byref(count))
    assert count.value == 3
    ask(instance, 1, places, ctypes.byref(count))
    assert [(place.start, place.size) for place in places[:3]] == [(0, 2), (2, 2), (4, 2)]
    place = api.c_nvmlComputeInstancePlacement_t(2, 2)
    made = api.nvmlGpuInstanceCreateComputeInstanceWithPlacement(instance, 1, ctypes.byref(place))
    info = api.nvmlComputeInstanceGetInfo(made)
    assert (info.id, info.profileId, info.placement.start) == (0, 1, 2)
    with refused(api.NVML_ERROR_INSUFFICIENT_RESOURCES):
        api.nvmlGpuInstanceCreateComputeInstanceWithPlacement(instance, 1, ctypes.byref(place))
    place.start = 1
    with refused(INVALID_ARGUMENT):
        api.nvmlGpuInstanceCreateComputeInstanceWithPlacement(instance, 1, ctypes.byref(place))
    assert api.nvmlGpuInstanceGetComputeInstanceRemainingCapacity(instance, 1) == 2
    assert id_of(info.gpuInstance) == 0


def test_mig_devices(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    assert api.nvmlDeviceGetMaxMigDeviceCount(gpu()) == 0
    device = enabled()
    assert api.nvmlDeviceGetMaxMigDeviceCount(device) == 7
    made = [with_compute(api, device, 19, 0) for _ in range(3)]
    with_compute(api, device, 19)  # no compute instance, no MIG device
    first = api.nvmlGpuInstanceGetComputeInstanceById(made[1], 0)
    api.nvmlComputeInstanceDestroy(first)
    seen = []
    for index in range(7):
        try:
            mig = api.nvmlDeviceGetMigDeviceHandleByIndex(device, index)
        except api.NVMLError_NotFound:
            continue
        assert api.nvmlDeviceIsMigDeviceHandle(mig).value == 1
        assert api.nvmlDeviceGetComputeInstanceId(mig) == 0
        parent = api.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig)
        assert api.nvmlDeviceGetIndex(parent) == 0
        assert api.nvmlDeviceGetName(mig) == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
        assert api.nvmlDeviceGetMemoryInfo(mig).total == 9984 << 20
        assert api.nvmlDeviceGetAttributes(mig).gpuInstanceSliceCount == 1
        seen.append((index, api.nvmlDeviceGetGpuInstanceId(mig)))
    assert seen == [(0, 7), (2, 9)]
    with refused(INVALID_ARGUMENT):
        api.nvmlDeviceGetMigDeviceHandleByIndex(device, 7)
    assert api.nvmlDeviceIsMigDeviceHandle(device).value == 0
    with refused(NOT_SUPPORTED):
        api.nvmlDeviceGetGpuInstanceId(device)


def test_handles_by_uuid(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled(1)
    with_compute(api, device, 9, 2)
    shown = h100.gpus()[1]
    mig = shown["instances"][0]["compute_instances"][0]["uuid"]
    for text in (mig, f"MIG-{shown['uuid']}/1/0"):
        found = api.nvmlDeviceGetHandleByUUID(text)
        assert api.nvmlDeviceGetUUID(found) == mig
    assert api.nvmlDeviceGetIndex(api.nvmlDeviceGetHandleByUUID(shown["uuid"])) == 1
    with refused(NOT_FOUND):
        api.nvmlDeviceGetHandleByUUID("GPU-00000000-0000-0000-0000-000000000000")
    with refused(NOT_FOUND):
        api.nvmlDeviceGetHandleByUUID(f"MIG-{shown['uuid']}/2/0")


def test_mig_uuids_depend_on_gpu_instance_and_engine_not_on_profile(h100: Node, nvml: Any) -> None:
    api = nvml(h100)

    def uuid_of(index: int, profile: int, inner: int) -> str:
        instance = with_compute(api, enabled(index), profile, inner)
        made = api.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
        text = str(api.nvmlDeviceGetUUID(api.nvmlComputeInstanceGetInfo(made).device))
        api.nvmlComputeInstanceDestroy(made)
        api.nvmlGpuInstanceDestroy(instance)
        return text

    whole = uuid_of(0, 9, 2)
    assert uuid.UUID(whole.removeprefix("MIG-")).version == 5
    assert uuid_of(0, 9, 0) == whole
    assert uuid_of(0, 9, 2) == whole
    assert uuid_of(0, 19, 0) != whole
    assert uuid_of(1, 9, 2) != whole


def test_mig_uuid_bytes_are_those_of_the_open_kernel_modules(tmp_path: Any, nvml: Any) -> None:
    node = Node.new(tmp_path / "seeded", ("h100-80gb-sxm5", 1), seed=7)
    api = nvml(node)
    with_compute(api, enabled(), 9, 2)
    random = Random(7)
    random.getrandbits(128)
    pdi = random.getrandbits(63)
    name = b"NVIDIA GPU\x02" + struct.pack("<H", 0x180) + b"\x08" + struct.pack("<Q", pdi)
    name += b"\x0bSMC" + struct.pack("<II", 1, 4)
    namespace = uuid.UUID("c816c9a3-5224-56bf-9d9a-ac7ea703fb5b")
    expected = uuid.UUID(bytes=hashlib.sha1(namespace.bytes + name).digest()[:16], version=5)
    device = node.gpus()[0]["instances"][0]["compute_instances"][0]
    assert device["uuid"] == f"MIG-{expected}"


def test_the_same_layout_after_a_reboot_has_the_same_uuids(h100: Node, nvml: Any) -> None:
    def layout() -> list[str]:
        api = nvml(h100)
        device = enabled()
        for profile, inner in ((9, 2), (19, 0), (14, 1)):
            with_compute(api, device, profile, inner)
        return [
            one["uuid"]
            for instance in h100.gpus()[0]["instances"]
            for one in instance["compute_instances"]
        ]

    before = layout()
    h100.reboot()
    assert layout() == before


@pytest.mark.parametrize("listings", [2, True])
def test_instances_can_stay_visible_after_a_destroy(
    listings: bool | int, h100: Node, nvml: Any
) -> None:
    h100.surprise("destroyed-stay-visible", listings)
    api = nvml(h100)
    device = enabled()
    instance = create(device, 9)
    api.nvmlGpuInstanceDestroy(instance)
    assert h100.gpus()[0]["instances"][0]["destroyed"]
    counts = [len(instances(device, 9)) for _ in range(4)]
    assert counts == ([1, 0, 0, 0] if listings == 2 else [1, 1, 1, 1])


def test_mig_handles_can_be_stale_for_the_whole_session(h100: Node, nvml: Any) -> None:
    h100.surprise("stale-mig-handles")
    api = nvml(h100)
    device = enabled()
    with_compute(api, device, 9, 2)
    api.nvmlDeviceGetMigDeviceHandleByIndex(device, 0)
    h100.python(
        "from pynvml import *; nvmlInit(); d = nvmlDeviceGetHandleByIndex(0);"
        "g = nvmlDeviceGetGpuInstanceById(d, 1);"
        "nvmlComputeInstanceDestroy(nvmlGpuInstanceGetComputeInstanceById(g, 0));"
        "nvmlGpuInstanceDestroy(g)"
    )
    assert h100.layout(0) == []
    stale = api.nvmlDeviceGetMigDeviceHandleByIndex(device, 0)
    with refused(INVALID_ARGUMENT):
        api.nvmlDeviceGetUUID(stale)
    api.nvmlShutdown()
    api.nvmlInit()
    with refused(NOT_FOUND):
        api.nvmlDeviceGetMigDeviceHandleByIndex(device, 0)
