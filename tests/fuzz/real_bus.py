"""A hostile client on a real bus, with the real daemon behind it and a simulated node behind that.

Where we are root, the client is another user. Where not, it is the user who may do everything, so
what changes the node is left out.
"""

import array
import contextlib
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dbus_next.constants import MessageType
from dbus_next.message import Message

from migd import names
from migd.bus.connection import BUS, BUS_PATH
from migd.bus.frames import Frames
from tests.bus.manager import H100, World, world
from tests.fuzz.bus_bytes import call, unmarshalled
from tests.fuzz.choices import Choices
from tests.fuzz.mutate import Mutator

NAME = "bus"
NOBODY = 65534
_CHANGING = ("Apply", "Stage", "PutBack", "Reload", "Cancel")
ROUND = 50
_LAST = 1 << 31
_LIMIT_S = 60.0


class Hostile:
    """Sends what the dice say; seed: the same one says the same."""

    def __init__(self, bus: str, seed: int) -> None:
        self._bus = bus
        self._dice = random.Random(seed)
        self._mutate = Mutator((b"l\1\0\1", b"\1\1o\0", b"\xff\xff\xff\xff"), self._dice, 1 << 12)
        self._socket: socket.socket | None = None

    def attack(self) -> None:
        """Some messages; or bytes that are none, and then we come again."""
        damaged = self._dice.randrange(3) == 0
        for _ in range(ROUND):
            self._send(damaged=damaged)
        if damaged:
            # The bus may wait for the rest of what it takes for a long message.
            self.close()
        else:
            self._wait()

    def _wait(self) -> None:
        """Until what was asked for is answered, for it ends where the caller leaves.

        The bus shows the door to who sends what only it may; then there is nobody to wait.
        """
        plan = Message(
            destination=names.BUS_NAME,
            path=names.ROOT,
            interface=names.MANAGER,
            member="Plan",
            signature="sa{sv}",
            body=["all-disabled", {}],
            serial=_LAST,
        )
        with contextlib.suppress(ConnectionError):
            self._pass_on(bytes(plan._marshall()), [])  # type: ignore[no-untyped-call]
            cut = Frames()
            while data := self._received():
                cut.feed(data)
                while frame := cut.next():
                    answer = unmarshalled(frame.data)
                    if answer.reply_serial == _LAST and answer.sender != BUS:
                        return
        self.close()

    def _received(self) -> bytes:
        assert self._socket
        self._socket.settimeout(_LIMIT_S)
        return self._socket.recv(1 << 16)

    def _send(self, *, damaged: bool) -> None:
        message = self._message()
        data = bytes(message._marshall(negotiate_unix_fd=True))  # type: ignore[no-untyped-call]
        if damaged:
            data = self._mutate(data, data)
        with contextlib.suppress(OSError):
            self._pass_on(data, message.unix_fds)
            return
        self.close()

    def _message(self) -> Message:
        while True:
            made = call(Choices(self._dice.randbytes(200)))
            if made and (os.geteuid() == 0 or made.member not in _CHANGING):
                break
        match self._dice.randrange(8):
            case 0:  # an answer that nobody has asked for
                made.message_type = MessageType.METHOD_RETURN
                made.reply_serial = self._dice.randrange(1, 100)
            case 1:
                made.message_type = MessageType.ERROR
                made.error_name, made.reply_serial = "a.b", self._dice.randrange(1, 100)
            case 2:  # a signal that only the bus sends
                made.message_type = MessageType.SIGNAL
                made.path, made.interface, made.member = BUS_PATH, BUS, "NameOwnerChanged"
            case 3:
                made.unix_fds = [0]
        return made

    def _pass_on(self, data: bytes, descriptors: list[int]) -> None:
        if self._socket is None:
            self._socket = _connected(self._bus)
        rights = []
        if descriptors:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self._socket.settimeout(_LIMIT_S)
        sent = self._socket.sendmsg([data], rights)
        self._socket.sendall(data[sent:])

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None


def _connected(path: str) -> socket.socket:
    """A connection with a unique name, of another user if we are root."""
    root = os.geteuid() == 0
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(_LIMIT_S)
    if root:
        os.seteuid(NOBODY)
    try:
        made.connect(path)
        user = str(os.geteuid())
    finally:
        if root:
            os.seteuid(0)
    made.sendall(b"\0AUTH EXTERNAL " + user.encode().hex().encode() + b"\r\n")
    assert made.recv(100).startswith(b"OK")
    made.sendall(b"NEGOTIATE_UNIX_FD\r\n")
    assert made.recv(100) == b"AGREE_UNIX_FD\r\n"
    hello = Message(destination=BUS, path=BUS_PATH, interface=BUS, member="Hello", serial=1)
    made.sendall(b"BEGIN\r\n" + hello._marshall())  # type: ignore[no-untyped-call]
    return made


@contextlib.contextmanager
def attacked(folder: Path) -> Iterator[World]:
    """A world whose bus others can reach; afterwards it must be as it was."""
    with world(folder, (H100, 2)) as made:
        Path(made.bus.socket).parent.chmod(0o711)
        made.daemon.call("Plan", "sa{sv}", "all-1g.10gb", {})
        calls, shown = made.node.mutating_calls(), made.node.gpus()
        descriptors = made.daemon.descriptors()
        yield made
        assert made.daemon.running
        assert made.node.mutating_calls() == calls
        assert [g["instances"] for g in made.node.gpus()] == [g["instances"] for g in shown]
        assert len(made.daemon.descriptors()) <= len(descriptors)
        assert "Traceback" not in made.daemon.log


def run(folder: Path, seed: int, *, messages: int = 0, seconds: float = 0) -> int:
    """Attack, that often or that long; how many messages it were. Raises where it had an effect."""
    count, end = 0, time.monotonic() + seconds
    with attacked(folder) as made:
        hostile = Hostile(made.bus.socket, seed)
        try:
            while count < messages or time.monotonic() < end:
                hostile.attack()
                count += ROUND
                made.daemon.property("Version")
        finally:
            hostile.close()
    return count


def main(seconds: float, seed: int) -> int:
    with tempfile.TemporaryDirectory(prefix="migd-fuzz-") as folder:
        try:
            count = run(Path(folder), seed, seconds=seconds)
        except BaseException:
            print(f"bus: again: python -m tests.fuzz bus --seed {seed}; the log of migd:")
            log = Path(folder, "log")
            print(log.read_text()[-5000:] if log.exists() else "none")
            raise
    print(f"bus        {count:9} messages to a real daemon, no finds; seed {seed}")
    return 0
