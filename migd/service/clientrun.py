"""The clients of one job: held, stopped, ended; and in the end brought back, whatever happened."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Protocol, TypeVar

from migd.core.clients import Clearing, End, Stop
from migd.core.holders import Holder
from migd.core.job import ClientOutcome, Fate, Phase, Signaling, Stopping
from migd.errors import Canceled, ClientStuck, InUse, MigdError
from migd.host.processes import descendants, describe, stat
from migd.host.signals import Target
from migd.service.clients import Clients
from migd.service.journal import Journal

log = logging.getLogger(__name__)

T = TypeVar("T")

# How often those who come back by themselves are ended again, before they are named instead.
_ROUNDS = 5
# How long the kernel may take to remove a process after SIGKILL, and systemd a unit.
_KILL_S = 10.0
# How long each start is waited for once migd itself is being stopped: systemd goes on with it.
_HURRY_S = 5.0


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
    ) -> None:
        """stopped, signaled: what the journal of a job that was cut short says."""
        self._clients = clients
        self._journal = journal
        self._job = job
        self._stopped = list(stopped)
        self._signaled = list(signaled)

    async def clear(
        self, clearing: Clearing, look_again: Callable[[], Awaitable[Clearing]]
    ) -> None:
        """Stop and end all that `clearing` says, and then whoever a fresh look still finds.

        look_again: what is still to be done now
        Raises InUse, ClientStuck, Canceled, StateUnwritable.
        """
        if not clearing.stops and not clearing.ends:
            return
        if clearing.units:
            self._job.common(Phase.HOLD)
            await self._clients.hold.take(clearing.units)
        for stop in clearing.stops:
            await self._stop(stop, clearing.lost)
        self._job.common(Phase.STOP)
        for _ in range(_ROUNDS):
            now = await look_again()
            if now.blocked:
                raise InUse("; ".join(b.message for b in now.blocked))
            if now.stops:
                names = ", ".join(s.unit for s in now.stops)
                raise InUse(f"{names} was started meanwhile; apply again")
            if not now.ends:
                return
            await self._end(now.ends)
        now = await look_again()
        if now.ends:
            who = "; ".join(str(e.client.holder) for e in now.ends)
            raise InUse(f"ended {_ROUNDS} times, there is again {who}: end what starts it")

    async def hold_again(self) -> None:
        """After a restart: keep down what an earlier daemon stopped, until bring_back."""
        if self._stopped and not await self._clients.hold.adopt():
            await self._clients.hold.take(self._names())

    async def bring_back(self) -> tuple[ClientOutcome, ...]:
        """Start again what was stopped, the last first. Never raises: the outcomes tell."""
        ended = [_came_of(record) for record in self._signaled]
        if not self._stopped:
            return tuple(ended)
        self._job.common(Phase.RELEASE)
        try:
            await self._clients.hold.release()
        except MigdError as error:
            # The units are worth the try: their starts wait if it is still there.
            log.error("the hold was not released, ignoring: %s", error)
        except Exception:
            log.exception("the hold was not released, ignoring: defect in migd")
        back = []
        for record in reversed(self._stopped):
            for unit in (record.unit, *reversed(record.along)):
                self._job.common(Phase.RESTART, f"{unit} to start")
                back.append(await self._start(unit, record.start_s))
        self._job.common(None)
        return (*back, *ended)

    # -- units ---------------------------------------------------------------------------

    async def _stop(self, stop: Stop, lost: Sequence[str]) -> None:
        self._job.common(Phase.STOP, f"{stop.unit} to stop")
        for unit in (n for n in stop.along if n in lost):
            await self._note(Signaling(0, 0, unit, f"{unit}, which stops along with {stop.unit}"))
        back = tuple(n for n in stop.along if n not in lost)
        record = Stopping(stop.unit, back, stop.start_s)
        await self._journal.write(record)
        self._stopped.append(record)
        log.info("stopping %s", ", ".join((stop.unit, *stop.along)))
        try:
            await self._unless_canceled(self._clients.units.stop(stop.unit, stop.stop_s))
        except ClientStuck as error:
            if not stop.kill:
                raise
            log.warning("%s; killing it, as clients.yaml says", error)
            await self._unless_canceled(self._clients.units.kill(stop.unit, _KILL_S))

    async def _start(self, unit: str, limit_s: float) -> ClientOutcome:
        try:
            if await self._clients.units.system_state() == "stopping":
                return ClientOutcome(unit, 0, "", Fate.MISSING, "the system is shutting down")
            await self._in_a_hurry(self._clients.units.start(unit, limit_s))
        except MigdError as error:
            log.error("%s did not come back: %s", unit, error)
            return ClientOutcome(unit, 0, "", Fate.MISSING, str(error))
        except Exception:
            log.exception("starting %s: defect in migd", unit)
            return ClientOutcome(unit, 0, "", Fate.MISSING, "a defect in migd; the log has more")
        log.info("%s is back", unit)
        return ClientOutcome(unit, 0, "", Fate.RETURNED)

    async def _in_a_hurry(self, starting: Coroutine[None, None, None]) -> None:
        """`starting`, which is left to systemd if it takes long while migd is being stopped."""
        task = asyncio.create_task(starting)
        hurrying = asyncio.create_task(self._job.hurrying.wait())
        try:
            await asyncio.wait({task, hurrying}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({task}, timeout=_HURRY_S)
            if not task.done():
                raise ClientStuck("migd was stopped while it started; systemd goes on with that")
            task.result()
        finally:
            hurrying.cancel()
            task.cancel()
            await asyncio.gather(task, hurrying, return_exceptions=True)

    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for s in self._stopped for n in (*s.along, s.unit)))

    # -- processes -----------------------------------------------------------------------

    async def _end(self, ends: Sequence[End]) -> None:
        """End these side by side; raises for the first that cannot be, when all are tried."""
        tries = [self._end_one(end) for end in ends]
        await self._unless_canceled(_all(tries))

    async def _end_one(self, end: End) -> None:
        holder = end.client.holder
        family = await asyncio.to_thread(_family, holder.pid) if end.tree else []
        await self._note(Signaling(holder.pid, holder.started, holder.unit, str(holder)))
        await _all([self._signal(one, end) for one in (holder, *family)])

    async def _note(self, record: Signaling) -> None:
        await self._journal.write(record)
        self._signaled.append(record)

    async def _signal(self, holder: Holder, end: End) -> None:
        try:
            target = Target(holder)
        except ProcessLookupError:
            return
        except OSError as error:
            raise ClientStuck(f"{holder} cannot be signaled: {error.strerror}") from error
        with target:
            log.info("ending %s", holder)
            self._job.common(Phase.STOP, f"{holder} to end")
            target.send(signal.SIGTERM)
            if await target.gone(end.grace_s):
                return
            if not end.kill:
                raise ClientStuck(
                    f"{holder} did not end within {end.grace_s} s after SIGTERM; end it by hand, "
                    "or allow kill: true for it in clients.yaml"
                )
            log.warning("%s did not end within %d s; killing it", holder, end.grace_s)
            target.send(signal.SIGKILL)
            if not await target.gone(_KILL_S):
                raise ClientStuck(f"{holder} did not end even after SIGKILL: the kernel keeps it")

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


def _came_of(record: Signaling) -> ClientOutcome:
    now = stat(record.pid) if record.pid else None
    lives = now is not None and now.started == record.started and now.state != "Z"
    fate = Fate.SURVIVED if lives else Fate.ENDED
    return ClientOutcome(record.unit, record.pid, record.what, fate)


async def _all(tries: Iterable[Awaitable[None]]) -> None:
    """Raises the first error, when all have come to their end."""
    for result in await asyncio.gather(*tries, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _family(pid: int) -> list[Holder]:
    """The descendants of a process."""
    return list(describe(descendants(pid)).values())
