"""Other programs on the bus as migd.host sees them: plain values, its errors, real signals."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dbus_next.constants import MessageFlag
from dbus_next.message import Message
from dbus_next.signature import SignatureTree, SignatureType, Variant

from migd.bus.connection import BUS, BusError, Connection, ConnectionLost, RemoteError
from migd.bus.incoming import SIGNAL, Incoming
from migd.bus.owner import NameOwner
from migd.bus.values import to_wire, variant
from migd.host.bus import NoAnswer, Refused, Signal

# What the bus itself answers, or a program that ends, in place of the one that was asked.
_NOBODY = frozenset(
    f"{BUS}.Error.{name}"
    for name in ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected", "Timeout")
)


class RemoteBus:
    """Implements migd.host.bus.Bus over a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def peer(self, name: str) -> "RemotePeer":
        return RemotePeer(self._connection, name)


class RemotePeer:
    """Implements migd.host.bus.Peer, which tells the contract."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._owner = NameOwner(connection, name)

    @property
    def present(self) -> bool:
        return self._owner.known

    async def follow(
        self, interface: str, heard: Callable[[Signal], None], moved: Callable[[], None]
    ) -> None:
        def handler(message: Message) -> bool:
            heard(Signal(message.path, interface, message.member, _plain_all(message.body)))
            return False

        def wants(arrived: Incoming) -> bool:
            signal = arrived.kind == SIGNAL and arrived.interface == interface
            return signal and self._owner.sent(arrived)

        self._connection.add_handler(handler, wants)
        try:
            await self._connection.match(
                f"type='signal',sender='{self._name}',interface='{interface}'"
            )
            await self._owner.follow(moved)
        except BaseException as error:
            self._connection.remove_handler(handler)
            if isinstance(error, BusError):
                raise NoAnswer(str(error)) from error
            raise

    async def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        arguments: Sequence[Any] = (),
        *,
        limit_s: float,
    ) -> list[Any]:
        message = Message(
            destination=self._name,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=to_wire(signature, _wrap_all(signature, arguments)),
            flags=MessageFlag.NO_AUTOSTART,
        )
        try:
            reply = await self._connection.exchange(message, timeout_s=limit_s)
        except RemoteError as error:
            if error.name in _NOBODY:
                raise NoAnswer(f"{self._name}: {error.message}") from error
            raise Refused(error.name, error.message) from error
        except BusError as error:
            raise NoAnswer(str(error)) from error
        return list(_plain_all(reply.body))

    async def gone(self) -> None:
        with contextlib.suppress(ConnectionLost):
            await self._connection.wait_closed()


def _plain_all(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_plain(value) for value in values)


def _plain(value: Any) -> Any:
    match value:
        case Variant():
            return _plain(value.value)
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
    return value


def _wrap_all(signature: str, values: Sequence[Any]) -> list[Any]:
    kinds = SignatureTree._get(signature).types
    if len(kinds) != len(values):
        raise ValueError(f"{len(values)} values for the signature {signature!r}")
    return [_wrap(kind, value) for kind, value in zip(kinds, values, strict=True)]


def _wrap(kind: SignatureType, value: Any) -> Any:
    """Make variants of (signature, value) where the signature has a variant."""
    if "v" not in kind.signature:
        return value
    match kind.token:
        case "v":
            inner, item = value
            return variant(inner, *_wrap_all(inner, [item]))
        case "(":
            return [_wrap(child, item) for child, item in zip(kind.children, value, strict=True)]
        case "a" if isinstance(value, Mapping):
            _, item = kind.children[0].children
            return {key: _wrap(item, entry) for key, entry in value.items()}
        case "a":
            return [_wrap(kind.children[0], item) for item in value]
    return value
