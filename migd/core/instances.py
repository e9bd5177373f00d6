"""One instance more or one less on a GPU, as what is wanted of it: all else stays as it is."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from migd.core.inside import room_for
from migd.core.model import (
    ComputeInstance,
    Gpu,
    GpuInstance,
    Mode,
    Placement,
    Profile,
    Target,
    Wanted,
    layout,
)
from migd.core.placement import exceeded
from migd.core.plan import GpuPlan
from migd.core.steps import DestroyCompute, DestroyInstance
from migd.errors import (
    Changed,
    MigDisabled,
    NoSpace,
    NoSuchInstance,
    NotSupported,
    ResetRequired,
)


def added(gpu: Gpu, new: Wanted) -> Target:
    """With one more GPU instance. Raises NoSpace, and what `refuse_mode` does."""
    refuse_mode(gpu)
    profile = gpu.profile(new.profile_id)
    assert profile
    if not _spots(gpu, profile, new.placement):
        raise NoSpace(_no_space(gpu, profile, new.placement))
    return Target(Mode.ENABLED, (*_present(gpu), new))


def without(gpu: Gpu, shown: GpuInstance) -> Target:
    """Without the GPU instance that the caller was shown. Raises as `still_there` does."""
    refuse_mode(gpu)
    instance = still_there(gpu, shown)
    left = (w for w in _present(gpu) if w.placement != instance.placement)
    return Target(Mode.ENABLED, tuple(left))


def filled(gpu: Gpu, shown: GpuInstance, compute: tuple[int, ...] | None) -> Target:
    """With one more compute instance; compute: its profile id, or None for one that fills.

    Raises NoSpace, and as `still_there` does.
    """
    refuse_mode(gpu)
    instance = still_there(gpu, shown)
    new = (instance.default_compute,) if compute is None else compute
    if not room_for(gpu, instance, instance.compute, new):
        raise NoSpace(_no_room_inside(gpu, instance))
    inside = (*(c.profile_id for c in instance.compute), *new)
    return _changed(gpu, instance, inside, instance.compute)


def emptied(gpu: Gpu, shown: GpuInstance, compute: ComputeInstance) -> Target:
    """Without the compute instance that the caller was shown. Raises as `still_there` does."""
    refuse_mode(gpu)
    instance = still_there(gpu, shown)
    left = [c for c in instance.compute if c.id != compute.id]
    there = next((c for c in instance.compute if c.id == compute.id), None)
    where = f"GPU instance {instance.id} of {gpu}"
    if there is None:
        raise NoSuchInstance(f"compute instance {compute.id} is not in {where} any more")
    if (there.profile_id, there.placement, there.uuid) != (
        compute.profile_id,
        compute.placement,
        compute.uuid,
    ):
        raise Changed(
            f"compute instance {compute.id} of {where} is {there.uuid} now and was {compute.uuid}: "
            "look again, and say which one is meant"
        )
    return _changed(gpu, instance, tuple(c.profile_id for c in left), left)


def still_there(gpu: Gpu, shown: GpuInstance) -> GpuInstance:
    """The GPU instance that was shown, as it is now. Raises NoSuchInstance, and Changed.

    Ids are given again at once, so the id alone does not tell that it is still the same.
    """
    was = f"{gpu.profile_name(shown.profile_id)} at {shown.placement}"
    there = next((i for i in gpu.instances if i.id == shown.id), None)
    if there is None:
        raise NoSuchInstance(f"GPU instance {shown.id} ({was}) is not on {gpu} any more")
    if (there.profile_id, there.placement) != (shown.profile_id, shown.placement):
        now = f"{gpu.profile_name(there.profile_id)} at {there.placement}"
        raise Changed(
            f"GPU instance {shown.id} of {gpu} is another one now: {now}, and was {was}; look "
            "again, and say which one is meant"
        )
    return there


def refuse_beyond(plan: GpuPlan, gi: int | None = None, ci: int | None = None) -> None:
    """Raises Changed where a plan would destroy anything but what is meant.

    gi: the GPU instance that may go, None for none; ci: only this compute instance of it
    """
    goes: set[tuple[int, int | None]] = {
        (s.gi, None) for s in plan.steps if isinstance(s, DestroyInstance)
    }
    goes |= {(s.gi, s.ci) for s in plan.steps if isinstance(s, DestroyCompute)}
    if goes - {(gi, ci)}:
        raise Changed(f"what is on {plan.gpu} cannot all stay for it; look again, and ask again")


def refuse_mode(gpu: Gpu) -> None:
    """Raises NotSupported, MigDisabled or ResetRequired where there can be no instances."""
    if gpu.mode is Mode.UNSUPPORTED:
        raise NotSupported(f"{gpu} has no MIG")
    if gpu.mode is Mode.DISABLED:
        raise MigDisabled(
            f"MIG mode of {gpu} is off; switch it on first (SetMigMode, or "
            f"`migctl mode {gpu.index} on`)"
        )
    if gpu.pending is not gpu.mode:
        raise ResetRequired(
            f"MIG mode {gpu.pending} of {gpu} is pending: say first which mode it shall have "
            f"(SetMigMode, or `migctl mode {gpu.index} on`)"
        )


def _present(gpu: Gpu) -> tuple[Wanted, ...]:
    return layout(gpu).target().instances or ()


def _changed(
    gpu: Gpu, instance: GpuInstance, inside: tuple[int, ...], stay: Sequence[ComputeInstance]
) -> Target:
    uuids = tuple(c.uuid for c in stay)
    return Target(
        Mode.ENABLED,
        tuple(
            replace(w, compute=inside, uuids=uuids) if w.placement == instance.placement else w
            for w in _present(gpu)
        ),
    )


def _spots(gpu: Gpu, profile: Profile, at: Placement | None = None) -> list[Placement]:
    """Where one more of that profile can be; at: only there."""
    if exceeded(gpu, [*(i.profile_id for i in gpu.instances), profile.id]):
        return []
    taken = _mask(i.placement for i in gpu.instances)
    return [s for s in profile.placements if at in (None, s) and not s.mask & taken]


def _no_space(gpu: Gpu, profile: Profile, at: Placement | None) -> str:
    where = f" at slice {at.start}" if at else ""
    limit = exceeded(gpu, [*(i.profile_id for i in gpu.instances), profile.id])
    every = _mask(s for p in gpu.profiles for s in p.placements)
    free = _ranges(every & ~_mask(i.placement for i in gpu.instances))
    fitting = [
        f"{p.name} (at {', '.join(str(s.start) for s in spots)})"
        for p in gpu.profiles
        if (spots := _spots(gpu, p))
    ]
    reason = f" ({limit})" if limit else ""
    fit = f"and these profiles fit: {', '.join(fitting)}" if fitting else "and no profile fits"
    return (
        f"{profile.name}{where} does not fit beside what is on {gpu}{reason}; free are {free}, "
        f"{fit}"
    )


def _no_room_inside(gpu: Gpu, instance: GpuInstance) -> str:
    name = gpu.profile_name(instance.profile_id)
    fitting = sorted(
        {
            name if c.id == instance.default_compute else f"{c.slices}c.{name}"
            for c in instance.compute_profiles
            if room_for(gpu, instance, instance.compute, (c.id,))
        }
    )
    fit = f"there fit {', '.join(fitting)}" if fitting else "nothing more fits"
    return (
        f"the compute instance does not fit beside the {len(instance.compute)} in GPU instance "
        f"{instance.id} ({name}) of {gpu}; {fit}"
    )


def _mask(spots: Iterable[Placement]) -> int:
    mask = 0
    for spot in spots:
        mask |= spot.mask
    return mask


def _ranges(mask: int) -> str:
    """Slices in words: slices 0-2, 5."""
    free = [n for n in range(mask.bit_length()) if mask >> n & 1]
    starts = [n for n in free if n - 1 not in free]
    ends = [n for n in free if n + 1 not in free]
    told = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return f"slices {', '.join(told)}" if told else "no slices"
