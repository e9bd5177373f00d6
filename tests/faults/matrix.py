"""The cases: what NVML can do, at each place of each transition. Made from a run that went well.

A place is the nth call of a function on a GPU. There each error that the function can give is
tried, and that the call hangs, kills its process before or after it acts, or says SUCCESS and does
nothing. Then the same on the way back of a transition that fails late, and for good everywhere.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.faults.documented import errors
from tests.support.node import MUTATING, Call

HANG, DIE, DIE_AFTER, NO_EFFECT = "hang", "die", "die-after", "no-effect"
_BEGINS = "nvmlDeviceGetHandleByIndex_v2"
_LATE = "UNKNOWN"


class Fault(NamedTuple):
    """kind: an NVML error, or one of the above; nth: 0 for good; gpu: None where it is of none."""

    call: str
    nth: int
    gpu: int | None
    kind: str

    def __str__(self) -> str:
        nth = self.nth or "*"
        return f"{self.call}#{nth}@{'-' if self.gpu is None else self.gpu}={self.kind}"

    @classmethod
    def parse(cls, text: str) -> "Fault":
        place, kind = text.split("=")
        call, rest = place.split("#")
        nth, gpu = rest.split("@")
        return cls(call, 0 if nth == "*" else int(nth), None if gpu == "-" else int(gpu), kind)


@dataclass(frozen=True)
class Case:
    """Faults in a transition; all but the last are there only to get to the place of the last."""

    transition: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return f"nvml:{self.transition}:{','.join(map(str, self.faults))}"

    @classmethod
    def parse(cls, text: str) -> "Case":
        _, transition, faults = text.split(":")
        return cls(transition, tuple(Fault.parse(f) for f in faults.split(",")))

    @property
    def fault(self) -> Fault:
        return self.faults[-1]

    @property
    def stratum(self) -> tuple[str, ...]:
        """Of which a sample has one: a function, what it does, and on the way there or back."""
        kind = self.fault.kind
        shown = kind if kind in (HANG, DIE, DIE_AFTER, NO_EFFECT) else "error"
        way = "for good" if not self.fault.nth else "back" if len(self.faults) > 1 else "there"
        return self.fault.call, shown, way


class Place(NamedTuple):
    """request: the how-manieth of that GPU: it begins with finding the GPU."""

    call: str
    nth: int
    gpu: int | None
    request: int


def places(calls: Iterable[Call]) -> list[Place]:
    counts: dict[tuple[str, int | None], int] = {}
    found = []
    for call in calls:
        key = call.name, call.gpu
        counts[key] = counts.get(key, 0) + 1
        request = counts.get((_BEGINS, call.gpu), 0)
        found.append(Place(call.name, counts[key], call.gpu, request))
    return found


def at_each_place(
    transition: str, there: Sequence[Place], before: Sequence[Fault] = ()
) -> list[Case]:
    """Every fault at every place."""
    return [
        Case(transition, (*before, Fault(place.call, place.nth, place.gpu, kind)))
        for place in there
        for kind in _kinds(place.call)
    ]


def for_good(transition: str, there: Iterable[Place]) -> list[Case]:
    """Every fault of a function on a GPU, for as long as the job lasts."""
    seen = dict.fromkeys((p.call, p.gpu) for p in there)
    return [
        Case(transition, (Fault(call, 0, gpu, kind),))
        for call, gpu in seen
        for kind in _kinds(call)
    ]


def _kinds(call: str) -> Iterator[str]:
    yield from errors(call)
    yield from (HANG, DIE, NO_EFFECT)
    if call in MUTATING:
        # A read has no effect that a death after it could leave.
        yield DIE_AFTER


def late(calls: Sequence[Call]) -> list[Fault]:
    """What makes each GPU of a transition fail at its last change, so that all is undone."""
    last = {p.gpu: p for p in places(calls) if p.call in MUTATING}
    return [Fault(p.call, p.nth, p.gpu, _LATE) for p in last.values()]


def reduced(cases: Iterable[Case], there: Sequence[Place]) -> list[Case]:
    """Without those that the daemon cannot tell from another.

    It hears of a request only the end, and a read changes nothing: so in which read of a request
    the worker hangs or dies is all the same, and one of each function stands for the others.
    """
    requests = {(p.call, p.nth, p.gpu): p.request for p in there}
    seen = set()
    kept = []
    for case in cases:
        call, nth, gpu, kind = case.fault
        if kind in (HANG, DIE) and call not in MUTATING and nth:
            key = call, gpu, kind, requests[call, nth, gpu]
            if key in seen:
                continue
            seen.add(key)
        kept.append(case)
    return kept


def sample(
    cases: Sequence[Any], seed: int, key: Callable[[Any], object], each: int = 1
) -> list[Any]:
    """So many of each key, the same ones for the same seed, in the order of all."""
    chance = random.Random(seed)
    strata: dict[object, list[int]] = {}
    for number, case in enumerate(cases):
        strata.setdefault(key(case), []).append(number)
    chosen = [n for ns in strata.values() for n in chance.sample(ns, min(each, len(ns)))]
    return [cases[n] for n in sorted(chosen)]
