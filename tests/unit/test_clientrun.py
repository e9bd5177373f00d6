"""The clients of a job where what it needs fails at the worst moment, with stand-ins for systemd.

What they do for real is tried in tests/host.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, cast

import pytest

from migd.core.clients import Blocked, Clearing, Stop
from migd.core.job import Fate, Phase, Record, Stopping
from migd.errors import Canceled, ClientStuck, InUse, MigdError, NoSystemd, StateUnwritable
from migd.host.units import UnitState
from migd.service.clientrun import ClientRun

if TYPE_CHECKING:
    from migd.service.clients import Clients
    from migd.service.journal import Journal

A, B = "a.service", "b.service"
TWO = Clearing(tuple(Stop(unit, (), 10, 10) for unit in (A, B)))


def looped(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def within(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 20))

    return within


class Job:
    """What the run tells."""

    def __init__(self) -> None:
        self.canceling = asyncio.Event()
        self.hurrying = asyncio.Event()
        self.phases: list[Phase | None] = []

    def common(self, phase: Phase | None, waits: str = "") -> None:
        self.phases.append(phase)


class Hands:
    """systemd, the hold and the journal: what they were told, in order, and who of them fails."""

    def __init__(self, **fails: MigdError) -> None:
        self.told: list[tuple[str, str]] = []
        self.fails = fails
        self.active = {A, B}
        self.queued: set[str] = set()
        self.slow: dict[str, asyncio.Event] = {}
        self.there = True
        self.system = "running"

    async def available(self) -> bool:
        return self.there

    def _tell(self, what: str, unit: str = "") -> None:
        self.told.append((what, unit))
        if error := self.fails.get(what):
            raise error

    async def write(self, record: Record) -> None:
        self._tell("write", record.unit if isinstance(record, Stopping) else "")

    async def take(self, units: Sequence[str]) -> None:
        self._tell("take", " ".join(units))

    async def adopt(self) -> bool:
        self._tell("adopt")
        return False

    async def release(self) -> None:
        self._tell("release")

    async def states(self, names: Sequence[str]) -> dict[str, UnitState]:
        word = {True: "active", False: "inactive"}
        job = {True: "/job/1", False: ""}
        return {
            n: UnitState(n, active_state=word[n in self.active], job=job[n in self.queued])
            for n in names
        }

    async def along(self, unit: str) -> tuple[UnitState, ...]:
        needs = [n for n in self.active if n.startswith(f"needs-{unit}")]
        return tuple(UnitState(n, active_state="active") for n in needs)

    async def stop(self, unit: str, limit_s: float) -> None:
        self._tell("stop", unit)
        self.active.discard(unit)

    async def start(self, unit: str, limit_s: float) -> None:
        self._tell("start", unit)
        if unit in self.slow:
            await self.slow[unit].wait()
        self.active.add(unit)

    async def queue(self, unit: str) -> None:
        self._tell("queue", unit)

    async def system_state(self) -> str:
        return self.system

    async def booting(self) -> bool:
        return self.system == "starting"

    def called(self, what: str) -> list[str]:
        return [unit for word, unit in self.told if word == what]


def run(hands: Hands, job: Job, **given: Any) -> ClientRun:
    class Both:
        units, hold = hands, hands

    return ClientRun(cast("Clients", Both()), cast("Journal", hands), job, **given)


async def nothing_left() -> Clearing:
    return Clearing()


@looped
async def test_the_hold_is_released_though_nothing_could_be_written() -> None:
    hands = Hands(write=StateUnwritable("the disk is full"))
    cleared = run(hands, Job())
    with pytest.raises(StateUnwritable):
        await cleared.clear(TWO, nothing_left)
    assert await cleared.bring_back() == ()
    assert hands.called("release") == [""]
    assert (hands.called("stop"), hands.called("start")) == ([], [])


@looped
async def test_the_hold_is_released_after_a_crash_before_the_first_stop() -> None:
    hands = Hands()
    assert await run(hands, Job(), held=True).bring_back() == ()
    assert hands.called("release") == [""]


@looped
async def test_without_systemd_there_is_no_hold_to_wait_for() -> None:
    hands = Hands(release=NoSystemd("it is not there"))
    hands.there = False
    assert await run(hands, Job(), held=True).bring_back() == ()
    assert hands.told == []


@looped
async def test_while_the_host_boots_no_start_is_waited_for() -> None:
    hands = Hands()
    cleared = run(hands, Job())
    await cleared.clear(TWO, nothing_left)
    hands.system = "starting"
    back = await cleared.bring_back()
    assert hands.called("queue") == [B, A]
    assert hands.called("start") == []
    assert [(c.unit, c.fate) for c in back] == [(B, Fate.RETURNED), (A, Fate.RETURNED)]


@looped
async def test_what_ended_by_itself_meanwhile_is_not_started() -> None:
    hands = Hands()
    cleared = run(hands, Job())
    hands.active.discard(B)
    await cleared.clear(TWO, nothing_left)
    assert [(c.unit, c.fate) for c in await cleared.bring_back()] == [(A, Fate.RETURNED)]
    assert hands.called("stop") == hands.called("start") == [A]


@looped
async def test_who_began_to_need_a_unit_meanwhile_is_not_taken_along() -> None:
    hands = Hands()
    hands.active.add(f"needs-{B}")
    cleared = run(hands, Job())
    with pytest.raises(InUse, match=f"needs-{B}"):
        await cleared.clear(TWO, nothing_left)
    await cleared.bring_back()
    assert hands.called("stop") == hands.called("start") == [A]
    assert hands.active == {A, B, f"needs-{B}"}


@looped
async def test_a_canceled_job_stops_nobody_any_more() -> None:
    hands, job = Hands(), Job()
    job.canceling.set()
    with pytest.raises(Canceled):
        await run(hands, job).clear(TWO, nothing_left)
    assert hands.called("stop") == []


@looped
async def test_who_is_in_the_way_at_last_is_named() -> None:
    async def blocked() -> Clearing:
        return Clearing(blocked=(Blocked("pid 7 is in the way", ""),))

    with pytest.raises(InUse, match="pid 7"):
        await run(Hands(), Job()).clear(TWO, blocked)


@looped
async def test_a_start_that_waits_for_the_hold_is_in_nobodys_way() -> None:
    hands = Hands()
    cleared = run(hands, Job())

    async def called_again() -> Clearing:
        hands.queued = {A}
        return Clearing((Stop(A, (), 10, 10),))

    await cleared.clear(TWO, called_again)
    assert [c.unit for c in await cleared.bring_back()] == [B, A]


@pytest.mark.parametrize("queued", [set(), {"other.service"}])
@looped
async def test_who_was_started_meanwhile_is_named(queued: set[str]) -> None:
    """It runs, or is about to: the hold keeps down what this job has stopped, and nobody else."""
    hands = Hands()
    hands.queued = queued
    unit = next(iter(queued), "new.service")
    hands.active |= {unit} - queued

    async def started() -> Clearing:
        return Clearing((Stop(unit, (), 10, 10),))

    with pytest.raises(InUse, match=f"{unit} was started meanwhile"):
        await run(hands, Job()).clear(TWO, started)


@looped
async def test_they_come_back_one_after_the_other_the_last_first() -> None:
    hands = Hands()
    hands.slow[B] = asyncio.Event()
    cleared = run(hands, Job())
    await cleared.clear(TWO, nothing_left)
    back = asyncio.create_task(cleared.bring_back())
    await until(lambda: hands.called("start") == [B])
    hands.slow[B].set()
    assert [c.unit for c in await back] == [B, A]
    assert hands.told.index(("release", "")) < hands.told.index(("start", B))


@looped
async def test_all_are_asked_for_at_once_when_migd_is_to_end() -> None:
    hands, job = Hands(), Job()
    hands.slow = {A: asyncio.Event(), B: asyncio.Event()}
    cleared = run(hands, job)
    await cleared.clear(TWO, nothing_left)
    back = asyncio.create_task(cleared.bring_back())
    await until(lambda: hands.called("start") == [B])
    job.hurrying.set()
    await until(lambda: hands.called("start") == [B, A])
    for event in hands.slow.values():
        event.set()
    assert {c.fate for c in await back} == {Fate.RETURNED}


@pytest.mark.parametrize("what", ["release", "start"])
@looped
async def test_what_is_down_is_not_forgotten_when_systemd_is_silent_and_migd_ends(
    what: str,
) -> None:
    hands, job = Hands(**{what: NoSystemd("silent")}), Job()
    cleared = run(hands, job)
    await cleared.clear(TWO, nothing_left)
    job.hurrying.set()
    with pytest.raises(NoSystemd):
        await cleared.bring_back()


@looped
async def test_one_that_does_not_come_back_does_not_hold_up_the_others() -> None:
    hands = Hands(start=ClientStuck("it said: no"))
    cleared = run(hands, Job())
    await cleared.clear(TWO, nothing_left)
    back = await cleared.bring_back()
    assert [(c.unit, c.fate, c.message) for c in back] == [
        (B, Fate.MISSING, "it said: no"),
        (A, Fate.MISSING, "it said: no"),
    ]


@looped
async def test_what_runs_again_without_a_hold_is_stopped_again() -> None:
    hands = Hands()
    stopped = [Stopping(A, (), 10, 10)]
    await run(hands, Job(), stopped=stopped, held=True).hold_again(anew=True)
    assert [word for word, _ in hands.told] == ["adopt", "take", "stop"]
    # Where nothing is left to do to GPUs, only a hold that is still there is kept.
    hands = Hands()
    await run(hands, Job(), stopped=stopped, held=True).hold_again(anew=False)
    assert [word for word, _ in hands.told] == ["adopt"]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)
