"""The GPU clients of this host: who they are, and what is to be done to each for a plan."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, cast

from migd.config.clients import forbidden
from migd.core.clients import Clearing, Rules, Unit, decide
from migd.core.holders import Client, clients
from migd.core.listed import Listed
from migd.core.model import Gpu
from migd.core.plan import Plan
from migd.errors import Hung
from migd.host.holding import Hold
from migd.host.scan import scan
from migd.host.units import Units, UnitState

T = TypeVar("T")

_LOOK_S = 20.0


def rules(listed: Listed, limits: Mapping[str, int], *, terminate: bool) -> Rules:
    """limits: seconds, by the keys of migd.yaml's time-limits."""
    return Rules(
        listed,
        terminate,
        forbidden,
        limits["client-stop"],
        limits["client-start"],
        limits["client-grace"],
    )


class Clients:
    """All methods are for one event loop."""

    def __init__(self, units: Units, hold: Hold) -> None:
        self.units = units
        self.hold = hold

    async def look(self, gpus: Sequence[Gpu]) -> tuple[Client, ...]:
        """Every process that has a GPU, by NVML's lists and by its open and mapped nodes.

        Raises Hung.
        """
        listed = {p.pid for g in gpus for p in g.processes}
        return clients(await _in_thread(lambda: scan(listed)), gpus)

    async def loaded(self, found: Sequence[Client], by: Rules) -> dict[str, Unit]:
        """The units that clients.yaml lists and that clients run in, by the name asked for."""
        names = [entry.name for entry in by.listed.units]
        names += [c.holder.unit for c in found if c.holder.unit]
        states = await self.units.states(tuple(dict.fromkeys(names)))
        return {name: await self._unit(state) for name, state in states.items() if state.loaded}

    async def _unit(self, state: UnitState) -> Unit:
        along = await self.units.along(state.name) if state.active else ()
        return replace(_plain(state), along=tuple(_plain(u) for u in along))

    async def decide(self, plan: Plan, gpus: Sequence[Gpu], by: Rules) -> Clearing:
        """What is to be done to clients before `plan`; a plan without steps needs no look."""
        if not any(g.steps for g in plan.gpus):
            return Clearing()
        found = await self.look(gpus)
        return decide(plan, found, await self.loaded(found, by), by)


def _plain(state: UnitState) -> Unit:
    return Unit(state.name, state.active, state.returnable, state.kills_all)


async def _in_thread(look: Callable[[], T]) -> T:
    """What `look` gives. Raises Hung if that takes too long.

    What /proc tells of a process can wait for a driver call that it is stuck in, or for a directory
    service; such a thread cannot be ended, and must not be waited for at exit either.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def run() -> None:
        result, error = None, None
        try:
            result = look()
        except Exception as caught:  # noqa: BLE001 - raised where it is waited for
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="scan", daemon=True).start()
    try:
        return await asyncio.wait_for(done, _LOOK_S)
    except TimeoutError:
        raise Hung(
            f"looking for GPU clients took more than {_LOOK_S:g} s: a process that is stuck in the "
            "driver, or a directory service that does not answer for the names of users"
        ) from None
