"""The NVML calls themselves: reads a GPU, performs a step. The only importer of pynvml.

Runs in the worker process. No handle outlives a request: handles go stale when a GPU is reset
or an instance destroyed (nvml.h), and finding one again is cheap.
"""

import time
from collections.abc import Callable, Iterator
from ctypes import byref, c_uint
from typing import Any

import pynvml

from migd.core.model import (
    ComputeInstance,
    ComputeProfile,
    Engines,
    Gpu,
    GpuInstance,
    Mode,
    Placement,
    Process,
    Profile,
)
from migd.core.profiles import computed_name, filling
from migd.core.steps import (
    CreateCompute,
    CreateInstance,
    DestroyCompute,
    DestroyInstance,
    SetMode,
    Step,
)
from migd.nvml.protocol import Failure, Opened, Performed

_MIB = 1 << 20
_NOT_AN_INSTANCE = 0xFFFFFFFF
_SHARED_ENGINES = 0  # NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
_INSTANCES_MAX = 64  # more than any GPU has; NVML writes as many as there are into the buffer
_NAMES = {
    value: name.removeprefix("NVML_ERROR_")
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(value, int)
}
_LEAST_COMPUTE_CAPABILITY_RESETLESS = (9, 0)


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


class Stale(Exception):
    """What was to be changed is not what is there."""


def _call(name: str, *arguments: Any, **named: Any) -> Any:
    try:
        return getattr(pynvml, name)(*arguments, **named)
    except pynvml.NVMLError as error:
        raise CallFailed(name, error.value, str(error)) from None


def _offered(name: str, *arguments: Any, **named: Any) -> Any:
    """The call's result, or None where NVML says that this GPU has no such thing."""
    try:
        return _call(name, *arguments, **named)
    except CallFailed as error:
        if error.code in (
            pynvml.NVML_ERROR_NOT_SUPPORTED,
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            pynvml.NVML_ERROR_NOT_FOUND,
        ):
            return None
        raise


def initialize() -> None:
    """Open NVML for this process."""
    _call("nvmlInit")


def count_gpus() -> Opened:
    return Opened(_call("nvmlSystemGetDriverVersion"), _call("nvmlDeviceGetCount"))


# -- reading ---------------------------------------------------------------------------------


class Reader:
    """Reads GPUs; remembers what cannot change while one session lasts."""

    def __init__(self) -> None:
        self._profiles: dict[tuple[str, Mode], tuple[Profile, ...]] = {}
        self._compute: dict[tuple[str, int], tuple[ComputeProfile, ...]] = {}

    def snapshot(self, index: int) -> Gpu:
        """All of one GPU, by NVML's index."""
        device = _call("nvmlDeviceGetHandleByIndex", index)
        uuid = _call("nvmlDeviceGetUUID", device)
        pci = _call("nvmlDeviceGetPciInfo", device)
        total = _call("nvmlDeviceGetMemoryInfo", device).total // _MIB
        mode, pending = _mode(device)
        profiles = self._gpu_profiles(device, uuid, mode, total)
        instances = () if mode is not Mode.ENABLED else self._instances(device, uuid, profiles)
        return Gpu(
            index=index,
            uuid=uuid,
            name=_call("nvmlDeviceGetName", device),
            pci_address=f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0",
            device_id=pci.pciDeviceId,
            subsystem_id=pci.pciSubSystemId,
            memory_mib=total,
            mode=mode,
            pending=pending,
            resetless=_resetless(device),
            profiles=profiles,
            instances=instances,
            processes=_processes(device),
        )

    def _gpu_profiles(self, device: Any, uuid: str, mode: Mode, total: int) -> tuple[Profile, ...]:
        if mode is Mode.UNSUPPORTED:
            return ()
        if (uuid, mode) not in self._profiles:
            found = tuple(_gpu_instance_profiles(device, mode, total))
            self._profiles[uuid, mode] = found
        return self._profiles[uuid, mode]

    def _instances(
        self, device: Any, uuid: str, profiles: tuple[Profile, ...]
    ) -> tuple[GpuInstance, ...]:
        found = [
            self._instance(handle, uuid, profile)
            for profile in profiles
            for handle in _handles(
                "nvmlDeviceGetGpuInstances", device, profile.id, pynvml.c_nvmlGpuInstance_t
            )
        ]
        return tuple(sorted((i for i in found if i), key=lambda i: i.id))

    def _instance(self, handle: Any, uuid: str, profile: Profile) -> GpuInstance | None:
        info = _offered("nvmlGpuInstanceGetInfo", handle)
        if info is None:
            return None  # destroyed by somebody since it was listed
        offered = self.compute_profiles(handle, uuid, profile.id)
        fill = filling(profile.slices, profile.multiprocessors, offered)
        compute = [
            instance
            for compute_profile in offered
            for ci in _handles(
                "nvmlGpuInstanceGetComputeInstances",
                handle,
                compute_profile.id,
                pynvml.c_nvmlComputeInstance_t,
            )
            if (instance := _compute_instance(ci))
        ]
        return GpuInstance(
            info.id,
            profile.id,
            Placement(info.placement.start, info.placement.size),
            tuple(sorted(compute, key=lambda c: c.id)),
            offered,
            fill.id if fill else 0,
        )

    def compute_profiles(
        self, handle: Any, uuid: str, profile_id: int
    ) -> tuple[ComputeProfile, ...]:
        """What a GPU instance of that profile offers; NVML tells it only of one that exists."""
        if (uuid, profile_id) not in self._compute:
            self._compute[uuid, profile_id] = tuple(
                ComputeProfile(i.id, i.sliceCount, i.multiprocessorCount, i.instanceCount)
                for i in _enumerated(
                    "nvmlGpuInstanceGetComputeInstanceProfileInfo",
                    handle,
                    lambda enum: (enum, _SHARED_ENGINES),
                    version=1,
                )
            )
        return self._compute[uuid, profile_id]


