"""Takes method calls from the bus: learns whose they are, and gives each user turns.

How long anybody may be delayed by another user is decided here and in `quota`: calls are answered
in slices of the event loop's time, one call of each user in turn. What is more than a user may
have costs the loop the reading of a header, some 20 us.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from dbus_next.message import Message

from migd.bus.connection import BUS, BUS_PATH, BusError, Connection
from migd.bus.incoming import Incoming, TooMuch
from migd.bus.owner import changing, owner_change
from migd.bus.quota import OTHERS, Quota, User, Verdict

log = logging.getLogger(__name__)

# How long calls are answered before the loop gets its turn; the last one may take longer.
SLICE_S = 0.005

# No call is answered while so many bytes of other answers are unsent: the bus takes 2 KiB
# at a time.
MAX_AHEAD = 2**16

# The longest call is one with a configuration of 1 MiB as text. An honest one has some 100 values;
# each takes dbus-next 2 us.
MAX_CALL = 2**20 + 2**16
MAX_VALUES = 4_096

# Calls at work of all users who are not trusted, one of each: they have the node observed.
AT_WORK = 4

# Connections that have called: more than a system bus has (2,048). Calls are held back until the
# bus has said whose they are, so many of a connection, and of all.
MAX_CALLERS = 4_096
MAX_HELD = 128
MAX_HELD_OF_ALL = 4_096
MAX_HELD_BYTES = 16 * 2**20
_LOOKUPS = 16

Work = Coroutine[Any, Any, Any]
# Answers a call now, or begins to, and then gives the task that ends it.
Serve = Callable[[Message, "Turn"], "asyncio.Task[Any] | None"]


@dataclass
class _Caller:
    """A connection, whose uid is not known at first."""

    uid: int | None = None
    held: list[Incoming] = field(default_factory=list)


class Turn:
    """One call in its turn: what it takes is charged to its user."""

    def __init__(self, intake: "Intake", user: User[Incoming]) -> None:
        self._intake = intake
        self._user = user

    def metered(self, work: Work) -> Work:
        """`work`, each step of which is charged."""
        return _Metered(work, self)

    @contextlib.contextmanager
    def meter(self) -> Iterator[None]:
        begun = time.thread_time()
        try:
            yield
        finally:
            self._intake.quota.charge(self._user, time.thread_time() - begun)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Wait until this user has nothing else at work, and the others not too much."""
        if self._user.trusted:
            yield
            return
        async with self._user.working:
            await asyncio.sleep(self._intake.quota.owing_s(self._user, time.monotonic()))
            async with self._intake.working:
                yield


