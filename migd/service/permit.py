"""What one call is permitted: asked of polkit, first without bothering anybody, then by a person.

No lock is held meanwhile, and every question has an end.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from enum import Enum, auto
from typing import Protocol, TypeVar

from migd.core import permissions
from migd.core.asked import DAEMON, Asked, Caller, Grant, How
from migd.core.permissions import Action
from migd.errors import AccessDenied, Changed, InteractionRequired, MigdError, TooMany
from migd.service.audit import Refusals
from migd.service.demand import Demand

Aside = Callable[[], AbstractAsyncContextManager[None]]
T = TypeVar("T")
P = TypeVar("P")

# For all that one call needs: for polkit alone, and for the person that it asks.
QUICK_S = 10.0
PERSON_S = 180.0
# Questions that are open at a time: of one user, and in all.
MOST_OF_ONE, MOST = 3, 20
# How often what is asked for may turn out to be another thing, which needs another permission.
_ATTEMPTS = 5


class Verdict(Enum):
    """CHALLENGE: yes, if somebody authenticates; DISMISSED: somebody was asked and would not."""

    YES = auto()
    NO = auto()
    CHALLENGE = auto()
    DISMISSED = auto()


class NoVerdict(Exception):
    """There is no answer; why, in words. late: it took too long."""

    def __init__(self, why: str, *, late: bool = False) -> None:
        super().__init__(why)
        self.late = late


class Judge(Protocol):
    """Knows who may: polkit."""

    async def check(
        self,
        name: str,
        action: str,
        details: Mapping[str, str],
        *,
        interactive: bool,
        limit_s: float,
    ) -> Verdict:
        """Whether the program with that unique name on the bus may. Raises NoVerdict.

        interactive: a person may be asked; nobody is asked any more once this has ended
        """
        ...


class Permits:
    """Hands out permits, one a call. For one event loop."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._open: Counter[int] = Counter()
        self._refusals = Refusals()

    def of(self, caller: Caller, *, interactive: bool, aside: Aside = nullcontext) -> "Permit":
        """Begin one. aside: within it, whatever else that caller has asked for goes on."""
        return Permit(self, caller, interactive=interactive, aside=aside)

    def refused(self, caller: Caller, demand: Demand, error: MigdError) -> None:
        self._refusals.tell(caller, [a.id for a in demand.actions], demand.details, str(error))

    async def ask(
        self, caller: Caller, demand: Demand, *, interactive: bool, aside: Aside, until: float
    ) -> dict[str, How]:
        """How each action is granted, by its id. until: the end of the loop's patience, its time.

        Raises AccessDenied, InteractionRequired, TooMany.
        """
        now = asyncio.get_running_loop().time
        quick = now() + QUICK_S
        granted, challenged = {}, []
        for action in demand.actions:
            verdict = await self._verdict(caller, action, demand, quick - now())
            if verdict is Verdict.YES:
                granted[action.id] = How.POLICY
            elif verdict is Verdict.CHALLENGE:
                challenged.append(action)
            else:
                raise _denied(caller, action)
        if challenged and not interactive:
            raise _nobody_asked(challenged)
        if challenged:
            with self._question(caller.uid):
                async with aside():
                    for action in challenged:
                        await self._by_person(caller, action, demand, until - now())
                        granted[action.id] = How.AUTHENTICATION
        return granted

    async def _verdict(
        self, caller: Caller, action: Action, demand: Demand, limit_s: float
    ) -> Verdict:
        try:
            return await self._judge.check(
                caller.name, action.id, demand.details, interactive=False, limit_s=limit_s
            )
        except NoVerdict as error:
            raise _unknown(error) from error

    async def _by_person(
        self, caller: Caller, action: Action, demand: Demand, limit_s: float
    ) -> None:
        """Return once somebody has authenticated for it."""
        try:
            verdict = await self._judge.check(
                caller.name, action.id, demand.details, interactive=True, limit_s=limit_s
            )
        except NoVerdict as error:
            if error.late:
                raise AccessDenied(
                    f"nobody has authenticated within {PERSON_S:g} s for {action.id}; ask again"
                ) from error
            raise _unknown(error) from error
        if verdict is Verdict.CHALLENGE:
            raise InteractionRequired(
                f"to {action.does} somebody must authenticate ({action.id}), and there is no agent "
                "of polkit that could ask: run migctl on a terminal where pkttyagent is installed, "
                "or ask as root"
            )
        if verdict is not Verdict.YES:
            why = "the question was dismissed" if verdict is Verdict.DISMISSED else "that failed"
            raise AccessDenied(
                f"to {action.does} somebody must authenticate ({action.id}), and {why}"
            )

    @contextmanager
    def _question(self, uid: int) -> Iterator[None]:
        if self._open[uid] >= MOST_OF_ONE:
            raise TooMany(
                f"{self._open[uid]} of your calls wait for somebody to authenticate: answer those, "
                "or end them"
            )
        if self._open.total() >= MOST:
            raise TooMany(
                f"{MOST} calls wait for somebody to authenticate: ask again later, or as root"
            )
        self._open[uid] += 1
        try:
            yield
        finally:
            self._open[uid] -= 1
            self._open += Counter()  # without those that are zero