def _mode(device: Any) -> tuple[Mode, Mode]:
    modes = _offered("nvmlDeviceGetMigMode", device)
    if modes is None:
        return Mode.UNSUPPORTED, Mode.UNSUPPORTED
    current, pending = (Mode.ENABLED if m else Mode.DISABLED for m in modes)
    return current, pending


def _resetless(device: Any) -> bool:
    """NVML field 184; where the driver is too old to know it, by the architecture (mig-ug)."""
    values = _offered(
        "nvmlDeviceGetFieldValues", device, [pynvml.NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED]
    )
    if values and values[0].nvmlReturn == pynvml.NVML_SUCCESS:
        return bool(values[0].value.uiVal)
    capability = _offered("nvmlDeviceGetCudaComputeCapability", device) or (0, 0)
    return tuple(capability) >= _LEAST_COMPUTE_CAPABILITY_RESETLESS


def _enumerated(
    call: str, handle: Any, arguments: Callable[[int], tuple[int, ...]], version: int
) -> Iterator[Any]:
    """Profile infos by ascending enum: a hole answers NOT_SUPPORTED, the end INVALID_ARGUMENT."""
    for enum in range(_INSTANCES_MAX):
        try:
            info = _offered(call, handle, *arguments(enum), version=version)
        except CallFailed as error:
            if error.code == pynvml.NVML_ERROR_INVALID_ARGUMENT:
                return
            raise
        if info is not None:
            info.enum = enum
            yield info


def _gpu_instance_profiles(device: Any, mode: Mode, total: int) -> Iterator[Profile]:
    # With the mode off only version 1 answers, and it has no names (nvml.h).
    version = 2 if mode is Mode.ENABLED else 1
    call = "nvmlDeviceGetGpuInstanceProfileInfo"
    infos = list(_enumerated(call, device, lambda enum: (enum,), version))
    if not infos and version == 2:
        infos = list(_enumerated(call, device, lambda enum: (enum,), 1))
    for info in infos:
        computed = computed_name(info.enum, info.sliceCount, info.memorySizeMB, total)
        yield Profile(
            id=info.id,
            name=_told_name(info) or computed,
            slices=info.sliceCount,
            memory_mib=info.memorySizeMB,
            instances=info.instanceCount,
            multiprocessors=info.multiprocessorCount,
            engines=Engines(
                info.copyEngineCount,
                info.decoderCount,
                info.encoderCount,
                info.jpegCount,
                info.ofaCount,
            ),
            placements=_placements(device, info.id),
        )


def _told_name(info: Any) -> str:
    name = getattr(info, "name", b"")
    text: str = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return text.removeprefix("MIG ").strip()


def _placements(device: Any, profile_id: int) -> tuple[Placement, ...]:
    call = "nvmlDeviceGetGpuInstancePossiblePlacements"
    count = c_uint(0)
    _call(call, device, profile_id, None, byref(count))
    spots = (pynvml.c_nvmlGpuInstancePlacement_t * max(count.value, 1))()
    if count.value:
        _call(call, device, profile_id, spots, byref(count))
    return tuple(sorted(Placement(s.start, s.size) for s in spots[: count.value]))


def _handles(call: str, parent: Any, profile_id: int, kind: Any) -> list[Any]:
    """Handles of all instances of a profile; the count is an answer only, not a limit (nvml.h)."""
    found = (kind * _INSTANCES_MAX)()
    count = c_uint(0)
    _call(call, parent, profile_id, found, byref(count))
    # A slice of a ctypes array of pointers gives fresh handles, which outlive the array.
    return list(found[: count.value])


def _compute_instance(handle: Any) -> ComputeInstance | None:
    info = _offered("nvmlComputeInstanceGetInfo_v2", handle)
    if info is None:
        return None
    uuid = _offered("nvmlDeviceGetUUID", info.device) if info.device else None
    return ComputeInstance(
        info.id,
        info.profileId,
        Placement(info.placement.start, info.placement.size),
        uuid or "",
    )


