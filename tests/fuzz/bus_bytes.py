"""What a hostile client of the bus sends: bytes that are no messages, and messages that are odd."""

import asyncio
import atexit
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from dbus_next._private import unmarshaller
from dbus_next._private.constants import HeaderField
from dbus_next._private.marshaller import Marshaller
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import SignatureTree, SignatureType, Variant

from migd import names
from migd.bus import connection, exporter, frames, options, standard, transport, values
from migd.bus.connection import BUS, connect
from migd.bus.contract import load
from migd.bus.frames import MAX_MESSAGE, Frame, Frames
from migd.bus.front import _to_error
from migd.errors import MigdError
from tests.fuzz.choices import Choices
from tests.fuzz.engine import Target

CONTRACT = load((files("migd.bus") / "org.migd1.xml").read_text())
GPU = f"{names.ROOT}/gpu/GPU_1"
SENDER, HONEST = ":1.7", ":1.8"
_UID = 1000


def check_frames(data: bytes) -> None:
    """In whatever pieces bytes arrive, they are the same messages, or none."""
    whole = _framed(iter([data]))
    step = 1 + len(data) % 7 + len(data) // 200
    assert _framed(data[n : n + step] for n in range(0, len(data), step)) == whole
    assert all(len(frame.data) <= MAX_MESSAGE for frame in whole[0])


def _framed(pieces: Iterator[bytes]) -> tuple[list[Frame], bool]:
    """The messages, and whether what follows is no message."""
    cut, found = Frames(), []
    for piece in pieces:
        cut.feed(piece)
        try:
            while (frame := cut.next()) is not None:
                found.append(frame)
        except ValueError:
            return found, True
    return found, False


# -- messages --------------------------------------------------------------------------------

_INTERFACES = (*CONTRACT.interfaces, *standard.INTERFACES, "org.migd1.None", "a.b")
_MEMBERS = (
    *sorted({m for i in CONTRACT.interfaces.values() for m in i.methods}), "Ping", "GetMachineId",
    "Introspect", "Get", "GetAll", "Set", "GetManagedObjects", "None",
)  # fmt: skip
_PATHS = (names.ROOT, GPU, f"{names.ROOT}/job/1", "/", f"{names.ROOT}/gpu", "/none", "/org")
_SIGNATURES = (
    "", "s", "sa{sv}", "a{sv}", "u", "ss", "ssv", "v", "as", "o", "g", "h", "av", "aav", "a{s(uv)}",
    "(s(s(s)))", "ay", "d", "x", "a{oa{sa{sv}}}", "q", "b", "aaaaas",
)  # fmt: skip
_OPTIONS = {
    "gpus": Variant("as", ["0"]),
    "max-impact": Variant("s", "reset"),
    "terminate": Variant("b", True),
    "mode-only": Variant("b", True),
    "allow-reboot": Variant("b", False),
}
_WORDS = (
    "", "all-disabled", *options._SIGNATURES, "gpu", "reboot", "none", "version: v1", "\x1b[2J",
    "\n", "\u2028", "%s", "{}", "0", names.MANAGER, names.GPU, "Version", "Index", "a" * 255,
    "\ufffe",
)  # fmt: skip


def call(choices: Choices) -> Message | None:
    """A method call, or None where dbus-next itself refuses to make it."""
    if choices.number(4) == 3:
        return _meant(choices)
    member = choices.one(_MEMBERS)
    path = choices.one(_PATHS)
    interface = choices.one((None, *_INTERFACES))
    known = [m for i in CONTRACT.interfaces.values() if (m := i.methods.get(member))]
    fits = known[0].in_signature if known else "ss" if member == "Get" else "s"
    signature = fits if choices.number(4) else choices.one(_SIGNATURES)
    flags = choices.one((0, 0, 0, 1, 2, 4, 7))
    try:
        tree = SignatureTree._get(signature)
        body = [_value(kind, choices, 6) for kind in tree.types]
        tree.verify(body)
        return Message(
            destination=names.BUS_NAME,
            path=path,
            interface=interface,  # type: ignore[arg-type]
            member=member,
            signature=signature,
            body=body,
            flags=MessageFlag(flags),
            serial=1 + choices.number(255),
        )
    except Exception:
        return None


