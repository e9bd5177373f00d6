"""Whether something else on this host sets MIG by itself; beside it, migd changes nothing."""

import asyncio
import logging
from collections.abc import Callable

from migd.core.conflicts import UNITS, conflict
from migd.core.plan import Plan
from migd.errors import Conflict, MigdError, NoSystemd
from migd.host.log import Event, fields
from migd.host.units import Units

log = logging.getLogger(__name__)


class Conflicts:
    """Looks anew for each plan, and when systemd says that something changed; for one event loop.

    found: as last seen, in sentences
    """

    def __init__(self, units: Units, changed: Callable[[], None]) -> None:
        """`changed` is called when `found` has changed."""
        self._units = units
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self.found: tuple[str, ...] = ()
        units.when_changed(UNITS, self._look_again)

    async def look(self) -> tuple[str, ...]:
        """What there is now; nothing on a bus without systemd. Raises NoSystemd."""
        states = await self._units.states(UNITS)
        told = (
            conflict(
                unit,
                state.file_state,
                working=state.active or state.active_state == "deactivating",
            )
            for unit, state in states.items()
        )
        found = tuple(sentence for sentence in told if sentence)
        if found != self.found:
            for sentence in found:
                log.warning(
                    "nothing is changed on this node: %s", sentence, extra=fields(Event.CONFLICT)
                )
            if not found:
                log.info("nothing else sets MIG on this node any more")
            self.found = found
            self._changed()
        return found

    async def against(self, plan: Plan) -> tuple[str, ...]:
        """What stands against this plan: nothing, if there is nothing to do. Raises NoSystemd."""
        needed = any(gpu.steps for gpu in plan.gpus)
        try:
            found = await self.look()
        except NoSystemd:
            if needed:
                raise
            return ()
        return found if needed else ()

    async def refuse(self, plan: Plan) -> None:
        """Raises Conflict where something stands against this plan; NoSystemd."""
        for sentence in await self.against(plan):
            raise Conflict(sentence)

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _look_again(self) -> None:
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._looking())

    async def _looking(self) -> None:
        while self._again:
            self._again = False
            try:
                await self.look()
            except MigdError as error:
                log.warning("whether something else sets MIG is not known: %s", error)
