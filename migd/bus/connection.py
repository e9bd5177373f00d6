"""One connection to a message bus: bounded calls, signals, and how it ends. Exports nothing."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message

from migd.bus.incoming import CALL, ERROR, RETURN, Incoming
from migd.bus.transport import Transport
from migd.bus.values import clean, to_wire

log = logging.getLogger(__name__)

BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
_ERROR = f"{BUS}.Error"
_DO_NOT_QUEUE = 4
_PRIMARY_OWNER, _ALREADY_OWNER = 1, 4

# Given each incoming call and signal that it wants; True takes it, so that nobody else sees it.
MessageHandler = Callable[[Message], bool]
# Whether a handler wants a message, by what its header tells; of what nobody wants no more is read.
Wants = Callable[[Incoming], bool]


class Door(Protocol):
    """Where all method calls are received, unread, once it is set."""

    def arrived(self, call: Incoming) -> None: ...
    def drained(self) -> None:
        """All that was sent has left this process."""


class BusError(Exception):
    """What can go wrong between us and another program on the bus."""


class ConnectionLost(BusError):
    """There is no connection to the bus, or no more."""


class CallTimeout(BusError):
    """The other side did not answer in time; whether it did its work is not known."""


class NameTaken(BusError):
    """Somebody else owns the bus name."""


class RemoteError(BusError):
    """The other side answered with an error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


