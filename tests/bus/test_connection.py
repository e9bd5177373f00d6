"""Connections to a real dbus-daemon: bursts, descriptors, forged signals, the end of the bus."""

import asyncio
import logging
import os
import socket
from pathlib import Path

import pytest
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from hypothesis import given
from hypothesis import strategies as st

from migd.bus import frames, incoming, transport
from migd.bus.connection import (
    BUS,
    BUS_PATH,
    CallTimeout,
    Connection,
    ConnectionLost,
    NameTaken,
    RemoteError,
    connect,
)
from migd.bus.owner import NameOwner
from migd.bus.values import to_wire, variant
from tests.support.bus import LAX, PrivateBus, bus, client, descriptors, nothing_left, run

__all__ = ["bus", "nothing_left"]  # fixtures

pytestmark = pytest.mark.usefixtures("nothing_left")

TICKS = "type='signal',interface='org.test1.Clock'"


def tick(count: int, filling: str = "") -> Message:
    return Message.new_signal("/", "org.test1.Clock", "Tick", "us", [count, filling])


def echo(connection: Connection) -> None:
    """Make a connection answer `Echo`, and be silent at `Wait`."""

    def answer(message: Message) -> bool:
        if message.member == "Echo":
            connection.send(Message.new_method_return(message, message.signature, message.body))
        return message.member in ("Echo", "Wait")

    connection.add_handler(answer)


