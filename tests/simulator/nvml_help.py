# SPDX-License-Identifier: Apache-2.0
"""Short words for what the tests do through pynvml."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pynvml
import pytest

INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
DRIVER_NOT_LOADED = 9
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
IN_USE = 19
INSUFFICIENT_RESOURCES = 23
ARGUMENT_VERSION_MISMATCH = 25
UNKNOWN = 999


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(pynvml.NVMLError) as caught:
        yield
    assert caught.value.value == code


def gpu(index: int = 0) -> Any:
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def enabled(index: int = 0) -> Any:
    device = gpu(index)
    assert pynvml.nvmlDeviceSetMigMode(device, 1) == 0
    return device


def create(device: Any, profile: int, start: int | None = None, size: int = 0) -> Any:
    if start is None:
        return pynvml.nvmlDeviceCreateGpuInstance(device, profile)
    place = pynvml.c_nvmlGpuInstancePlacement_t(start, size)
    return pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(device, profile, ctypes.byref(place))


def start_of(instance: Any) -> int:
    return int(pynvml.nvmlGpuInstanceGetInfo(instance).placement.start)


def id_of(instance: Any) -> int:
    return int(pynvml.nvmlGpuInstanceGetInfo(instance).id)


def placements(device: Any, profile: int) -> list[tuple[int, int]]:
    count = ctypes.c_uint()
    ask = pynvml.nvmlDeviceGetGpuInstancePossiblePlacements
    ask(device, profile, None, ctypes.byref(count))
    array = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    ask(device, profile, array, ctypes.byref(count))
    return [(place.start, place.size) for place in array]


def instances(device: Any, profile: int, room: int = 8) -> list[Any]:
    count = ctypes.c_uint()
    array = (pynvml.c_nvmlGpuInstance_t * room)()
    pynvml.nvmlDeviceGetGpuInstances(device, profile, array, ctypes.byref(count))
    return list(array[: count.value])


def compute_instances(instance: Any, profile: int, room: int = 8) -> list[Any]:
    count = ctypes.c_uint()
    array = (pynvml.c_nvmlComputeInstance_t * room)()
    pynvml.nvmlGpuInstanceGetComputeInstances(instance, profile, array, ctypes.byref(count))
    return list(array[: count.value])


def capacity(device: Any, profile: int) -> int:
    return int(pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity(device, profile))