def _processes(device: Any) -> tuple[Process, ...]:
    """Processes by NVML's lists. They show contexts only: who merely subscribes is not in them."""
    found = set()
    for kind in ("Compute", "Graphics", "MPSCompute"):
        for p in _process_list(f"nvmlDeviceGet{kind}RunningProcesses", device):
            gi, ci = (
                None if n in (None, _NOT_AN_INSTANCE) else n
                for n in (p.gpuInstanceId, p.computeInstanceId)
            )
            found.add(Process(p.pid, gi, ci))
    return tuple(sorted(found, key=lambda p: (p.pid, p.gi or -1, p.ci or -1)))


def _process_list(call: str, device: Any) -> list[Any]:
    try:
        return _offered(call, device) or []
    except CallFailed as error:
        # In a container with a slice only, the parent's list is not ours to read.
        if error.code == pynvml.NVML_ERROR_NO_PERMISSION:
            return []
        raise


# -- changing --------------------------------------------------------------------------------


def perform(reader: Reader, index: int, uuid: str, step: Step, retry_s: float) -> Performed:
    """Do one step on the GPU at `index`. Raises CallFailed, and Stale if it is another GPU."""
    device = _call("nvmlDeviceGetHandleByIndex", index)
    there = _call("nvmlDeviceGetUUID", device)
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
            handle = _call("nvmlDeviceGetGpuInstanceById", device, gi)
            _destroy_compute(handle, ci, patience)
            return Performed()
        case CreateInstance(profile_id, placement, compute):
            spot = pynvml.c_nvmlGpuInstancePlacement_t(placement.start, placement.size)
            create = "nvmlDeviceCreateGpuInstanceWithPlacement"
            handle = patience.call(create, device, profile_id, byref(spot))
            gi = _call("nvmlGpuInstanceGetInfo", handle).id
            _create_compute(reader, handle, uuid, _profile(device, profile_id), compute)
            return Performed(gi=gi)
        case CreateCompute(gi, compute):
            handle = _call("nvmlDeviceGetGpuInstanceById", device, gi)
            profile_id = _call("nvmlGpuInstanceGetInfo", handle).profileId
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
                return _call(name, *arguments)
            except CallFailed as error:
                if error.code != pynvml.NVML_ERROR_IN_USE:
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
            if _offered(find, parent, ident) is None:
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
    wanted = pynvml.NVML_DEVICE_MIG_ENABLE if mode is Mode.ENABLED else 0
    activation = _call("nvmlDeviceSetMigMode", device, wanted)
    # The call may have reset the device: find it again before asking what came of it (nvml.h).
    current, pending = _mode(_call("nvmlDeviceGetHandleByIndex", index))
    return Performed(mode=current, pending=pending, activation=activation)


def _destroy_instance(
    device: Any, gi: int, profile_id: int, placement: Placement, patience: _Patience
) -> None:
    find = "nvmlDeviceGetGpuInstanceById"
    handle = _offered(find, device, gi)
    if handle is None:
        return  # somebody else did it
    info = _call("nvmlGpuInstanceGetInfo", handle)
    # Ids are reused at once, so the id alone does not say that it is the one that was planned for.
    if (info.profileId, info.placement.start) != (profile_id, placement.start):
        raise Stale(f"GPU instance {gi} is not the one that was there when this was planned")
    for ci in range(8):  # ids of compute instances are 0 to 7 (open-gpu-kernel-modules)
        _destroy_compute(handle, ci, patience)
    patience.destroy("nvmlGpuInstanceDestroy", handle, find, device, gi)


def _destroy_compute(handle: Any, ci: int, patience: _Patience) -> None:
    find = "nvmlGpuInstanceGetComputeInstanceById"
    found = _offered(find, handle, ci)
    if found is not None:
        patience.destroy("nvmlComputeInstanceDestroy", found, find, handle, ci)


def _profile(device: Any, profile_id: int) -> Any:
    call = "nvmlDeviceGetGpuInstanceProfileInfo"
    for info in _enumerated(call, device, lambda enum: (enum,), 1):
        if info.id == profile_id:
            return info
    raise Stale(f"profile {profile_id} is not offered any more")


def _create_compute(
    reader: Reader, handle: Any, uuid: str, profile: Any, compute: tuple[int, ...] | None
) -> None:
    offered = reader.compute_profiles(handle, uuid, profile.id)
    if compute is None:
        fill = filling(profile.sliceCount, profile.multiprocessorCount, offered)
        if fill is None:
            raise Stale(f"GPU instances of profile {profile.id} offer no compute instance")
        compute = (fill.id,)
    # The larger first: a small one at the start can leave them no place.
    slices = {p.id: p.slices for p in offered}
    for compute_profile in sorted(compute, key=lambda p: -slices.get(p, 0)):
        _call("nvmlGpuInstanceCreateComputeInstance", handle, compute_profile)
