"""The exporter on a real dbus-daemon, and the contract it goes by."""

import asyncio
import logging
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from dbus_next.constants import MessageFlag
from dbus_next.message import Message
from dbus_next.signature import Variant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migd.bus import quota
from migd.bus.connection import BUS, Connection, RemoteError, connect
from migd.bus.contract import ContractError, load
from migd.bus.exporter import INTERNAL, STOPPING, Call, Exporter
from migd.bus.incoming import Incoming
from migd.bus.values import clean
from tests.support.bus import Client, PrivateBus, bus, client, nothing_left, plain, run

__all__ = ["bus", "nothing_left"]  # fixtures

ROOT = "/org/test1"
TOP, THING = "org.test1.Top", "org.test1.Thing"
FAILED = "org.test1.Error.Failed"
PEER, PROPERTIES = f"{BUS}.Peer", f"{BUS}.Properties"
INTROSPECTABLE, OBJECT_MANAGER = f"{BUS}.Introspectable", f"{BUS}.ObjectManager"
ERROR = f"{BUS}.Error"
PROPERTY_EMITS = f"{BUS}.Property.EmitsChangedSignal"
ALL = f"type='signal',path_namespace='{ROOT}'"

XML = """<node>
  <!-- Top: the entry point. -->
  <interface name="org.test1.Top">
    <property name="Count" type="u" access="read"/>
    <!-- Echo: gives back what it is given. -->
    <method name="Echo">
      <arg name="text" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="sender" type="s" direction="out"/>
      <arg name="text" type="s" direction="out"/>
    </method>
    <method name="Wait"/>
    <method name="Fail">
      <arg name="how" type="s" direction="in"/>
      <arg name="number" type="u" direction="out"/>
    </method>
    <signal name="Tick"><arg name="count" type="u"/><arg name="ends" type="(uu)"/></signal>
  </interface>
  <interface name="org.test1.Thing">
    <property name="Id" type="u" access="read">
      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="const"/>
    </property>
    <property name="Value" type="a(us)" access="read"/>
    <property name="Big" type="s" access="read">
      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="invalidates"/>
    </property>
    <property name="Quiet" type="t" access="read">
      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="false"/>
    </property>
    <method name="Poke"><arg name="path" type="o" direction="out"/></method>
    <method name="Get"/>
  </interface>
  <interface name="org.test1.Label">
    <property name="Text" type="s" access="read"/>
  </interface>
</node>
"""


MAYBE = f"<annotation name='{PROPERTY_EMITS}' value='maybe'/>"


class Known(Exception):
    pass


def to_error(error: Exception) -> tuple[str, str]:
    if isinstance(error, Known):
        return "org.test1.Error.Known", str(error)
    return FAILED, f"this must not be seen: {error}"


def thing(
    number: int, value: tuple[tuple[int, str], ...] = (), big: str = "", quiet: int = 0
) -> dict[str, Any]:
    return {"Id": number, "Value": value, "Big": big, "Quiet": quiet}


@dataclass
class Service:
    """An exporter whose methods do what their tests need."""

    connection: Connection
    exporter: Exporter
    name: str
    waiting: int = 0
    ended: int = 0
    allowed: bool = True
    at_work: int = 0
    most_at_work: int = 0
    seen: list[Call] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def authorize(self, call: Call) -> None:
        self.seen.append(call)
        if not self.allowed:
            raise Known("you may not")

    async def echo(self, call: Call, text: str, options: dict[str, Variant]) -> tuple[str, str]:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        await asyncio.sleep(0.001)
        self.at_work -= 1
        return call.sender, text

    async def wait(self, call: Call) -> None:
        try:
            await self.count(started=1)
            await self.release.wait()
        finally:
            await self.count(ended=1)

    async def fail(self, call: Call, how: str) -> Any:
        match how:
            case "known":
                raise Known("a known fault")
            case "unknown":
                raise OSError(2, "no such thing", "/usr/secret/path.py")
            case "type":
                return ("text",)
            case "range":
                return (-1,)
            case "count":
                return (1, 2)
            case "plain":
                return 5
            case "cancelled":
                raise asyncio.CancelledError("inside")

    async def poke(self, call: Call) -> tuple[str]:
        return (call.path,)

    async def nothing(self, call: Call) -> None:
        return None

    async def count(self, *, started: int = 0, ended: int = 0) -> None:
        async with self.changed:
            self.waiting += started
            self.ended += ended
            self.changed.notify_all()

    async def until(self, *, waiting: int = 0, ended: int = 0) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.waiting >= waiting and self.ended >= ended)


