"""How a permit is obtained: from polkit of paper, and a person of paper behind it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from migd.core.asked import Caller, Grant, How
from migd.core.permissions import APPLY, REBOOT, SET_MIG_MODE, TERMINATE, Action
from migd.errors import AccessDenied, Changed, InteractionRequired, TooMany
from migd.service import permit as module
from migd.service.demand import Demand
from migd.service.permit import BY_MIGD, NoVerdict, Permit, Permits, Verdict, permitted
from tests.support.bus import run

ALICE, ROOT = Caller(1001, ":1.5", user="alice"), Caller(0, ":1.6", user="root")
YES, NO, CHALLENGE = Verdict.YES, Verdict.NO, Verdict.CHALLENGE


@dataclass
class Judge:
    """verdicts: by action, and what a person makes of it, who answers once `answers` is set."""

    verdicts: dict[str, Verdict | NoVerdict]
    person: Verdict | NoVerdict = YES
    asked: list[tuple[str, bool]] = field(default_factory=list)
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    waits: int = 0

    def __post_init__(self) -> None:
        self.answers.set()

    async def check(
        self,
        name: str,
        action: str,
        details: Mapping[str, str],
        *,
        interactive: bool,
        limit_s: float,
    ) -> Verdict:
        assert name == ALICE.name
        assert 0 < limit_s <= (module.PERSON_S if interactive else module.QUICK_S)
        self.asked.append((action, interactive))
        verdict = self.person if interactive else self.verdicts[action]
        if interactive:
            self.waits += 1
            await self.answers.wait()
        if isinstance(verdict, NoVerdict):
            raise verdict
        return verdict


def permit(judge: Judge, *, interactive: bool = True, caller: Caller = ALICE) -> Permit:
    return Permits(judge).of(caller, interactive=interactive)


def demand(*actions: Action, **details: str) -> Demand:
    return Demand(actions, details)


def all_of(verdict: Verdict, **others: Verdict) -> dict[str, Verdict | NoVerdict]:
    found: dict[str, Verdict | NoVerdict] = {
        a.id: verdict for a in (APPLY, SET_MIG_MODE, TERMINATE, REBOOT)
    }
    return found | {f"org.migd1.{name}": v for name, v in others.items()}


def test_root_and_migd_itself_are_not_asked_about() -> None:
    async def main() -> None:
        judge = Judge({})
        trusted = permit(judge, caller=ROOT)
        assert trusted.covers(demand(REBOOT))
        await trusted.obtain(demand(REBOOT))
        asked = trusted.asked(demand(APPLY, impact="gpu"), ("terminate",))
        assert asked.grants == (Grant(APPLY.id, How.ROOT),)
        assert (asked.impact, asked.options) == ("gpu", ("terminate",))
        assert BY_MIGD.covers(demand(REBOOT))
        await BY_MIGD.obtain(demand(REBOOT))
        assert BY_MIGD.asked(demand(APPLY)).grants == ()
        assert judge.asked == []

    run(main())


def test_a_person_is_asked_last_and_only_for_what_it_takes() -> None:
    async def main() -> None:
        judge = Judge(all_of(YES, terminate=CHALLENGE))
        one = permit(judge)
        wanted = demand(APPLY, TERMINATE, SET_MIG_MODE)
        assert not one.covers(wanted)
        await one.obtain(wanted)
        assert one.covers(wanted)
        assert judge.asked == [
            (APPLY.id, False),
            (TERMINATE.id, False),
            (SET_MIG_MODE.id, False),
            (TERMINATE.id, True),
        ]
        assert [g.how for g in one.asked(wanted).grants] == [
            How.POLICY, How.AUTHENTICATION, How.POLICY,
        ]  # fmt: skip

    run(main())


def test_one_no_is_enough_and_nobody_is_bothered() -> None:
    async def main() -> None:
        judge = Judge(all_of(CHALLENGE, reboot=NO))
        with pytest.raises(AccessDenied, match=r"alice.*org\.migd1\.reboot.*ask as root$"):
            await permit(judge).obtain(demand(APPLY, REBOOT))
        assert (APPLY.id, True) not in judge.asked
        judge = Judge(all_of(NO))
        with pytest.raises(AccessDenied, match="group migd"):
            await permit(judge).obtain(demand(APPLY))

    run(main())


def test_nobody_is_asked_where_the_call_does_not_allow_it() -> None:
    async def main() -> None:
        judge = Judge(all_of(CHALLENGE))
        with pytest.raises(InteractionRequired, match=r"org\.migd1\.apply.*org\.migd1\.reboot"):
            await permit(judge, interactive=False).obtain(demand(APPLY, REBOOT))
        assert not any(interactive for _, interactive in judge.asked)

    run(main())


@pytest.mark.parametrize(
    ("person", "error", "words"),
    [
        (NO, AccessDenied, "that failed"),
        (Verdict.DISMISSED, AccessDenied, "dismissed"),
        (CHALLENGE, InteractionRequired, "no agent"),
        (NoVerdict("polkit does not answer", late=True), AccessDenied, "within 180 s"),
        (NoVerdict("polkit has gone"), AccessDenied, "polkit has gone; ask as root"),
    ],
)
def test_what_a_person_makes_of_it(
    person: Verdict | NoVerdict, error: type[Exception], words: str
) -> None:
    async def main() -> None:
        one = permit(Judge(all_of(CHALLENGE), person))
        with pytest.raises(error, match=words):
            await one.obtain(demand(APPLY))
        assert not one.covers(demand(APPLY))

    run(main())


def test_no_polkit() -> None:
    async def main() -> None:
        judge = Judge({APPLY.id: NoVerdict("polkit cannot be asked")})
        with pytest.raises(AccessDenied, match="is not known: polkit cannot be asked; ask as root"):
            await permit(judge).obtain(demand(APPLY))

    run(main())


def test_what_is_granted_is_granted_for_these_details() -> None:
    async def main() -> None:
        judge = Judge(all_of(YES))
        one = permit(judge)
        await one.obtain(demand(APPLY, config="a", impact="instances"))
        assert one.covers(demand(APPLY, config="a", impact="instances"))
        assert not one.covers(demand(APPLY, config="a", impact="gpu"))
        assert not one.covers(demand(APPLY, REBOOT, config="a", impact="instances"))
        judge.verdicts = all_of(NO)
        with pytest.raises(AccessDenied):
            await one.obtain(demand(APPLY, config="a", impact="gpu"))

    run(main())


def test_questions_are_bounded() -> None:
    async def main() -> None:
        judge = Judge(all_of(CHALLENGE))
        judge.answers.clear()
        permits = Permits(judge)

        async def ask(uid: int) -> None:
            caller = Caller(uid, ALICE.name)
            await permits.of(caller, interactive=True).obtain(demand(APPLY))

        async def opened(count: int, uid: Callable[[int], int]) -> list[asyncio.Task[None]]:
            before = judge.waits
            tasks = [asyncio.create_task(ask(uid(n))) for n in range(count)]
            while judge.waits < before + count:
                await asyncio.sleep(0)
            return tasks

        tasks = await opened(module.MOST_OF_ONE, lambda _: 1001)
        with pytest.raises(TooMany, match="of your calls"):
            await ask(1001)
        tasks += await opened(module.MOST - module.MOST_OF_ONE, lambda n: 2000 + n)
        with pytest.raises(TooMany, match="ask again later"):
            await ask(1002)
        # One who leaves makes room.
        tasks.pop().cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks += await opened(1, lambda _: 1002)
        judge.answers.set()
        await asyncio.gather(*tasks)
        assert not permits._open

    run(main())


# -- doing it --------------------------------------------------------------------------------


class Node:
    """What would be done, and needs these actions; it can change."""

    def __init__(self, *actions: Action) -> None:
        self.actions = actions
        self.plans = 0
        self.turn = asyncio.Lock()

    async def ready(self) -> tuple[str, Demand]:
        self.plans += 1
        return f"plan {self.plans}", demand(*self.actions, at=str(self.actions))

    async def act(self, planned: str, _: Demand) -> str:
        assert self.turn.locked()
        return f"did {planned}"

    async def do(self, one: Permit) -> str:
        return await permitted(one, self.turn, self.ready, self.act)


def test_root_is_planned_for_once_and_others_in_the_moment_that_it_begins() -> None:
    async def main() -> None:
        node = Node(APPLY)
        assert await node.do(permit(Judge({}), caller=ROOT)) == "did plan 1"
        assert await node.do(permit(Judge(all_of(YES)))) == "did plan 3"

    run(main())


def test_nobody_is_held_up_while_a_person_types_and_a_worse_plan_is_asked_about_again() -> None:
    async def main() -> None:
        judge = Judge(all_of(CHALLENGE))
        judge.answers.clear()
        node = Node(APPLY)
        waiting = asyncio.create_task(node.do(permit(judge)))
        while not judge.waits:
            await asyncio.sleep(0)
        assert not node.turn.locked()
        assert await node.do(permit(judge, caller=ROOT)) == "did plan 2"
        node.actions = (APPLY, SET_MIG_MODE)
        judge.asked.clear()
        judge.answers.set()
        assert (await waiting).startswith("did")
        assert judge.asked == [
            (APPLY.id, False), (SET_MIG_MODE.id, False), (APPLY.id, True), (SET_MIG_MODE.id, True),
        ]  # fmt: skip

    run(main())


def test_a_worse_plan_that_is_refused_is_not_begun() -> None:
    async def main() -> None:
        judge = Judge(all_of(CHALLENGE, **{"set-mig-mode": NO}))
        judge.answers.clear()
        node = Node(APPLY)
        waiting = asyncio.create_task(node.do(permit(judge)))
        while not judge.waits:
            await asyncio.sleep(0)
        node.actions = (APPLY, SET_MIG_MODE)
        judge.answers.set()
        with pytest.raises(AccessDenied, match="set-mig-mode"):
            await waiting

    run(main())


def test_a_plan_that_is_another_each_time() -> None:
    async def main() -> None:
        node = Node(APPLY)

        async def ready() -> tuple[str, Demand]:
            node.plans += 1
            return "", demand(APPLY, at=str(node.plans))

        with pytest.raises(Changed):
            await permitted(permit(Judge(all_of(YES))), node.turn, ready, node.act)

    run(main())


def test_whoever_leaves_is_not_asked_any_more_but_what_is_begun_is_done() -> None:
    async def main() -> None:
        judge = Judge(all_of(CHALLENGE))
        judge.answers.clear()
        node = Node(APPLY)
        waiting = asyncio.create_task(node.do(permit(judge)))
        while not judge.waits:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        begun, done = asyncio.Event(), asyncio.Event()

        async def act(_: str, __: Demand) -> bool:
            begun.set()
            await asyncio.sleep(0)
            done.set()
            return True

        root: asyncio.Task[Any] = asyncio.create_task(
            permitted(permit(judge, caller=ROOT), node.turn, node.ready, act)
        )
        await begun.wait()
        root.cancel()
        with pytest.raises(asyncio.CancelledError):
            await root
        await done.wait()

    run(main())
