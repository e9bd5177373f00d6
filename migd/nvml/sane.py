"""What an answer of the worker may hold at most, so that nothing in it can harm whoever uses it.

The worker runs NVIDIA's library and is not believed further than that. The bounds are far beyond
all GPUs there are, and within what planning takes moments for and the bus can carry.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, replace

from migd.core.model import ComputeProfile, Gpu, GpuInstance, Placement, Profile
from migd.nvml.protocol import Answer, Failure, Opened, Performed
from migd.printable import printable

MOST_GPUS = 256
# Of memory; every GPU with MIG has 4 or 8. The planner knows what is taken as a set of slices.
MOST_SLICES = 16
_MOST_PROFILES = 64
_MOST_INSTANCES = 64
_MOST_PROCESSES = 1 << 14
_MOST_MIB = 1 << 32
_MOST_MINOR = 1 << 20
_U32 = (1 << 32) - 1
_I32 = (1 << 31) - 1
_LONGEST_TEXT = 200

_UUID = re.compile(r"[0-9A-Za-z-]{1,80}")
# As drivers before R470 write it, MIG-GPU-<uuid>/1/0.
_MIG_UUID = re.compile(r"[0-9A-Za-z/-]{0,96}")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_CALL = re.compile(r"[0-9A-Za-z_]{0,100}")


def checked(answer: Answer) -> Answer:
    """The answer, its texts printable. Raises ValueError for what no driver says."""
    match answer:
        case Opened(driver, gpus):
            _within("gpus", gpus, 0, MOST_GPUS)
            return replace(answer, driver=_text(driver))
        case Failure(call, code, name, text):
            _matches("call", call, _CALL)
            _matches("name", name, _CALL)
            _within("code", code, -1, _I32)
            return replace(answer, text=printable(text))
        case Performed(gi, _, _, activation):
            _numbers("gi", [gi])
            _within("activation", activation, 0, _I32)
            return answer
        case Gpu():
            return _gpu(answer)


def _gpu(gpu: Gpu) -> Gpu:
    _within("index", gpu.index, 0, MOST_GPUS - 1)
    _within("minor", gpu.minor, -1, _MOST_MINOR)
    _within("memory_mib", gpu.memory_mib, 0, _MOST_MIB)
    _numbers("PCI ids", [gpu.device_id, gpu.subsystem_id])
    _matches("uuid", gpu.uuid, _UUID)
    _matches("pci_address", gpu.pci_address, _ADDRESS)
    _few("profiles", gpu.profiles, _MOST_PROFILES)
    _few("instances", gpu.instances, _MOST_INSTANCES)
    _few("processes", gpu.processes, _MOST_PROCESSES)
    _apart("profiles", [p.id for p in gpu.profiles])
    _apart("instances", [i.id for i in gpu.instances])
    for process in gpu.processes:
        _numbers("processes", [process.pid, process.gi, process.ci])
    for instance in gpu.instances:
        _instance(instance)
    return replace(gpu, name=_text(gpu.name), profiles=tuple(map(_profile, gpu.profiles)))


def _profile(profile: Profile) -> Profile:
    _numbers("profile", [profile.id, profile.multiprocessors, *astuple(profile.engines)])
    _within("slices", profile.slices, 0, _MOST_INSTANCES)
    _within("enum", profile.enum, -1, _MOST_PROFILES)
    _within("memory_mib", profile.memory_mib, 0, _MOST_MIB)
    _within("instances of a profile", profile.instances, 0, _MOST_INSTANCES)
    _few("placements", profile.placements, MOST_SLICES)
    for placement in profile.placements:
        _placement(placement, 1)
    return replace(profile, name=_text(profile.name))


def _instance(instance: GpuInstance) -> None:
    _numbers("instance", [instance.id, instance.profile_id, instance.default_compute])
    _placement(instance.placement, 1)
    _few("compute_profiles", instance.compute_profiles, _MOST_PROFILES)
    for profile in instance.compute_profiles:
        _compute_profile(profile)
    _few("compute", instance.compute, _MOST_INSTANCES)
    _apart("compute", [c.id for c in instance.compute])
    for compute in instance.compute:
        _numbers("compute", [compute.id, compute.profile_id])
        _matches("uuid", compute.uuid, _MIG_UUID)
        # Drivers before R460 do not tell where it is.
        _placement(compute.placement, 0)


def _compute_profile(profile: ComputeProfile) -> None:
    _numbers("compute profile", [profile.id, profile.multiprocessors])
    _within("slices", profile.slices, 0, _MOST_INSTANCES)
    _within("instances", profile.instances, 0, _MOST_INSTANCES)


def _placement(placement: Placement, least: int) -> None:
    _within("start", placement.start, 0, MOST_SLICES)
    _within("size", placement.size, least, MOST_SLICES - placement.start)


def _numbers(what: str, values: Iterable[int | None]) -> None:
    for value in values:
        if value is not None:
            _within(what, value, 0, _U32)


def _within(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{what}: {printable(f'{value:x}', 40)} (hex) is not {least} to {most}")


def _matches(what: str, text: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(text):
        raise ValueError(f"{what}: {printable(text, 40)} is none")


def _few(what: str, values: Sequence[object], most: int) -> None:
    if len(values) > most:
        raise ValueError(f"{what}: {len(values)} are more than {most}")


def _apart(what: str, ids: Sequence[int]) -> None:
    if len(set(ids)) < len(ids):
        raise ValueError(f"{what}: two have one id")


def _text(text: str) -> str:
    return printable(text, _LONGEST_TEXT)
