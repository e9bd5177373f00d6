"""systemd's manager on the bus: bounded calls, and jobs whose end is never missed.

The order makes it so: signals are asked for before the first job, and the end of a job that comes
before the reply that names the job is kept. When systemd re-executes itself, its jobs live on, but
ends can be lost with its old connection: each job that is waited for is asked after then.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from migd.errors import NoSystemd
from migd.host.bus import Bus, NoAnswer, Refused, Signal

SYSTEMD = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = f"{SYSTEMD}.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"

# A manager that reads its files again answers nobody meanwhile, on a large host for seconds.
CALL_S = 30.0
# How long it is away from the bus when it re-executes itself.
_AWAY_S = 10.0
# How soon after a call was lost the bus says that systemd has left.
_NOTICE_S = 1.0

# In place of systemd's own word for a job's result: it is over, how is not known.
LOST = "lost"


class Job:
    """A job of systemd that we wait for; `result` is systemd's word for how it ended."""

    def __init__(self, path: str, moves: int) -> None:
        """moves: how often systemd had come to the bus or left it when this was known last."""
        self.path = path
        self.moves = moves
        self.result: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def end(self, result: str) -> None:
        if not self.result.done():
            self.result.set_result(result)


class Manager:
    """Connects when first used. Everything raises NoSystemd where nobody is, or nobody answers."""

    def __init__(self, bus: Bus) -> None:
        self._peer = bus.peer(SYSTEMD)
        self._connecting = asyncio.Lock()
        self._following = False
        self._subscribed = False
        self._was_there = False
        self._moves = 0
        self._move: asyncio.Future[None] | None = None
        self._jobs: set[Job] = set()
        self._early: dict[str, str] = {}
        self._enqueuing = 0
        self._listeners: list[Callable[[Signal], None]] = []

    async def available(self) -> bool:
        """Whether systemd is on this bus. Raises NoSystemd where it is, or was, and is silent."""
        try:
            await self._connect()
        except NoSystemd:
            if self._was_there or self._peer.present:
                raise
            return False
        return True

    async def call(
        self, member: str, signature: str = "", arguments: Sequence[Any] = ()
    ) -> list[Any]:
        """Call a method of the manager. Raises Refused, NoSystemd."""
        return await self._call(_PATH, _MANAGER, member, signature, arguments)

    async def properties(self, path: str, interface: str) -> dict[str, Any]:
        """All properties of one interface ("Unit") of an object. Raises Refused, NoSystemd."""
        (values,) = await self._call(path, _PROPERTIES, "GetAll", "s", [f"{SYSTEMD}.{interface}"])
        return dict(values)

    async def state(self) -> str:
        """SystemState: "running", "stopping", ... (systemctl(1)). Raises NoSystemd."""
        try:
            (value,) = await self._call(_PATH, _PROPERTIES, "Get", "ss", [_MANAGER, "SystemState"])
        except Refused as error:
            raise NoSystemd(f"systemd does not tell its state: {error}") from error
        return str(value)

    def listen(self, told: Callable[[Signal], None]) -> None:
        """Have `told` called with each signal of the manager, once and as long as we follow it."""
        self._listeners.append(told)

    # -- jobs ----------------------------------------------------------------------------

    async def enqueue(self, member: str, signature: str, arguments: Sequence[Any]) -> Job:
        """Call a method that gives a job. Raises Refused, NoSystemd."""
        with self._keeping_ends():
            (path,) = await self.call(member, signature, arguments)
            return self._watch(path)

    async def job_of(self, unit: str) -> Job | None:
        """The job that a unit has now, whoever wanted it. Raises NoSystemd."""
        with self._keeping_ends():
            try:
                (path,) = await self.call("GetUnit", "s", [unit])
                number, job = (await self.properties(path, "Unit"))["Job"]
            except Refused:
                return None
            return self._watch(job) if number else None

    @contextmanager
    def _keeping_ends(self) -> Iterator[None]:
        self._enqueuing += 1
        try:
            yield
        finally:
            self._enqueuing -= 1
            if not self._enqueuing:
                self._early.clear()  # others' jobs end, too

    def _watch(self, path: str) -> Job:
        job = Job(path, self._moves)
        self._jobs.add(job)
        if path in self._early:
            job.end(self._early[path])
        return job

    def forget(self, job: Job) -> None:
        """Do not wait for it after all; it goes on."""
        self._jobs.discard(job)

    async def wait(self, job: Job, limit_s: float) -> str | None:
        """The job's result, or None if it is not over after limit_s seconds: it goes on then.

        Raises NoSystemd when the end of the job can no longer be learned.
        """
        gone = asyncio.create_task(self._peer.gone())
        try:
            async with asyncio.timeout(limit_s):
                while not job.result.done():
                    if job.moves != self._moves:
                        await self._ask_for(job)
                        continue
                    ends: set[asyncio.Future[Any]] = {job.result, gone, self._next_move()}
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                    if gone.done():
                        raise NoSystemd("the bus was lost while systemd was at work")
        except TimeoutError:
            return None
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            self.forget(job)
        return job.result.result()

    async def _ask_for(self, job: Job) -> None:
        """Whether it is still there, now that its end may have been told to nobody."""
        job.moves = self._moves
        try:
            await self.call("GetJob", "u", [int(job.path.rpartition("/")[2])])
        except Refused:
            job.end(LOST)

    # -- the connection ------------------------------------------------------------------

    async def _call(
        self, path: str, interface: str, member: str, signature: str, arguments: Sequence[Any]
    ) -> list[Any]:
        await self._connect()
        moved = self._next_move()
        call = partial(
            self._peer.call, path, interface, member, signature, arguments, limit_s=CALL_S
        )
        try:
            return await call()
        except NoAnswer as error:
            # Where systemd re-executes itself, what it has not read by then is lost.
            await asyncio.wait({moved}, timeout=_NOTICE_S)
            if not moved.done():
                raise NoSystemd(f"systemd does not answer {member}: {error}") from error
        await self._connect()
        try:
            return await call()
        except NoAnswer as error:
            raise NoSystemd(f"systemd does not answer {member}: {error}") from error

    async def _connect(self) -> None:
        async with self._connecting:
            try:
                if not self._following:
                    await self._peer.follow(_MANAGER, self._heard, self._moved)
                    self._following = True
                if not self._subscribed:
                    await self._subscribe()
            except (NoAnswer, Refused) as error:
                raise NoSystemd(f"systemd does not answer on the bus: {error}") from error

    async def _subscribe(self) -> None:
        try:
            async with asyncio.timeout(_AWAY_S):
                while self._was_there and not self._peer.present:
                    await asyncio.wait({self._next_move()})
        except TimeoutError:
            self._was_there = False
            raise NoAnswer("it has left the bus") from None
        if not self._peer.present:
            raise NoAnswer("it is not there")
        moved = self._next_move()
        try:
            await self._peer.call(_PATH, _MANAGER, "Subscribe", limit_s=CALL_S)
        except Refused as error:
            # It remembers us, even when it has re-executed itself.
            if error.name != f"{SYSTEMD}.AlreadySubscribed":
                raise
        self._was_there = True
        self._subscribed = not moved.done()

    def _next_move(self) -> "asyncio.Future[None]":
        if self._move is None or self._move.done():
            self._move = asyncio.get_running_loop().create_future()
        return self._move

    def _moved(self) -> None:
        self._subscribed = False
        self._moves += 1
        if self._move is not None and not self._move.done():
            self._move.set_result(None)

    def _heard(self, signal: Signal) -> None:
        for told in self._listeners:
            told(signal)
        if signal.path == _PATH and signal.member == "JobRemoved" and len(signal.values) == 4:
            _, path, _, result = signal.values
            for job in self._jobs:
                if job.path == path:
                    job.end(result)
            if self._enqueuing:
                self._early[path] = result
