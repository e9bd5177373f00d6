"""polkit as migd meets it: a stand-in that answers, fails, hangs and goes, and callers of any uid.

What polkit itself decides is shown on booted hosts: tests/host/test_authorization.py.
"""

import asyncio
import os
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from dbus_next.message import Message

from migd import names
from migd.bus.connection import Connection, RemoteError
from migd.bus.polkit import Polkit
from migd.service.permit import MOST_OF_ONE, NoVerdict, Verdict
from tests.bus.manager import H100, World, changing_calls, entry
from tests.support.bus import LAX, PrivateBus, nothing_left, run
from tests.support.daemon import Daemon, options
from tests.support.node import Node
from tests.support.polkit import (
    NOBODY,
    Answers,
    Question,
    challenge,
    connected,
    no,
    nothing,
    polkit,
    says,
    with_a_person,
    yes,
)

__all__ = ["nothing_left"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to call as another user")

ACTION = "org.migd1.apply"
# The bus lets nobody in whom this host does not know.
OTHER = 1


# -- one question ------------------------------------------------------------------------------


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    with PrivateBus(LAX) as private:
        yield private


async def check(
    bus: PrivateBus, answers: Answers, *, interactive: bool = False, limit_s: float = 5
) -> Verdict:
    async with polkit(bus.address, answers), connected(bus.address) as own:
        return await Polkit(own).check(
            ":1.99", ACTION, {"config": "x"}, interactive=interactive, limit_s=limit_s
        )


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        (yes, Verdict.YES),
        (no, Verdict.NO),
        (challenge, Verdict.CHALLENGE),
        (lambda q: says(q, polkit_dismissed="true"), Verdict.DISMISSED),
        (lambda q: says(q, challenge=True, polkit_dismissed="true"), Verdict.DISMISSED),
    ],
)
def test_verdicts(bus: PrivateBus, answers: Answers, verdict: Verdict) -> None:
    assert run(check(bus, answers)) is verdict


def other_signature(question: Question) -> Message:
    return Message.new_method_return(question.message, "bba{ss}", [True, False, {}])


def empty(question: Question) -> Message:
    return Message.new_method_return(question.message)


def failing(question: Question) -> Message:
    return Message.new_error(question.message, "org.freedesktop.PolicyKit1.Error.Failed", "no way")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (failing, r"Error\.Failed: no way"),
        (other_signature, "no answer of its"),
        (empty, "no answer of its"),
    ],
)
def test_no_verdict(bus: PrivateBus, answers: Answers, why: str) -> None:
    with pytest.raises(NoVerdict, match=why):
        run(check(bus, answers))


@pytest.mark.usefixtures("nothing_left")
def test_none_there(bus: PrivateBus) -> None:
    async def main() -> None:
        async with connected(bus.address) as own:
            with pytest.raises(NoVerdict, match="cannot be asked"):
                await Polkit(own).check(":1.9", ACTION, {}, interactive=False, limit_s=5)

    run(main())


@pytest.mark.usefixtures("nothing_left")
def test_one_that_hangs_is_not_waited_for_and_the_question_is_withdrawn(bus: PrivateBus) -> None:
    async def main() -> None:
        async with polkit(bus.address, nothing) as other, connected(bus.address) as own:
            with pytest.raises(NoVerdict, match="does not answer") as error:
                await Polkit(own).check(":1.9", ACTION, {}, interactive=True, limit_s=0.1)
            assert error.value.late
            await other.until(lambda: other.withdrawn)
            assert other.withdrawn == [other.asked[0].number]

    run(main())


@pytest.mark.usefixtures("nothing_left")
def test_whoever_leaves_withdraws_the_question(bus: PrivateBus) -> None:
    async def main() -> None:
        async with polkit(bus.address, nothing) as other, connected(bus.address) as own:
            judge = Polkit(own)
            asking = [
                asyncio.create_task(judge.check(":1.9", ACTION, {}, interactive=True, limit_s=9))
                for _ in range(2)
            ]
            await other.until(lambda: len(other.asked) == 2)
            asking[1].cancel()
            await other.until(lambda: other.withdrawn)
            assert other.withdrawn == [other.asked[1].number]
            # That question, and no other.
            other.connection.send(yes(other.asked[0]))
            assert await asking[0] is Verdict.YES
            await asyncio.wait(asking)

    run(main())


@pytest.mark.usefixtures("nothing_left")
def test_one_that_ends_in_mid_question(bus: PrivateBus) -> None:
    async def main() -> None:
        async with connected(bus.address) as own:
            async with polkit(bus.address, nothing) as other:
                asking = asyncio.create_task(
                    Polkit(own).check(":1.9", ACTION, {}, interactive=True, limit_s=9)
                )
                await other.until(lambda: other.asked)
            # And the next one, which never heard of it, does not answer in its place.
            async with polkit(bus.address, yes) as following:
                with pytest.raises(NoVerdict, match="cannot be asked"):
                    await asking
                assert following.asked == []

    run(main())


