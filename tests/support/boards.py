"""Boards of the simulator's catalogue as the core's values: GPUs with any instances on them."""

from collections.abc import Iterable, Sequence
from functools import cache
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
from migd.simulator import boards as simulated

ENGINE_KEYS = ("copy_engines", "decoders", "encoders", "jpeg", "ofa")

UUID = "GPU-00000000-0000-4000-8000-{:012x}"


def catalogue() -> dict[str, dict[str, Any]]:
    """Every board of the catalogue by its key, as the file has it."""
    return simulated.models()


def boards() -> tuple[str, ...]:
    """The keys of the boards that the simulator offers, gaps filled by its rule."""
    return simulated.OFFERED


@cache
def profiles(key: str) -> tuple[Profile, ...]:
    return tuple(
        Profile(
            id=row["id"],
            name=row["name"],
            slices=row["slices"],
            memory_mib=row["memory_mib"],
            instances=row["instances"],
            multiprocessors=row["sm"],
            engines=Engines(*(row[engine] for engine in ENGINE_KEYS)),
            placements=tuple(Placement(p["start"], p["size"]) for p in row["placements"]),
            enum=row["enum_value"],
        )
        for row in simulated.board(key).profiles
    )


@cache
def compute_profiles(key: str, profile_id: int) -> tuple[tuple[ComputeProfile, ...], int]:
    """What an instance of that profile offers, and the id of the one that fills it."""
    rows = simulated.board(key).profiles
    offered = next(row["compute_profiles"] for row in rows if row["id"] == profile_id)
    known = tuple(
        ComputeProfile(row["id"], row["slices"], row["sm"], row["instances"]) for row in offered
    )
    return known, next(row["id"] for row in offered if row["default"])


def compute(profile_ids: Iterable[int]) -> tuple[ComputeInstance, ...]:
    """Compute instances one after the other; the core does not look at where they are."""
    return tuple(
        ComputeInstance(n, profile_id, Placement(n, 1), f"MIG-{n}")
        for n, profile_id in enumerate(profile_ids)
    )


def instance(
    key: str, gi: int, profile_id: int, start: int, inside: Sequence[int] | None = None
) -> GpuInstance:
    """A GPU instance at an offered start; inside: compute profile ids, None for the default."""
    offered, default = compute_profiles(key, profile_id)
    spots = next(p.placements for p in profiles(key) if p.id == profile_id)
    return GpuInstance(
        id=gi,
        profile_id=profile_id,
        placement=next(spot for spot in spots if spot.start == start),
        compute=compute((default,) if inside is None else inside),
        compute_profiles=offered,
        default_compute=default,
    )


def gpu(
    key: str,
    instances: Sequence[GpuInstance] = (),
    *,
    mode: Mode = Mode.ENABLED,
    pending: Mode | None = None,
    processes: Sequence[Process] = (),
    index: int = 0,
) -> Gpu:
    """GPU `index` of a host, a board of that key."""
    model = simulated.board(key).model
    known = profiles(key)
    return Gpu(
        index=index,
        minor=index,
        uuid=UUID.format(index),
        name=model["nvml_names"][0],
        pci_address=f"0000:{index + 1:02x}:00.0",
        device_id=int(model["pci_device_ids"][0]["id"], 16),
        subsystem_id=0x000010DE,
        memory_mib=model["nvml_total_memory_mib"],
        mode=mode,
        pending=mode if pending is None else pending,
        resetless=not model["mig_mode"]["enable_needs_gpu_reset"],
        profiles=known,
        instances=tuple(instances),
        processes=tuple(processes),
    )


def without_mig(index: int = 0) -> Gpu:
    """A GPU that has no MIG."""
    return Gpu(
        index=index,
        minor=index,
        uuid=UUID.format(index),
        name="Tesla T4",
        pci_address=f"0000:{index + 1:02x}:00.0",
        device_id=0x1EB810DE,
        subsystem_id=0x12A210DE,
        memory_mib=15360,
        mode=Mode.UNSUPPORTED,
        pending=Mode.UNSUPPORTED,
        resetless=False,
        profiles=(),
        instances=(),
        processes=(),
    )
