"""From what is there to what is wanted, as steps: pure, exact, and the least that will do."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from migd.core.inside import staying
from migd.core.model import (
    Gpu,
    GpuInstance,
    Impact,
    Layout,
    Mode,
    Target,
    Wanted,
)
from migd.core.placement import arrange, exceeded, matches
from migd.core.steps import (
    CreateCompute,
    CreateInstance,
    DestroyCompute,
    DestroyInstance,
    SetMode,
    Step,
    as_plain,
)
from migd.errors import NoSpace, NoSuchProfile, NotSupported


@dataclass(frozen=True)
class GpuPlan:
    """The steps for one GPU, in order.

    goal: what it has after them, with every placement
    kept: ids of the GPU instances that stay
    gone: ids of those that go, or whose compute instances all do
    parts: ids of the compute instances that go while others beside them stay, each after that of
    its GPU instance
    whole: whether the steps need the GPU to be idle as a whole
    switches: whether its MIG mode changes
    """

    gpu: Gpu
    goal: Target
    steps: tuple[Step, ...]
    kept: tuple[int, ...]
    gone: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]
    whole: bool
    switches: bool

    @property
    def impact(self) -> Impact:
        reach = Impact.INSTANCES if self.steps else Impact.NONE
        for step in self.steps:
            if isinstance(step, SetMode) and step.mode != self.gpu.mode and not step.pending:
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
    def sets_mode(self) -> bool:
        """Whether it sets the MIG mode of a GPU, and so resets it where that takes a reset."""
        return any(isinstance(s, SetMode) for g in self.gpus for s in g.steps)

    @property
    def only_adds(self) -> bool:
        """Whether it creates instances beside others, and nothing else."""
        steps = [s for g in self.gpus for s in g.steps]
        adds = all(isinstance(s, CreateInstance | CreateCompute) for s in steps)
        return adds and not any(g.whole for g in self.gpus)

    @property
    def digest(self) -> str:
        """Names this plan: two plans with the same steps on the same GPUs have the same digest."""
        steps = [[g.gpu.uuid, [as_plain(s) for s in g.steps]] for g in self.gpus]
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
    if target.no_reset and waits(gpu, target.mode):
        return _until_a_reset(gpu, target, settled)
    mode = _mode_steps(gpu, target.mode)
    wanted = target.instances
    if target.mode is not Mode.ENABLED:
        wanted = ()
    if wanted is None:
        return _finish(gpu, Target(target.mode, None), mode, tuple(i.id for i in gpu.instances))
    pairs = _arrangement(gpu, wanted, settled)
    stay = [instance.id for instance, _ in pairs if instance]
    destroy = [
        DestroyInstance(i.id, i.profile_id, i.placement) for i in gpu.instances if i.id not in stay
    ]
    change = [
        step for instance, want in pairs if instance for step in _compute_steps(gpu, instance, want)
    ]
    create = _creations((w for instance, w in pairs if instance is None), settled)
    # Instances go before the mode does, and come after it.
    steps = (*destroy, *change, *mode, *create)
    goal = Target(target.mode, tuple(want for _, want in pairs))
    return _finish(gpu, goal, steps, tuple(sorted(stay)))


def _mode_steps(gpu: Gpu, mode: Mode) -> tuple[Step, ...]:
    if gpu.mode is Mode.UNSUPPORTED or gpu.mode == gpu.pending == mode:
        return ()
    return (SetMode(mode, reset=gpu.mode != mode and not gpu.resetless),)


def waits(gpu: Gpu, mode: Mode) -> bool:
    """Whether a mode can only be left pending without a reset."""
    return gpu.mode not in (mode, Mode.UNSUPPORTED) and not gpu.resetless


def _until_a_reset(gpu: Gpu, target: Target, settled: Layout | None) -> GpuPlan:
    """The mode is left pending; what cannot be had once it is in force is refused already now."""
    wanted = (
        None
        if target.instances is None
        else ()
        if target.mode is Mode.DISABLED
        else target.instances
    )
    pairs = _arrangement(gpu, wanted or (), settled)
    # The mode is not switched off with instances there, not even later (mig-ug).
    destroy = [DestroyInstance(i.id, i.profile_id, i.placement) for i in gpu.instances]
    mode = [] if gpu.pending == target.mode else [SetMode(target.mode, reset=False, pending=True)]
    goal = None if wanted is None else tuple(want for _, want in pairs)
    return _finish(gpu, Target(target.mode, goal, no_reset=True), (*destroy, *mode), ())


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


def _compute_steps(gpu: Gpu, instance: GpuInstance, want: Wanted) -> tuple[Step, ...]:
    if matches(instance, want):
        return ()
    stay, missing = staying(gpu, instance, want)
    destroy = [DestroyCompute(instance.id, ci.id) for ci in instance.compute if ci not in stay]
    create = [] if missing == () else [CreateCompute(instance.id, missing)]
    return (*destroy, *create)


def _creations(wanted: Iterable[Wanted], settled: Layout | None) -> Iterator[CreateInstance]:
    """Larger size classes first; within one, by the id on record, then from the start of the GPU.

    Ids are the first free in their size class, so instances created in ascending order of the
    ids they had get them, and with them their UUIDs, again.
    """
    record = {(i.profile_id, i.placement): i.gi for i in settled.instances} if settled else {}
    queue = []
    for w in wanted:
        if w.placement is not None:
            gi = record.get((w.profile_id, w.placement), inf) if w.gi is None else w.gi
            queue.append(((-w.placement.size, gi, w.placement.start), w, w.placement))
    for _, w, placement in sorted(queue, key=lambda entry: entry[0]):
        yield CreateInstance(w.profile_id, placement, w.compute)


def _finish(gpu: Gpu, goal: Target, steps: tuple[Step, ...], kept: tuple[int, ...]) -> GpuPlan:
    gone = {s.gi for s in steps if isinstance(s, DestroyInstance)}
    parts = [(s.gi, s.ci) for s in steps if isinstance(s, DestroyCompute)]
    # Where all compute instances of a GPU instance go, its id is enough.
    for instance in gpu.instances:
        if instance.compute and all((instance.id, ci.id) in parts for ci in instance.compute):
            gone.add(instance.id)
    # The mode, and a GPU instance that is created beside no other, need the whole GPU idle (mig-ug;
    # the driver's check in kmigmgrCreateGPUInstanceCheck_GA100).
    first = not kept and any(isinstance(s, CreateInstance) for s in steps)
    switches = any(isinstance(s, SetMode) and s.mode != gpu.mode and not s.pending for s in steps)
    alone = tuple(part for part in parts if part[0] not in gone)
    whole = first or switches
    return GpuPlan(gpu, goal, steps, kept, tuple(sorted(gone)), alone, whole, switches)


def offers(gpu: Gpu) -> str:
    """The profiles of a GPU with their largest counts, for a sentence."""
    return ", ".join(f"{p.name} (x{p.instances})" for p in gpu.profiles) or "no MIG profiles"


def _no_space(gpu: Gpu, wanted: tuple[Wanted, ...]) -> str:
    counts = Counter(gpu.profile_name(w.profile_id) for w in wanted)
    asked = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    reason = exceeded(gpu, [w.profile_id for w in wanted])
    if not reason and _fits(gpu, counts):
        return f"{asked} do not fit on {gpu} at the placements asked for. It has {offers(gpu)}"
    if not reason:
        slices = max(
            (p.mask.bit_length() for profile in gpu.profiles for p in profile.placements), default=0
        )
        reason = f"no arrangement of its {slices} memory slices holds them all"
    fewer = [name for name in counts if _fits(gpu, counts - Counter([name]))]
    hint = f"; with one {' or one '.join(sorted(fewer))} less they do" if fewer else ""
    return f"{asked} do not fit on {gpu}: {reason}{hint}. It has {offers(gpu)}"


def _fits(gpu: Gpu, counts: Counter[str]) -> bool:
    ids = {p.name: p.id for p in gpu.profiles}
    return arrange(gpu, [Wanted(ids[name]) for name in counts.elements()]) is not None
