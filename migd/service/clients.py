"""The GPU clients of this host: who they are, and what is to be done to each for a plan."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from migd.config.clients import forbidden
from migd.core.clients import Clearing, Rules, Unit, decide
from migd.core.holders import Client, Found, clients
from migd.core.listed import Listed
from migd.core.model import Gpu
from migd.core.plan import Plan
from migd.core.reset import blocked_by_drm
from migd.errors import Hung
from migd.host.holding import Hold
from migd.host.reset import drm
from migd.host.scan import scan
from migd.host.threads import in_thread
from migd.host.units import Units, UnitState

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
        self._looking = asyncio.Lock()
        self._stuck: threading.Event | None = None

    async def look(self, gpus: Sequence[Gpu]) -> tuple[Client, ...]:
        """Every process that has a GPU, by NVML's lists and by its open and mapped nodes.

        Raises Hung.
        """
        listed = {p.pid for g in gpus for p in g.processes}
        async with self._looking:
            if self._stuck and not self._stuck.is_set():
                raise _stuck()
            ended = threading.Event()

            def look() -> tuple[Found, ...]:
                try:
                    return scan(listed)
                finally:
                    ended.set()

            try:
                return clients(await in_thread(look, _LOOK_S), gpus)
            except TimeoutError:
                # No other is begun as long as this one lasts: each would be a thread for ever.
                self._stuck = ended
                raise _stuck() from None

    async def loaded(self, found: Sequence[Client], by: Rules) -> dict[str, Unit]:
        """The units that clients.yaml lists and that clients run in, by the name asked for.

        While the host boots, those whose start is queued are as good as inactive, and so are
        sockets, timers and paths: what these start waits for migd-boot.service, and so for us.
        """
        names = [entry.name for entry in by.listed.units]
        names += [c.holder.unit for c in found if c.holder.unit]
        states = await self.units.states(tuple(dict.fromkeys(names)))
        booting = await self.units.booting()

        async def unit(state: UnitState) -> Unit:
            if not state.active or (booting and (state.waits or state.starts_others)):
                return replace(_plain(state), active=False)
            # With those that are queued: their starts would be lost, and are asked for again.
            return replace(
                _plain(state), along=tuple(map(_plain, await self.units.along(state.name)))
            )

        return {name: await unit(state) for name, state in states.items() if state.loaded}

    async def decide(self, plan: Plan, gpus: Sequence[Gpu], by: Rules) -> Clearing:
        """What is to be done to clients before `plan`; a plan without steps needs no look."""
        if not any(g.steps for g in plan.gpus):
            return Clearing()
        found = await self.look(gpus)
        clearing = decide(plan, found, await self.loaded(found, by), by)
        blocked = blocked_by_drm(plan, drm())
        return replace(clearing, blocked=(*clearing.blocked, *blocked))


def _plain(state: UnitState) -> Unit:
    stoppable = state.can_stop and not state.refuse_stop
    return Unit(
        state.name, state.active, state.returnable, stoppable, state.kills_all, state.main_pid
    )


def _stuck() -> Hung:
    return Hung(
        f"looking for GPU clients takes more than {_LOOK_S:g} s: a process is stuck in the driver, "
        "or a directory service does not answer for the names of users"
    )