class Permit:
    """Of one call: what its caller has been granted so far, and the way to more."""

    def __init__(
        self,
        permits: Permits | None,
        caller: Caller,
        *,
        interactive: bool,
        aside: Aside = nullcontext,
    ) -> None:
        """permits: None for what migd asks of itself."""
        self.caller = caller
        self._permits = permits
        self._interactive = interactive
        self._aside = aside
        self._details: Mapping[str, str] = {}
        self._granted: dict[str, How] = {}
        self._until = 0.0

    @property
    def trusted(self) -> bool:
        """Whether its caller may all, and polkit is not asked."""
        # On a private bus the daemon need not be root.
        return self._permits is None or self.caller.uid in (0, os.geteuid())

    def covers(self, demand: Demand) -> bool:
        granted = all(a.id in self._granted for a in demand.actions)
        return self.trusted or (granted and self._details == demand.details)

    async def obtain(self, demand: Demand) -> None:
        """Have it cover a demand. Raises AccessDenied, InteractionRequired, TooMany.

        Where somebody may be asked that can take minutes. What was granted before is lost if the
        details are others now.
        """
        if self.covers(demand) or self._permits is None:
            return
        # A person is asked for so long in all, however often it turns out that more is needed.
        self._until = self._until or asyncio.get_running_loop().time() + PERSON_S
        try:
            granted = await self._permits.ask(
                self.caller,
                demand,
                interactive=self._interactive,
                aside=self._aside,
                until=self._until,
            )
        except (AccessDenied, InteractionRequired, TooMany) as error:
            self._permits.refused(self.caller, demand, error)
            raise
        # What somebody authenticated for a moment ago, polkit may now grant by itself.
        before = {a: how for a, how in self._granted.items() if how is How.AUTHENTICATION}
        self._details = demand.details
        self._granted = {a: before.get(a, how) for a, how in granted.items()}

    def asked(self, demand: Demand, options: Sequence[str] = ()) -> Asked:
        """What is to be kept of who asked for this."""
        grants = [Grant(a.id, self._granted.get(a.id, How.ROOT)) for a in demand.actions]
        impact = demand.details.get("impact", "")
        return Asked(self.caller, tuple(options), impact, tuple(grants if self._permits else ()))


BY_MIGD = Permit(None, DAEMON, interactive=False)


async def permitted(
    permit: Permit,
    turn: asyncio.Lock,
    ready: Callable[[], Awaitable[tuple[P, Demand]]],
    act: Callable[[P, Demand], Awaitable[T]],
) -> T:
    """Do what is permitted, as `ready` finds it in the moment that it begins.

    turn: held from there on; whoever has to be asked first, perhaps for a password, holds nobody up
    Raises what `ready`, `act` and Permit.obtain raise, and Changed.
    """

    async def attempt() -> tuple[Demand, T | None]:
        async with turn:
            found, demand = await ready()
            return demand, await act(found, demand) if permit.covers(demand) else None

    if not permit.trusted:
        await permit.obtain((await ready())[1])
    for _ in range(_ATTEMPTS):
        # What is begun is begun to the end, even if whoever asked leaves meanwhile.
        demand, done = await asyncio.shield(attempt())
        if done is not None:
            return done
        await permit.obtain(demand)
    raise Changed("what would be done changes all the time; look at the plan, and ask again")


def _denied(caller: Caller, action: Action) -> AccessDenied:
    group = f", or be made a member of group {permissions.GROUP}" if action.operators else ""
    return AccessDenied(
        f"polkit does not allow {caller} to {action.does} ({action.id}): ask as root{group}"
    )


def _nobody_asked(actions: Sequence[Action]) -> InteractionRequired:
    what = ", ".join(f"{a.does} ({a.id})" for a in actions)
    return InteractionRequired(
        f"somebody must authenticate to {what}, and the call did not allow to ask: run migctl on a "
        "terminal (or busctl with --allow-interactive-authorization=true), or ask as root"
    )


def _unknown(error: NoVerdict) -> AccessDenied:
    return AccessDenied(
        f"whether you may is not known: {error}; ask as root, or see to polkit "
        "(`systemctl status polkit.service`) and ask again"
    )
