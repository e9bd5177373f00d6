"""From what is there to what is wanted, as steps: pure, exact, and the least that will do."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from migd.core.model import (
    Gpu,
    GpuInstance,
    Impact,
    Layout,
    Mode,
    Placement,
    Process,
    Target,
    Wanted,
)
from migd.core.placement import arrange, exceeded, matches
from migd.core.values import plain
from migd.errors import NoSpace, NoSuchProfile, NotSupported


@dataclass(frozen=True)
class SetMode:
    """Switch MIG mode; `reset` when the GPU must be reset for it to take effect."""

    mode: Mode
    reset: bool


@dataclass(frozen=True)
class DestroyInstance:
    """Destroy a GPU instance with the compute instances in it."""

    gi: int
    profile_id: int
    placement: Placement


@dataclass(frozen=True)
class DestroyCompute:
    """Destroy one compute instance; its GPU instance stays."""

    gi: int
    ci: int


@dataclass(frozen=True)
class CreateInstance:
    """Create a GPU instance at a placement; compute None is the one instance that fills it."""

    profile_id: int
    placement: Placement
    compute: tuple[int, ...] | None


@dataclass(frozen=True)
class CreateCompute:
    """Create compute instances in a GPU instance that stays (None: the one that fills it)."""

    gi: int
    compute: tuple[int, ...] | None


Step = SetMode | DestroyInstance | DestroyCompute | CreateInstance | CreateCompute


@dataclass(frozen=True)
class GpuPlan:
    """The steps for one GPU, in order.

    kept: ids of the GPU instances that stay
    holders: processes that use what the steps destroy, by NVML's list
    """

    gpu: Gpu
    target: Target
    steps: tuple[Step, ...]
    kept: tuple[int, ...]
    holders: tuple[Process, ...]

    @property
    def impact(self) -> Impact:
        reach = Impact.INSTANCES if self.steps else Impact.NONE
        for step in self.steps:
            if isinstance(step, SetMode) and step.mode != self.gpu.mode:
                reach = Impact.RESET if step.reset else Impact.GPU
        return reach


@dataclass(frozen=True)
class Plan:
    """The plans of the GPUs that a request names, in index order."""

    gpus: tuple[GpuPlan, ...]

    @property
    def impact(self) -> Impact:
        return max((g.impact for g in self.gpus), key=lambda i: i.rank, default=Impact.NONE)

    @property
    def digest(self) -> str:
        """Names this plan: two plans with the same steps on the same GPUs have the same digest."""
        steps = [[g.gpu.uuid, [[type(s).__name__, plain(s)] for s in g.steps]] for g in self.gpus]
        return hashlib.sha256(json.dumps(steps, sort_keys=True).encode()).hexdigest()[:32]


def plan(gpus: Sequence[Gpu], targets: Mapping[str, Target], settled: Mapping[str, Layout]) -> Plan:
    """The least that takes each GPU named in `targets` (by UUID) to what is wanted of it.

    settled: by UUID, the layout each GPU last reached; what is lost of it comes back in place.
    Raises NotSupported, NoSuchProfile, NoSpace.
    """
    return Plan(
        tuple(
            plan_gpu(gpu, targets[gpu.uuid], settled.get(gpu.uuid))
            for gpu in sorted(gpus, key=lambda g: g.index)
            if gpu.uuid in targets
        )
    )


def plan_gpu(gpu: Gpu, target: Target, settled: Layout | None = None) -> GpuPlan:
    """The steps that take one GPU to `target`; see `plan`."""
    if target.mode is Mode.ENABLED and gpu.mode is Mode.UNSUPPORTED:
        raise NotSupported(f"{gpu} has no MIG; leave it out of the configuration")
    mode = _mode_steps(gpu, target.mode)
    wanted = target.instances
    if target.mode is not Mode.ENABLED or (wanted is None and gpu.mode is not Mode.ENABLED):
        wanted = ()
    if wanted is None:
        return _finish(gpu, target, mode, tuple(i.id for i in gpu.instances))
    pairs = _arrangement(gpu, _in_place(gpu, wanted, settled), settled)
    stay = [instance.id for instance, _ in pairs if instance]
    destroy = [
        DestroyInstance(i.id, i.profile_id, i.placement) for i in gpu.instances if i.id not in stay
    ]
    change = [
        step for instance, want in pairs if instance for step in _compute_steps(instance, want)
    ]
    create = [
        CreateInstance(w.profile_id, w.placement, w.compute)
        for w in sorted((w for instance, w in pairs if instance is None), key=_creation_order)
        if w.placement is not None
    ]
    # Instances go before the mode does, and come after it.
    steps = (*destroy, *change, *mode, *create)
    return _finish(gpu, target, steps, tuple(sorted(stay)))


def _mode_steps(gpu: Gpu, mode: Mode) -> tuple[Step, ...]:
    if gpu.mode is Mode.UNSUPPORTED or gpu.mode == gpu.pending == mode:
        return ()
    return (SetMode(mode, reset=gpu.mode != mode and not gpu.resetless),)


def _in_place(gpu: Gpu, wanted: tuple[Wanted, ...], settled: Layout | None) -> tuple[Wanted, ...]:
    """With the ids of what was settled, if all of it is lost and just that is wanted again.

    Ids are the first free in their size class, so instances created in ascending order of the
    ids they had get them, and with them their UUIDs, again.
    """
    if settled is None or gpu.instances or any(w.placement for w in wanted):
        return wanted

    def kinds(items: tuple[Wanted, ...]) -> Counter[int]:
        return Counter(w.profile_id for w in items)

    before = settled.target().instances or ()
    if kinds(before) != kinds(wanted) or any(w.compute is not None for w in wanted):
        return wanted
    known = {(p.id, spot) for p in gpu.profiles for spot in p.placements}
    if not all((w.profile_id, w.placement) in known for w in before):
        return wanted
    return tuple(Wanted(w.profile_id, None, w.placement, w.gi) for w in before)


def _arrangement(
    gpu: Gpu, wanted: tuple[Wanted, ...], settled: Layout | None
) -> tuple[tuple[GpuInstance | None, Wanted], ...]:
    for want in wanted:
        if gpu.profile(want.profile_id) is None:
            raise NoSuchProfile(
                f"{gpu} does not offer profile {want.profile_id}; it has {offers(gpu)}"
            )
    prefer = [(i.profile_id, i.placement) for i in settled.instances] if settled else []
    pairs = arrange(gpu, wanted, prefer)
    if pairs is None:
        raise NoSpace(_no_space(gpu, wanted))
    return pairs


def _compute_steps(instance: GpuInstance, want: Wanted) -> tuple[Step, ...]:
    if matches(instance, want):
        return ()
    # Compute instances of one GPU instance are few and cheap: replace them as a whole.
    destroy = [DestroyCompute(instance.id, ci.id) for ci in instance.compute]
    return (*destroy, CreateCompute(instance.id, want.compute))


def _creation_order(want: Wanted) -> tuple[int, int, int]:
    """Larger size classes first; within one, by the id it had, else from the start of the GPU."""
    placement = want.placement or Placement(0, 0)
    return (-placement.size, -1 if want.gi is None else want.gi, placement.start)


def _finish(gpu: Gpu, target: Target, steps: tuple[Step, ...], kept: tuple[int, ...]) -> GpuPlan:
    instances = {s.gi for s in steps if isinstance(s, DestroyInstance)}
    compute = {(s.gi, s.ci) for s in steps if isinstance(s, DestroyCompute)}
    # The mode, and the first GPU instance, need the whole GPU idle (mig-ug; the driver's check in
    # kmigmgrCreateGPUInstanceCheck_GA100).
    first = not gpu.instances and any(isinstance(s, CreateInstance) for s in steps)
    whole = first or any(isinstance(s, SetMode) and s.mode != gpu.mode for s in steps)
    holders = tuple(
        p for p in gpu.processes if whole or p.gi in instances or (p.gi, p.ci) in compute
    )
    return GpuPlan(gpu, target, steps, kept, holders)


def offers(gpu: Gpu) -> str:
    """The profiles of a GPU with their largest counts, for a sentence."""
    return ", ".join(f"{p.name} (x{p.instances})" for p in gpu.profiles) or "no MIG profiles"


def _no_space(gpu: Gpu, wanted: tuple[Wanted, ...]) -> str:
    counts = Counter(gpu.profile_name(w.profile_id) for w in wanted)
    asked = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    reason = exceeded(gpu, [w.profile_id for w in wanted])
    if not reason:
        slices = max(p.mask.bit_length() for profile in gpu.profiles for p in profile.placements)
        reason = f"no arrangement of its {slices} memory slices holds them all"
    fewer = [name for name in counts if _fits(gpu, counts - Counter([name]))]
    hint = f"; with one {' or one '.join(sorted(fewer))} less they do" if fewer else ""
    return f"{asked} do not fit on {gpu}: {reason}{hint}. It has {offers(gpu)}"


def _fits(gpu: Gpu, counts: Counter[str]) -> bool:
    ids = {p.name: p.id for p in gpu.profiles}
    return arrange(gpu, [Wanted(ids[name]) for name in counts.elements()]) is not None
