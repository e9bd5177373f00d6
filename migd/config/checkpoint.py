"""mig-parted's checkpoints: the layout of a node as JSON, both ways.

Its reader takes keys in any case and ignores those that it does not know, and so does this one. It
numbers profiles as nvml.h does (NVML_GPU_INSTANCE_PROFILE_*), not as nvidia-smi prints them; for
compute instances both are the same number.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from migd.config.compute import PROFILE_OF_SLICES
from migd.config.configs import Config, Configs
from migd.config.devices import canonical_device, find_gpu, listed
from migd.config.document import MOST_BYTES
from migd.config.entries import Entry
from migd.config.exact import SLICES_OF_PROFILE, called
from migd.config.export import rendered
from migd.config.faults import Position, shortened
from migd.config.instances import Instance
from migd.config.use import targets
from migd.core.model import Gpu, GpuInstance, Mode, Placement, Profile
from migd.core.profiles import ProfileName
from migd.errors import ConfigRefused, NoSuchGpu, NoSuchProfile, NotSupported

SOURCE = "checkpoint"
_VERSION = "v1"
_SHARED_ENGINES = 0  # NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED, the only one there is
# Beyond every node and every GPU.
_MOST_GPUS, _MOST_INSTANCES, _MOST_NUMBER = 256, 64, 255


@dataclass(frozen=True)
class _Device:
    """What a checkpoint says of one GPU: per instance, numbers of profiles, and its placement."""

    uuid: str
    enabled: bool
    instances: tuple[tuple[int, Placement, tuple[int, ...]], ...]


def checkpoint(gpus: Sequence[Gpu]) -> str:
    """What `gpus` have now; those without MIG are left out."""
    devices = [
        {
            "UUID": gpu.uuid,
            "MigMode": int(gpu.mode is Mode.ENABLED),
            "GpuInstances": [_instance(gpu, i) for i in _ordered(gpu)] or None,
        }
        for gpu in sorted(gpus, key=lambda g: g.index)
        if gpu.mode is not Mode.UNSUPPORTED
    ]
    made = {"Version": _VERSION, "MigState": {"Devices": devices or None}}
    return json.dumps(made, separators=(",", ":"))


def as_text(text: str, gpus: Sequence[Gpu], only: Collection[str] = ()) -> str:
    """A checkpoint of this node as the text of a config, with every instance at its place.

    only: indices, UUIDs or PCI addresses of the GPUs that are meant; empty for all that it has.
    GPUs that it says nothing of stay as they are.
    Raises ConfigRefused where it is none, and NoSuchGpu, NoSuchProfile, NotSupported and NoSpace
    where it does not fit this node.
    """
    devices = _read(text)
    meant = {find_gpu(gpus, name).uuid for name in only} or {d.uuid for d in devices}
    there = {g.uuid: g for g in gpus}
    for uuid in sorted(meant - {d.uuid for d in devices}):
        raise NoSuchGpu(f"the checkpoint says nothing of {there[uuid]}; leave it out of gpus")
    entries = tuple(_entry(d, there, gpus) for d in devices if d.uuid in meant)
    config = Config(SOURCE, entries)
    targets(config, gpus)
    return rendered(Configs(SOURCE, {SOURCE: config}))


def _ordered(gpu: Gpu) -> list[GpuInstance]:
    return sorted(gpu.instances, key=lambda i: (_number(gpu, i), i.id))


def _number(gpu: Gpu, instance: GpuInstance) -> int:
    profile = gpu.profile(instance.profile_id)
    assert profile
    return profile.enum


def _instance(gpu: Gpu, instance: GpuInstance) -> dict[str, Any]:
    inside = [
        {"ProfileID": number, "EngProfileID": _SHARED_ENGINES}
        for number in sorted(ci.profile_id for ci in instance.compute)
    ]
    return {
        "ProfileID": _number(gpu, instance),
        "Placement": {"Start": instance.placement.start, "Size": instance.placement.size},
        "ComputeInstances": inside or None,
    }


def _entry(device: _Device, there: Mapping[str, Gpu], gpus: Sequence[Gpu]) -> Entry:
    gpu = there.get(device.uuid)
    if gpu is None:
        raise NoSuchGpu(
            f"the checkpoint has GPU {device.uuid}, but this node has {listed(gpus)}: it is of "
            "another node, or the GPU was replaced; to restore some of those that are here, name "
            "them in gpus"
        )
    if device.enabled and gpu.mode is Mode.UNSUPPORTED:
        raise NotSupported(f"the checkpoint has MIG mode enabled on {gpu}, which has no MIG")
    instances = tuple(_placed(gpu, *instance) for instance in device.instances)
    return Entry((), (device.uuid,), device.enabled, {}, Position(SOURCE), instances)


def _placed(gpu: Gpu, number: int, placement: Placement, compute: tuple[int, ...]) -> Instance:
    profile = next((p for p in gpu.profiles if p.enum == number), None)
    if profile is None:
        known = ", ".join(f"{p.enum} {p.name}" for p in gpu.profiles) or "none"
        raise NoSuchProfile(
            f"the checkpoint has GPU instance profile {number} on {gpu}, which offers {known}"
        )
    if placement not in profile.placements:
        spots = ", ".join(map(str, sorted(profile.placements)))
        raise NoSuchProfile(
            f"the checkpoint has {profile.name} at {placement} (first slice of memory, and how "
            f"many) on {gpu}, which offers it at {spots}"
        )
    return Instance(
        str(ProfileName.parse(profile.name)), placement.start, _inside(profile, compute)
    )


def _inside(profile: Profile, compute: tuple[int, ...]) -> tuple[str | int, ...] | None:
    # Of one slice there are two profiles, and which of them fills is not known here.
    if profile.slices > 1 and compute == (PROFILE_OF_SLICES.get(profile.slices),):
        return None
    name = ProfileName.parse(profile.name)
    return tuple(called(name, SLICES_OF_PROFILE[number], number) for number in compute)


# -- what is read ----------------------------------------------------------------------------


class _Object(tuple[tuple[str, Any], ...]):
    """The members of a JSON object, as they stand there."""

    __slots__ = ()


@dataclass(frozen=True)
class _Value:
    """A JSON value and the path to it; whatever is not as it must be raises ConfigRefused."""

    value: Any
    path: str = ""

    def member(self, name: str) -> "_Value":
        path = f"{self.path}.{name}" if self.path else name
        if not isinstance(self.value, _Object):
            raise self.refused("must be an object")
        found = [value for key, value in self.value if key.casefold() == name.casefold()]
        if len(found) > 1:
            raise ConfigRefused(f"{SOURCE}: {path}: stands there twice")
        return _Value(found[0] if found else None, path)

    def items(self, most: int) -> "list[_Value]":
        """Those of a list; null is an empty one."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self.refused("must be a list")
        if len(self.value) > most:
            raise self.refused(f"must have {most} items at most")
        return [_Value(item, f"{self.path}[{n}]") for n, item in enumerate(self.value)]

    def number(self, most: int) -> int:
        if type(self.value) is not int or not 0 <= self.value <= most:
            raise self.refused(f"must be a number from 0 to {most}")
        return self.value

    def refused(self, why: str) -> ConfigRefused:
        where = f"{SOURCE}: {self.path}" if self.path else SOURCE
        return ConfigRefused(f"{where}: {why}, not {self._shown}")

    @property
    def _shown(self) -> str:
        if isinstance(self.value, _Object):
            return "an object"
        if isinstance(self.value, list):
            return "a list"
        return "nothing" if self.value is None else shortened(json.dumps(self.value))


