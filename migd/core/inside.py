"""Compute instances in a GPU instance that stays: which of them stay, and what is missing."""

from collections import Counter
from collections.abc import Iterable, Sequence

from migd.core.model import ComputeInstance, Gpu, GpuInstance, Placement, Wanted


def staying(
    gpu: Gpu, instance: GpuInstance, wanted: Wanted
) -> tuple[tuple[ComputeInstance, ...], tuple[int, ...] | None]:
    """Those of `instance` that stay, and the profile ids to create beside them (None: to fill it).

    Of alike ones those stay whose UUID the wish knows, then those in use. None of them does where
    what is missing might find no room between them: without them it has all of it. Nor where that
    only seems so (see room_for) and it is nothing to anybody whether they stay.
    """
    compute = (instance.default_compute,) if wanted.compute is None else wanted.compute
    busy = {p.ci for p in gpu.processes if p.gi == instance.id}
    missing = Counter(compute)
    stay = []
    for ci in sorted(
        instance.compute, key=lambda c: (c.uuid not in wanted.uuids, c.id not in busy)
    ):
        if missing[ci.profile_id] > 0:
            missing[ci.profile_id] -= 1
            stay.append(ci)
    rest = tuple(missing.elements())
    if not stay:
        return (), wanted.compute
    slices = {c.id: c.slices for c in instance.compute_profiles}
    matters = any(c.uuid in wanted.uuids or c.id in busy for c in stay)
    sure = all(slices.get(profile_id) == 1 for profile_id in rest)
    if rest and not ((sure or matters) and room_for(gpu, instance, stay, rest)):
        return (), wanted.compute
    return tuple(stay), rest


def room_for(
    gpu: Gpu, instance: GpuInstance, beside: Sequence[ComputeInstance], profile_ids: Iterable[int]
) -> bool:
    """Whether compute instances of these profiles fit into `instance` beside those.

    The driver chooses their placements, the larger ones are created first (nvml.changing). Where
    it may put them nobody has published: as GPU instances lie in memory slices, it is taken that
    one slice goes anywhere, two at even starts, and more at multiples of four. Old drivers do not
    tell where one is; then nothing is known to fit beside it.
    """
    profile = gpu.profile(instance.profile_id)
    offered = {c.id: c for c in instance.compute_profiles}
    counts = Counter(c.profile_id for c in beside)
    taken = 0
    for ci in beside:
        taken |= ci.placement.mask
    for profile_id in sorted(profile_ids, key=lambda p: -offered[p].slices if p in offered else 0):
        compute = offered.get(profile_id)
        counts[profile_id] += 1
        if profile is None or compute is None or counts[profile_id] > compute.instances:
            return False
        if any(c.placement.size == 0 for c in beside):
            return False
        pace = compute.slices if compute.slices <= 2 else 4
        starts = range(0, profile.slices - compute.slices + 1, pace)
        spots = (Placement(start, compute.slices).mask for start in starts)
        spot = next((mask for mask in spots if not mask & taken), None)
        if spot is None:
            return False
        taken |= spot
    return True


def compute_name(gpu: Gpu, instance: GpuInstance, compute: ComputeInstance) -> str:
    """As NVIDIA calls a compute instance: 1c.3g.40gb, or 3g.40gb where it fills its instance."""
    name = gpu.profile_name(instance.profile_id)
    if compute.profile_id == instance.default_compute:
        return name
    slices = next((c.slices for c in instance.compute_profiles if c.id == compute.profile_id), 0)
    return f"{slices}c.{name}"
