"""The family of cases where the driver fails: each is done, and judged by the oracle."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager

from tests.faults import matrix
from tests.faults.arena import Arena, recorded
from tests.faults.matrix import DIE, DIE_AFTER, HANG, NO_EFFECT, Case, Fault
from tests.faults.oracle import Broken
from tests.faults.transitions import ALL
from tests.support.node import Node

NAME = "nvml"


def cases(pool: Executor, notes: list[str], only: str = "") -> list[Case]:
    """All of them; notes: what was left out, in words."""
    chosen = [name for name in ALL if only in ("", name)]
    found: list[Case] = []
    every = 0
    for there, kept in pool.map(of, chosen):
        every += there
        found += kept
    notes.append(
        f"nvml: {every} cases, of which {every - len(found)} are left out: a read in which the"
        " worker hangs or dies looks to the daemon like any other read of the same request"
    )
    return found


def of(transition: str) -> tuple[int, list[Case]]:
    """How many there are of a transition, and those that are kept."""
    arena = Arena(ALL[transition])
    try:
        calls = recorded(arena)
        late = matrix.late(calls)
        back = recorded(arena, disturb=lambda: _set(arena.node, late))
    finally:
        arena.close()
    there, then = matrix.places(calls), matrix.places(back)
    ways = [
        (matrix.at_each_place(transition, there), there),
        (matrix.at_each_place(transition, sorted({*then} - {*there}), late), then),
        (matrix.for_good(transition, there), there),
    ]
    every = sum(len(of) for of, _ in ways)
    return every, [case for of, where in ways for case in matrix.reduced(of, where)]


def parse(text: str) -> Case:
    return Case.parse(text)


def group(case: Case) -> str:
    """Cases of one group share what `opened` gives."""
    return case.transition


@contextmanager
def opened(group: str) -> Iterator[Arena]:
    arena = Arena(ALL[group])
    try:
        yield arena
    finally:
        arena.close()


def run(case: Case, arena: Arena) -> None:
    """Raises Broken, or whatever else shows that it did not go as it must."""
    promise = arena.ready(hasty=case.fault.kind == HANG)
    promise.may_fail = excuses(case, arena)
    promise.lied = lies(case)
    _set(arena.node, case.faults)
    try:
        answer = arena.ask()
        faults = arena.node.show()["faults"]
    finally:
        arena.node.clear_faults()
    unseen = [f["seen"] < max(f["nth"], 1) for f in faults]
    # A worker that dies takes along what other GPUs were at, perhaps on their way to that place.
    if unseen[-1] if case.fault.kind in (DIE, DIE_AFTER) else any(unseen):
        raise Broken(f"it never came to that place: {faults}")
    arena.check(promise, answer)
    arena.again(promise)


def excuses(case: Case, arena: Arena) -> Mapping[int, str]:
    """Which GPUs cannot always go back, and why."""
    fault = case.fault
    gpus = range(len(arena.node.gpus()))
    mine = gpus if fault.gpu is None else [fault.gpu]
    if fault.kind == HANG:
        return dict.fromkeys(mine, "the driver does not answer, and cannot be asked")
    if not fault.nth:
        if fault.kind in (DIE, DIE_AFTER):
            return dict.fromkeys(gpus, "each worker dies, and takes along what others are at")
        return dict.fromkeys(mine, "what it takes to go back never succeeds")
    return {}


def lies(case: Case) -> frozenset[int]:
    """A mode that is never written into the answer is "disabled", which any GPU may say."""
    call, nth, gpu, kind = case.fault
    for_good = (call, nth, kind) == ("nvmlDeviceGetMigMode", 0, NO_EFFECT)
    return frozenset({gpu}) if for_good and gpu is not None else frozenset()


def _set(node: Node, faults: tuple[Fault, ...] | list[Fault]) -> None:
    for fault in faults:
        action = fault.kind if fault.kind in (HANG, DIE, DIE_AFTER, NO_EFFECT) else "return"
        code = fault.kind if action == "return" else "UNKNOWN"
        node.simulated.fault(fault.call, action, code=code, nth=fault.nth, gpu=fault.gpu)