def _read(text: str) -> tuple[_Device, ...]:
    root = _parsed(text)
    version = root.member("Version")
    if version.value != _VERSION:
        raise version.refused(f'must be "{_VERSION}", the only version there is')
    within = root.member("MigState").member("Devices")
    devices: dict[str, _Device] = {}
    for item in within.items(_MOST_GPUS):
        device = _device(item)
        if device.uuid in devices:
            raise item.member("UUID").refused("must be of a GPU that does not stand before it")
        devices[device.uuid] = device
    if not devices:
        raise within.refused("must be a list of GPUs")
    return tuple(devices.values())


def _parsed(text: str) -> _Value:
    if len(text) > MOST_BYTES:
        raise ConfigRefused(f"{SOURCE}: is longer than {MOST_BYTES >> 20} MiB")
    try:
        return _Value(json.loads(text, object_pairs_hook=_Object))
    except RecursionError:
        raise ConfigRefused(f"{SOURCE}: is nested far deeper than any checkpoint") from None
    except ValueError as error:
        raise ConfigRefused(
            f"{SOURCE}: is not JSON: {shortened(str(error))}; it is to be what `migctl checkpoint` "
            "or `nvidia-mig-parted checkpoint` writes"
        ) from None


def _device(item: _Value) -> _Device:
    uuid = item.member("UUID")
    canonical = canonical_device(uuid.value) if isinstance(uuid.value, str) else None
    if canonical is None or not canonical.startswith("GPU-"):
        raise uuid.refused("must be the UUID of a GPU")
    enabled = item.member("MigMode").number(1) == 1
    within = item.member("GpuInstances")
    instances = tuple(_gpu_instance(i) for i in within.items(_MOST_INSTANCES))
    if instances and not enabled:
        raise within.refused("must be empty where MigMode is 0")
    return _Device(canonical, enabled, instances)


def _gpu_instance(item: _Value) -> tuple[int, Placement, tuple[int, ...]]:
    place = item.member("Placement")
    start, size = (place.member(key).number(_MOST_NUMBER) for key in ("Start", "Size"))
    inside = item.member("ComputeInstances").items(_MOST_INSTANCES)
    return (
        item.member("ProfileID").number(_MOST_NUMBER),
        Placement(start, size),
        tuple(_compute_instance(i) for i in inside),
    )


def _compute_instance(item: _Value) -> int:
    item.member("EngProfileID").number(_SHARED_ENGINES)
    profile = item.member("ProfileID")
    if profile.number(_MOST_NUMBER) not in SLICES_OF_PROFILE:
        raise profile.refused(f"must be one of {', '.join(map(str, sorted(SLICES_OF_PROFILE)))}")
    return int(profile.value)
