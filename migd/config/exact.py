"""Instances at their places, both ways: as a config says them, and as a GPU has or shall have them.

A compute instance is called by its name where the name tells its profile: that of so many slices,
or, as wide as its GPU instance, the one that fills it. On Hopper and later there is a second one of
one slice, with more multiprocessors and the same name; it, and whatever else no name tells, is
called by the id that nvidia-smi and NVML have for it.
"""

from collections.abc import Mapping, Sequence

from migd.config.compute import PROFILE_OF_SLICES, offered, slices_of
from migd.config.instances import Instance
from migd.core.model import Gpu, GpuInstance, Placement, Profile, Wanted
from migd.core.plan import offers
from migd.core.profiles import ProfileName
from migd.errors import NoSpace, NoSuchProfile

SLICES_OF_PROFILE = {ident: slices for slices, ident in PROFILE_OF_SLICES.items()} | {7: 1}


def written(gpu: Gpu) -> tuple[Instance, ...]:
    """What `gpu` has now, from its first slice on."""
    return tuple(
        Instance(
            str(ProfileName.parse(gpu.profile_name(i.profile_id))),
            i.placement.start,
            _called(gpu, i),
        )
        for i in sorted(gpu.instances, key=lambda i: i.placement)
    )


def placed(
    gpu: Gpu, instances: Sequence[Instance], profiles: Mapping[ProfileName, Profile], where: str
) -> tuple[Wanted, ...]:
    """What is wanted of `gpu`.

    profiles: what it offers, by name
    where: what a sentence begins with
    Raises NoSuchProfile, and NoSpace where two share a slice; whether the GPU has limits that they
    pass is for the plan.
    """
    wanted: dict[Placement, Wanted] = {}
    for instance in sorted(instances, key=lambda i: i.start):
        profile = profiles.get(ProfileName.parse(instance.profile))
        if profile is None:
            raise NoSuchProfile(
                f"{where}: {instance.profile} is not offered by {gpu}; it has {offers(gpu)}"
            )
        spot = next((p for p in profile.placements if p.start == instance.start), None)
        if spot is None:
            raise NoSuchProfile(
                f"{where}: {profile.name} does not start at slice {instance.start} of {gpu}; it "
                f"starts at {_starts(profile.placements)}"
            )
        if other := next((p for p in wanted if p.mask & spot.mask), None):
            before = gpu.profile_name(wanted[other].profile_id)
            free = [p for p in profile.placements if not p.mask & other.mask]
            also = f"; it also starts at {_starts(free)}" if free else ""
            raise NoSpace(
                f"{where}: {profile.name} at slice {spot.start} overlaps {before} at slice "
                f"{other.start} on {gpu}{also}"
            )
        wanted[spot] = Wanted(profile.id, _compute(gpu, instance, profile, where), spot)
    return tuple(wanted.values())


def _called(gpu: Gpu, instance: GpuInstance) -> tuple[str | int, ...] | None:
    ids = [ci.profile_id for ci in instance.compute]
    if ids == [instance.default_compute]:
        return None
    name = ProfileName.parse(gpu.profile_name(instance.profile_id))
    pairs = zip(slices_of(instance), ids, strict=True)
    widest_first = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    return tuple(called(name, slices, ident) for slices, ident in widest_first)


def called(profile: ProfileName, slices: int, ident: int) -> str | int:
    """What a compute instance of that many slices in a GPU instance of `profile` is called."""
    if slices < profile.slices and PROFILE_OF_SLICES.get(slices) == ident:
        return str(ProfileName(slices, profile.slices, profile.gb, profile.attributes))
    return ident


def _compute(gpu: Gpu, instance: Instance, profile: Profile, where: str) -> tuple[int, ...] | None:
    if instance.compute in (None, (instance.profile,)):
        return None
    # NVML tells what a GPU instance offers only of one that is there.
    present = next((i for i in gpu.instances if i.profile_id == profile.id), None)
    slices = {i: s for i, s in SLICES_OF_PROFILE.items() if s in offered(profile)}
    if present and present.compute_profiles:
        slices = {c.id: c.slices for c in present.compute_profiles}
    chosen = []
    for compute in instance.compute or ():
        ident = compute if isinstance(compute, int) else _named(compute, present)
        if ident not in slices:
            raise NoSuchProfile(
                f"{where}: compute instance {compute} is not offered in {profile.name} of {gpu}; "
                f"it has those of {', '.join(map(str, offered(profile)))} slices"
            )
        chosen.append(ident)
    if (total := sum(slices[i] for i in chosen)) > profile.slices:
        raise NoSpace(
            f"{where}: compute instances of {total} slices do not fit in {profile.name} of {gpu}, "
            f"which has {profile.slices}"
        )
    return tuple(chosen)


def _named(name: str, present: GpuInstance | None) -> int:
    parsed = ProfileName.parse(name)
    if present and parsed.compute == parsed.slices:
        return present.default_compute
    return PROFILE_OF_SLICES.get(parsed.compute, -1)


def _starts(placements: Sequence[Placement]) -> str:
    starts = [str(start) for start in sorted(p.start for p in placements)]
    return " or ".join(part for part in (", ".join(starts[:-1]), *starts[-1:]) if part) or "none"
