"""What the NVML functions that migd calls can return, as data.

DOCUMENTED: the @return lists of nvml.h, as NVIDIA/go-nvml has it in gen/nvml/nvml.h at commit
2f9e261fe40a. SEEN: what is not in them and was met in the field (NVIDIA/open-gpu-kernel-modules and
issues: mig.md 3, 6, 9 and 12), and what any call gives whose GPU has fallen off the bus.
"""

from collections.abc import Mapping

_ANY = ("UNINITIALIZED", "INVALID_ARGUMENT")
_MIG = (*_ANY, "NOT_SUPPORTED", "NO_PERMISSION")
_DEVICE = (*_ANY, "GPU_IS_LOST", "UNKNOWN")
_PROCESSES = (*_DEVICE, "INSUFFICIENT_SIZE", "NOT_SUPPORTED")

DOCUMENTED: Mapping[str, tuple[str, ...]] = {
    "nvmlInitWithFlags": ("DRIVER_NOT_LOADED", "NO_PERMISSION", "UNKNOWN"),
    "nvmlSystemGetDriverVersion": (*_ANY, "INSUFFICIENT_SIZE"),
    "nvmlDeviceGetCount_v2": (*_ANY, "UNKNOWN"),
    "nvmlDeviceGetHandleByIndex_v2": (*_DEVICE, "INSUFFICIENT_POWER", "NO_PERMISSION", "IRQ_ISSUE"),
    "nvmlDeviceGetUUID": (*_DEVICE, "INSUFFICIENT_SIZE", "NOT_SUPPORTED"),
    "nvmlDeviceGetPciInfo_v3": _DEVICE,
    "nvmlDeviceGetMemoryInfo": (*_DEVICE, "NO_PERMISSION", "NOT_SUPPORTED"),
    "nvmlDeviceGetMinorNumber": (*_DEVICE, "NOT_SUPPORTED"),
    "nvmlDeviceGetName": (*_DEVICE, "INSUFFICIENT_SIZE"),
    "nvmlDeviceGetFieldValues": ("INVALID_ARGUMENT",),
    "nvmlDeviceGetCudaComputeCapability": _DEVICE,
    "nvmlDeviceGetComputeRunningProcesses_v3": (*_PROCESSES, "NO_PERMISSION"),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": (*_PROCESSES, "NO_PERMISSION"),
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": _PROCESSES,
    "nvmlDeviceGetMigMode": (*_ANY, "NOT_SUPPORTED", "UNKNOWN"),
    "nvmlDeviceGetGpuInstanceProfileInfo": _MIG,
    "nvmlDeviceGetGpuInstanceProfileInfoV": _MIG,
    "nvmlDeviceGetGpuInstancePossiblePlacements_v2": _MIG,
    "nvmlDeviceGetGpuInstances": _MIG,
    "nvmlDeviceGetGpuInstanceById": (*_MIG, "NOT_FOUND"),
    "nvmlGpuInstanceGetInfo": (*_ANY, "NO_PERMISSION"),
    "nvmlGpuInstanceGetComputeInstanceProfileInfo": _MIG,
    "nvmlGpuInstanceGetComputeInstanceProfileInfoV": _MIG,
    "nvmlGpuInstanceGetComputeInstances": _MIG,
    "nvmlGpuInstanceGetComputeInstanceById": (*_MIG, "NOT_FOUND"),
    "nvmlComputeInstanceGetInfo_v2": (*_ANY, "NO_PERMISSION"),
    "nvmlDeviceSetMigMode": _MIG,
    "nvmlDeviceCreateGpuInstanceWithPlacement": (*_MIG, "INSUFFICIENT_RESOURCES"),
    "nvmlGpuInstanceDestroy": (*_MIG, "IN_USE"),
    "nvmlGpuInstanceCreateComputeInstance": (*_MIG, "INSUFFICIENT_RESOURCES"),
    "nvmlComputeInstanceDestroy": (*_ANY, "NO_PERMISSION", "IN_USE"),
}

_LOST = ("UNKNOWN", "GPU_IS_LOST")

SEEN: Mapping[str, tuple[str, ...]] = {
    "nvmlInitWithFlags": ("LIB_RM_VERSION_MISMATCH",),
    "nvmlDeviceSetMigMode": (*_LOST, "IN_USE", "TIMEOUT"),
    "nvmlDeviceCreateGpuInstanceWithPlacement": (*_LOST, "IN_USE"),
    "nvmlGpuInstanceDestroy": _LOST,
    "nvmlGpuInstanceCreateComputeInstance": (*_LOST, "IN_USE"),
    "nvmlComputeInstanceDestroy": _LOST,
    "nvmlDeviceGetGpuInstances": _LOST,
    "nvmlDeviceGetMigMode": ("GPU_IS_LOST",),
}


def errors(call: str) -> tuple[str, ...]:
    """Each error that a call can give, once. Raises KeyError: a function that has no row here."""
    return tuple(dict.fromkeys((*DOCUMENTED[call], *SEEN.get(call, ()))))