def _meant(choices: Choices) -> Message:
    """What an honest caller might ask for, whether he may or not."""
    given = {name: value for name, value in _OPTIONS.items() if choices.number(3) == 0}
    return Message(
        destination=names.BUS_NAME,
        path=names.ROOT,
        interface=names.MANAGER,
        member=choices.one(("Plan", "Apply", "Assert", "Stage")),
        signature="sa{sv}",
        body=[choices.one(("all-1g.10gb", "all-balanced", "all-disabled")), given],
        serial=1 + choices.number(255),
    )


def _value(kind: SignatureType, choices: Choices, depth: int) -> Any:
    match kind.token:
        case "s":
            return choices.text(_WORDS)
        case "o":
            return choices.one(_PATHS)
        case "g":
            return choices.one(_SIGNATURES)
        case "b":
            return bool(choices.number(2))
        case "d":
            return choices.one((0.0, -1.5, float("inf"), float("nan")))
        case "v":
            inner = choices.one(("s", "b", "as", "u", "v", "a{sv}", "(sv)", "ay", "d"))
            if depth == 0:
                inner = "s"
            return Variant(inner, _value(SignatureTree._get(inner).types[0], choices, depth - 1))
        case "a":
            return _array(kind.children[0], choices, depth)
        case "(":
            return [_value(child, choices, depth - 1) for child in kind.children]
    return choices.number(
        {"y": 256, "q": 1 << 16, "n": 1 << 15, "i": 1 << 31}.get(kind.token, 1 << 31)
    )


def _array(kind: SignatureType, choices: Choices, depth: int) -> Any:
    count = choices.number(5) if depth > 0 else 0
    if kind.token == "{":
        return {
            _value(kind.children[0], choices, depth): _value(kind.children[1], choices, depth - 1)
            for _ in range(count)
        }
    if kind.token == "y":
        return choices.bytes(count)
    return [_value(kind, choices, depth - 1) for _ in range(count)]


def wire(message: Message, sender: str) -> bytes:
    """The message as the bus passes it on, which adds who sent it."""
    body = _marshalled(message.signature, message.body)
    told: dict[HeaderField, tuple[str, Any]] = {
        HeaderField.PATH: ("o", message.path),
        HeaderField.INTERFACE: ("s", message.interface),
        HeaderField.MEMBER: ("s", message.member),
        HeaderField.DESTINATION: ("s", message.destination),
        HeaderField.SENDER: ("s", sender),
        HeaderField.REPLY_SERIAL: ("u", message.reply_serial),
        HeaderField.SIGNATURE: ("g", message.signature),
    }
    fields = [[field.value, Variant(*value)] for field, value in told.items() if value[1]]
    begin = [ord("l"), message.message_type.value, int(message.flags), 1, len(body)]
    header = _marshalled("yyyyuua(yv)", [*begin, message.serial, fields])
    return header + bytes(-len(header) % 8) + body


def _marshalled(signature: str, values: list[Any]) -> bytes:
    made = Marshaller(signature, values)  # type: ignore[no-untyped-call]
    made.marshall()  # type: ignore[no-untyped-call]
    return bytes(made.buffer)


