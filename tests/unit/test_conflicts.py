"""When another unit stands against all changes, and what is said then."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from migd.core.clients import Clearing
from migd.core.conflicts import UNITS, conflict
from migd.core.model import Impact
from migd.core.plan import Plan
from migd.errors import Conflict, ImpactExceeded, InUse, MigdError, NoSystemd
from migd.host.bus import Signal
from migd.host.units import Units as RealUnits
from migd.host.units import UnitState
from migd.service.conflicts import Conflicts
from migd.service.request import Blocker, Request, blockers, refuse_if_blocked
from tests.support.bus import run
from tests.unit.test_clients import HALF

(MIG_MANAGER,) = UNITS
NOTHING = Plan(())


@pytest.mark.parametrize(
    ("file_state", "turned_off_with"),
    [
        ("enabled", "`systemctl disable --now nvidia-mig-manager.service`"),
        ("linked", "`systemctl disable --now nvidia-mig-manager.service`"),
        ("enabled-runtime", "`systemctl disable --now --runtime nvidia-mig-manager.service`"),
        ("linked-runtime", "`systemctl disable --now --runtime nvidia-mig-manager.service`"),
    ],
)
@pytest.mark.parametrize("working", [True, False])
def test_a_unit_in_place(file_state: str, turned_off_with: str, *, working: bool) -> None:
    told = conflict(MIG_MANAGER, file_state, working=working)
    assert told.startswith(f"{MIG_MANAGER} is {file_state.partition('-')[0]}: ")
    assert turned_off_with in told
    assert "`migctl import-mig-parted`" in told


@pytest.mark.parametrize(
    "file_state",
    ["", "disabled", "static", "indirect", "masked", "masked-runtime", "generated", "transient"],
)
def test_a_unit_that_nothing_starts(file_state: str) -> None:
    assert conflict(MIG_MANAGER, file_state, working=False) == ""
    told = conflict(MIG_MANAGER, file_state, working=True)
    assert told.startswith(f"{MIG_MANAGER} is at work")
    assert f"`systemctl stop {MIG_MANAGER}`" in told


class Units:
    """Shows one unit, or raises."""

    def __init__(self, *states: UnitState | NoSystemd) -> None:
        self.states_to_come = list(states)
        self.asked = 0
        self.call: Callable[[], None] = lambda: None

    async def states(self, names: Iterable[str]) -> dict[str, UnitState]:
        assert tuple(names) == UNITS
        self.asked += 1
        state = self.states_to_come.pop(0)
        if isinstance(state, NoSystemd):
            raise state
        return {MIG_MANAGER: state}

    def when_changed(self, names: Collection[str], call: Callable[[], None]) -> None:
        assert tuple(names) == UNITS
        self.call = call


ENABLED = UnitState(MIG_MANAGER, load="loaded", file_state="enabled")
DISABLED = UnitState(MIG_MANAGER, load="loaded", file_state="disabled")


@pytest.mark.parametrize("active_state", ["active", "activating", "reloading", "deactivating"])
def test_at_work(active_state: str) -> None:
    units: Any = Units(UnitState(MIG_MANAGER, file_state="disabled", active_state=active_state))
    (told,) = run(Conflicts(units, lambda: None).look())
    assert "is at work" in told


@pytest.mark.parametrize("active_state", ["inactive", "failed"])
def test_about_to_work(active_state: str) -> None:
    state = UnitState(MIG_MANAGER, active_state=active_state, job="/org/freedesktop/systemd1/job/1")
    units: Any = Units(state)
    (told,) = run(Conflicts(units, lambda: None).look())
    assert "is at work" in told


def test_what_is_new_is_told_once() -> None:
    changes = []
    units: Any = Units(DISABLED, ENABLED, ENABLED, DISABLED)
    conflicts = Conflicts(units, lambda: changes.append(len(conflicts.found)))

    async def main() -> None:
        for _ in range(4):
            await conflicts.look()

    run(main())
    assert changes == [1, 0]


def test_only_what_is_to_be_done_is_stood_against() -> None:
    made = HALF

    async def main() -> None:
        units: Any = Units(ENABLED, ENABLED, NoSystemd("silent"), NoSystemd("silent"))
        conflicts = Conflicts(units, lambda: None)
        assert await conflicts.against(NOTHING) == ()
        assert conflicts.found
        assert len(await conflicts.against(made)) == 1
        assert await conflicts.against(NOTHING) == ()
        with pytest.raises(NoSystemd):
            await conflicts.against(made)

    run(main())


def test_it_looks_again_when_systemd_tells_of_a_change() -> None:
    async def main() -> None:
        units: Any = Units(NoSystemd("silent"), ENABLED, DISABLED)
        changed = asyncio.Event()
        conflicts = Conflicts(units, changed.set)
        async with asyncio.timeout(10):
            units.call()
            units.call()
            while not units.asked:
                await asyncio.sleep(0)
            units.call()
            await changed.wait()
            assert conflicts.found
            changed.clear()
            units.call()
            await changed.wait()
        assert conflicts.found == ()
        assert units.asked == 3
        await conflicts.stop()

    run(main())


@pytest.mark.parametrize(
    ("member", "values", "heard"),
    [
        ("UnitFilesChanged", (), True),
        ("Reloading", (False,), True),
        ("JobNew", (7, "/job/7", MIG_MANAGER), True),
        ("JobRemoved", (7, "/job/7", MIG_MANAGER, "done"), True),
        ("JobRemoved", (7, "/job/7", "other.service", "done"), False),
        ("JobRemoved", (7,), False),
        ("UnitNew", (MIG_MANAGER, "/unit/x"), False),
    ],
)
def test_what_systemd_says_that_is_a_reason_to_look(
    member: str, values: tuple[object, ...], heard: bool
) -> None:
    listeners: list[Callable[[Signal], None]] = []
    manager: Any = SimpleNamespace(listen=listeners.append)
    units = RealUnits(manager, SimpleNamespace())  # type: ignore[arg-type]
    calls: list[None] = []
    units.when_changed(UNITS, lambda: calls.append(None))
    for told in listeners:
        told(
            Signal("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", member, values)
        )
    assert bool(calls) == heard


def test_the_order_of_what_stands_in_the_way() -> None:
    made = HALF
    found = blockers(made, Clearing(), Request("x", max_impact=Impact.NONE), ["turn it off"])
    found.append(Blocker(InUse("by someone")))
    order: list[type[MigdError]] = [ImpactExceeded, Conflict, InUse]
    assert [type(b.error) for b in found] == order
    for kind in order:
        with pytest.raises(kind) as error:
            refuse_if_blocked(found)
        assert str(error.value) == str(found.pop(0).error)
    refuse_if_blocked(found)