@pytest.mark.usefixtures("nothing_left")
def test_an_answer_of_somebody_else_is_none(bus: PrivateBus) -> None:
    """On this bus, which lets everything pass, anybody can answer if he guesses a number."""

    async def main() -> None:
        async with (
            polkit(bus.address, nothing) as other,
            connected(bus.address) as own,
            connected(bus.address, NOBODY) as forger,
        ):
            asking = asyncio.create_task(
                Polkit(own).check(":1.9", ACTION, {}, interactive=True, limit_s=9)
            )
            await other.until(lambda: other.asked)
            forged = yes(other.asked[0])
            assert forged.destination == own.unique_name
            forger.send(forged)
            await forger.flush()
            other.connection.send(no(other.asked[0]))
            assert await asking is Verdict.NO

    run(main())


# -- whole calls ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("polkit")
    node = Node.new(folder / "node", (H100, 1))
    with PrivateBus(LAX) as private, Daemon(node, private.address, folder) as daemon:
        yield World(node, private, daemon)


@pytest.fixture
def world(open_world: World) -> World:
    """With MIG on and no instances."""
    open_world.put("all-enabled", max_impact="reset")
    return open_world


async def ask(
    caller: Connection, member: str, signature: str = "", *body: Any, interactive: bool = False
) -> list[Any]:
    return await caller.call(
        names.BUS_NAME, names.ROOT, names.MANAGER, member, signature, body, interactive=interactive
    )


async def apply(caller: Connection, config: str, *, interactive: bool = False, **given: Any) -> int:
    number, _ = await ask(
        caller, "Apply", "sa{sv}", config, options(given), interactive=interactive
    )
    return int(number)


async def refused(asked: Coroutine[Any, Any, Any]) -> tuple[str, str]:
    with pytest.raises(RemoteError) as error:
        await asked
    return error.value.name, error.value.message


def test_what_polkit_is_asked(world: World) -> None:
    async def main() -> None:
        async with (
            polkit(world.bus.address, yes) as other,
            connected(world.bus.address, NOBODY) as caller,
        ):
            number = await apply(caller, "all-1g.10gb", terminate=True)
            assert (await ask(caller, "WaitJob", "u", number))[0] == "done"
            assert [q.action for q in other.asked] == [ACTION, "org.migd1.terminate"]
            for question in other.asked:
                assert question.name == caller.unique_name
                assert question.details == {
                    "type": "apply",
                    "config": "all-1g.10gb",
                    "text": "no",
                    "gpus": world.uuid(0),
                    "gpu-indices": "0",
                    "impact": "instances",
                    "options": "terminate",
                }
            assert not other.questions(interactive=True)

    run(main(), timeout_s=60)


def test_root_is_not_asked_about(world: World) -> None:
    async def main() -> None:
        async with polkit(world.bus.address, no) as other, connected(world.bus.address) as caller:
            await ask(caller, "WaitJob", "u", await apply(caller, "all-1g.10gb", terminate=True))
            await ask(caller, "Reload")
            assert other.asked == []

    run(main(), timeout_s=60)


@pytest.mark.parametrize(
    ("answers", "error", "why"),
    [
        (no, "AccessDenied", "does not allow"),
        (failing, "AccessDenied", "ask as root, or see to polkit"),
        (other_signature, "AccessDenied", "ask as root, or see to polkit"),
        (challenge, "InteractiveAuthorizationRequired", "did not allow to ask"),
    ],
)
def test_nothing_is_done_without_a_yes(
    world: World, answers: Answers, error: str, why: str
) -> None:
    async def main() -> None:
        async with (
            polkit(world.bus.address, answers) as other,
            connected(world.bus.address, NOBODY) as caller,
        ):
            text = options({"text": entry({"1g.10gb": 1})})
            for member, signature, *body in (
                ("Apply", "sa{sv}", "all-1g.10gb", {}),
                ("Apply", "sa{sv}", "", text),
                ("Stage", "sa{sv}", "all-1g.10gb", {}),
                ("PutBack", "a{sv}", {}),
                ("Reload", ""),
            ):
                name, told = await refused(ask(caller, member, signature, *body))
                assert name == f"{names.DBUS_ERROR}.{error}"
                assert why in told
            assert other.asked
            assert not other.questions(interactive=True)

    wanted, calls = world.daemon.property("Wanted"), changing_calls(world.node)
    run(main(), timeout_s=60)
    assert (world.daemon.property("Wanted"), changing_calls(world.node)) == (wanted, calls)


def test_polkit_goes_while_somebody_types(world: World) -> None:
    async def main() -> None:
        async with connected(world.bus.address, NOBODY) as caller:
            async with polkit(world.bus.address, with_a_person(nothing)) as other:
                asked = asyncio.create_task(refused(apply(caller, "all-1g.10gb", interactive=True)))
                await other.until(lambda: other.questions(interactive=True))
            name, text = await asked
            assert name == f"{names.DBUS_ERROR}.AccessDenied"
            assert "ask as root, or see to polkit" in text

    run(main())


