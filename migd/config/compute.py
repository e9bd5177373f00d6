"""Groups compute instances into GPU instances, as a config that counts both by name leaves it."""

from collections import Counter

from migd.core.model import Gpu, GpuInstance, Profile, Wanted

# NVML_COMPUTE_INSTANCE_PROFILE_n_SLICE, which is also the id that the driver gives it.
PROFILE_OF_SLICES = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4, 8: 5, 6: 6}


def offered(profile: Profile) -> list[int]:
    """The slices that a compute instance in a GPU instance of `profile` may have."""
    whole = profile.slices
    return [
        s for s in sorted(PROFILE_OF_SLICES) if s == whole or (s < whole and 2 * s <= whole + 1)
    ]


def slices_of(instance: GpuInstance) -> list[int]:
    """The slices of each compute instance in `instance`."""
    known = {p.id: p.slices for p in instance.compute_profiles}
    return [known.get(ci.profile_id, ci.placement.size) for ci in instance.compute]


def grouped(gpu: Gpu, profile: Profile, compute: Counter[int]) -> list[Wanted]:
    """The GPU instances of `profile` that hold the compute instances, counted by their slices.

    If those present hold just these already, they are what is wanted, however they are grouped:
    names and counts do not tell it. Otherwise the fewest GPU instances that hold them, the
    largest compute instances first.
    """
    present = [i for i in gpu.instances if i.profile_id == profile.id]
    if all(i.compute for i in present):
        held = Counter(s for i in present for s in slices_of(i))
        if held == compute:
            return [Wanted(profile.id, _as_it_is(i)) for i in present]
    groups: list[list[int]] = []
    for slices in sorted((s for s in compute.elements() if s != profile.slices), reverse=True):
        group = next((g for g in groups if sum(g) + slices <= profile.slices), None)
        if group is None:
            groups.append(group := [])
        group.append(slices)
    parts = [Wanted(profile.id, tuple(PROFILE_OF_SLICES[s] for s in g)) for g in groups]
    return [Wanted(profile.id)] * compute[profile.slices] + parts


def _as_it_is(instance: GpuInstance) -> tuple[int, ...] | None:
    ids = tuple(ci.profile_id for ci in instance.compute)
    return None if ids == (instance.default_compute,) else ids
