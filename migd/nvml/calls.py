"""NVML's calls, by name, with errors that say which failed. The only importer of pynvml.

Runs in the worker process. No handle outlives a request: handles go stale when a GPU is reset
or an instance destroyed (nvml.h), and finding one again is cheap.
"""

from collections.abc import Callable, Container, Iterator
from ctypes import byref, c_uint
from typing import Any

import pynvml

from migd.core.model import Placement
from migd.nvml.protocol import Failure

SUCCESS = pynvml.NVML_SUCCESS
IN_USE = pynvml.NVML_ERROR_IN_USE
NO_PERMISSION = pynvml.NVML_ERROR_NO_PERMISSION
RESETLESS = pynvml.NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED
GPU_INSTANCE = pynvml.c_nvmlGpuInstance_t
COMPUTE_INSTANCE = pynvml.c_nvmlComputeInstance_t
SHARED_ENGINES = 0  # NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED

_INSTANCES_MAX = 64  # more than any GPU has; NVML writes as many as there are into the buffer
_DENIALS = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NOT_FOUND,
)
_END = (pynvml.NVML_ERROR_INVALID_ARGUMENT,)
_NAMES = {
    value: name.removeprefix("NVML_ERROR_")
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(value, int)
}


class CallFailed(Exception):
    """An NVML call that failed, by its name and NVML's code."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(call, code, text)
        self.call = call
        self.code = code
        self.text = text

    @property
    def failure(self) -> Failure:
        return Failure(self.call, self.code, _NAMES.get(self.code, "UNKNOWN"), self.text)


class NoEffect(CallFailed):
    """An NVML call that returned SUCCESS, and what it was to change is as it was."""

    def __init__(self, call: str, text: str) -> None:
        super().__init__(call, pynvml.NVML_SUCCESS, f"{call} returned SUCCESS, but {text}")

    @property
    def failure(self) -> Failure:
        return Failure(self.call, self.code, "NO_EFFECT", self.text)


class NoAnswer(CallFailed):
    """An NVML call that returned SUCCESS, and its answer is nothing that could be."""

    def __init__(self, call: str) -> None:
        super().__init__(call, pynvml.NVML_SUCCESS, f"{call} returned SUCCESS, and no answer")

    @property
    def failure(self) -> Failure:
        return Failure(self.call, self.code, "NO_ANSWER", self.text)


class Stale(Exception):
    """What was to be changed is not what is there."""


def call(name: str, *arguments: Any, **named: Any) -> Any:
    try:
        return getattr(pynvml, name)(*arguments, **named)
    except pynvml.NVMLError as error:
        raise CallFailed(name, error.value, str(error)) from None


def answered(condition: object, name: str) -> None:
    """Raises NoAnswer unless the condition holds, which every answer fulfils."""
    if not condition:
        raise NoAnswer(name)


def offered(name: str, *arguments: Any, **named: Any) -> Any:
    """The call's result, or None where NVML says that this GPU has no such thing.

    It has to say so twice: what is believed not to be there is not put back either.
    """
    return _unless(_DENIALS, name, *arguments, **named)


def _unless(denials: Container[int], name: str, *arguments: Any, **named: Any) -> Any:
    """The call's result, or None where NVML denies twice that there is one."""
    try:
        return call(name, *arguments, **named)
    except CallFailed as error:
        if error.code not in denials:
            raise
    try:
        return call(name, *arguments, **named)
    except CallFailed as error:
        if error.code not in denials:
            raise
    return None


def enumerated(
    name: str, handle: Any, arguments: Callable[[int], tuple[int, ...]], version: int
) -> Iterator[Any]:
    """Profile infos by ascending enum: a hole answers NOT_SUPPORTED, the end INVALID_ARGUMENT."""
    for enum in range(_INSTANCES_MAX):
        try:
            info = offered(name, handle, *arguments(enum), version=version)
        except CallFailed as error:
            if error.code != pynvml.NVML_ERROR_INVALID_ARGUMENT:
                raise
            info = _unless(_END, name, handle, *arguments(enum), version=version)
            if info is None:
                return
        if info is not None:
            answered(info.sliceCount, name)
            info.enum = enum
            yield info


def placements(device: Any, profile_id: int) -> tuple[Placement, ...]:
    name = "nvmlDeviceGetGpuInstancePossiblePlacements"
    count = c_uint(0)
    call(name, device, profile_id, None, byref(count))
    answered(count.value, name)
    spots = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    call(name, device, profile_id, spots, byref(count))
    answered(all(s.size for s in spots[: count.value]), name)
    return tuple(sorted(Placement(s.start, s.size) for s in spots[: count.value]))


def handles(name: str, parent: Any, profile_id: int, kind: Any) -> list[Any]:
    """Handles of all instances of a profile; the count is an answer only, not a limit (nvml.h)."""
    found = (kind * _INSTANCES_MAX)()
    count = c_uint(_INSTANCES_MAX)
    call(name, parent, profile_id, found, byref(count))
    answered(count.value < _INSTANCES_MAX, name)
    # A slice of a ctypes array of pointers gives fresh handles, which outlive the array.
    return list(found[: count.value])


def spot(placement: Placement) -> Any:
    """A placement as the calls that create at one take it."""
    return byref(pynvml.c_nvmlGpuInstancePlacement_t(placement.start, placement.size))
