"""A sample of `make faults`, the same each time: all that functions do, all that can happen.

What fails here names the case, which `python -m tests.faults --case NAME` does again.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults import by_moment, by_nvml, documented, matrix, running
from tests.faults.arena import Arena, recorded
from tests.faults.by_moment import WHAT
from tests.faults.matrix import HANG, Case
from tests.faults.mutant import mutant
from tests.faults.oracle import Broken
from tests.faults.test_order import NO_WAY_BACK
from tests.faults.transitions import ALL
from tests.support.node import MUTATING

SEED = 6
# Where a hang is waited for; the others are in `make faults`.
HANGS = {"nvmlInitWithFlags", "nvmlDeviceGetUUID", "nvmlDeviceCreateGpuInstanceWithPlacement"}


def check(cases: Iterable[Any]) -> None:
    ran = running.in_a_row([str(case) for case in cases])
    broken = [f"{r.case}\n{r.broken}" for r in ran if r.broken]
    assert not broken, "\n\n".join(broken)


def sampled(transition: str, calls: Sequence[str]) -> list[Case]:
    """One case of each of these functions and each thing that it can do."""
    cases = [
        case
        for case in by_nvml.of(transition)[1]
        if case.fault.call in calls and (case.fault.kind != HANG or case.fault.call in HANGS)
    ]
    return matrix.sample(cases, SEED, lambda case: case.stratum[:2])


def test_every_function() -> None:
    """With an instance in use, on two GPUs."""
    cases = sampled("held", list(documented.DOCUMENTED))
    assert len({case.fault.call for case in cases}) > 25
    check(cases)


def test_changes_with_a_reset() -> None:
    cases = sampled("a100-off", MUTATING)
    assert len(cases) > 10
    check(cases)


@pytest.mark.parametrize("share", range(2))
def test_moments(share: int) -> None:
    """Each thing that can happen, once, in the middle."""
    whats = sorted(WHAT)[share::2]
    count, disk = by_moment.moments("held")
    syncs = [2 + n * (count - 3) // len(whats) for n in range(len(whats))]
    cases = [
        by_moment.Case("held", what, sync)
        for what, sync in zip(whats, syncs, strict=True)
        if disk or not WHAT[what].disk
    ]
    check(cases)


FAULT = "nvml:held:nvmlDeviceCreateGpuInstanceWithPlacement#1@0=INSUFFICIENT_RESOURCES"
TOLD = ("service/gpurun.py", "Ending.ROLLED_BACK, reason", "Ending.DONE, reason")
SETTLED = ("service/jobs.py", "self._store.update(self._unsaved)", "pass")


@pytest.mark.parametrize("patch", [NO_WAY_BACK, TOLD], ids=["no-way-back", "told-wrong"])
def test_a_broken_promise_is_noticed(patch: tuple[str, str, str], tmp_path: Path) -> None:
    arena = Arena(ALL["held"], package=mutant(tmp_path, patch))
    try:
        with pytest.raises(Broken, match="GPU 0: "):
            by_nvml.run(Case.parse(FAULT), arena)
    finally:
        arena.close()


def test_a_state_that_is_not_kept_is_noticed(tmp_path: Path) -> None:
    arena = Arena(ALL["slice"], package=mutant(tmp_path, SETTLED))
    try:
        with pytest.raises(Broken, match="GPU 0: settled is "):
            recorded(arena)
    finally:
        arena.close()
