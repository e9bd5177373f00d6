"""Puts objects on the bus as the contract describes them. Knows no policy and no state of its own.

State goes one way: sync() is given all that is to be seen, and tells the bus what is different.
Calls come the other way, to one handler a method, which is told the object by its path.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from dbus_next.constants import MessageFlag
from dbus_next.message import Message

from migd.bus import tree
from migd.bus.calls import Calls
from migd.bus.connection import BUS, Connection
from migd.bus.contract import Contract, Interface, Method
from migd.bus.intake import Intake, Turn
from migd.bus.standard import (
    INTERFACES,
    INTROSPECTABLE,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
    Refusal,
)
from migd.bus.values import clean, to_wire

log = logging.getLogger(__name__)

STOPPING = "migd is stopping"
# Errors quote what callers wrote, which need not come back to them in full.
_LONGEST_ERROR = 16 * 1024
_LOG_AGAIN_S = 60.0
INTERNAL = "an internal error of migd; its log tells more"

_DOCTYPE = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
"""
_MACHINE_ID = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


Aside = Callable[[], contextlib.AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Call:
    """Who asks for what. `sender` is a unique name; `interactive`: a password may be asked for.

    aside: within it, other calls of this user go on
    """

    sender: str
    path: str
    interface: str
    member: str
    interactive: bool
    aside: Aside = field(default=contextlib.nullcontext, compare=False)


# Given the call and its arguments, gives a tuple of results, or None for none. It is cancelled when
# the caller leaves the bus: what must outlive the caller belongs in a task of its own.
Handler = Callable[..., Awaitable[tuple[Any, ...] | None]]


class Exporter:
    """Answers on one connection for the objects at and below `root`.

    to_error: gives the D-Bus name and the text of an exception for the caller
    failed: the name that to_error gives to bugs; these are logged, and the caller is told no more
    authorize: runs before each handler, and raises to refuse
    no_work: methods, by interface and name, that only wait, or take no time; of the others a user
    has one at work at a time
    trusted: as in intake.Intake
    """

    def __init__(
        self,
        connection: Connection,
        root: str,
        contract: Contract,
        to_error: Callable[[Exception], tuple[str, str]],
        *,
        failed: str,
        authorize: Callable[[Call], Awaitable[None]],
        no_work: Collection[tuple[str, str]] = (),
        trusted: Collection[int] | None = None,
    ) -> None:
        self._connection = connection
        self._root = root
        self._contract = contract
        self._to_error = to_error
        self._failed = failed
        self._authorize = authorize
        self._handlers: Mapping[str, Mapping[str, Handler]] = {}
        self._tree: tree.Tree = {}
        self._no_work = no_work
        self._logged: dict[str, float] = {}
        self._calls = Calls()
        self._intake = Intake(connection, self._receive, self._calls.cancel, trusted)
        self._stopping = False

    async def start(self, handlers: Mapping[str, Mapping[str, Handler]]) -> None:
        """Answer calls from now on; ContractError unless each method has its handler."""
        self._contract.check(handlers)
        self._handlers = handlers
        await self._intake.open()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Cancel the calls at work, tell their callers, and get all of it onto the wire."""
        self._stopping = True
        self._intake.close()
        await self._calls.stop(timeout_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._connection.flush()

    def sync(self, objects: tree.Objects) -> None:
        """Show exactly these objects, and signal what differs; all of it or, on an error, nothing.

        Raises ValueError or TypeError for what the contract does not allow.
        """
        self.update(objects, self._tree.keys() - objects.keys())

    def update(self, objects: tree.Objects, gone: Collection[str]) -> None:
        """Show these objects as they are now, and no more those at `gone`; else as sync().

        What an object has to be shown anew costs more than to see that nothing about it is.
        """
        new = tree.build(self._contract, self._root, objects)
        old = {p: self._tree[p] for p in (*new, *gone) if p in self._tree}
        signals = tree.changes(self._contract, self._root, old, new)
        self._tree = {p: i for p, i in self._tree.items() if p not in gone} | new
        for signal in signals:
            self._signal(
                signal.path, signal.interface, signal.member, signal.signature, signal.body
            )

    def emit(self, path: str, interface: str, member: str, *args: Any) -> None:
        signature = self._contract.interfaces[interface].signals[member]
        self._signal(path, interface, member, signature, to_wire(signature, args))

    def _signal(
        self, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> None:
        self._connection.send(Message.new_signal(path, interface, member, signature, body))

    def _receive(self, message: Message, turn: Turn) -> asyncio.Task[Any] | None:
        try:
            return self._route(message, turn)
        except Exception as error:  # noqa: BLE001 - _fail tells the caller, and logs bugs
            self._fail(message, error)
        return None

    def _route(self, message: Message, turn: Turn) -> asyncio.Task[Any] | None:
        interface = self._interface(message)
        method = interface.methods.get(message.member)
        if method is None:
            raise Refusal("UnknownMethod", f"{interface.name} has no method {message.member}")
        if message.signature != method.in_signature:
            takes, given = method.in_signature, message.signature
            raise Refusal("InvalidArgs", f"{message.member} takes ({takes}), not ({given})")
        if interface.name in INTERFACES:
            self._reply(message, method, self._answer(message, interface.name))
            return None
        if self._stopping:
            raise Refusal("NoReply", STOPPING)
        return self._calls.start(
            message.sender,
            turn.metered(self._handle(message, interface.name, turn)),
            lambda task: self._finish(message, method, turn, task),
        )

    def _interface(self, message: Message) -> Interface:
        """Find the interface that a call means; it may leave it out if only one can be meant."""
        offered = self._offered(message.path)
        named: str | None = message.interface
        found = [
            interface
            for interface in offered.values()
            if (message.member in interface.methods if named is None else interface.name == named)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(interface.name for interface in found)
            raise Refusal("UnknownMethod", f"{message.member} is in several interfaces: {names}")
        if offered.keys() == {PEER}:
            raise Refusal("UnknownObject", f"there is no object {message.path}")
        if named is None:
            raise Refusal("UnknownMethod", f"{message.path} has no method {message.member}")
        raise Refusal("UnknownInterface", f"{message.path} has no interface {named}")

    def _offered(self, path: str) -> dict[str, Interface]:
        """Give the interfaces at a path: Peer anywhere, Introspectable on the way to objects."""
        own = {name: self._contract.interfaces[name] for name in self._tree.get(path, ())}
        standard = [PEER]
        if path in self._tree:
            standard += [INTROSPECTABLE, PROPERTIES]
            standard += [OBJECT_MANAGER] if path == self._root else []
        elif self._children(path):
            standard += [INTROSPECTABLE]
        return own | {name: INTERFACES[name] for name in standard}

    def _children(self, path: str) -> list[str]:
        prefix = f"{path.rstrip('/')}/"
        start = len(prefix)
        return sorted({p[start:].split("/")[0] for p in self._tree if p.startswith(prefix)} - {""})

    async def _handle(self, message: Message, interface: str, turn: Turn) -> Any:
        interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        call = Call(
            message.sender, message.path, interface, message.member, interactive, turn.aside
        )
        await self._authorize(call)
        handler = self._handlers[interface][message.member]
        if (interface, message.member) in self._no_work:
            return await handler(call, *message.body)
        async with turn.at_work():
            return await handler(call, *message.body)

    def _finish(
        self, message: Message, method: Method, turn: Turn, task: asyncio.Task[Any]
    ) -> None:
        with turn.meter():
            self._answer_with(message, method, task)

    def _answer_with(self, message: Message, method: Method, task: asyncio.Task[Any]) -> None:
        try:
            results = task.result()
            if not isinstance(results, tuple | None):
                raise TypeError(f"{message.member} gave {results!r}, not a tuple")
            self._reply(message, method, to_wire(method.out_signature, results or ()))
        except asyncio.CancelledError as error:
            if task.cancelling():
                self._error(message, f"{BUS}.Error.NoReply", STOPPING)
            else:  # what the handler waited for was cancelled, which it should have caught
                self._fail(message, RuntimeError(f"{message.member} was cancelled: {error}"))
        except Exception as error:  # noqa: BLE001 - as in _receive
            self._fail(message, error)

    def _reply(self, message: Message, method: Method, body: list[Any]) -> None:
        self._send(message, Message.new_method_return(message, method.out_signature, body))

    def _fail(self, message: Message, error: Exception) -> None:
        if isinstance(error, Refusal):
            self._error(message, error.name, error.text)
            return
        name, text = self._to_error(error)
        if name == self._failed:
            text = INTERNAL
            # Whoever finds a bug must not be able to fill the log with it.
            now = time.monotonic()
            if now - self._logged.get(message.member, -inf) > _LOG_AGAIN_S:
                self._logged[message.member] = now
                log.error("%s at %s failed", message.member, message.path, exc_info=error)
        self._error(message, name, text)

    def _error(self, message: Message, name: str, text: str) -> None:
        shortened = text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."
        self._send(message, Message.new_error(message, name, clean(shortened)))

    def _send(self, message: Message, reply: Message) -> None:
        if not message.flags & MessageFlag.NO_REPLY_EXPECTED:
            self._intake.send(reply)

    def _answer(self, message: Message, interface: str) -> list[Any]:
        """Answer a call of a standard interface, whose arguments are known to be right."""
        match interface, message.member:
            case _, "Ping":
                return []
            case _, "GetMachineId":
                return [_machine_id()]
            case _, "Introspect":
                return [self._introspect(message.path)]
            case _, "GetManagedObjects":
                return [{path: i for path, i in self._tree.items() if path != self._root}]
            case _, "GetAll":
                return [self._get_all(message.path, message.body[0])]
        interface, name = message.body[:2]
        values = self._get_all(message.path, interface)
        if name not in values:
            raise Refusal("UnknownProperty", f"{interface or message.path} has no property {name}")
        if message.member == "Set":
            raise Refusal("PropertyReadOnly", f"{name} is read-only")
        return [values[name]]

    def _get_all(self, path: str, interface: str) -> dict[str, Any]:
        """Give the properties of an interface, or of all of them for ""."""
        interfaces = self._tree[path]
        if not interface:
            return {name: v for values in interfaces.values() for name, v in values.items()}
        if interface not in interfaces and interface not in self._offered(path):
            raise Refusal("UnknownInterface", f"{path} has no {interface}")
        return dict(interfaces.get(interface, {}))

    def _introspect(self, path: str) -> str:
        interfaces = "".join(interface.xml for interface in self._offered(path).values())
        nodes = "".join(f'  <node name="{child}"/>\n' for child in self._children(path))
        return f"{_DOCTYPE}<node>\n  {interfaces}{nodes}</node>\n"


def _machine_id() -> str:
    for path in _MACHINE_ID:
        with contextlib.suppress(OSError):
            return path.read_text("ascii").strip()
    raise Refusal("FileNotFound", "this machine has no machine-id")