@asynccontextmanager
async def serving(bus: PrivateBus, **options: Any) -> AsyncIterator[Service]:
    connection = await connect(bus.address, timeout_s=10)

    async def authorize(call: Call) -> None:
        await service.authorize(call)

    exporter = Exporter(
        connection, ROOT, load(XML), to_error, failed=FAILED, authorize=authorize, **options
    )
    service = Service(connection, exporter, connection.unique_name)
    await exporter.start(
        {
            TOP: {"Echo": service.echo, "Wait": service.wait, "Fail": service.fail},
            THING: {"Poke": service.poke, "Get": service.nothing},
        }
    )
    exporter.sync({ROOT: {TOP: {"Count": 1}}, f"{ROOT}/thing/1": {THING: thing(1)}})
    try:
        yield service
    finally:
        await exporter.stop()
        connection.close()


def sent(caller: Client) -> list[tuple[str, str, list[Any]]]:
    return [(m.path, m.member, plain(m.body)) for m in caller.signals]


@pytest.mark.usefixtures("nothing_left")
class TestCalls:
    def test_reply(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                options = {"x": Variant("u", 1)}
                reply = await caller.call(service.name, ROOT, TOP, "Echo", "sa{sv}", "é", options)
                assert reply == [caller.connection.unique_name, "é"]
                path = f"{ROOT}/thing/1"
                assert await caller.call(service.name, path, THING, "Poke") == [path]
                await caller.connection.call(service.name, path, THING, "Poke", interactive=True)
                me = caller.connection.unique_name
                assert service.seen == [
                    Call(me, ROOT, TOP, "Echo", interactive=False),
                    Call(me, path, THING, "Poke", interactive=False),
                    Call(me, path, THING, "Poke", interactive=True),
                ]

        run(main())

    def test_authorize_is_asked_first_and_only_for_our_methods(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                service.allowed = False
                refused = await caller.refused(service.name, ROOT, TOP, "Fail", "s", "unknown")
                assert refused == ("org.test1.Error.Known", "you may not")
                for interface, member, signature, *body in (
                    (PROPERTIES, "GetAll", "s", TOP),
                    (PROPERTIES, "Get", "ss", TOP, "Count"),
                    (OBJECT_MANAGER, "GetManagedObjects", ""),
                    (INTROSPECTABLE, "Introspect", ""),
                    (PEER, "Ping", ""),
                ):
                    await caller.call(service.name, ROOT, interface, member, signature, *body)
                assert len(service.seen) == 1

        run(main())

    @pytest.mark.parametrize(
        ("path", "interface", "member", "signature", "body", "error"),
        [
            ("/", TOP, "Echo", "", (), "UnknownInterface"),
            ("/elsewhere", TOP, "Echo", "", (), "UnknownObject"),
            ("/elsewhere", None, "Echo", "", (), "UnknownObject"),
            ("/elsewhere", INTROSPECTABLE, "Introspect", "", (), "UnknownObject"),
            (f"{ROOT}/thing", TOP, "Echo", "", (), "UnknownInterface"),
            (f"{ROOT}/thing/1", TOP, "Echo", "", (), "UnknownInterface"),
            (f"{ROOT}/thing/1", OBJECT_MANAGER, "GetManagedObjects", "", (), "UnknownInterface"),
            (ROOT, TOP, "Nothing", "", (), "UnknownMethod"),
            (ROOT, PEER, "Nothing", "", (), "UnknownMethod"),
            (ROOT, None, "Nothing", "", (), "UnknownMethod"),
            (f"{ROOT}/thing/1", None, "Get", "", (), "UnknownMethod"),
            (ROOT, TOP, "Echo", "s", ("x",), "InvalidArgs"),
            (ROOT, TOP, "Wait", "s", ("x",), "InvalidArgs"),
            (ROOT, PROPERTIES, "Get", "s", ("x",), "InvalidArgs"),
            (ROOT, PROPERTIES, "Get", "ss", (TOP, "Nothing"), "UnknownProperty"),
            (ROOT, PROPERTIES, "Get", "ss", (PEER, "Nothing"), "UnknownProperty"),
            (ROOT, PROPERTIES, "Get", "ss", ("a.b", "Nothing"), "UnknownInterface"),
            (ROOT, PROPERTIES, "GetAll", "s", ("",), None),
            (ROOT, PROPERTIES, "GetAll", "s", (PEER,), None),
            (ROOT, PROPERTIES, "GetAll", "s", ("a.b",), "UnknownInterface"),
            (ROOT, PROPERTIES, "Set", "ssv", (TOP, "Count", Variant("u", 1)), "PropertyReadOnly"),
            (ROOT, PROPERTIES, "Set", "ssv", (TOP, "X", Variant("u", 1)), "UnknownProperty"),
            ("/nowhere", PEER, "Ping", "", (), None),
            (ROOT, None, "Echo", "sa{sv}", ("x", {}), None),
            (ROOT, None, "Introspect", "", (), None),
        ],
    )
    def test_refusals(
        self,
        bus: PrivateBus,
        caplog: pytest.LogCaptureFixture,
        path: str,
        interface: str | None,
        member: str,
        signature: str,
        body: tuple[Any, ...],
        error: str | None,
    ) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                message = Message(service.name, path, member=member, signature=signature)
                if interface is not None:
                    message.interface = interface
                message.body = list(body)
                if error is None:
                    await caller.connection.exchange(message)
                    return
                with pytest.raises(RemoteError) as refusal:
                    await caller.connection.exchange(message)
                assert refusal.value.name == f"{ERROR}.{error}"

        run(main())
        assert not caplog.records

    def test_wrong_arguments_are_named(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                _, text = await caller.refused(service.name, ROOT, TOP, "Echo", "su", "x", 1)
                assert text == "Echo takes (sa{sv}), not (su)"

        run(main())

    def test_known_errors(self, bus: PrivateBus, caplog: pytest.LogCaptureFixture) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                refused = await caller.refused(service.name, ROOT, TOP, "Fail", "s", "known")
                assert refused == ("org.test1.Error.Known", "a known fault")

        run(main())
        assert not caplog.records

    @pytest.mark.parametrize("how", ["unknown", "type", "range", "count", "plain", "cancelled"])
    def test_bugs_are_logged_once_and_not_told(
        self, bus: PrivateBus, caplog: pytest.LogCaptureFixture, how: str
    ) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                refused = await caller.refused(service.name, ROOT, TOP, "Fail", "s", how)
                assert refused == (FAILED, INTERNAL)

        run(main())
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.exc_info
        assert "Fail" in record.getMessage()

    def test_no_reply_where_none_is_wanted(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                replies: list[int] = []
                receive = caller.connection._transport._deliver

                def note(message: Incoming) -> None:
                    if message.reply_serial:
                        replies.append(message.reply_serial)
                    receive(message)

                caller.connection._transport._deliver = note
                for member, signature, *body in (
                    ("Echo", "sa{sv}", "x", {}),
                    ("Fail", "s", "known"),
                    ("Nothing", ""),
                    ("Echo", "s", "x"),
                ):
                    message = Message(
                        service.name, ROOT, TOP, member, signature=signature, body=body
                    )
                    message.flags = MessageFlag.NO_REPLY_EXPECTED
                    caller.connection.send(message)
                await caller.call(service.name, ROOT, TOP, "Echo", "sa{sv}", "x", {})
                assert len(replies) == 1
                assert len(service.seen) == 3

        run(main())

    def test_a_thousand_calls_at_once(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                replies = await asyncio.gather(
                    *(
                        caller.call(service.name, ROOT, TOP, "Echo", "sa{sv}", str(n), {})
                        for n in range(1_000)
                    )
                )
                assert [text for _, text in replies] == [str(n) for n in range(1_000)]

        run(main())

    def test_forty_clients_at_once(self, bus: PrivateBus) -> None:
        async def one(bus: PrivateBus, service: Service, number: int) -> None:
            async with client(bus) as caller:
                for turn in range(5):
                    text = f"{number}.{turn}"
                    reply = await caller.call(service.name, ROOT, TOP, "Echo", "sa{sv}", text, {})
                    assert reply == [caller.connection.unique_name, text]

        async def main() -> None:
            async with serving(bus) as service:
                await asyncio.gather(*(one(bus, service, number) for number in range(40)))

        run(main())

    def test_who_is_not_trusted_has_one_call_at_work(self, bus: PrivateBus) -> None:
        async def most(caller: Client, service: Service) -> int:
            waiting = [asyncio.create_task(wait(service, caller)) for _ in range(3)]
            await service.until(waiting=3)
            await asyncio.gather(
                *(
                    caller.call(service.name, ROOT, TOP, "Echo", "sa{sv}", "x", {})
                    for _ in range(20)
                )
            )
            service.release.set()
            await asyncio.gather(*waiting)
            return service.most_at_work

        async def main() -> None:
            # Both are of one user, and those that only wait are not counted.
            no_work = {(TOP, "Wait")}
            async with serving(bus, trusted=(), no_work=no_work) as service, client(bus) as caller:
                assert await most(caller, service) == 1
            async with serving(bus, no_work=no_work) as service, client(bus) as caller:
                assert await most(caller, service) > 1

        run(main())

    def test_who_has_taken_too_much_waits(
        self, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quota, "SHARE", 1e-9)
        charged: list[float] = []

        async def main() -> None:
            async with serving(bus, trusted=()) as service, client(bus) as caller:
                echo = partial(caller.call, service.name, ROOT, TOP, "Echo", "sa{sv}", "x", {})
                await echo()
                (user,) = service.exporter._intake.quota.users
                charged.append(quota.BURST_S - user.budget)
                user.budget = -1
                late = asyncio.create_task(echo())
                while not user.queue:
                    await caller.ping(BUS)
                await caller.ping(BUS)
                assert user.queue
                assert not late.done()
                late.cancel()
                await asyncio.gather(late, return_exceptions=True)

        run(main())
        assert charged[0] > 0

    def test_long_errors_are_cut(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                long = "x" * 900_000
                _, text = await caller.refused(
                    service.name, ROOT, PROPERTIES, "Get", "ss", TOP, long
                )
                assert len(text) < 20_000

        run(main())

    def test_calls_end_with_their_caller(
        self, bus: PrivateBus, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as staying:
                kept = asyncio.create_task(wait(service, staying))
                async with client(bus) as leaving:
                    lost = [asyncio.create_task(wait(service, leaving)) for _ in range(10)]
                    await service.until(waiting=11)
                await asyncio.gather(*lost, return_exceptions=True)
                await service.until(ended=10)
                assert not kept.done()
                # What looks like the caller's end but is not from the bus changes nothing.
                async with client(bus) as forger:
                    forged = Message.new_signal(
                        "/org/freedesktop/DBus", BUS, "NameOwnerChanged", "sss",
                        [staying.connection.unique_name, staying.connection.unique_name, ""],
                    )  # fmt: skip
                    forger.connection.send(forged)
                    forged.destination = service.name
                    forger.connection.send(forged)
                    await forger.ping(service.name)
                service.release.set()
                await kept
                assert service.ended == 11

        run(main())
        assert not caplog.records

    def test_stop_answers_everyone(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                waiting = [
                    asyncio.create_task(caller.refused(service.name, ROOT, TOP, "Wait"))
                    for _ in range(5)
                ]
                await service.until(waiting=5)
                await service.exporter.stop()
                assert await asyncio.gather(*waiting) == [(f"{ERROR}.NoReply", STOPPING)] * 5
                late = await caller.refused(service.name, ROOT, TOP, "Wait")
                assert late == (f"{ERROR}.NoReply", STOPPING)

        run(main())

    def test_the_bus_dies_under_a_call(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                call = asyncio.create_task(wait(service, caller))
                await service.until(waiting=1)
                bus.kill()
                for connection in (service.connection, caller.connection):
                    with pytest.raises(Exception, match="no connection"):
                        await connection.wait_closed()
                with pytest.raises(Exception, match="no connection"):
                    await call
                service.exporter.sync({ROOT: {TOP: {"Count": 2}}})

        run(main())


async def wait(service: Service, caller: Client) -> None:
    await caller.call(service.name, ROOT, TOP, "Wait")


@pytest.mark.usefixtures("nothing_left")
class TestState:
    def test_signals_come_from_the_right_paths(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus, ALL) as caller:
                one, two = f"{ROOT}/thing/1", f"{ROOT}/thing/1/part/2"
                label = {"org.test1.Label": {"Text": "new"}}
                service.exporter.sync(
                    {
                        ROOT: {TOP: {"Count": 2}},
                        one: {THING: thing(1, ((1, "a"),), "big", 7), **label},
                        two: {THING: thing(2)},
                    }
                )
                service.exporter.sync(
                    {
                        two: {THING: thing(2)},
                        one: {THING: thing(1, ((1, "a"),), "big", 8), **label},
                        ROOT: {TOP: {"Count": 2}},
                    }
                )
                service.exporter.sync({ROOT: {TOP: {"Count": 2}}})
                await caller.ping(service.name)
                assert sent(caller) == [
                    (ROOT, "InterfacesAdded", [one, {"org.test1.Label": {"Text": "new"}}]),
                    (ROOT, "InterfacesAdded", [two, {THING: plain(thing(2)) | {"Value": []}}]),
                    (ROOT, "PropertiesChanged", [TOP, {"Count": 2}, []]),
                    (one, "PropertiesChanged", [THING, {"Value": [[1, "a"]]}, ["Big"]]),
                    (ROOT, "InterfacesRemoved", [two, [THING]]),
                    (ROOT, "InterfacesRemoved", [one, [THING, "org.test1.Label"]]),
                ]
                assert {m.sender for m in caller.signals} == {service.name}
                assert caller.signals[0].signature == "oa{sa{sv}}"
                assert caller.signals[-1].signature == "oas"

        run(main())

    def test_what_the_contract_does_not_allow(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus, ALL) as caller:
                path = f"{ROOT}/thing/1"
                top: dict[str, Any] = {ROOT: {TOP: {"Count": 3}}}
                for fault in (
                    top | {path: {THING: {"Id": 1}}},
                    top | {path: {THING: thing(1) | {"More": 1}}},
                    top | {path: {"org.test1.Other": {}}},
                    top | {path: {THING: thing(-1)}},
                    top | {path: {THING: thing(1, big=None)}},  # type: ignore[arg-type]
                    top | {"/elsewhere": {THING: thing(1)}},
                    top | {f"{ROOT}x": {THING: thing(1)}},
                    top | {f"{ROOT}/x\n": {THING: thing(1)}},
                    top | {f"{ROOT}/a-b": {THING: thing(1)}},
                ):
                    with pytest.raises((ValueError, TypeError)):
                        service.exporter.sync(fault)
                await caller.ping(service.name)
                assert sent(caller) == []
                (count,) = await caller.call(
                    service.name, ROOT, PROPERTIES, "Get", "ss", TOP, "Count"
                )
                assert count == 1

        run(main())

    def test_another_object_at_the_same_path(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus, ALL) as caller:
                path = f"{ROOT}/thing/1"
                service.exporter.sync({ROOT: {TOP: {"Count": 1}}, path: {THING: thing(9)}})
                await caller.ping(service.name)
                assert sent(caller) == [
                    (ROOT, "InterfacesRemoved", [path, [THING]]),
                    (ROOT, "InterfacesAdded", [path, {THING: plain(thing(9)) | {"Value": []}}]),
                ]

        run(main())

    def test_state_is_a_copy(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus, ALL) as caller:
                path = f"{ROOT}/thing/1"
                value: list[tuple[int, str]] = []
                state = {path: {THING: thing(1) | {"Value": value}}}
                service.exporter.sync(state)
                value.append((1, "later"))
                service.exporter.sync(state)
                await caller.ping(service.name)
                (changed,) = [m for m in sent(caller) if m[1] == "PropertiesChanged"]
                assert changed == (
                    path, "PropertiesChanged", [THING, {"Value": [[1, "later"]]}, []],
                )  # fmt: skip

        run(main())

    def test_properties_and_objects(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                path = f"{ROOT}/thing/1"
                values = {"Id": 1, "Value": [], "Big": "", "Quiet": 0}
                get_all = await caller.call(service.name, path, PROPERTIES, "GetAll", "s", THING)
                everything = await caller.call(service.name, path, PROPERTIES, "GetAll", "s", "")
                managed = await caller.call(service.name, ROOT, OBJECT_MANAGER, "GetManagedObjects")
                quiet = await caller.connection.call(
                    service.name, path, PROPERTIES, "Get", "ss", ["", "Quiet"]
                )
                assert get_all == everything == [values]
                assert managed == [{path: {THING: values}}]
                assert quiet == [Variant("t", 0)]

        run(main())

    def test_burst_of_signals(self, bus: PrivateBus) -> None:
        async def main() -> None:
            async with serving(bus) as service, client(bus, ALL) as caller:
                for count in range(5_000):
                    service.exporter.emit(ROOT, TOP, "Tick", count, (0, count))
                await caller.wait_for_signals(5_000)
                assert [m.body for m in caller.signals] == [[n, [0, n]] for n in range(5_000)]

        run(main())

    def test_introspection(self, bus: PrivateBus) -> None:
        async def introspect(service: Service, caller: Client, path: str) -> tuple[str, ET.Element]:
            (text,) = await caller.call(service.name, path, INTROSPECTABLE, "Introspect")
            return text, ET.fromstring(text)

        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                text, root = await introspect(service, caller, ROOT)
                assert "<!-- Top: the entry point. -->" in text
                assert "<!-- Echo: gives back what it is given. -->" in text
                interfaces = [i.get("name") for i in root.findall("interface")]
                assert interfaces == [TOP, PEER, INTROSPECTABLE, PROPERTIES, OBJECT_MANAGER]
                assert all(a.get("name") and a.get("type") for a in root.iter("arg"))
                assert [n.get("name") for n in root.findall("node")] == ["thing"]
                _, between = await introspect(service, caller, f"{ROOT}/thing")
                names = [i.get("name") for i in between.findall("interface")]
                assert names == [PEER, INTROSPECTABLE]
                assert [n.get("name") for n in between.findall("node")] == ["1"]
                _, top = await introspect(service, caller, "/")
                assert [n.get("name") for n in top.findall("node")] == ["org"]
                _, leaf = await introspect(service, caller, f"{ROOT}/thing/1")
                assert leaf.find("interface").get("name") == THING  # type: ignore[union-attr]
                assert leaf.find(".//annotation[@value='const']") is not None

        run(main())

    def test_machine_id(self, bus: PrivateBus) -> None:
        async def answer(caller: Client, name: str, path: str) -> list[Any] | None:
            try:
                return await caller.call(name, path, PEER, "GetMachineId")
            except RemoteError:
                return None

        async def main() -> None:
            async with serving(bus) as service, client(bus) as caller:
                # A container can be without a machine-id; then both say so.
                ours = await answer(caller, service.name, "/x")
                assert ours == await answer(caller, BUS, "/")

        run(main())


# Thing at most three levels deep, so that parents and children come and go together.
PATHS = [f"{ROOT}/a", f"{ROOT}/a/b", f"{ROOT}/a/b/c", f"{ROOT}/d", f"{ROOT}/d/e"]
TEXTS = st.text(max_size=3).map(clean)
LABELS = st.fixed_dictionaries({"Text": TEXTS})


def things(number: int) -> st.SearchStrategy[dict[str, Any]]:
    small = st.integers(0, 3)
    values = st.lists(st.tuples(small, TEXTS), max_size=2).map(tuple)
    return st.builds(thing, st.just(number), values, TEXTS, small)


def objects(number: int) -> st.SearchStrategy[dict[str, Any]]:
    optional = {THING: things(number), "org.test1.Label": LABELS}
    return st.fixed_dictionaries({}, optional=optional)


STATES = st.fixed_dictionaries({}, optional={p: objects(n) for n, p in enumerate(PATHS)})


@pytest.fixture(scope="module")
def one_bus() -> Iterator[PrivateBus]:
    with PrivateBus() as private:
        yield private


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(before=STATES, after=STATES)
def test_signals_lead_from_one_state_to_the_next(
    one_bus: PrivateBus, before: dict[str, Any], after: dict[str, Any]
) -> None:
    async def main() -> None:
        async with serving(one_bus) as service, client(one_bus, ALL) as caller:

            async def managed() -> Any:
                arguments = (service.name, ROOT, OBJECT_MANAGER, "GetManagedObjects")
                return (await caller.call(*arguments))[0]

            top = {ROOT: {TOP: {"Count": 1}}}
            service.exporter.sync(top | before)
            followed = await managed()
            assert followed == bare(before)
            caller.signals.clear()
            service.exporter.sync(top | after)
            shown = await managed()
            assert shown == bare(after)
            added = [body[0] for _, member, body in sent(caller) if member == "InterfacesAdded"]
            removed = [body[0] for _, member, body in sent(caller) if member == "InterfacesRemoved"]
            assert (added, removed) == (sorted(added), sorted(removed, reverse=True))
            for path, member, body in sent(caller):
                follow(followed, shown, path, member, body)
            assert without_quiet(followed) == without_quiet(shown)

    run(main())


def bare(state: Any) -> Any:
    """Make tuples the lists that come off the bus."""
    if isinstance(state, dict):
        return {key: bare(value) for key, value in state.items()}
    return [bare(item) for item in state] if isinstance(state, tuple | list) else state


def follow(state: Any, shown: Any, path: str, member: str, body: list[Any]) -> None:
    """Do to a client's picture what a signal says."""
    match member:
        case "InterfacesAdded":
            assert path == ROOT
            added, interfaces = body
            assert not state.get(added, {}).keys() & interfaces.keys()
            state.setdefault(added, {}).update(interfaces)
        case "InterfacesRemoved":
            assert path == ROOT
            removed, names = body
            for name in names:
                del state[removed][name]
            if not state[removed]:
                del state[removed]
        case "PropertiesChanged":
            name, values, invalidated = body
            assert "Quiet" not in values
            assert all(state[path][name][key] != value for key, value in values.items())
            state[path][name].update(values)
            state[path][name].update({key: shown[path][name][key] for key in invalidated})


def without_quiet(state: Any) -> Any:
    return {
        path: {
            name: {key: value for key, value in values.items() if key != "Quiet"}
            for name, values in interfaces.items()
        }
        for path, interfaces in state.items()
        if interfaces
    }


def test_contract_is_read() -> None:
    contract = load(XML)
    assert list(contract.interfaces) == [TOP, THING, "org.test1.Label"]
    top = contract.interfaces[TOP]
    echo = top.methods["Echo"]
    assert (echo.in_signature, echo.out_signature) == ("sa{sv}", "ss")
    assert (echo.in_names, echo.out_names) == (("text", "options"), ("sender", "text"))
    assert top.signals == {"Tick": "u(uu)"}
    properties = contract.interfaces[THING].properties
    assert {n: p.emits for n, p in properties.items()} == {
        "Id": "const", "Value": "true", "Big": "invalidates", "Quiet": "false",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("inside", "sentence"),
    [
        ("<method name='A'/><signal name='A'/>", "org.a.B.A is there twice"),
        ("<method name='a-b'/>", "'a-b'"),
        ("<method/>", "''"),
        ("<thing name='A'/>", "<thing> has no place in org.a.B"),
        ("<method name='A'><arg type='s' direction='in'/></method>", "has no name"),
        ("<method name='A'><arg name='x' type='s'/></method>", "direction in or out"),
        ("<method name='A'><arg name='x' type='ss' direction='in'/></method>", "'ss'"),
        ("<signal name='A'><arg name='x' type='a'/></signal>", "x of org.a.B.A has the type 'a'"),
        ("<property name='A' type='' access='read'/>", "''"),
        ("<property name='A' type='{sv}' access='read'/>", "'{sv}'"),
        ("<property name='A' type='(s' access='read'/>", "not one D-Bus type"),
        ("<property name='A' type='s' access='readwrite'/>", "must have access read"),
        (f"<property name='A' type='s' access='read'>{MAYBE}</property>", "maybe"),
        ("</interface><interface name='org.a.B'>", "org.a.B is there twice"),
        ("</interface><interface name='nodots'>", "'nodots'"),
        ("</interface><node name='x'/><interface name='a.b'>", "<node> has no place"),
        ("<", "not XML"),
    ],
)
def test_malformed_contracts(inside: str, sentence: str) -> None:
    with pytest.raises(ContractError) as error:
        load(f"<node><interface name='org.a.B'>{inside}</interface></node>")
    assert sentence in str(error.value)


def test_handlers_are_exactly_those_of_the_contract() -> None:
    contract = load(XML)
    contract.check({TOP: ["Echo", "Wait", "Fail"], THING: ["Poke", "Get"]})
    with pytest.raises(ContractError) as error:
        contract.check({TOP: ["Echo", "Wait"], THING: ["Poke", "Get", "More"], "a.b": ["C"]})
    assert str(error.value) == (
        "org.test1.Top.Fail has no handler; a.b.C is not in the contract; "
        "org.test1.Thing.More is not in the contract"
    )
