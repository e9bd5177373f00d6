# SPDX-License-Identifier: Apache-2.0
"""What the library answers is what boards.yaml says, and what the rule for gaps fills in."""

import ctypes
from pathlib import Path
from typing import Any

import pytest
import yaml

import migd.simulator
from migd.simulator import boards
from migd.simulator.errors import SimulatorError
from tests.simulator.conftest import MakeNode
from tests.simulator.nvml_help import (
    ARGUMENT_VERSION_MISMATCH,
    INVALID_ARGUMENT,
    NOT_SUPPORTED,
    capacity,
    create,
    enabled,
    gpu,
    placements,
    refused,
)

CATALOGUE = yaml.load(
    (Path(migd.simulator.__file__).parent / "boards.yaml").read_text(), Loader=yaml.CSafeLoader
)
MODELS = {model["key"]: model for model in CATALOGUE["models"]}
ENGINES = ("copy_engines", "decoders", "encoders", "jpeg", "ofa")
TOTAL = "nvml_total_memory_mib"
COUNTS = ("copyEngineCount", "decoderCount", "encoderCount", "jpegCount", "ofaCount")


def engines(info: Any, prefix: str = "") -> list[int]:
    if prefix:
        return [getattr(info, f"{prefix}{name[0].upper()}{name[1:]}") for name in COUNTS]
    return [getattr(info, name) for name in COUNTS]


@pytest.mark.parametrize("key", boards.OFFERED)
def test_identity(key: str, make_node: MakeNode, nvml: Any) -> None:
    node = make_node((key, 1))
    api = nvml(node)
    model = MODELS[key]
    device = gpu()
    assert api.nvmlDeviceGetCount() == 1
    assert api.nvmlDeviceGetName(device) == model["nvml_names"][0]
    total = api.nvmlDeviceGetMemoryInfo(device).total >> 20
    assert total == (model["nvml_total_memory_mib"] or boards.board(key).model[TOTAL])
    assert api.nvmlDeviceGetMemoryInfo(device, version=api.nvmlMemory_v2).total > 0
    version = ".".join(map(str, api.nvmlDeviceGetCudaComputeCapability(device)))
    assert version == model["compute_capability"]
    pci = api.nvmlDeviceGetPciInfo(device)
    assert pci.pciDeviceId == int(model["pci_device_ids"][0]["id"], 16)
    for address in (pci.busId, pci.busIdLegacy, pci.busId.lower()):
        same = api.nvmlDeviceGetHandleByPciBusId(address)
        assert api.nvmlDeviceGetUUID(same) == node.gpus()[0]["uuid"]
    with refused(api.NVML_ERROR_NOT_FOUND):
        api.nvmlDeviceGetHandleByPciBusId("00000000:01:00.0")
    resetless, independent, other = api.nvmlDeviceGetFieldValues(device, [184, 199, 1])
    assert resetless.value.uiVal == int(not model["mig_mode"]["enable_needs_gpu_reset"])
    assert independent.nvmlReturn == 0
    assert other.nvmlReturn == NOT_SUPPORTED


@pytest.mark.parametrize("key", boards.OFFERED)
def test_gpu_instance_profiles(key: str, make_node: MakeNode, nvml: Any) -> None:
    api = nvml(make_node((key, 1)))
    device = gpu()
    rows = {row["enum_value"]: row for row in boards.board(key).profiles}
    assert set(rows) == {row["enum_value"] for row in MODELS[key]["gpu_instance_profiles"]}
    for enumerator in range(api.NVML_GPU_INSTANCE_PROFILE_COUNT):
        row = rows.get(enumerator)
        if row is None:
            with refused(NOT_SUPPORTED):
                api.nvmlDeviceGetGpuInstanceProfileInfo(device, enumerator, version=1)
            continue
        with refused(NOT_SUPPORTED):  # the versioned query needs MIG on
            api.nvmlDeviceGetGpuInstanceProfileInfo(device, enumerator)
        info = api.nvmlDeviceGetGpuInstanceProfileInfo(device, enumerator, version=1)
        assert info.id == row["id"]
        assert info.memorySizeMB == row["memory_mib"]
        assert placements(device, info.id) == [
            (place["start"], place["size"]) for place in row["placements"]
        ]
    enabled()
    for enumerator, row in rows.items():
        for info in (
            api.nvmlDeviceGetGpuInstanceProfileInfo(device, enumerator),
            api.nvmlDeviceGetGpuInstanceProfileInfoById(device, row["id"]),
        ):
            assert info.name == f"MIG {row['name']}"
            assert (info.id, info.sliceCount, info.instanceCount) == (
                row["id"],
                row["slices"],
                row["instances"],
            )
            assert info.multiprocessorCount == row["sm"]
            assert engines(info) == [row[name] for name in ENGINES]
            assert not info.isP2pSupported
        assert capacity(device, row["id"]) == row["instances"]
    with refused(INVALID_ARGUMENT):
        api.nvmlDeviceGetGpuInstanceProfileInfo(device, api.NVML_GPU_INSTANCE_PROFILE_COUNT)


