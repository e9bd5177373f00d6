"""What is where on a GPU: its memory slices as stretches of instances and of room. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from migd.cli.node import Gpu, Instance
from migd.cli.terminal import Style

T = TypeVar("T")

_MOST_SLICES = 64


class Kind(Enum):
    """What a stretch of slices is, with the style it is drawn in."""

    BUSY = Style.BUSY
    IDLE = Style.GOOD
    FREE = Style.FAINT
    MEMORY_ONLY = "memory only"
    WHOLE = Style.TITLE

    @property
    def style(self) -> Style:
        return Style.FAINT if self is Kind.MEMORY_ONLY else Style(self.value)

    @property
    def boxed(self) -> bool:
        return self not in (Kind.FREE, Kind.MEMORY_ONLY)


@dataclass(frozen=True)
class Stretch:
    """Memory slices side by side that belong together, and what is written on them."""

    start: int
    size: int
    kind: Kind
    label: str
    detail: str = ""
    holders: int = 0

    @property
    def where(self) -> str:
        last = self.start + self.size - 1
        return str(self.start) if self.size == 1 else f"{self.start}-{last}"


def stretches(gpu: Gpu) -> list[Stretch]:
    """All slices of a GPU from left to right; none when they are not known."""
    total = slices(gpu)
    if not 0 < total <= _MOST_SLICES:
        return []
    if gpu.properties.get("MigMode") != "enabled" and not gpu.instances:
        holders = len(gpu.processes(None))
        return [Stretch(0, total, Kind.WHOLE, "whole GPU", "MIG is off", holders)]
    taken = [_instance(gpu, i) for i in _apart(gpu.instances, lambda i: i.placement)]
    used = {n for s in taken for n in range(s.start, s.start + s.size)}
    free = [
        Stretch(start, size, Kind.FREE, "free")
        for start, size in _apart(slots(gpu), lambda spot: spot)
        if used.isdisjoint(range(start, start + size))
    ]
    used |= {n for s in free for n in range(s.start, s.start + s.size)}
    offered = {n for start, size in slots(gpu) for n in range(start, start + size)}
    rest = [
        Stretch(n, 1, Kind.FREE, "free")
        if n in offered or not offered
        else Stretch(n, 1, Kind.MEMORY_ONLY, "memory", "only")
        for n in range(total)
        if n not in used
    ]
    return sorted([*taken, *free, *rest], key=lambda s: s.start)


def slices(gpu: Gpu) -> int:
    """Memory slices of a GPU, as far as its profiles and instances tell; 0 when they do not."""
    spots = [tuple(s) for p in gpu.properties.get("Profiles", ()) for s in p["placements"]]
    spots += [i.placement for i in gpu.instances]
    return max((start + size for start, size in spots), default=0)


def slots(gpu: Gpu) -> list[tuple[int, int]]:
    """Where the smallest instances can be: what lies outside has no compute of its own."""
    spots = {tuple(s) for p in gpu.properties.get("Profiles", ()) for s in p["placements"]}
    smallest = min((size for _, size in spots), default=0)
    return sorted((start, size) for start, size in spots if size == smallest)


def _instance(gpu: Gpu, instance: Instance) -> Stretch:
    inside = [p for c in instance.compute for p in c.get("Processes", ())]
    pids = {p["pid"] for p in (*inside, *gpu.processes(instance))}
    start, size = instance.placement
    kind = Kind.BUSY if pids else Kind.IDLE
    detail = f"GI {instance.id}" if instance.compute else f"GI {instance.id} no CI"
    return Stretch(start, size, kind, instance.properties["Profile"], detail, len(pids))


def _apart(items: Iterable[T], placement: Callable[[T], tuple[int, int]]) -> list[T]:
    """Those that can be drawn side by side; the driver lets no two overlap."""
    apart, end = [], 0
    for item in sorted(items, key=placement):
        start, size = placement(item)
        if start >= end and size:
            apart.append(item)
            end = start + size
    return apart
