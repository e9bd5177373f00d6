"""The clients of one job: held, stopped, ended; and in the end brought back, whatever happened."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from migd.config.clients import forbidden
from migd.core.clients import Clearing, Stop
from migd.core.job import ClientOutcome, Fate, Phase, Signaling, Stopping
from migd.errors import Canceled, ClientStuck, InUse, MigdError, NoSystemd
from migd.service.clients import Clients
from migd.service.ending import Ending, lives
from migd.service.journal import Journal

log = logging.getLogger(__name__)

T = TypeVar("T")

# How often those who come back by themselves are ended again, before they are named instead.
_ROUNDS = 5
# How long systemd may take to remove what it has killed.
_KILL_S = 10.0
# How long starts are waited for, all together, once migd itself is being stopped.
_HURRY_S = 30.0
# How long, and how often, systemd is asked again that does not answer.
_SILENT_S, _PAUSE_S = 60.0, 1.0


class Progress(Protocol):
    """What the clients of a job tell it, and ask of it."""

    def common(self, phase: Phase | None, waits: str = "") -> None: ...
    @property
    def canceling(self) -> asyncio.Event: ...
    @property
    def hurrying(self) -> asyncio.Event: ...


class ClientRun:
    """What a job does to clients. `bring_back` is due whatever became of `clear`."""

    def __init__(
        self,
        clients: Clients,
        journal: Journal,
        job: Progress,
        stopped: Sequence[Stopping] = (),
        signaled: Sequence[Signaling] = (),
        *,
        held: bool = False,
    ) -> None:
        """stopped, signaled: what the journal of a job that was cut short says.

        held: whether there may be a hold
        """
        self._clients = clients
        self._units = clients.units
        self._hold = clients.hold
        self._journal = journal
        self._job = job
        self._stopped = list(stopped)
        self._signaled = list(signaled)
        self._held = held

    async def clear(
        self, clearing: Clearing, look_again: Callable[[], Awaitable[Clearing]]
    ) -> None:
        """Stop and end all that `clearing` says, and then whoever a fresh look still finds.

        look_again: what is still to be done now
        Raises InUse, ClientStuck, Canceled, StateUnwritable, NoSystemd.
        """
        if not clearing.stops and not clearing.ends:
            return
        if clearing.units:
            self._job.common(Phase.HOLD)
            self._held = True
            await self._unless_canceled(self._hold.take(clearing.units))
        for stop in clearing.stops:
            await self._stop(stop, clearing)
        self._job.common(Phase.STOP)
        ending = Ending(self._note, lambda waits: self._job.common(Phase.STOP, waits), forbidden)
        for _ in range(_ROUNDS):
            now = await self._still(look_again, clearing.units)
            if not now.ends:
                return
            await self._unless_canceled(ending.end(now.ends))
        if again := (await self._still(look_again, clearing.units)).ends:
            who = "; ".join(str(e.client.holder) for e in again)
            raise InUse(f"ended {_ROUNDS} times, there is again {who}: end what starts it")

    async def _still(
        self, look_again: Callable[[], Awaitable[Clearing]], held: Sequence[str]
    ) -> Clearing:
        """Who is still to be ended. Raises InUse for those who cannot be."""
        now = await self._unless_canceled(look_again())
        if now.blocked:
            raise InUse("; ".join(b.message for b in now.blocked))
        states = await self._units.states([s.unit for s in now.stops]) if now.stops else {}
        # A start that waits for the hold has begun nothing, be it by a socket, a timer or by hand.
        begun = [unit for unit, state in states.items() if unit not in held or not state.waits]
        if begun:
            raise InUse(f"{', '.join(begun)} was started meanwhile; apply again")
        return now

    async def hold_again(self, *, anew: bool) -> None:
        """After a restart: keep down what an earlier daemon stopped, until bring_back.

        anew: also what may run again, because the hold has ended meanwhile
        Raises ClientStuck, NoSystemd.
        """
        if not self._stopped or await self._hold.adopt() or not anew:
            return
        await self._hold.take(self._names())
        # The hold of the earlier daemon has ended, and they may run again.
        for record in self._stopped:
            await self._units.stop(record.unit, record.stop_s)

    async def bring_back(self) -> tuple[ClientOutcome, ...]:
        """Start again what was stopped, the last first; the outcomes tell what came of it.

        Raises NoSystemd only if migd is to end and systemd does not answer: it is not known then
        what is down, and the journal must stay.
        """
        if self._held or self._stopped:
            self._job.common(Phase.RELEASE)
            await self._release()
        queue = [
            (unit, record.start_s)
            for record in reversed(self._stopped)
            for unit in (record.unit, *reversed(record.along))
        ]
        back = await self._start_all(queue)
        ended = [await self._came_of(record) for record in self._signaled]
        self._job.common(None)
        return (*back, *ended)

    # -- units ---------------------------------------------------------------------------

    async def _stop(self, stop: Stop, clearing: Clearing) -> None:
        self._job.common(Phase.STOP, f"{stop.unit} to stop")
        if self._job.canceling.is_set():
            raise Canceled("the job was canceled before all clients were stopped")
        if not (await self._units.states([stop.unit]))[stop.unit].active:
            return  # it has ended by itself since the plan, and is left so
        along = [u.name for u in await self._units.along(stop.unit)]
        if late := sorted({*along} - {*clearing.units, *clearing.lost}):
            raise InUse(f"{', '.join(late)} began to need {stop.unit} meanwhile; apply again")
        for unit in (n for n in along if n in clearing.lost):
            await self._note(Signaling(0, 0, unit, f"{unit}, which stops along with {stop.unit}"))
        back = tuple(n for n in along if n not in clearing.lost)
        record = Stopping(stop.unit, back, stop.stop_s, stop.start_s)
        await self._journal.write(record)
        self._stopped.append(record)
        log.info("stopping %s", ", ".join((*along, stop.unit)))
        try:
            await self._unless_canceled(self._units.stop(stop.unit, stop.stop_s))
        except ClientStuck as error:
            if not stop.kill:
                raise
            log.warning("%s; killing it, as clients.yaml says", error)
            await self._unless_canceled(self._units.kill(stop.unit, _KILL_S))

    async def _release(self) -> None:
        async def release() -> None:
            # Without systemd there is no hold; only where units were stopped, it must come back.
            if self._stopped or await self._units.available():
                await self._hold.release()

        try:
            await self._patiently(release)
        except NoSystemd:
            raise
        except MigdError as error:
            # The units are worth the try: their starts wait if it is still there.
            log.error("the hold was not released, ignoring: %s", error)
        except Exception:
            log.exception("the hold was not released, ignoring: defect in migd")

    async def _start_all(self, queue: Sequence[tuple[str, int]]) -> list[ClientOutcome]:
        """One after the other; all at once from when migd itself is to end."""
        starts: dict[str, asyncio.Task[ClientOutcome]] = {}
        hurrying = asyncio.create_task(self._job.hurrying.wait())
        try:
            for unit, limit_s in queue:
                if unit in starts:
                    continue
                starts[unit] = asyncio.create_task(self._start(unit, limit_s))
                self._job.common(Phase.RESTART, f"{unit} to start")
                ends = {starts[unit], hurrying}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if starts:
                await asyncio.wait(starts.values(), timeout=_HURRY_S)
            return [_came_back(unit, task) for unit, task in starts.items()]
        finally:
            for task in (hurrying, *starts.values()):
                task.cancel()
            await asyncio.gather(hurrying, *starts.values(), return_exceptions=True)

    async def _start(self, unit: str, limit_s: float) -> ClientOutcome:
        """Raises NoSystemd."""

        async def start() -> str:
            if await self._units.system_state() == "stopping":
                return "the system is shutting down"
            if await self._units.booting():
                await self._units.queue(unit)
            else:
                await self._units.start(unit, limit_s)
            return ""

        try:
            missing = await self._patiently(start)
        except NoSystemd:
            raise
        except MigdError as error:
            missing = str(error)
        except Exception:
            log.exception("starting %s: defect in migd", unit)
            missing = "a defect in migd; the log has more"
        if missing:
            log.error("%s did not come back: %s", unit, missing)
            return ClientOutcome(unit, 0, "", Fate.MISSING, missing)
        log.info("%s is back", unit)
        return ClientOutcome(unit, 0, "", Fate.RETURNED)

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """`work`, again if systemd does not answer. Raises NoSystemd if migd is to end then."""
        end = asyncio.get_running_loop().time() + _SILENT_S
        while True:
            try:
                return await work()
            except NoSystemd as error:
                if self._job.hurrying.is_set():
                    raise
                if asyncio.get_running_loop().time() > end:
                    raise ClientStuck(str(error)) from error
                log.warning("%s; trying again", error)
                await asyncio.sleep(_PAUSE_S)

    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for s in self._stopped for n in (*s.along, s.unit)))

    # -- processes -----------------------------------------------------------------------

    async def _note(self, record: Signaling) -> None:
        await self._journal.write(record)
        self._signaled.append(record)

    async def _came_of(self, record: Signaling) -> ClientOutcome:
        survived = False
        if record.pid:
            survived = lives(record)
        else:
            with contextlib.suppress(MigdError):
                survived = (await self._units.states([record.unit]))[record.unit].active
        fate = Fate.SURVIVED if survived else Fate.ENDED
        return ClientOutcome(record.unit, record.pid, record.what, fate)

    async def _unless_canceled(self, work: Awaitable[T]) -> T:
        """`work`, left alone when the job is canceled: units and processes can take minutes."""
        task = asyncio.ensure_future(work)
        canceling = asyncio.create_task(self._job.canceling.wait())
        try:
            await asyncio.wait({task, canceling}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Canceled("the job was canceled while it stopped clients")
            return task.result()
        finally:
            canceling.cancel()
            task.cancel()
            await asyncio.gather(task, canceling, return_exceptions=True)


def _came_back(unit: str, start: asyncio.Task[ClientOutcome]) -> ClientOutcome:
    """Raises NoSystemd."""
    if start.done():
        return start.result()
    return ClientOutcome(
        unit,
        0,
        "",
        Fate.MISSING,
        "it was starting when migd ended; systemd goes on with that",
    )
