"""Stands in for nvidia-mig-parted in a test host, by NVML: the layout of the file, all made anew.

usage: nvidia-mig-parted apply|export
What is applied: MIG_PARTED_CONFIG_FILE and MIG_PARTED_SELECTED_CONFIG, whole GPU instances only.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml as nvml
import yaml


def profiles(gpu: Any) -> dict[str, Any]:
    """What the GPU has, by name."""
    found = {}
    for number in range(nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = nvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number)
        except nvml.NVMLError:
            continue
        found[info.name.removeprefix("MIG ")] = info
    return found


def instances(gpu: Any, name: str) -> list[Any]:
    info = profiles(gpu)[name]
    room = (nvml.c_nvmlGpuInstance_t * info.instanceCount)()
    count = nvml.c_uint(info.instanceCount)
    nvml.nvmlDeviceGetGpuInstances(gpu, info.id, room, nvml.byref(count))
    return list(room[: count.value])


def compute(instance: Any, slices: int) -> Iterator[int]:
    """Profiles of compute instances that fill the GPU instance."""
    for number in range(nvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            info = nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, number, 0)
        except nvml.NVMLError:
            continue
        if info.sliceCount == slices:
            yield info.id


def clear(gpu: Any) -> None:
    for name in profiles(gpu):
        for instance in instances(gpu, name):
            for inner in range(8):
                try:
                    found = nvml.nvmlGpuInstanceGetComputeInstanceById(instance, inner)
                except nvml.NVMLError:
                    continue
                nvml.nvmlComputeInstanceDestroy(found)
            nvml.nvmlGpuInstanceDestroy(instance)


def apply() -> None:
    given = yaml.safe_load(Path(os.environ["MIG_PARTED_CONFIG_FILE"]).read_text())
    chosen = given["mig-configs"][os.environ["MIG_PARTED_SELECTED_CONFIG"]]
    wanted = {index: entry for entry in chosen for index in entry["devices"]}
    for index, entry in wanted.items():
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        if nvml.nvmlDeviceGetMigMode(gpu)[0]:
            clear(gpu)
        nvml.nvmlDeviceSetMigMode(gpu, int(entry["mig-enabled"]))
    pending = [i for i in wanted if len({*nvml.nvmlDeviceGetMigMode(handle(i))}) == 2]
    nvml.nvmlShutdown()
    for index in pending:
        subprocess.run(["nvidia-smi", "--gpu-reset", "-i", str(index)], check=True)
    nvml.nvmlInit()
    for index, entry in wanted.items():
        for name, count in entry.get("mig-devices", {}).items():
            info = profiles(handle(index))[name]
            for _ in range(count):
                made = nvml.nvmlDeviceCreateGpuInstance(handle(index), info.id)
                nvml.nvmlGpuInstanceCreateComputeInstance(
                    made, next(compute(made, info.sliceCount))
                )


def export() -> None:
    entries = []
    for index in range(nvml.nvmlDeviceGetCount()):
        gpu = handle(index)
        enabled = bool(nvml.nvmlDeviceGetMigMode(gpu)[0])
        counts = Counter({n: len(instances(gpu, n)) for n in profiles(gpu)} if enabled else {})
        devices = {name: count for name, count in counts.items() if count}
        entries.append({"devices": [index], "mig-enabled": enabled, "mig-devices": devices})
    print(yaml.safe_dump({"version": "v1", "mig-configs": {"current": entries}}), end="")


def handle(index: int) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(index)


nvml.nvmlInit()
{"apply": apply, "export": export}[sys.argv[1]]()