async def turns(count: int) -> None:
    """Let the loop do what it can do now."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_burst_at_a_bus_that_does_not_read(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as sender, client(bus, TICKS) as receiver:
            bus.pause()
            try:
                for count in range(5_000):
                    sender.connection.send(tick(count))
                await turns(50)
            finally:
                bus.resume()
            await sender.ping(BUS)
            await receiver.wait_for_signals(5_000)
            assert [m.body[0] for m in receiver.signals] == list(range(5_000))
            await sender.connection.flush()

    run(main())


def test_long_messages_are_written_in_parts(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as sender, client(bus, TICKS) as receiver:
            sent = [(count, str(count) * 700_000) for count in range(8)]
            for count, filling in sent:
                sender.connection.send(tick(count, filling))
            await receiver.wait_for_signals(len(sent))
            assert [tuple(m.body) for m in receiver.signals] == sent

    run(main())


def test_unsent_messages_have_a_bound(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_UNSENT", 2**20)

    async def main() -> None:
        async with client(bus) as sender:
            bus.pause()
            try:
                for count in range(30):
                    sender.connection.send(tick(count, "x" * 100_000))
                with pytest.raises(ConnectionLost, match="does not read"):
                    await sender.connection.wait_closed()
            finally:
                bus.resume()

    run(main())


def test_who_calls_faster_than_the_bus_delivers_has_to_wait(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_UNSENT", 3 * 2**20)

    async def main() -> None:
        async with client(bus) as service, client(bus) as caller:
            text = "x" * 500_000

            def answer(message: Message) -> bool:
                service.connection.send(Message.new_method_return(message, "s", [text]))
                return True

            service.connection.add_handler(answer)
            name = service.connection.unique_name
            replies = await asyncio.gather(
                *(caller.call(name, "/", "org.test1", "Get") for _ in range(50))
            )
            assert replies == [[text]] * 50

    run(main())


def test_a_thousand_calls_at_once(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as service, client(bus) as caller:
            echo(service.connection)
            name = service.connection.unique_name
            replies = await asyncio.gather(
                *(caller.call(name, "/", "org.test1", "Echo", "u", n) for n in range(1_000))
            )
            assert replies == [[n] for n in range(1_000)]

    run(main())


def test_the_bus_dies(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as service, client(bus) as caller:
            echo(service.connection)
            name = service.connection.unique_name
            waiting = asyncio.gather(
                *(caller.call(name, "/", "org.test1", "Wait") for _ in range(10)),
                return_exceptions=True,
            )
            await caller.ping(BUS)
            bus.kill()
            with pytest.raises(ConnectionLost):
                await service.connection.wait_closed()
            assert {type(e) for e in await waiting} == {ConnectionLost}
            with pytest.raises(ConnectionLost):
                await caller.ping(BUS)
            caller.connection.send(tick(1))
            await caller.connection.flush()

    run(main())


def test_close(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as caller:
            caller.connection.close()
            caller.connection.close()
            await caller.connection.wait_closed()
            with pytest.raises(ConnectionLost, match="closed"):
                await caller.ping(BUS)

    run(main())


def test_a_call_ends(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as service, client(bus) as caller:
            echo(service.connection)
            name = service.connection.unique_name
            with pytest.raises(CallTimeout, match="Wait"):
                await caller.connection.call(name, "/", "org.test1", "Wait", timeout_s=0.01)
            assert await caller.call(name, "/", "org.test1", "Echo", "s", "x") == ["x"]
            with pytest.raises(RemoteError) as error:
                await caller.call(name, "/", "org.test1", "Nothing")
            assert error.value.name == f"{BUS}.Error.UnknownMethod"

    run(main())


def test_interactive_is_a_flag_of_the_message(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as service, client(bus) as caller:
            flags: list[MessageFlag] = []

            def note(message: Message) -> bool:
                flags.append(message.flags)
                return False

            service.connection.add_handler(note)
            for interactive in (True, False):
                with pytest.raises(RemoteError):
                    await caller.connection.call(
                        service.connection.unique_name, "/", "a.b", "C", interactive=interactive
                    )
            assert flags == [MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION, MessageFlag.NONE]

    run(main())


def test_a_name_has_one_owner(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as first, client(bus) as second:
            await first.connection.request_name("org.test1")
            await first.connection.request_name("org.test1")
            with pytest.raises(NameTaken):
                await second.connection.request_name("org.test1")
            first.connection.close()
            async with client(bus) as third:
                await third.ping(BUS)
                # Not queued: the name is free when its owner is gone.
                (owned,) = await third.call(BUS, BUS_PATH, BUS, "NameHasOwner", "s", "org.test1")
                assert not owned

    run(main())


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "rubbish", "unix:what=is"])
def test_nobody_there(address: str) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionLost, match="cannot connect"):
            await connect(address, timeout_s=5)

    run(main())


def test_system_bus_from_the_environment(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)

    async def main() -> None:
        connection = await connect(None, timeout_s=5)
        assert connection.unique_name.startswith(":1.")
        connection.close()

    run(main())


@pytest.mark.parametrize("answer", [b"", b"OK 1234", b"REJECTED EXTERNAL\r\n", b"what\r\n"])
def test_a_bus_that_hangs_up_at_the_door(tmp_path: Path, answer: bytes) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        path = os.path.relpath(tmp_path / "door")
        async with await asyncio.start_unix_server(hang_up, path):
            with pytest.raises(ConnectionLost):
                await connect(f"unix:path={path}", timeout_s=5)
        await turns(5)

    run(main())


def test_a_bus_that_never_answers(tmp_path: Path) -> None:
    async def main() -> None:
        path = os.path.relpath(tmp_path / "door")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            with pytest.raises(ConnectionLost):
                await connect(f"unix:path={path}", timeout_s=0.05)

    run(main())


def test_the_bus_refuses_descriptors_for_us(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as service:
            echo(service.connection)
            caller = await MessageBus(bus.address, negotiate_unix_fd=True).connect()
            before = descriptors()
            read, write = os.pipe()
            for member in ["Echo", "Nothing"] * 25:
                message = Message(
                    destination=service.connection.unique_name,
                    path="/",
                    interface="org.test1",
                    member=member,
                    signature="hh",
                    body=[0, 1],
                    unix_fds=[read, write],
                )
                reply = await caller.call(message)
                assert reply
                assert reply.error_name == f"{BUS}.Error.NotSupported"
            os.close(read)
            os.close(write)
            assert descriptors() == before
            caller.disconnect()  # type: ignore[no-untyped-call]
            caller._sock.close()

    run(main())


def test_descriptors_that_come_nevertheless_are_closed(tmp_path: Path) -> None:
    """A bus that hands them on: what stays open is what it has itself."""

    async def main() -> None:
        path = os.path.relpath(tmp_path / "door")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            listening.setblocking(False)
            connecting = asyncio.create_task(connect(f"unix:path={path}", timeout_s=5))
            loop = asyncio.get_running_loop()
            other, _ = await loop.sock_accept(listening)
            with other:
                while b"BEGIN\r\n" not in (said := await loop.sock_recv(other, 1000)):
                    await loop.sock_sendall(other, b"OK 1234\r\n" if b"AUTH" in said else b"")
                hello = Message(
                    message_type=MessageType.METHOD_RETURN,
                    reply_serial=1,
                    sender=BUS,
                    signature="s",
                    body=[":1.1"],
                    serial=1,
                )
                await loop.sock_sendall(other, encoded(hello))
                connection = await connecting
                heard = asyncio.Event()

                def note(_: Message) -> bool:
                    heard.set()
                    return True

                connection.add_handler(note)
                before = descriptors()
                socket.send_fds(other, [encoded(tick(1))], [other.fileno()] * 16)
                await heard.wait()
                assert descriptors() == before
                connection.close()

    run(main())


def test_forged_signals_are_told_from_real_ones(bus: PrivateBus) -> None:
    async def main() -> None:
        async with (
            client(bus) as first,
            client(bus) as second,
            client(bus) as forger,
            client(bus, TICKS) as listener,
        ):
            owner = NameOwner(listener.connection, "org.test1")
            seen: list[tuple[int, bool]] = []

            def note(message: Message) -> bool:
                if message.member == "Tick":
                    seen.append((message.body[0], owner.sent(message)))
                return False

            listener.connection.add_handler(note)
            await owner.follow()
            forger.connection.send(tick(0))
            await listener.ping(forger.connection.unique_name)
            for count, who in enumerate((first, second), 1):
                await who.connection.request_name("org.test1")
                who.connection.send(tick(10 * count))
                await listener.ping(who.connection.unique_name)
                forger.connection.send(tick(10 * count + 1))
                forged = Message.new_signal(
                    BUS_PATH, BUS, "NameOwnerChanged", "sss",
                    ["org.test1", "", forger.connection.unique_name],
                )  # fmt: skip
                forged.destination = listener.connection.unique_name
                forger.connection.send(forged)
                forger.connection.send(tick(10 * count + 2))
                await listener.ping(forger.connection.unique_name)
                await who.call(BUS, BUS_PATH, BUS, "ReleaseName", "s", "org.test1")
            known = NameOwner(listener.connection, BUS)
            await known.follow()
            assert seen == [
                (0, False),
                (10, True), (11, False), (12, False),
                (20, True), (21, False), (22, False),
            ]  # fmt: skip

    run(main())


def test_forged_answers_are_not_taken() -> None:
    async def main(bus: PrivateBus) -> None:
        async with client(bus) as service, client(bus) as caller, client(bus) as forger:
            echo(service.connection)
            name = service.connection.unique_name
            waiting = asyncio.create_task(caller.call(name, "/", "org.test1", "Wait"))
            asking = asyncio.create_task(caller.call(BUS, BUS_PATH, BUS, "GetId"))
            await service.ping(BUS)
            for serial in range(1, 100):
                for kind in (MessageType.METHOD_RETURN, MessageType.ERROR):
                    message = Message(
                        destination=caller.connection.unique_name, message_type=kind,
                        reply_serial=serial, error_name="a.b", signature="s", body=["lie"],
                    )  # fmt: skip
                    forger.connection.send(message)
            await forger.ping(BUS)
            await caller.ping(BUS)
            assert await asking != ["lie"]
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    with PrivateBus(LAX) as bus:
        run(main(bus))


def test_a_bus_that_takes_nothing_more(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "STALLED_S", 0.05)

    async def main() -> None:
        async with client(bus) as sender:
            for count in range(20):
                sender.connection.send(tick(count, "x" * 100_000))
            await sender.ping(BUS)
            bus.pause()
            try:
                for count in range(20):
                    sender.connection.send(tick(count, "x" * 100_000))
                with pytest.raises(ConnectionLost, match="taken nothing"):
                    await sender.connection.wait_closed()
            finally:
                bus.resume()

    run(main())


@pytest.mark.parametrize("size", [1_000, 40_000])
def test_headers_without_an_end_are_passed_over(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(frames, "MAX_HEADER", 900)

    async def main() -> None:
        async with client(bus) as service, client(bus) as caller:
            paths: list[str] = []

            def note(message: Message) -> bool:
                paths.append(message.path)
                return False

            service.connection.add_handler(note)
            echo(service.connection)
            name = service.connection.unique_name
            with raw_client(bus) as raw:
                message = Message(
                    destination=name, path="/" + "a" * size, interface="a.b", member="Echo",
                    signature="s", body=["x" * size], serial=2,
                )  # fmt: skip
                raw.sendall(encoded(message) + call_bytes(name, 3))
                while "/" not in paths:
                    await asyncio.sleep(0)
            assert await caller.call(name, "/", "org.test1", "Echo", "s", "x") == ["x"]
            assert set(paths) == {"/"}

    run(main())


def test_owner_that_was_there_before(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as service, client(bus, TICKS) as listener:
            await service.connection.request_name("org.test1")
            owner = NameOwner(listener.connection, "org.test1")
            await owner.follow()
            service.connection.send(tick(1))
            (signal,) = await listener.wait_for_signals(1)
            assert owner.sent(signal)

    run(main())


def raw_client(bus: PrivateBus) -> socket.socket:
    """Authenticate by hand, to send what no library would."""
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(bus.socket)
    raw.settimeout(10)
    raw.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    assert raw.recv(100).startswith(b"OK")
    raw.sendall(b"BEGIN\r\n")
    hello = Message(destination=BUS, path=BUS_PATH, interface=BUS, member="Hello", serial=1)
    raw.sendall(encoded(hello))
    assert raw.recv(10_000)
    return raw


def encoded(message: Message) -> bytes:
    return bytes(message._marshall())  # type: ignore[no-untyped-call]


def call_bytes(destination: str, serial: int) -> bytearray:
    message = Message(
        destination=destination,
        path="/",
        interface="org.test1",
        member="Echo",
        signature="s",
        body=["x"],
        serial=serial,
    )
    return bytearray(encoded(message))


def changed(data: bytearray, position: int, value: int) -> bytes:
    data[position] = value
    return bytes(data)


def test_raw_rubbish_does_not_hurt(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as service, client(bus) as caller:
            echo(service.connection)
            name = service.connection.unique_name
            good = call_bytes(name, 2)
            for rubbish in (
                os.urandom(4096),
                b"\0" * 4096,
                changed(good[:], 1, 5),  # an unknown type of message, which the daemon lets pass
                changed(good[:], 1, 77),
                changed(good[:], 2, 0xF8),  # unknown flags
                changed(good[:], 3, 9),  # another version of the protocol
                changed(good[:], len(good) - 3, 200),  # a string longer than the message
                bytes(good[:-1]) + b"\xff",
                bytes(good[: len(good) // 2]),
            ):
                with raw_client(bus) as raw:
                    raw.sendall(rubbish)
                await caller.ping(BUS)
                assert await caller.call(name, "/", "org.test1", "Echo", "s", "x") == ["x"]

    run(main())


def test_a_message_that_cannot_be_read_is_dropped(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "migd.bus")
    monkeypatch.setattr(incoming, "_MAX_SIGNATURES", 1)

    async def main() -> None:
        async with client(bus) as service, client(bus) as caller:
            echo(service.connection)
            name = service.connection.unique_name
            service.connection._transport._frames.feed(
                changed(call_bytes(name, 2), 1, 9) + bytes(call_bytes(name, 3)[:7])
            )
            service.connection._transport._dispatch()
            service.connection._transport._frames.feed(bytes(call_bytes(name, 3)[7:]))
            assert await caller.call(name, "/", "org.test1", "Echo", "as", ["x"]) == [["x"]]

    run(main())
    assert "cannot read a message" in caplog.text


def test_oversized_messages_are_refused_unread(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with client(bus) as service, client(bus) as caller:
            echo(service.connection)
            name = service.connection.unique_name
            text = "x" * 9_000
            monkeypatch.setattr(frames, "MAX_MESSAGE", 10_000)
            too_long = [text] * 100

            def answer(message: Message) -> bool:
                if message.member == "Long":
                    service.connection.send(Message.new_method_return(message, "as", [too_long]))
                return message.member == "Long"

            service.connection.add_handler(answer)
            limits = f"{BUS}.Error.LimitsExceeded"
            refused, echoed, long = await asyncio.gather(
                caller.refused(name, "/", "org.test1", "Echo", "as", too_long),
                caller.call(name, "/", "org.test1", "Echo", "s", text),
                caller.refused(name, "/", "org.test1", "Long"),
            )
            assert (refused[0], echoed, long[0]) == (limits, [text], limits)
            caller.connection.send(tick(1, "x" * 50_000))
            await caller.ping(name)

    run(main())


def test_what_we_cannot_send_raises(bus: PrivateBus) -> None:
    async def main() -> None:
        async with client(bus) as caller:
            with pytest.raises(ValueError, match="at most"):
                await caller.call(BUS, "/", "a.b", "C", "s", "x" * frames.MAX_MESSAGE)
            with pytest.raises(ValueError):
                await caller.call(BUS, "/", "a.b", "C", "u", -1)
            await caller.ping(BUS)

    run(main())


@given(st.lists(st.binary(max_size=40), max_size=5), st.data())
def test_frames_in_any_pieces(bodies: list[bytes], data: st.DataObject) -> None:
    messages = [encoded(Message(path="/", member="A", signature="ay", body=[b])) for b in bodies]
    stream = b"".join(messages)
    cut = frames.Frames()
    found = []
    while stream:
        length = data.draw(st.integers(1, len(stream)))
        cut.feed(stream[:length])
        stream = stream[length:]
        while (frame := cut.next()) is not None:
            found.append(frame.data)
    assert found == messages


def test_another_dbus_next_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(MessageBus, "_auth_readline")
    with pytest.raises(ImportError, match="_auth_readline"):
        transport._refuse_unknown_internals()


def test_text_that_strings_cannot_hold() -> None:
    assert to_wire("s", ["a\0b"]) == ["a\ufffdb"]
    assert to_wire("as", [("caf\udce9", "café")]) == [["caf\ufffd", "café"]]
    assert to_wire("v", [variant("(si)", ("\0", 1))]) == [variant("(si)", ["\ufffd", 1])]
    assert to_wire("a{s(ay)}", [{"a\0": (b"\0",)}]) == [{"a\ufffd": [b"\0"]}]
    for signature, value in [
        ("o", "/a\n"), ("o", "a"), ("g", "a"), ("v", "x"), ("as", "x"), ("(s)", "x"), ("a{ss}", []),
        ("s", None), ("s", 1), ("u", "1"), ("(ss)", ("a",)),
    ]:  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            to_wire(signature, [value])
    with pytest.raises(ValueError):
        to_wire("s", [])
