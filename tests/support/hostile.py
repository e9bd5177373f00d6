"""Programs of other users that write what they like to a bus, and read only if they want to."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from dbus_next.constants import MessageFlag
from dbus_next.message import Message

from migd import names
from migd.bus.connection import BUS, BUS_PATH
from migd.bus.frames import Frames
from migd.bus.incoming import Incoming
from tests.support.bus import plain

NOBODY, DAEMON = 65534, 1  # users that every system has
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
VERSION = ("Get", "ss", [names.MANAGER, "Version"], PROPERTIES)
_NO_REPLY = MessageFlag.NO_REPLY_EXPECTED


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Be another user; a bus asks the kernel who connects at the time that it happens."""
    mine = os.getresuid()
    os.setresuid(uid, uid, mine[0])
    try:
        yield
    finally:
        os.setresuid(*mine)


def encoded(message: Message) -> bytes:
    return bytes(message._marshall(negotiate_unix_fd=True))  # type: ignore[no-untyped-call]


def call(
    member: str,
    signature: str = "",
    body: Sequence[Any] = (),
    interface: str = names.MANAGER,
    *,
    path: str = names.ROOT,
    serial: int = 2,
    reply: bool = True,
) -> bytes:
    message = Message(
        destination=names.BUS_NAME,
        path=path,
        interface=interface,
        member=member,
        signature=signature,
        body=list(body),
        serial=serial,
        flags=MessageFlag.NONE if reply else _NO_REPLY,
    )
    return encoded(message)


class Raw:
    """A connection of a user, by hand."""

    def __init__(self, path: str, uid: int) -> None:
        """path: of the bus's socket"""
        self._frames = Frames()
        self._serial = 1_000_000
        self.answers: list[Incoming] = []
        with as_user(uid):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(path)
            self.socket.settimeout(30)
            self._say(b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode(), b"OK")
            self._say(b"NEGOTIATE_UNIX_FD", b"AGREE")
            self.socket.sendall(b"BEGIN\r\n")
        (self.name,) = self.bus("Hello")

    def _say(self, line: bytes, answer: bytes) -> None:
        self.socket.sendall(line + b"\r\n")
        assert self.socket.recv(100).startswith(answer)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def bus(self, member: str, signature: str = "", *body: Any, interface: str = BUS) -> list[Any]:
        """Call the bus itself: once it answers, it has handed on all that was sent before."""
        self._serial += 1
        message = Message(
            destination=BUS, path=BUS_PATH, interface=interface, member=member,
            signature=signature, body=list(body), serial=self._serial,
        )  # fmt: skip
        self.send(encoded(message))
        reply = self.answer(self._serial).read()
        assert reply
        return [plain(value) for value in reply.body]

    def flush(self) -> None:
        """Return once all that was sent has been handed on."""
        self.bus("GetId")

    @property
    def of_daemon(self) -> list[Incoming]:
        """The answers that are not the bus's own."""
        return [a for a in self.answers if a.sender != BUS]

    def answer(self, serial: int) -> Incoming:
        """Read until that call is answered."""
        while True:
            for answer in self.answers:
                if answer.reply_serial == serial:
                    return answer
            self.read()

    def read(self) -> None:
        """Read what comes next; answers are kept."""
        data = self.socket.recv(2**18)
        assert data, "the bus has closed the connection"
        self._frames.feed(data)
        while frame := self._frames.next():
            arrived = Incoming(frame.data, frame.dropped)
            if arrived.reply_serial:
                self.answers.append(arrived)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
