"""Takes method calls from the bus: learns whose they are, and gives each user turns.

How long anybody may be delayed by another user is decided here and in `quota`: calls are answered
in slices of the event loop's time, one call of each user in turn. What is more than a user may
have costs the loop 6 us: its sender is looked at.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from typing import Any

from dbus_next.message import Message

from migd.bus.connection import Connection
from migd.bus.incoming import Incoming, TooMuch
from migd.bus.peers import Peer, Peers
from migd.bus.quota import OTHERS, Quota, User, Verdict

log = logging.getLogger(__name__)

# How long calls are answered before the loop gets its turn; the last one may take longer.
SLICE_S = 0.002

# No call is answered while so many bytes of other answers are unsent: a busy bus takes 2 KiB at a
# time, and what is answered next waits behind them.
MAX_AHEAD = 2**12

# The longest call is one with a configuration of 1 MiB as text. An honest one has some 100 values;
# each takes dbus-next 2 us.
MAX_CALL = 2**20 + 2**16
MAX_VALUES = 4_096

# Calls at work of all users who are not trusted, one of each: they have the node observed.
AT_WORK = 4

# Bytes of answers of a user (one who is not trusted) that the bus may not have got rid of: above,
# it is asked, and nothing more is answered until they are read. dbus-daemon stops to read from us
# at 127 MiB in its queues, whoever does not read them; so this is room for MAX_USERS.
MAX_UNREAD = 2**17
_ASK_AGAIN_S = (0.0, 0.05, 0.2, 1.0, 5.0)

Work = Coroutine[Any, Any, Any]
# Answers a call now, or begins to, and then gives the task that ends it.
Serve = Callable[[Message, "Turn"], "asyncio.Task[Any] | None"]


class Turn:
    """One call in its turn: what it takes is charged to its user."""

    def __init__(self, intake: "Intake", user: User[Incoming]) -> None:
        self._intake = intake
        self._user = user
        self._at_work = False

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
        await self._begin()
        try:
            yield
        finally:
            self._pause()

    @contextlib.asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        """Let other calls go on meanwhile, as somebody is asked who may take minutes."""
        was_at_work = self._at_work
        self._pause()
        yield
        if was_at_work:
            await self._begin()

    async def _begin(self) -> None:
        if self._user.trusted:
            return
        async with contextlib.AsyncExitStack() as places:
            await places.enter_async_context(self._user.working)
            if self._user.reading:
                await asyncio.wait([self._user.reading])
            await asyncio.sleep(self._intake.quota.owing_s(self._user, time.monotonic()))
            await self._intake.working.acquire()
            places.pop_all()
        self._at_work = True

    def _pause(self) -> None:
        if self._at_work:
            self._at_work = False
            self._intake.working.release()
            self._user.working.release()


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
        self._peers = Peers(connection, self._known, left)
        self._due: asyncio.Handle | None = None

    async def open(self) -> None:
        await self._peers.open()
        self._connection.guard(self)

    def close(self) -> None:
        """Ask the bus nothing more."""
        for user in self.quota.users:
            if user.reading:
                user.reading.cancel()

    def send(self, answer: Message) -> None:
        """Send what a call is answered with."""
        length = self._connection.send(answer)
        if answer.destination in self._peers:
            peer = self._peers.find(answer.destination)
            peer.owes(peer.unread + length)
            user = peer.user
            if user and user.unread > MAX_UNREAD and not (user.trusted or user.reading):
                user.reading = asyncio.get_running_loop().create_task(self._until_read(user))

    # -- connection.Door -----------------------------------------------------------------

    def arrived(self, call: Incoming) -> None:
        if len(call.data) > MAX_CALL:
            call = call.without_body()
        peer = self._peers.find(call.sender)
        if peer.uid is not None:
            self._queue(peer, peer.uid, call)
        elif not self._peers.hold(peer, call):
            self._queue(peer, OTHERS, call)

    def drained(self) -> None:
        if self.quota.waiting:
            self._wake()

    # -- turns ---------------------------------------------------------------------------

    def _known(self, peer: Peer, calls: list[Incoming]) -> None:
        assert peer.uid is not None
        for call in calls:
            self._queue(peer, peer.uid, call)

    def _queue(self, peer: Peer, uid: int, call: Incoming) -> None:
        now = time.monotonic()
        user = self.quota.user(uid, now)
        if not peer.unread:
            peer.user = user
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

    async def _until_read(self, user: User[Incoming]) -> None:
        """Let a user wait until most of what it was answered has been read."""
        pauses = iter(_ASK_AGAIN_S)
        pause_s = 0.0
        while user.unread > MAX_UNREAD // 2:
            pause_s = next(pauses, pause_s)
            await asyncio.sleep(pause_s)
            for peer in self._peers.of(user):
                before = peer.unread
                unread = await self._peers.unread(peer.sender)
                peer.owes(unread + peer.unread - before)
        user.reading = None
        self._wake()

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
        if call.sender not in self._peers:
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