class _Stand:
    """A bus with migd's exporter on it: the contract, objects that hold nothing, and handlers that
    judge options. The bus is ours, so that it passes on what a real one would not.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.serial = 1000
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        path = f"{self.folder.name}/bus"
        server = await asyncio.start_unix_server(self._accept, path)
        self.connection = await connect(f"unix:path={path}", timeout_s=10)
        server.close()
        made = exporter.Exporter(
            self.connection,
            names.ROOT,
            CONTRACT,
            _to_error,
            failed=MigdError.dbus_name,
            authorize=_anybody,
            trusted=frozenset({_UID}),  # a tracer makes all of it slow, which is no user's fault
        )
        handlers = {
            name: {member: _handler(member) for member in interface.methods}
            for name, interface in CONTRACT.interfaces.items()
        }
        made.sync(
            {
                names.ROOT: {names.MANAGER: _blank(names.MANAGER)},
                GPU: {names.GPU: _blank(names.GPU)},
            }
        )
        await made.start(handlers)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        while (line := await reader.readline()) != b"BEGIN\r\n":
            answer = b"OK 0123456789abcdef0123456789abcdef" if b"AUTH" in line else b"AGREE_UNIX_FD"
            writer.write(answer + b"\r\n")
        self.cut = Frames()
        self.heard: list[Message] = []
        self.more = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while data := await self.reader.read(1 << 16):
            self.cut.feed(data)
            while frame := self.cut.next():
                message = unmarshalled(frame.data)
                if message.destination == BUS:
                    self.writer.write(wire(_of_the_bus(message), BUS))
                else:
                    self.heard.append(message)
                    self.more.set()

    def take(self, data: bytes, serial: int, least: int) -> list[Message]:
        """What is answered to these bytes, of which so many answers must come."""
        return self.loop.run_until_complete(self._take(data, serial, least))

    async def _take(self, data: bytes, serial: int, least: int) -> list[Message]:
        self.heard.clear()
        self.writer.write(data)
        # An honest client that comes later, and again when the answer is there, is answered.
        await self._ping()
        async with asyncio.timeout(30):
            while sum(m.reply_serial == serial for m in self.heard) < least:
                self.more.clear()
                await self.more.wait()
        await self._ping()
        return [m for m in self.heard if m.destination != HONEST]

    async def _ping(self) -> None:
        self.serial += 1
        ping = Message(path="/", interface=standard.PEER, member="Ping", serial=self.serial)
        self.writer.write(wire(ping, HONEST))
        async with asyncio.timeout(30):
            while not any(
                m.reply_serial == self.serial and m.destination == HONEST for m in self.heard
            ):
                self.more.clear()
                await self.more.wait()

    def close(self) -> None:
        async def closed() -> None:
            self.connection.close()
            self.writer.close()
            await self.reading

        self.loop.run_until_complete(closed())
        self.loop.close()
        self.folder.cleanup()


def unmarshalled(data: bytes) -> Message:
    stream = io.BytesIO(data)
    message: Message = unmarshaller.Unmarshaller(stream).unmarshall()  # type: ignore[no-untyped-call]
    return message


def _of_the_bus(message: Message) -> Message:
    answers: dict[str, tuple[str, list[Any]]] = {
        "Hello": ("s", [":1.1"]),
        "RequestName": ("u", [1]),
        "GetConnectionUnixUser": ("u", [_UID]),
    }
    signature, body = answers.get(message.member, ("", []))
    reply = Message.new_method_return(message, signature, body)
    reply.serial = message.serial
    return reply


async def _anybody(_: exporter.Call) -> None:
    pass


def _handler(member: str) -> Callable[..., Any]:
    async def handle(_: exporter.Call, *arguments: Any) -> tuple[Any, ...]:
        given = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
        if member in ("Plan", "Apply", "Assert"):
            known = options.LOOKING if member != "Apply" else tuple(options._SIGNATURES)
            options.request(arguments[0], given, known)
        elif member == "Restore":
            options.request("", given, options.RESTORE)
        elif member in ("Export", "Generate"):
            options.writing(given)
        elif member == "Stage":
            options.request(arguments[0], given, options.STAGE)
        else:
            options.none(given)
        method = next(
            i.methods[member] for i in CONTRACT.interfaces.values() if member in i.methods
        )
        return tuple(_nothing(kind) for kind in SignatureTree._get(method.out_signature).types)

    return handle


def _blank(interface: str) -> dict[str, Any]:
    return {
        name: _nothing(SignatureTree._get(p.signature).types[0])
        for name, p in CONTRACT.interfaces[interface].properties.items()
    }


def _nothing(kind: SignatureType) -> Any:
    if kind.token == "a":
        return {} if kind.children[0].token == "{" else []
    if kind.token == "(":
        return tuple(_nothing(child) for child in kind.children)
    return {"s": "", "o": "/", "b": False, "d": 0.0}.get(kind.token, 0)


class Stand:
    """One for all inputs, made anew after a failure."""

    made: _Stand | None = None

    @classmethod
    def get(cls) -> _Stand:
        if cls.made is None:
            cls.made = _Stand()
            atexit.register(cls.drop)
        return cls.made

    @classmethod
    def drop(cls) -> None:
        if cls.made:
            cls.made.close()
            cls.made = None


def check_messages(data: bytes) -> None:
    """Every call is answered once, in bounds and by no internal error; others are served on."""
    choices = Choices(data)
    message = call(choices)
    if message is None:
        return
    try:
        sent = wire(message, SENDER)
    except RecursionError:
        return  # nested deeper than what writes it here can follow
    if len(sent) > 2 * MAX_MESSAGE:
        return
    damage = choices.one((0, 0, 0, 1, 2, 9))
    for _ in range(damage):  # in the body alone: the rest is the bus's own
        size = len(sent) - int.from_bytes(sent[4:8], "little")
        at = size + choices.number(len(sent) - size) if size < len(sent) else 0
        if at:
            sent = sent[:at] + bytes([choices.number(256)]) + sent[at + 1 :]
    wanted = not message.flags & MessageFlag.NO_REPLY_EXPECTED
    least = int(wanted and not damage)
    try:
        with _quiet() as heard:
            answers = Stand.get().take(sent, message.serial, least)
        assert not heard, heard[0].getMessage()
        assert least <= len(answers) <= int(wanted)
        for answer in answers:
            _check_answer(answer, message)
        if hasattr(SignatureTree, "_cache"):
            assert len(SignatureTree._cache) <= 4096
    except BaseException:
        Stand.drop()
        raise


def _check_answer(answer: Message, message: Message) -> None:
    assert answer.reply_serial == message.serial
    assert answer.destination == SENDER
    if answer.message_type is MessageType.ERROR:
        assert answer.error_name != MigdError.dbus_name, answer.body
        assert len(answer.body[0]) <= 100_000


@contextmanager
def _quiet() -> Iterator[list[logging.LogRecord]]:
    """The warnings and errors that are logged meanwhile."""
    heard: list[logging.LogRecord] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    ear, log = Ear(logging.WARNING), logging.getLogger()
    log.addHandler(ear)
    try:
        yield heard
    finally:
        log.removeHandler(ear)


def _wire(member: str, signature: str, *body: Any) -> bytes:
    message = Message(
        destination=names.BUS_NAME,
        path=names.ROOT,
        interface=names.MANAGER,
        member=member,
        signature=signature,
        body=list(body),
        serial=7,
    )
    return wire(message, SENDER)


WIRES = (
    _wire("Plan", "sa{sv}", "all-disabled", {"gpus": Variant("as", ["0"])}),
    _wire(
        "Apply",
        "sa{sv}",
        "",
        {"text": Variant("s", "version: v1"), "terminate": Variant("b", True)},
    ),
    _wire("WaitJob", "u", 1),
    _wire("ListJobs", "a{sv}", {"a": Variant("v", Variant("(sav)", ["x", [Variant("u", 1)]]))}),
    _wire("Ping", ""),
)
_FRAME_WORDS = (
    b"l\1\0\1", b"B\1\0\1", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\x40\0", b"\1\1o\0", b"\6\1s\0",
    b"\x08\1g\0", b"\1v\0", b"\5a{sv}\0", b"\2av\0", b"\1h\0",
)  # fmt: skip

TARGETS = (
    Target(
        "frames",
        1500,
        check_frames,
        (frames,),
        (*WIRES, WIRES[0] + WIRES[2], WIRES[4] * 3),
        _FRAME_WORDS,
    ),
    Target(
        "messages",
        150,
        check_messages,
        (exporter, options, values, transport, connection, unmarshaller),
        tuple(
            bytes([n, 0, 1 + n % 3, 1, 0, 5, n, n, 1, 2, 3, 4]) + bytes(range(n, n + 40))
            for n in range(0, 60, 3)
        ),
        (bytes(8), b"\1\1\1", b"\5\5", b"\7\x0b"),
    ),
)
