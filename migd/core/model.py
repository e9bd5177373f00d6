"""The node as values: GPUs, what they offer, what is on them, and what is wanted of them.

Placements count memory slices, compute placements compute slices inside the GPU instance,
as NVML does. Profile ids are those that nvidia-smi prints and nvmlDeviceCreateGpuInstance takes.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from migd.core.values import U32, Within

# Many more than any GPU has, and few enough for a mask.
Slices = Annotated[int, Within(0, 255)]


class Mode(StrEnum):
    """MIG mode of a GPU."""

    DISABLED = "disabled"
    ENABLED = "enabled"
    UNSUPPORTED = "unsupported"


class Impact(StrEnum):
    """How far a plan reaches, mildest first: compare with `rank`."""

    NONE = "none"
    INSTANCES = "instances"
    GPU = "gpu"
    RESET = "reset"
    REBOOT = "reboot"

    @property
    def rank(self) -> int:
        return list(Impact).index(self)


@dataclass(frozen=True, order=True)
class Placement:
    """Memory slices `start` to `start + size - 1` of a GPU."""

    start: Slices
    size: Slices

    @property
    def mask(self) -> int:
        return ((1 << self.size) - 1) << self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.size}"


@dataclass(frozen=True)
class Engines:
    """Engines of a profile; NVML counts them per instance, and instances share none."""

    copy: int = 0
    decoder: int = 0
    encoder: int = 0
    jpeg: int = 0
    ofa: int = 0


@dataclass(frozen=True)
class Profile:
    """A GPU instance profile that a GPU offers.

    name: as NVML gives it, without the "MIG " in front, or computed by its rule
    slices: compute slices
    memory_mib: memory of an instance in MiB; it moves with the driver
    instances: the most that fit on an empty GPU, as NVML says
    multiprocessors: SMs; never slices times a constant
    enum: NVML_GPU_INSTANCE_PROFILE_*, by which mig-parted numbers it; -1 where that is not told
    """

    id: int
    name: str
    slices: int
    memory_mib: int
    instances: int
    multiprocessors: int
    engines: Engines
    placements: tuple[Placement, ...]
    enum: int = -1


@dataclass(frozen=True)
class ComputeProfile:
    """A compute instance profile that a GPU instance offers. Names are not unique, ids are."""

    id: int
    slices: int
    multiprocessors: int
    instances: int


@dataclass(frozen=True)
class ComputeInstance:
    """A compute instance; `uuid` is the MIG device's, "" while NVML shows none."""

    id: U32
    profile_id: U32
    placement: Placement
    uuid: str


@dataclass(frozen=True)
class GpuInstance:
    """A GPU instance; `default_compute` is the profile id of the compute instance that fills it."""

    id: U32
    profile_id: U32
    placement: Placement
    compute: tuple[ComputeInstance, ...]
    compute_profiles: tuple[ComputeProfile, ...]
    default_compute: int


@dataclass(frozen=True)
class Process:
    """A process that NVML lists on a GPU; gi and ci are None when it uses the whole GPU."""

    pid: int
    gi: int | None
    ci: int | None


@dataclass(frozen=True)
class Gpu:
    """One GPU as observed.

    minor: N of /dev/nvidiaN, -1 where NVML does not say; it can change with a reset
    pci_address: domain:bus:device.function, lower case, four-digit domain
    device_id, subsystem_id: device << 16 | vendor, as NVML's pciDeviceId
    resetless: the mode switches without a GPU reset (NVML field 184)
    """

    index: U32
    minor: int
    uuid: str
    name: str
    pci_address: str
    device_id: int
    subsystem_id: int
    memory_mib: int
    mode: Mode
    pending: Mode
    resetless: bool
    profiles: tuple[Profile, ...]
    instances: tuple[GpuInstance, ...]
    processes: tuple[Process, ...]

    def profile(self, profile_id: int) -> Profile | None:
        return next((p for p in self.profiles if p.id == profile_id), None)

    def profile_name(self, profile_id: int) -> str:
        found = self.profile(profile_id)
        return found.name if found else f"profile {profile_id}"

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name}, {self.uuid})"


@dataclass(frozen=True)
class Wanted:
    """One GPU instance that is wanted.

    compute: compute profile ids, or None for the one instance that fills it
    placement: None where any will do
    gi: the id it had when it was settled; only the order of creation follows it
    uuids: of MIG devices in it that were there before; of alike ones these stay
    """

    profile_id: int
    compute: tuple[int, ...] | None = None
    placement: Placement | None = None
    gi: int | None = None
    uuids: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Target:
    """What one GPU should have; `instances` None leaves them as they are.

    no_reset: a mode that takes a reset is to be pending only, without the instances that need it
    """

    mode: Mode
    instances: tuple[Wanted, ...] | None
    no_reset: bool = False


@dataclass(frozen=True)
class SettledInstance:
    """An instance as it was reached: enough to put it back exactly where it was."""

    gi: U32
    profile_id: U32
    profile: str
    placement: Placement
    compute: tuple[U32, ...]
    uuids: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """What one GPU has or had: mode and instances with exact placements."""

    mode: Mode
    instances: tuple[SettledInstance, ...]

    def target(self) -> Target:
        """The layout as something to want, with its placements."""
        return Target(
            self.mode,
            tuple(
                Wanted(i.profile_id, i.compute, i.placement, i.gi, i.uuids) for i in self.instances
            ),
        )


def layout(gpu: Gpu) -> Layout:
    """What `gpu` has now."""
    return Layout(
        gpu.mode,
        tuple(
            SettledInstance(
                gi.id,
                gi.profile_id,
                gpu.profile_name(gi.profile_id),
                gi.placement,
                tuple(sorted(ci.profile_id for ci in gi.compute)),
                tuple(ci.uuid for ci in gi.compute),
            )
            for gi in gpu.instances
        ),
    )


def renamed(before: Layout, now: Layout) -> str:
    """Which MIG devices are what they were and yet have another UUID, in words; "" for none.

    Who asks for a device by its UUID, in CUDA_VISIBLE_DEVICES or a container, must know.
    """
    had = {(i.profile_id, i.placement): i.uuids for i in before.instances}
    other = [
        f"{i.profile} at {i.placement} was {', '.join(was)} and is {', '.join(i.uuids)}"
        for i in now.instances
        if (was := had.get((i.profile_id, i.placement))) and set(was) != set(i.uuids)
    ]
    return f"MIG devices have other UUIDs: {'; '.join(other)}" if other else ""
