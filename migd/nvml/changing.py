"""Performs one step of a plan on a GPU."""

import time
from collections.abc import Iterator
from typing import Any

from migd.core.model import Mode, Placement
from migd.core.profiles import filling
from migd.core.steps import (
    CreateCompute,
    CreateInstance,
    DestroyCompute,
    DestroyInstance,
    SetMode,
    Step,
)
from migd.nvml.calls import IN_USE, CallFailed, NoEffect, Stale, call, enumerated, offered, spot
from migd.nvml.protocol import Performed
from migd.nvml.reading import Reader, mode_of


def perform(reader: Reader, index: int, uuid: str, step: Step, retry_s: float) -> Performed:
    """Do one step on the GPU at `index`. Raises CallFailed, and Stale if it is another GPU."""
    device = call("nvmlDeviceGetHandleByIndex", index)
    there = call("nvmlDeviceGetUUID", device)
    if there != uuid:
        raise Stale(f"the GPU at index {index} is {there} now, not {uuid}")
    patience = _Patience(retry_s)
    match step:
        case SetMode(mode):
            return _set_mode(device, mode, index)
        case DestroyInstance(gi, profile_id, placement):
            _destroy_instance(device, gi, profile_id, placement, patience)
            return Performed()
        case DestroyCompute(gi, ci):
            handle = call("nvmlDeviceGetGpuInstanceById", device, gi)
            _destroy_compute(handle, ci, patience)
            return Performed()
        case CreateInstance(profile_id, placement, compute):
            create = "nvmlDeviceCreateGpuInstanceWithPlacement"
            handle = patience.call(create, device, profile_id, spot(placement))
            gi = call("nvmlGpuInstanceGetInfo", handle).id
            _create_compute(reader, handle, uuid, _profile(device, profile_id), compute)
            return Performed(gi=gi)
        case CreateCompute(gi, compute):
            handle = call("nvmlDeviceGetGpuInstanceById", device, gi)
            profile_id = call("nvmlGpuInstanceGetInfo", handle).profileId
            _create_compute(reader, handle, uuid, _profile(device, profile_id), compute)
            return Performed()


class _Patience:
    """Tries a call again while NVML says IN_USE, and looks again for what it still shows.

    A process that has just ended, or a compute instance just destroyed, can hold its GPU
    instance for a moment longer (kubernetes-sigs/dra-driver-nvidia-gpu issue 907); and one that was
    destroyed has been seen in the lists afterwards (NVIDIA/go-nvml issue 146).
    """

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def call(self, name: str, *arguments: Any) -> Any:
        refusal: CallFailed | None = None
        for _ in self._rounds():
            try:
                return call(name, *arguments)
            except CallFailed as error:
                if error.code != IN_USE:
                    raise
                refusal = error
        assert refusal
        raise refusal

    def destroy(self, name: str, handle: Any, find: str, parent: Any, ident: int) -> None:
        """Destroy it, and return when it is not to be found any more. Raises NoEffect.

        Whatever comes next, a way back too, is planned from what NVML shows.
        """
        self.call(name, handle)
        for _ in self._rounds():
            if offered(find, parent, ident) is None:
                return
        raise NoEffect(name, f"instance {ident} is still there")

    def _rounds(self) -> Iterator[None]:
        """One round, and as long as there is time another after a pause."""
        yield
        pause = 0.02
        while time.monotonic() <= self._until:
            time.sleep(pause)
            pause = min(2 * pause, 0.25)
            yield


def _set_mode(device: Any, mode: Mode, index: int) -> Performed:
    wanted = int(mode is Mode.ENABLED)
    activation = call("nvmlDeviceSetMigMode", device, wanted)
    # The call may have reset the device: find it again before asking what came of it (nvml.h).
    current, pending = mode_of(call("nvmlDeviceGetHandleByIndex", index))
    return Performed(mode=current, pending=pending, activation=activation)


def _destroy_instance(
    device: Any, gi: int, profile_id: int, placement: Placement, patience: _Patience
) -> None:
    find = "nvmlDeviceGetGpuInstanceById"
    handle = offered(find, device, gi)
    if handle is None:
        return  # somebody else did it
    info = call("nvmlGpuInstanceGetInfo", handle)
    # Ids are reused at once, so the id alone does not say that it is the one that was planned for.
    if (info.profileId, info.placement.start) != (profile_id, placement.start):
        raise Stale(f"GPU instance {gi} is not the one that was there when this was planned")
    for ci in range(8):  # ids of compute instances are 0 to 7 (open-gpu-kernel-modules)
        _destroy_compute(handle, ci, patience)
    patience.destroy("nvmlGpuInstanceDestroy", handle, find, device, gi)


def _destroy_compute(handle: Any, ci: int, patience: _Patience) -> None:
    find = "nvmlGpuInstanceGetComputeInstanceById"
    found = offered(find, handle, ci)
    if found is not None:
        patience.destroy("nvmlComputeInstanceDestroy", found, find, handle, ci)


def _profile(device: Any, profile_id: int) -> Any:
    name = "nvmlDeviceGetGpuInstanceProfileInfo"
    for info in enumerated(name, device, lambda enum: (enum,), 1):
        if info.id == profile_id:
            return info
    raise Stale(f"profile {profile_id} is not offered any more")


def _create_compute(
    reader: Reader, handle: Any, uuid: str, profile: Any, compute: tuple[int, ...] | None
) -> None:
    inside = reader.compute_profiles(handle, uuid, profile.id)
    if compute is None:
        fill = filling(profile.sliceCount, profile.multiprocessorCount, inside)
        if fill is None:
            raise Stale(f"GPU instances of profile {profile.id} offer no compute instance")
        compute = (fill.id,)
    # The larger first: a small one at the start can leave them no place.
    slices = {p.id: p.slices for p in inside}
    for compute_profile in sorted(compute, key=lambda p: -slices.get(p, 0)):
        call("nvmlGpuInstanceCreateComputeInstance", handle, compute_profile)
