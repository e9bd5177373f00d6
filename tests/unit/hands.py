"""A driver of paper: carries out steps on a GPU value and refuses what a real one refuses."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from migd.core.model import Gpu, GpuInstance, Layout, Mode, Placement
from migd.core.steps import (
    CreateCompute,
    CreateInstance,
    DestroyCompute,
    DestroyInstance,
    SetMode,
    Step,
)
from tests.support import boards
from tests.unit import oracle


class Refused(Exception):
    """The step cannot be carried out."""


def check(condition: object, why: str) -> None:
    if not condition:
        raise Refused(why)


def carry_out(key: str, gpu: Gpu, step: Step) -> Gpu:
    """`gpu`, a board of that key, after the step."""
    match step:
        case SetMode():
            return _set_mode(gpu, step)
        case CreateInstance():
            return _create(key, gpu, step)
        case DestroyInstance(gi, profile_id, placement):
            found = _instance(gpu, gi)
            check((found.profile_id, found.placement) == (profile_id, placement), "not that one")
            return replace(gpu, instances=tuple(i for i in gpu.instances if i != found))
        case DestroyCompute(gi, ci):
            found = _instance(gpu, gi)
            check(ci in {c.id for c in found.compute}, "no such compute instance")
            left = tuple(c for c in found.compute if c.id != ci)
            return _changed(gpu, replace(found, compute=left))
        case CreateCompute(gi, compute):
            return _changed(gpu, _filled(gpu, _instance(gpu, gi), compute))


def carry_all_out(key: str, gpu: Gpu, steps: Sequence[Step]) -> Gpu:
    for step in steps:
        gpu = carry_out(key, gpu, step)
    return gpu


def half_done(key: str, gpu: Gpu, step: Step) -> Iterator[Gpu]:
    """Where a step that is several NVML calls may be left by a crash between them."""
    match step:
        case SetMode(mode):
            yield replace(gpu, pending=mode)
        case CreateInstance(profile_id, placement, compute):
            for n in range(len(compute or ())):
                yield _create(key, gpu, CreateInstance(profile_id, placement, (compute or ())[:n]))
            yield _create(key, gpu, CreateInstance(profile_id, placement, ()))
        case CreateCompute(gi, compute):
            for n in range(1, len(compute or ())):
                yield carry_out(key, gpu, CreateCompute(gi, (compute or ())[:n]))
        case DestroyInstance(gi):
            found = _instance(gpu, gi)
            for n in range(1, len(found.compute) + 1):
                yield _changed(gpu, replace(found, compute=found.compute[n:]))


def picture(value: Gpu | Layout) -> tuple[Mode, list[tuple[int, Placement, tuple[int, ...]]]]:
    """Mode, placements, profile ids and compute profile ids, however they came about."""
    return value.mode, sorted(
        (
            i.profile_id,
            i.placement,
            tuple(sorted(c.profile_id for c in i.compute))
            if isinstance(i, GpuInstance)
            else tuple(sorted(i.compute)),
        )
        for i in value.instances
    )


def _set_mode(gpu: Gpu, step: SetMode) -> Gpu:
    check(gpu.mode is not Mode.UNSUPPORTED, "no MIG")
    check(step.mode is not Mode.UNSUPPORTED, "no mode to set")
    check(step.mode == gpu.mode or not gpu.instances, "instances are there")
    switches = step.mode != gpu.mode
    check(step.reset == (switches and not gpu.resetless), "reset without need, or none with")
    return replace(gpu, mode=step.mode, pending=step.mode)


def _create(key: str, gpu: Gpu, step: CreateInstance) -> Gpu:
    check(gpu.mode is Mode.ENABLED, "MIG is off")
    profile = gpu.profile(step.profile_id)
    check(profile and step.placement in profile.placements, "no such placement")
    check(oracle.disjoint([step.placement, *(i.placement for i in gpu.instances)]), "overlap")
    present = [i.profile_id for i in gpu.instances]
    check(oracle.allowed(gpu, [*present, step.profile_id]), "no engines left")
    # Ids are the first free of the size class, as in the driver.
    sizes = sorted({s.size for p in gpu.profiles for s in p.placements}, reverse=True)
    first = 100 * sizes.index(step.placement.size)
    gi = next(n for n in range(first, first + 100) if n not in {i.id for i in gpu.instances})
    made = boards.instance(key, gi, step.profile_id, step.placement.start, ())
    made = made if step.compute == () else _filled(gpu, made, step.compute)
    return replace(gpu, instances=(*gpu.instances, made))


def _filled(gpu: Gpu, instance: GpuInstance, compute: tuple[int, ...] | None) -> GpuInstance:
    check(compute != (), "nothing to create")
    ids = (instance.default_compute,) if compute is None else compute
    inside = (*(c.profile_id for c in instance.compute), *ids)
    widths = {c.id: c.slices for c in instance.compute_profiles}
    profile = gpu.profile(instance.profile_id)
    check(set(inside) <= {*widths, instance.default_compute}, "no such compute profile")
    if not (len(inside) == 1 and inside[0] == instance.default_compute):
        check(
            profile and sum(widths[c] for c in inside) <= profile.slices, "no compute slices left"
        )
    return replace(instance, compute=boards.compute(inside))


def _instance(gpu: Gpu, gi: int) -> GpuInstance:
    found = next((i for i in gpu.instances if i.id == gi), None)
    if found is None:
        raise Refused(f"no instance {gi}")
    return found


def _changed(gpu: Gpu, instance: GpuInstance) -> Gpu:
    others = tuple(i for i in gpu.instances if i.id != instance.id)
    return replace(gpu, instances=(*others, instance))