class Connection:
    """Made by connect(). When it has ended it stays so: a new one must be made."""

    def __init__(self, address: str | socket.socket | None) -> None:
        self._pending: dict[int, tuple[str, asyncio.Future[Message]]] = {}
        self._handlers: list[tuple[Wants, MessageHandler]] = []
        self._door: Door | None = None
        self._closed = asyncio.Event()
        self._error: Exception | None = None
        self._transport = Transport(address, self._receive, self._drain, self._end)

    @property
    def unique_name(self) -> str:
        return str(self._transport.unique_name)

    @property
    def unsent(self) -> int:
        """Bytes that were sent and have not left this process."""
        return self._transport.unsent

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        timeout_s: float = 25.0,
        interactive: bool = False,
        start: bool = True,
    ) -> list[Any]:
        """Call a method and give the values of its reply.

        start: whether the bus may start who has the name and is not there

        Raises RemoteError for an error reply, CallTimeout, and ConnectionLost when there is no
        bus or it goes away before the reply.
        """
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
        if not start:
            flags |= MessageFlag.NO_AUTOSTART
        reply = await self.exchange(
            Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=to_wire(signature, body),
                flags=flags,
            ),
            timeout_s=timeout_s,
        )
        return reply.body

    async def exchange(self, message: Message, *, timeout_s: float = 25.0) -> Message:
        """Send a method call made by hand and give its reply; raises as call() does."""
        if self._closed.is_set():
            raise self._lost()
        message.serial = self._transport.next_serial()
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[message.serial] = message.destination, reply
        try:
            self.send(message)
            async with asyncio.timeout(timeout_s):
                return await reply
        except TimeoutError:
            called = f"{message.interface}.{message.member} of {message.destination}"
            raise CallTimeout(f"{called} did not answer within {timeout_s:g} s") from None
        finally:
            self._pending.pop(message.serial, None)

    def send(self, message: Message) -> int:
        """Queue a message, and give its length.

        On a dead connection it is lost, as wait_closed() tells its owner.
        """
        return self._transport.post(message)

    def add_handler(self, handler: MessageHandler, wants: Wants = lambda _: True) -> None:
        self._handlers.append((wants, handler))

    def remove_handler(self, handler: MessageHandler) -> None:
        self._handlers = [(w, h) for w, h in self._handlers if h != handler]

    def guard(self, door: Door) -> None:
        """Hand method calls to `door`, and to no handler any more."""
        self._door = door

    async def match(self, rule: str) -> None:
        """Ask the bus for the signals that fit a match rule."""
        await self.call(BUS, BUS_PATH, BUS, "AddMatch", "s", [rule])

    async def request_name(self, name: str) -> None:
        """Own a well-known name from now on; NameTaken when somebody else does."""
        (answer,) = await self.call(BUS, BUS_PATH, BUS, "RequestName", "su", [name, _DO_NOT_QUEUE])
        if answer not in (_PRIMARY_OWNER, _ALREADY_OWNER):
            raise NameTaken(f"{name} is owned by another program on this bus")

    async def flush(self) -> None:
        """Wait until all that was sent has left this process, or the connection has ended."""
        await self._transport.flush()

    async def wait_closed(self) -> None:
        """Wait for the end; raises ConnectionLost unless it was close()."""
        await self._closed.wait()
        if self._error is not None:
            raise self._lost()

    def close(self) -> None:
        """End the connection and close its socket; what is unsent is lost, calls fail."""
        self._transport.disconnect()

    async def open(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._transport.connect()
        except BaseException:
            self.close()
            raise

    def _lost(self) -> ConnectionLost:
        return ConnectionLost(f"no connection to the bus: {self._error or 'it was closed'}")

    def _end(self, error: Exception | None) -> None:
        self._error = error
        self._closed.set()
        self._handlers.clear()
        for _, reply in self._pending.values():
            if not reply.done():
                reply.set_exception(self._lost())

    def _drain(self) -> None:
        if self._door:
            self._door.drained()

    def _receive(self, arrived: Incoming) -> None:
        if arrived.kind == CALL and self._door:
            self._door.arrived(arrived)
        elif arrived.kind in (RETURN, ERROR):
            self._answered(arrived)
        elif arrived.dropped:
            text = f"the arguments are too long: {arrived.dropped} bytes"
            self.refuse(arrived, "LimitsExceeded", text)
        elif not self._offer(arrived):
            self.refuse(arrived, "UnknownMethod", f"nothing here answers {arrived.member}")

    def _answered(self, arrived: Incoming) -> None:
        called, reply = self._pending.get(arrived.reply_serial, ("", None))
        # The bus lets only who was called answer, or answers itself. Where its policy is laxer than
        # that of a system bus, serials can be guessed: names that cannot be mistaken are compared.
        meant = called.startswith(":") or called == BUS
        if reply is None or reply.done() or (meant and arrived.sender not in (called, BUS)):
            return
        message = arrived.read()
        if message:
            _resolve(reply, message, arrived.dropped)

    def _offer(self, arrived: Incoming) -> bool:
        message: Message | None = None
        for wants, handler in tuple(self._handlers):
            if not wants(arrived):
                continue
            message = message or arrived.read()
            if message is None:
                return True
            try:
                if handler(message):
                    return True
            except Exception:
                log.exception("a message handler failed at %s, ignoring", message.member)
        return False

    def refuse(self, call: Incoming, error: str, text: str) -> None:
        """Answer with a standard error, if an answer is wanted."""
        if call.wants_reply:
            self.send(call.error(f"{_ERROR}.{error}", clean(text)))


async def connect(address: str | socket.socket | None, *, timeout_s: float) -> Connection:
    """Connect to a bus; without an address to the system bus, or DBUS_SYSTEM_BUS_ADDRESS.

    A socket is one at whose other end there is a bus; the connection has it from then on.

    Raises ConnectionLost when nobody is there, or it does not let us in, or not in time.
    """
    try:
        connection = Connection(address)
        await connection.open(timeout_s)
    except Exception as error:
        bus = address if isinstance(address, str) else "the system bus"
        raise ConnectionLost(f"cannot connect to {bus}: {error!r}") from error
    return connection


def _resolve(reply: "asyncio.Future[Message]", message: Message, dropped: int) -> None:
    if dropped:
        text = f"the reply is too long: {dropped} bytes"
        reply.set_exception(RemoteError(f"{_ERROR}.LimitsExceeded", text))
    elif message.message_type is MessageType.ERROR:
        text = message.body[0] if message.signature.startswith("s") else ""
        reply.set_exception(RemoteError(message.error_name, clean(text)))
    else:
        reply.set_result(message)
