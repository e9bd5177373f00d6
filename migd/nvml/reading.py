"""Reads GPUs: what they offer, what is on them, who uses them."""

from collections.abc import Iterator
from typing import Any

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
from migd.nvml.calls import (
    COMPUTE_INSTANCE,
    GPU_INSTANCE,
    NO_PERMISSION,
    RESETLESS,
    SHARED_ENGINES,
    SUCCESS,
    CallFailed,
    answered,
    call,
    enumerated,
    handles,
    offered,
    placements,
)
from migd.nvml.protocol import Opened

_MIB = 1 << 20
_NOT_AN_INSTANCE = 0xFFFFFFFF
_LEAST_COMPUTE_CAPABILITY_RESETLESS = (9, 0)


def initialize() -> None:
    """Open NVML for this process."""
    call("nvmlInit")


def count_gpus() -> Opened:
    return Opened(call("nvmlSystemGetDriverVersion"), call("nvmlDeviceGetCount"))


class Reader:
    """Reads GPUs; remembers what cannot change while one session lasts."""

    def __init__(self) -> None:
        self._profiles: dict[tuple[str, Mode], tuple[Profile, ...]] = {}
        self._compute: dict[tuple[str, int], tuple[ComputeProfile, ...]] = {}

    def snapshot(self, index: int) -> Gpu:
        """All of one GPU, by NVML's index."""
        device = call("nvmlDeviceGetHandleByIndex", index)
        uuid = call("nvmlDeviceGetUUID", device)
        answered(uuid, "nvmlDeviceGetUUID")
        pci = call("nvmlDeviceGetPciInfo", device)
        answered(pci.pciDeviceId, "nvmlDeviceGetPciInfo")
        total = call("nvmlDeviceGetMemoryInfo", device).total // _MIB
        answered(total, "nvmlDeviceGetMemoryInfo")
        minor = offered("nvmlDeviceGetMinorNumber", device)
        mode, pending = mode_of(device)
        profiles = self._gpu_profiles(device, uuid, mode, total)
        instances = () if mode is not Mode.ENABLED else self._instances(device, uuid, profiles)
        return Gpu(
            index=index,
            minor=-1 if minor is None else minor,
            uuid=uuid,
            name=call("nvmlDeviceGetName", device),
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
            answered(found, "nvmlDeviceGetGpuInstanceProfileInfo")
            self._profiles[uuid, mode] = found
        return self._profiles[uuid, mode]

    def _instances(
        self, device: Any, uuid: str, profiles: tuple[Profile, ...]
    ) -> tuple[GpuInstance, ...]:
        found = [
            self._instance(handle, uuid, profile)
            for profile in profiles
            for handle in handles("nvmlDeviceGetGpuInstances", device, profile.id, GPU_INSTANCE)
        ]
        return tuple(sorted((i for i in found if i), key=lambda i: i.id))

    def _instance(self, handle: Any, uuid: str, profile: Profile) -> GpuInstance | None:
        info = offered("nvmlGpuInstanceGetInfo", handle)
        if info is None:
            return None  # destroyed by somebody since it was listed
        answered(info.placement.size, "nvmlGpuInstanceGetInfo")
        inside = self.compute_profiles(handle, uuid, profile.id)
        fill = filling(profile.slices, profile.multiprocessors, inside)
        compute = [
            instance
            for compute_profile in inside
            for ci in handles(
                "nvmlGpuInstanceGetComputeInstances",
                handle,
                compute_profile.id,
                COMPUTE_INSTANCE,
            )
            if (instance := _compute_instance(ci))
        ]
        return GpuInstance(
            info.id,
            profile.id,
            Placement(info.placement.start, info.placement.size),
            tuple(sorted(compute, key=lambda c: c.id)),
            inside,
            fill.id if fill else 0,
        )

    def compute_profiles(
        self, handle: Any, uuid: str, profile_id: int
    ) -> tuple[ComputeProfile, ...]:
        """What a GPU instance of that profile offers; NVML tells it only of one that exists."""
        if (uuid, profile_id) not in self._compute:
            name = "nvmlGpuInstanceGetComputeInstanceProfileInfo"
            found = tuple(
                ComputeProfile(i.id, i.sliceCount, i.multiprocessorCount, i.instanceCount)
                for i in enumerated(name, handle, lambda enum: (enum, SHARED_ENGINES), version=1)
            )
            answered(found, name)
            self._compute[uuid, profile_id] = found
        return self._compute[uuid, profile_id]


def mode_of(device: Any) -> tuple[Mode, Mode]:
    name = "nvmlDeviceGetMigMode"
    modes = offered(name, device)
    if modes is None:
        return Mode.UNSUPPORTED, Mode.UNSUPPORTED
    if not all(modes):
        # Zeros are also what an answer is that was never written, and would hide all instances.
        answered(offered(name, device) == modes, name)
    current, pending = (Mode.ENABLED if m else Mode.DISABLED for m in modes)
    return current, pending


def _resetless(device: Any) -> bool:
    """NVML field 184; where the driver is too old to know it, by the architecture (mig-ug)."""
    values = offered("nvmlDeviceGetFieldValues", device, [RESETLESS])
    if values and values[0].nvmlReturn == SUCCESS:
        return bool(values[0].value.uiVal)
    capability = offered("nvmlDeviceGetCudaComputeCapability", device) or (0, 0)
    return tuple(capability) >= _LEAST_COMPUTE_CAPABILITY_RESETLESS


def _gpu_instance_profiles(device: Any, mode: Mode, total: int) -> Iterator[Profile]:
    # With the mode off only version 1 answers, and it has no names (nvml.h).
    version = 2 if mode is Mode.ENABLED else 1
    name = "nvmlDeviceGetGpuInstanceProfileInfo"
    infos = list(enumerated(name, device, lambda enum: (enum,), version))
    if not infos and version == 2:
        infos = list(enumerated(name, device, lambda enum: (enum,), 1))
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
            placements=placements(device, info.id),
            enum=info.enum,
        )


def _told_name(info: Any) -> str:
    name = getattr(info, "name", b"")
    text: str = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return text.removeprefix("MIG ").strip()


def _compute_instance(handle: Any) -> ComputeInstance | None:
    info = offered("nvmlComputeInstanceGetInfo_v2", handle)
    if info is None:
        return None
    answered(info.placement.size, "nvmlComputeInstanceGetInfo")
    uuid = offered("nvmlDeviceGetUUID", info.device) if info.device else None
    answered(uuid != "", "nvmlDeviceGetUUID")
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
        return offered(call, device) or []
    except CallFailed as error:
        # In a container with a slice only, the parent's list is not ours to read.
        if error.code == NO_PERMISSION:
            return []
        raise