class Intake:
    """The door of a connection (connection.Door) behind which `serve` answers."""

    def __init__(
        self,
        connection: Connection,
        serve: Serve,
        left: Callable[[str], None],
        trusted: Collection[int] | None = None,
    ) -> None:
        """left: told the unique name of each connection that has left the bus.

        trusted: uids with no limit but the memory; root and our own if not given
        """
        self.quota: Quota[Incoming] = Quota(
            frozenset({0, os.geteuid()}) if trusted is None else trusted
        )
        self.working = asyncio.Semaphore(AT_WORK)
        self._connection = connection
        self._serve = serve
        self._left = left
        self._callers: dict[str, _Caller] = {}
        self._held = 0
        self._held_bytes = 0
        self._asking = asyncio.Semaphore(_LOOKUPS)
        self._lookups: set[asyncio.Task[None]] = set()
        self._due: asyncio.Handle | None = None

    async def open(self) -> None:
        await self._connection.match(
            f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg2=''"
        )
        self._connection.add_handler(
            self._owners, lambda arrived: changing(arrived) in self._callers
        )
        self._connection.guard(self)

    # -- connection.Door -----------------------------------------------------------------

    def arrived(self, call: Incoming) -> None:
        if len(call.data) > MAX_CALL:
            call = call.without_body()
        caller = self._callers.get(call.sender)
        if caller is None:
            caller = self._meet(call.sender)
        if caller.uid is not None:
            self._queue(caller.uid, call)
        elif self._may_hold(caller, call):
            caller.held.append(call)
            self._held += 1
            self._held_bytes += len(call.data)
        else:
            self._queue(OTHERS, call)

    def drained(self) -> None:
        if self.quota.waiting:
            self._wake()

    # -- whose calls they are ------------------------------------------------------------

    def _meet(self, sender: str) -> _Caller:
        if len(self._callers) >= MAX_CALLERS:
            return _Caller(OTHERS)
        caller = self._callers[sender] = _Caller()
        task = asyncio.get_running_loop().create_task(self._learn(sender, caller))
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)
        return caller

    def _may_hold(self, caller: _Caller, call: Incoming) -> bool:
        few = len(caller.held) < MAX_HELD and self._held < MAX_HELD_OF_ALL
        return few and self._held_bytes + len(call.data) <= MAX_HELD_BYTES

    async def _learn(self, sender: str, caller: _Caller) -> None:
        async with self._asking:
            if self._callers.get(sender) is not caller:
                return
            try:
                (uid,) = await self._connection.call(
                    BUS, BUS_PATH, BUS, "GetConnectionUnixUser", "s", [sender]
                )
            except BusError as error:
                log.debug("the bus does not say who %s is: %s", sender, error)
                self._forget(sender)
                return
        caller.uid = int(uid)
        for call in self._released(caller):
            self._queue(caller.uid, call)

    def _owners(self, message: Message) -> bool:
        changed = owner_change(message)
        if changed is not None and not changed[1]:
            self._forget(changed[0])
            self._left(changed[0])
        return False

    def _forget(self, sender: str) -> None:
        if caller := self._callers.pop(sender, None):
            self._released(caller)

    def _released(self, caller: _Caller) -> list[Incoming]:
        held, caller.held = caller.held, []
        self._held -= len(held)
        self._held_bytes -= sum(len(c.data) for c in held)
        return held

    # -- turns ---------------------------------------------------------------------------

    def _queue(self, uid: int, call: Incoming) -> None:
        now = time.monotonic()
        user = self.quota.user(uid, now)
        verdict = self.quota.put(user, call, len(call.data))
        if verdict is Verdict.QUEUED:
            self._wake()
            return
        whose = "many users" if user.uid == OTHERS else f"uid {user.uid}"
        if verdict is Verdict.REFUSED:
            text = f"too many calls of {whose} are unanswered: {user.calls}; wait for their answers"
            self._connection.refuse(call, "LimitsExceeded", text)
        if self.quota.tell(user, now):
            log.warning("too many calls of %s (%s at last), refusing some", whose, call.sender)

    def _wake(self, wait_s: float = 0.0) -> None:
        if self._due:
            self._due.cancel()
        self._due = asyncio.get_running_loop().call_later(wait_s, self._answer_some)

    def _answer_some(self) -> None:
        self._due = None
        end = time.monotonic() + SLICE_S
        while self._connection.unsent < MAX_AHEAD:  # else drained() wakes us
            now = time.monotonic()
            if now >= end:
                self._wake()
                return
            taken = self.quota.take(now)
            if taken is None:
                if (wait_s := self.quota.wait_s()) is not None:
                    self._wake(wait_s)
                return
            self._answer(*taken)

    def _answer(self, user: User[Incoming], call: Incoming, length: int) -> None:
        turn = Turn(self, user)
        with turn.meter():
            task = self._read(call, turn)
        if task:
            task.add_done_callback(lambda _: self.quota.answered(user, length))
        else:
            self.quota.answered(user, length)

    def _read(self, call: Incoming, turn: Turn) -> "asyncio.Task[Any] | None":
        if call.sender not in self._callers:
            return None  # it has left
        if call.dropped:
            text = f"the arguments are too long: {call.dropped} bytes"
            self._connection.refuse(call, "LimitsExceeded", text)
            return None
        try:
            message = call.read(MAX_VALUES)
        except TooMuch:
            text = f"the arguments are more than {MAX_VALUES} values"
            self._connection.refuse(call, "LimitsExceeded", text)
            return None
        if message is None:
            self._connection.refuse(call, "InvalidArgs", "the arguments cannot be read")
            return None
        return self._serve(message, turn)


class _Metered(Coroutine[Any, Any, Any]):
    """A coroutine each step of which is charged with the processor time that it took."""

    def __init__(self, work: Work, turn: Turn) -> None:
        self._work = work
        self._turn = turn

    def send(self, value: Any) -> Any:
        with self._turn.meter():
            return self._work.send(value)

    def throw(self, *error: Any) -> Any:
        with self._turn.meter():
            return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Any:
        return self._work.__await__()