@pytest.mark.parametrize("key", boards.OFFERED)
def test_compute_instance_profiles(key: str, make_node: MakeNode, nvml: Any) -> None:
    api = nvml(make_node((key, 1)))
    device = enabled()
    for row in boards.board(key).profiles:
        instance = create(device, row["id"])
        offered = {inner["id"]: inner for inner in row["compute_profiles"]}
        for enumerator in range(api.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
            if enumerator not in offered:
                with refused(NOT_SUPPORTED):
                    api.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, enumerator, 0)
                continue
            inner = offered[enumerator]
            for version in (1, 2):
                info = api.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                    instance, enumerator, 0, version=version
                )
                assert (info.id, info.sliceCount, info.instanceCount, info.multiprocessorCount) == (
                    inner["id"],
                    inner["slices"],
                    inner["instances"],
                    inner["sm"],
                )
                assert engines(info, "shared") == [row[name] for name in ENGINES]
            named = api.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, enumerator, 0)
            assert named.name == f"MIG {inner['name']}"
            room = api.nvmlGpuInstanceGetComputeInstanceRemainingCapacity(instance, inner["id"])
            assert room == inner["instances"]
        api.nvmlGpuInstanceDestroy(instance)


def test_rows_with_unknown_numbers_are_left_out(h100: Any) -> None:
    (shown,) = h100.show()["boards"]
    assert "compute profile 1c.3g.40gb id 7 in 3g.40gb" in shown["left_out"]
    for row in boards.board("h100-80gb-sxm5").profiles:
        assert all(inner["instances"] for inner in row["compute_profiles"])


def test_double_memory_profile_has_compute_profile_7_on_hopper(h100: Any, nvml: Any) -> None:
    api = nvml(h100)
    instance = create(enabled(), 15)
    made = api.nvmlGpuInstanceCreateComputeInstance(instance, 7)
    device = api.nvmlComputeInstanceGetInfo(made).device
    assert api.nvmlDeviceGetAttributes(device).multiprocessorCount == 26
    assert api.nvmlDeviceGetName(device) == "NVIDIA H100 80GB HBM3 MIG 1g.20gb"


def test_struct_versions(h100: Any, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    library = api.nvmlLib
    info = api.c_nvmlGpuInstanceProfileInfo_v2_t()
    info.version = 0x04000098
    ask = library.nvmlDeviceGetGpuInstanceProfileInfoV
    assert ask(device, 0, ctypes.byref(info)) == ARGUMENT_VERSION_MISMATCH
    words = (ctypes.c_uint * 38)(0x03000098)
    assert ask(device, 0, words) == 0
    assert list(words[1:5]) == [19, 1, 7, 16]
    assert bytes(words)[48:61] == b"MIG 1g.10gb\0\0"
    instance = create(device, 19)
    words = (ctypes.c_uint * 35)(0x0300008C)
    ask = library.nvmlGpuInstanceGetComputeInstanceProfileInfoV
    assert ask(instance, 0, 0, words) == 0
    assert list(words[1:5]) == [0, 1, 1, 16]
    words[0] = 1
    assert ask(instance, 0, 0, words) == ARGUMENT_VERSION_MISMATCH


def test_boards_that_are_not_offered_are_refused_with_the_reason() -> None:
    with pytest.raises(SimulatorError, match="is not offered; there are a30-24gb, a100-40gb, "):
        boards.board("gtx-1080")
    with pytest.raises(SimulatorError, match="nothing is known of its profiles but names; there"):
        boards.board("thor-igpu")
