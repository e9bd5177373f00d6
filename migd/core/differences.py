"""How a GPU differs from what is asked of it, for whoever asks whether it is so."""

from collections import Counter
from collections.abc import Iterable, Iterator

from migd.core.model import Gpu, GpuInstance, Mode
from migd.core.plan import GpuPlan
from migd.core.steps import (
    CreateCompute,
    CreateInstance,
    DestroyCompute,
    DestroyInstance,
    SetMode,
    inside,
)


def difference(planned: GpuPlan) -> str:
    """In words, without the GPU's name; "" where it is what is asked, and no step is left.

    An instance may be anywhere, unless a placement was asked for; then being elsewhere counts.
    """
    return "; ".join(_parts(planned))


def _parts(planned: GpuPlan) -> Iterator[str]:
    gpu = planned.gpu
    for step in planned.steps:
        if isinstance(step, SetMode):
            yield _mode(gpu, step.mode)
            if step.mode is not Mode.ENABLED:
                return  # its instances go with it
    gone = [s for s in planned.steps if isinstance(s, DestroyInstance)]
    new = [s for s in planned.steps if isinstance(s, CreateInstance)]
    moved = list(_moved(gone, new))
    missing = [s for s in new if s not in [to for _, to in moved]]
    too_many = [s for s in gone if s not in [was for was, _ in moved]]
    for steps, verdict in ((missing, "missing"), (too_many, "too many")):
        if steps:
            yield f"{_counted(gpu, steps)} {'is' if len(steps) == 1 else 'are'} {verdict}"
    for was, to in moved:
        name = gpu.profile_name(was.profile_id)
        yield f"{name} at {was.placement} should be at {to.placement}{inside(to.compute)}"
    for instance in gpu.instances:
        if any(_changes(step, instance) for step in planned.steps):
            yield _compute(gpu, instance, planned)


def _mode(gpu: Gpu, asked: Mode) -> str:
    if gpu.mode == asked:
        return f"MIG mode is {gpu.mode}, and should stay so, but {gpu.pending} is pending"
    pending = ", which is pending" if gpu.pending == asked else ""
    return f"MIG mode is {gpu.mode}, and should be {asked}{pending}"


def _moved(
    gone: Iterable[DestroyInstance], new: Iterable[CreateInstance]
) -> Iterator[tuple[DestroyInstance, CreateInstance]]:
    """What there is enough of, but elsewhere: none of it is missing or too many."""
    left = sorted(new, key=lambda s: s.placement)
    for was in sorted(gone, key=lambda s: s.placement):
        to = next((s for s in left if s.profile_id == was.profile_id), None)
        if to:
            left.remove(to)
            yield was, to


def _counted(gpu: Gpu, steps: Iterable[DestroyInstance | CreateInstance]) -> str:
    counts = Counter(_named(gpu, step) for step in steps)
    *first, last = (f"{count} x {name}" for name, count in sorted(counts.items()))
    return f"{', '.join(first)} and {last}" if first else last


def _named(gpu: Gpu, step: DestroyInstance | CreateInstance) -> str:
    more = inside(step.compute) if isinstance(step, CreateInstance) else ""
    return f"{gpu.profile_name(step.profile_id)}{more}"


def _changes(step: object, instance: GpuInstance) -> bool:
    return isinstance(step, CreateCompute | DestroyCompute) and step.gi == instance.id


def _compute(gpu: Gpu, instance: GpuInstance, planned: GpuPlan) -> str:
    asked = next(
        (instance.default_compute,) if step.compute is None else step.compute
        for step in (*planned.steps, CreateCompute(instance.id, ()))
        if isinstance(step, CreateCompute) and step.gi == instance.id
    )
    has = _slices(instance, [ci.profile_id for ci in instance.compute])
    name, place = gpu.profile_name(instance.profile_id), instance.placement
    return (
        f"GPU instance {instance.id} ({name} at {place}) has {has} as compute instances, "
        f"and should have {_slices(instance, asked)}"
    )


def _slices(instance: GpuInstance, profile_ids: Iterable[int]) -> str:
    """Compute instances by their slices; by their profile's id where that does not tell which."""
    known = {p.id: p.slices for p in instance.compute_profiles}
    alike = Counter(known.values())
    told = []
    for profile_id, count in sorted(Counter(profile_ids).items()):
        slices = known.get(profile_id, 0)
        name = f"{slices}c" if alike[slices] == 1 else f"profile {profile_id}"
        told.append(f"{count} x {name}")
    return ", ".join(told) or "none"
