"""Other programs as migd.host sees them, and how it sees systemd come and go: with a stand-in."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from dbus_next.constants import MessageType
from dbus_next.message import Message

from migd.bus.connection import BUS, BUS_PATH, Connection, connect
from migd.bus.incoming import Incoming
from migd.bus.remote import RemoteBus
from migd.bus.values import variant
from migd.errors import NoSystemd
from migd.host import manager as manager_module
from migd.host.bus import NoAnswer, Refused, Signal
from migd.host.manager import LOST, SYSTEMD, Manager
from migd.host.programs import Programs
from migd.host.units import Units
from tests.support.bus import PrivateBus, bus, client, nothing_left, run

__all__ = ["bus", "nothing_left"]  # fixtures

pytestmark = pytest.mark.usefixtures("nothing_left")

NAME, PATH, INTERFACE = "org.test1", "/org/test1", "org.test1.Thing"
MANAGER = f"{SYSTEMD}.Manager"
MANAGER_PATH = "/org/freedesktop/systemd1"


@asynccontextmanager
async def connected(bus: PrivateBus) -> AsyncIterator[Connection]:
    connection = await connect(bus.address, timeout_s=10)
    try:
        yield connection
    finally:
        connection.close()


def thing(connection: Connection, seen: list[Message]) -> None:
    """Make a connection answer `Echo` with its arguments, `Fail`, and be silent at `Wait`."""

    def answer(message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        seen.append(message)
        if message.member == "Echo":
            connection.send(Message.new_method_return(message, message.signature, message.body))
        elif message.member == "Fail":
            connection.send(Message.new_error(message, "org.test1.Error.No", "not today"))
        return True

    connection.add_handler(answer)


async def turn_until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


# -- calls -----------------------------------------------------------------------------------


def test_values_are_plain_both_ways(bus: PrivateBus) -> None:
    async def main() -> None:
        async with connected(bus) as own, connected(bus) as other:
            seen: list[Message] = []
            thing(other, seen)
            await other.request_name(NAME)
            peer = RemoteBus(own).peer(NAME)
            sent = [
                "unit",
                [("Before", ("as", ("a", "b"))), ("Command", ("a(sasb)", [("x", ["x"], False)]))],
                {"key": ("v", ("v", ("t", 2**64 - 1)))},
            ]
            answer = await peer.call(PATH, INTERFACE, "Echo", "sa(sv)a{sv}", sent, limit_s=10)
            assert answer == [
                "unit",
                [["Before", ["a", "b"]], ["Command", [["x", ["x"], False]]]],
                {"key": 2**64 - 1},
            ]
            assert seen[0].body[1][0][1] == variant("as", ["a", "b"])
            assert seen[0].body[2]["key"].signature == "v"
            with pytest.raises(ValueError, match="2 values"):
                await peer.call(PATH, INTERFACE, "Echo", "s", ["a", "b"], limit_s=10)

    run(main())


def test_errors_say_who_did_not(bus: PrivateBus) -> None:
    async def main() -> None:
        async with connected(bus) as own, connected(bus) as other:
            seen: list[Message] = []
            thing(other, seen)
            peer = RemoteBus(own).peer(NAME)
            with pytest.raises(NoAnswer, match=NAME):
                await peer.call(PATH, INTERFACE, "Echo", limit_s=10)
            await other.request_name(NAME)
            with pytest.raises(Refused) as refused:
                await peer.call(PATH, INTERFACE, "Fail", limit_s=10)
            assert (refused.value.name, refused.value.message) == (
                "org.test1.Error.No",
                "not today",
            )
            with pytest.raises(NoAnswer, match=r"0\.05 s"):
                await peer.call(PATH, INTERFACE, "Wait", limit_s=0.05)
            waiting = asyncio.create_task(peer.call(PATH, INTERFACE, "Wait", limit_s=10))
            await turn_until(lambda: len(seen) == 3)
            other.close()
            with pytest.raises(NoAnswer):
                await waiting
            gone = asyncio.create_task(peer.gone())
            own.close()
            await gone
            with pytest.raises(NoAnswer):
                await peer.call(PATH, INTERFACE, "Echo", limit_s=10)

    run(main())


# -- signals ---------------------------------------------------------------------------------


def tick(number: int, to: Connection | None = None, interface: str = INTERFACE) -> Message:
    message = Message.new_signal(PATH, interface, "Tick", "v", [variant("u", number)])
    if to:
        message.destination = to.unique_name
    return message


def test_only_the_owner_is_heard(bus: PrivateBus) -> None:
    async def main() -> None:
        async with connected(bus) as own, connected(bus) as real, client(bus) as forger:
            heard: list[Signal] = []
            moves: list[bool] = []
            peer = RemoteBus(own).peer(NAME)
            await peer.follow(INTERFACE, heard.append, lambda: moves.append(peer.present))
            real.send(tick(0, own))  # does not own it yet
            await real.request_name(NAME)
            forger.connection.send(tick(1, own))
            forger.connection.send(tick(2))
            await forger.ping(own.unique_name)
            real.send(tick(3, own, "org.test1.Other"))
            real.send(tick(4))
            await turn_until(lambda: heard)
            assert moves == [True]
            real.close()
            await turn_until(lambda: len(moves) == 2)
            await forger.connection.request_name(NAME)
            forger.connection.send(tick(5))
            await turn_until(lambda: len(heard) == 2)
            assert moves == [True, False, True]
            assert [signal.values for signal in heard] == [(4,), (5,)]
            assert heard[0] == Signal(PATH, INTERFACE, "Tick", (4,))

    run(main())


def test_follow_can_be_repeated(bus: PrivateBus) -> None:
    async def main() -> None:
        async with connected(bus) as own:
            peer = RemoteBus(own).peer(NAME)
            own.close()
            for _ in range(2):
                with pytest.raises(NoAnswer):
                    await peer.follow(INTERFACE, lambda _: None, lambda: None)

    run(main())


# -- systemd, as far as it comes and goes ------------------------------------------------------


class Systemd:
    """Stands in for the manager: StopUnit begins a job, and the test ends it."""

    def __init__(self, connection: Connection, *, at_once: bool = False) -> None:
        self._connection = connection
        self._at_once = at_once
        self.subscribers: list[str] = []
        self.jobs: list[str] = []
        connection.add_handler(self._answer)

    def end(self, job: str, result: str = "done") -> None:
        self.jobs.remove(job)
        self._connection.send(removed(job, result))

    def _answer(self, message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        match message.member:
            case "Subscribe":
                self.subscribers.append(str(message.sender))
                reply = Message.new_method_return(message)
            case "StopUnit":
                job = f"{MANAGER_PATH}/job/{len(self.jobs) + 1}"
                self.jobs.append(job)
                if self._at_once:
                    self.end(job)
                reply = Message.new_method_return(message, "o", [job])
            case "GetJob" if f"{MANAGER_PATH}/job/{message.body[0]}" in self.jobs:
                reply = Message.new_method_return(message, "o", [MANAGER_PATH])
            case _:
                reply = Message.new_error(message, f"{SYSTEMD}.NoSuchJob", "no such job")
        self._connection.send(reply)
        return True


def removed(job: str, result: str) -> Message:
    return Message.new_signal(
        MANAGER_PATH, MANAGER, "JobRemoved", "uoss", [1, job, "a.service", result]
    )


@asynccontextmanager
async def systemd(bus: PrivateBus, *, at_once: bool = False) -> AsyncIterator[Systemd]:
    async with connected(bus) as connection:
        stand_in = Systemd(connection, at_once=at_once)
        await connection.request_name(SYSTEMD)
        yield stand_in


STOP = ("StopUnit", "ss", ["a.service", "replace"])


def test_a_bus_without_systemd(bus: PrivateBus, tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(bus) as own:
            manager = Manager(RemoteBus(own))
            units = Units(manager, Programs(manager, tmp_path))
            assert not await units.available()
            assert not (await units.states(["a.service"]))["a.service"].loaded
            assert await units.along("a.service") == ()
            for call in (units.stop("a.service", 1), units.start("a.service", 1)):
                with pytest.raises(NoSystemd, match="is not there"):
                    await call
            async with systemd(bus):
                while not await units.available():  # as soon as the bus has told of it
                    await asyncio.sleep(0.001)

    run(main())


def test_a_job_that_ends_before_it_has_a_name(bus: PrivateBus) -> None:
    async def main() -> None:
        async with connected(bus) as own, systemd(bus, at_once=True) as stand_in:
            manager = Manager(RemoteBus(own))
            for _ in range(20):
                assert await manager.wait(await manager.enqueue(*STOP), 10) == "done"
            assert stand_in.subscribers == [own.unique_name]

    run(main())


def test_a_forged_end_is_no_end(bus: PrivateBus) -> None:
    async def main() -> None:
        async with connected(bus) as own, client(bus) as forger, systemd(bus) as stand_in:
            manager = Manager(RemoteBus(own))
            job = await manager.enqueue(*STOP)
            forged = removed(job.path, "done")
            forged.destination = own.unique_name
            forger.connection.send(forged)
            await forger.ping(own.unique_name)
            assert not job.result.done()
            again = await manager.enqueue(*STOP)
            stand_in.end(again.path, "failed")
            assert await manager.wait(again, 10) == "failed"
            assert await manager.wait(job, 0.01) is None

    run(main())


def test_a_job_that_ends_while_systemd_is_away(bus: PrivateBus) -> None:
    async def main() -> None:
        async with connected(bus) as own:
            manager = Manager(RemoteBus(own))
            async with systemd(bus):
                job = await manager.enqueue(*STOP)
                lasting = await manager.enqueue(*STOP)
                waits = [asyncio.create_task(manager.wait(j, 10)) for j in (job, lasting)]
            async with systemd(bus) as stand_in:
                stand_in.jobs.append(lasting.path)
                assert await waits[0] == LOST
                assert stand_in.subscribers == [own.unique_name]
                stand_in.end(lasting.path)
                assert await waits[1] == "done"

    run(main())


def test_systemd_that_does_not_come_back(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_module, "_AWAY_S", 0.1)

    async def main() -> None:
        async with connected(bus) as own:
            manager = Manager(RemoteBus(own))
            async with systemd(bus):
                job = await manager.enqueue(*STOP)
                wait = asyncio.create_task(manager.wait(job, 60))
                await asyncio.sleep(0)
            with pytest.raises(NoSystemd, match="left"):
                await wait
            with pytest.raises(NoSystemd):
                await manager.enqueue(*STOP)
            assert not await manager.available()

    run(main())


def test_the_end_of_the_bus_ends_every_wait(bus: PrivateBus) -> None:
    async def main() -> None:
        async with connected(bus) as own, systemd(bus):
            manager = Manager(RemoteBus(own))
            job = await manager.enqueue(*STOP)
            wait = asyncio.create_task(manager.wait(job, 60))
            await asyncio.sleep(0)
            bus.kill()
            with pytest.raises(NoSystemd):
                await wait
            with pytest.raises(NoSystemd):
                await manager.state()

    run(main())


def test_what_strangers_send_is_not_read(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, str]] = []
    whole = Incoming.read

    def note(arrived: Incoming, most_values: int | None = None) -> Message | None:
        read.append((arrived.sender, arrived.member))
        return whole(arrived, most_values)

    async def main() -> None:
        async with connected(bus) as own, connected(bus) as other, connected(bus) as stranger:
            await other.request_name(NAME)
            heard: list[Signal] = []
            await RemoteBus(own).peer(NAME).follow(INTERFACE, heard.append, lambda: None)
            monkeypatch.setattr(Incoming, "read", note)
            for sender, body in ((stranger, [["lie"] * 1000]), (other, [["true"]])):
                for interface in (INTERFACE, "org.test1.Else"):
                    message = Message.new_signal(PATH, interface, "Told", "as", body)
                    message.destination = own.unique_name
                    sender.send(message)
                await sender.call(BUS, BUS_PATH, BUS, "GetId")  # it has handed them on
            await turn_until(lambda: heard)
            assert [s.values for s in heard] == [(["true"],)]
            assert [who for who, member in read if member == "Told"] == [other.unique_name]

    run(main())
