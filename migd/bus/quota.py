"""What each user may take of the daemon, and whose call is next. Pure: it is told the time.

A user is a uid with all its connections. The trusted (root, and the daemon's own uid) have the half
of all turns if they want it, and no limit but the memory; the others share the rest, one call each
in turn, within these bounds.
"""

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")

# Seconds of the event loop's processor time: what a user can take at once, and of each second from
# then on. A property read takes 0.4 ms, all objects of eight sliced GPUs 30 ms: a script that reads
# a thousand properties does not notice, and whoever never ends has a fifth of the loop.
BURST_S = 1.0
SHARE = 0.2

# Calls that are not answered yet, waiting (WaitJob) or yet to be read: the bus itself allows 128 on
# each connection. They cost some KiB each, beside their bytes.
MAX_CALLS = 256
MAX_CALLS_OF_OTHERS = 2_048  # of all users who are not trusted
MAX_CALLS_OF_TRUSTED = 8_192
MAX_BYTES = 4 * 2**20  # more than the longest call
MAX_BYTES_OF_OTHERS = 16 * 2**20

# Whoever asks for too much is told so that often. What comes beyond is not answered at all: that
# costs least, and soon the bus does not let them call any more, as it counts what is unanswered.
REFUSALS = 32.0
REFUSALS_A_SECOND = 8.0
TELL_EVERY_S = 60.0  # the log

# Users who are remembered: those who have spent or asked for something lately. User namespaces can
# give one person thousands of uids; all who come when there are so many are one user together.
MAX_USERS = 256
OTHERS = -1
_FORGET_EVERY_S = 1.0


class Verdict(Enum):
    QUEUED = "queued"
    REFUSED = "refused"
    IGNORED = "ignored"


@dataclass(eq=False)
class User(Generic[T]):
    """queue: calls yet to be read, with their lengths; calls, length: of all that are unanswered.

    unread: bytes of answers that may not have been read; reading: ends once they are
    working: held by the one call that is at work
    """

    uid: int
    trusted: bool
    at: float
    queue: deque[tuple[T, int]] = field(default_factory=deque)
    calls: int = 0
    length: int = 0
    budget: float = BURST_S
    refusals: float = REFUSALS
    told: float = -inf
    unread: int = 0
    reading: asyncio.Task[None] | None = None
    working: asyncio.Lock = field(default_factory=asyncio.Lock)

    def refill(self, now: float) -> None:
        passed, self.at = max(0.0, now - self.at), now
        self.budget = min(BURST_S, self.budget + passed * SHARE)
        self.refusals = min(REFUSALS, self.refusals + passed * REFUSALS_A_SECOND)

    @property
    def ready(self) -> bool:
        return bool(self.queue) and (self.trusted or (self.budget > 0 and not self.reading))

    def forgettable(self, now: float) -> bool:
        """Whether this user, made anew, would be the same."""
        self.refill(now)
        full = self.budget == BURST_S and self.refusals == REFUSALS
        return not (self.calls or self.unread) and full and now - self.told > TELL_EVERY_S


class Quota(Generic[T]):
    """All users, and the calls that wait for their turn."""

    def __init__(self, trusted: Collection[int]) -> None:
        self._trusted = trusted
        self._users: dict[int, User[T]] = {}
        self._turns: deque[User[T]] = deque()
        self._trusted_before = False
        self._forget_at = -inf
        self.calls = 0
        self.length = 0

    def user(self, uid: int, now: float) -> User[T]:
        found = self._users.get(uid)
        if found:
            found.refill(now)
            return found
        if uid not in self._trusted and uid != OTHERS and len(self._users) >= MAX_USERS:
            self._forget(now)
            if len(self._users) >= MAX_USERS:
                return self.user(OTHERS, now)
        made: User[T] = User(uid, uid in self._trusted, now)
        self._users[uid] = made
        return made

    @property
    def users(self) -> Collection[User[T]]:
        return self._users.values()

    def put(self, user: User[T], call: T, length: int) -> Verdict:
        """Queue a call, if this user may have so many; answered() must follow once it is."""
        if self._full(user, length):
            return self.refuse(user)
        user.queue.append((call, length))
        self._count(user, 1, length)
        if user not in self._turns:
            self._turns.append(user)
        return Verdict.QUEUED

    def refuse(self, user: User[T]) -> Verdict:
        """Whether a call that cannot be taken is refused, or not even that."""
        if user.refusals < 1:
            return Verdict.IGNORED
        user.refusals -= 1
        return Verdict.REFUSED

    def tell(self, user: User[T], now: float) -> bool:
        """Whether it should be logged that this user asked for too much."""
        if now - user.told <= TELL_EVERY_S:
            return False
        user.told = now
        return True

    def take(self, now: float) -> tuple[User[T], T, int] | None:
        """The call whose turn it is, with its user and length; None if none may be read now."""
        user = self._next(now)
        if user is None:
            return None
        self._trusted_before = user.trusted
        self._turns.remove(user)
        call, length = user.queue.popleft()
        if user.queue:
            self._turns.append(user)
        return user, call, length

    @property
    def waiting(self) -> bool:
        """Whether there are calls that wait for their turn."""
        return bool(self._turns)

    def wait_s(self) -> float | None:
        """How long until take() gives something, if nobody asks meanwhile; None for ever."""
        owing = [-u.budget for u in self._turns if not (u.ready or u.reading)]
        return (min(owing) / SHARE) + 0.001 if owing else None

    def owing_s(self, user: User[T], now: float) -> float:
        """How long this user, having taken more than there was, has to wait."""
        user.refill(now)
        return 0.0 if user.trusted else max(0.0, -user.budget / SHARE)

    def charge(self, user: User[T], seconds: float) -> None:
        user.budget -= seconds

    def answered(self, user: User[T], length: int) -> None:
        self._count(user, -1, -length)

    def _forget(self, now: float) -> None:
        if now >= self._forget_at:
            self._forget_at = now + _FORGET_EVERY_S
            self._users = {u: user for u, user in self._users.items() if not user.forgettable(now)}

    def _next(self, now: float) -> User[T] | None:
        for user in self._turns:
            user.refill(now)
        ready = [u for u in self._turns if u.ready]
        first = (u for u in ready if u.trusted is not self._trusted_before)
        return next(first, ready[0] if ready else None)

    def _full(self, user: User[T], length: int) -> bool:
        if user.trusted:
            return user.calls >= MAX_CALLS_OF_TRUSTED
        return (
            user.calls >= MAX_CALLS
            or self.calls >= MAX_CALLS_OF_OTHERS
            or user.length + length > MAX_BYTES
            or self.length + length > MAX_BYTES_OF_OTHERS
        )

    def _count(self, user: User[T], calls: int, length: int) -> None:
        user.calls += calls
        user.length += length
        if not user.trusted:
            self.calls += calls
            self.length += length