def test_whoever_asked_leaves(world: World) -> None:
    calls = changing_calls(world.node)

    async def main() -> None:
        async with polkit(world.bus.address, with_a_person(nothing)) as other:
            async with connected(world.bus.address, NOBODY) as caller:
                asked = asyncio.create_task(apply(caller, "all-1g.10gb", interactive=True))
                await other.until(lambda: other.questions(interactive=True))
            (question,) = other.questions(interactive=True)
            await other.until(lambda: question.number in other.withdrawn)
            await asyncio.wait([asked])
            assert asked.exception()
            # A yes that comes all the same begins nothing: it is answered before the next call is.
            other.connection.send(yes(question))
            await ask(other.connection, "ListJobs", "a{sv}", {})

    run(main())
    assert world.daemon.property("Job") == "/"
    assert changing_calls(world.node) == calls


def test_others_go_on_while_somebody_types_and_what_has_changed_is_asked_anew(
    world: World,
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            address = world.bus.address
            other = await stack.enter_async_context(polkit(address, with_a_person(nothing)))
            caller = await stack.enter_async_context(connected(address, NOBODY))
            root = await stack.enter_async_context(connected(address))
            asked = asyncio.create_task(apply(caller, "all-1g.10gb", interactive=True))
            await other.until(lambda: other.questions(interactive=True))
            assert [q.action for q in other.asked] == [ACTION, ACTION]
            number = await apply(root, "all-disabled", max_impact="reset")
            assert (await ask(root, "WaitJob", "u", number))[0] == "done"
            # Now the modes would have to be switched: nobody was asked about that.
            before = len(other.asked)
            other.answers = no
            other.connection.send(yes(other.asked[-1]))
            with pytest.raises(RemoteError, match="does not allow"):
                await asked
            (again,) = other.asked[before:]
            assert (again.action, again.interactive) == (ACTION, False)
            assert (again.details["impact"], other.asked[0].details["impact"]) == (
                "gpu", "instances",
            )  # fmt: skip

            other.answers = yes
            number = await apply(caller, "all-1g.10gb", interactive=True)
            assert (await ask(root, "WaitJob", "u", number))[0] == "done"
            asked_for = [q.action for q in other.asked[before + 1 :]]
            assert asked_for == [ACTION, "org.migd1.set-mig-mode"]

    run(main(), timeout_s=60)


def test_open_questions_are_bounded_for_each_user(world: World) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            address = world.bus.address
            other = await stack.enter_async_context(polkit(address, with_a_person(nothing)))
            callers = [
                await stack.enter_async_context(connected(address, uid))
                for uid in (*[NOBODY] * MOST_OF_ONE, NOBODY, OTHER)
            ]
            open_ones = [
                asyncio.create_task(apply(c, "all-1g.10gb", interactive=True))
                for c in callers[:MOST_OF_ONE]
            ]
            await other.until(lambda: len(other.questions(interactive=True)) == MOST_OF_ONE)
            name, text = await refused(apply(callers[-2], "all-1g.10gb", interactive=True))
            assert name == f"{names.DBUS_ERROR}.LimitsExceeded"
            assert "of your calls" in text
            open_ones.append(
                asyncio.create_task(apply(callers[-1], "all-1g.10gb", interactive=True))
            )
            await other.until(lambda: len(other.questions(interactive=True)) == MOST_OF_ONE + 1)
            for question in other.questions(interactive=True):
                other.connection.send(no(question))
            assert all("that failed" in text for _, text in [
                await refused(_of(task)) for task in open_ones
            ])  # fmt: skip

    run(main(), timeout_s=60)


async def _of(task: "asyncio.Task[Any]") -> Any:
    return await task


def test_whoever_started_a_job_may_end_it_and_others_need_what_that_took(world: World) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            address = world.bus.address
            other = await stack.enter_async_context(polkit(address, yes))
            mine, same, stranger = [
                await stack.enter_async_context(connected(address, uid))
                for uid in (NOBODY, NOBODY, OTHER)
            ]
            number = await apply(mine, "all-1g.10gb", terminate=True)
            other.answers = lambda q: no(q) if q.action.endswith("terminate") else yes(q)
            before = len(other.asked)

            async def cancel(caller: Connection) -> None:
                path = names.job_path(number)
                await caller.call(names.BUS_NAME, path, names.JOB, "Cancel")

            with pytest.raises(RemoteError, match=r"org\.migd1\.terminate"):
                await cancel(stranger)
            assert [q.action for q in other.asked[before:]] == [ACTION, "org.migd1.terminate"]
            assert other.asked[-1].details["type"] == "cancel"
            before = len(other.asked)
            await cancel(same)
            assert len(other.asked) == before
            assert (await ask(mine, "WaitJob", "u", number))[0] == "canceled"

    world.node.latency("nvmlDeviceCreateGpuInstanceWithPlacement", 300)
    try:
        run(main(), timeout_s=60)
    finally:
        world.node.latency(profile="none")
