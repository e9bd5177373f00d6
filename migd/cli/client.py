"""The daemon, as migctl sees it: bounded calls and the changes of its job, over the system bus.

The only file of migctl that knows how the bus is spoken.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from migd import names
from migd.bus.connection import (
    BUS,
    BUS_PATH,
    CallTimeout,
    Connection,
    ConnectionLost,
    RemoteError,
    connect,
)
from migd.bus.incoming import SIGNAL
from migd.bus.owner import owner_change
from migd.bus.values import variant
from migd.cli.agent import agent
from migd.cli.far import Far, far
from migd.cli.news import Signal
from migd.cli.outcome import GONE, TIMEOUT, Exit, Failure, refused

PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_PEER = "org.freedesktop.DBus.Peer"
_VARIANT = type(variant("s", ""))

# How long a single WaitJob is waited for before we ask whether the daemon is alive and wait
# again. The bus counts each that stays unanswered, and allows 128.
WAIT_SLICE_S = 300.0
_NOT_ASKED = "no password is asked for on another host: be root there, or a member of group migd"
# A person may have to type a password.
_INTERACTIVE_S = 300.0


class Client:
    """A connection to the daemon. All its methods raise Failure."""

    def __init__(
        self, connection: Connection, timeout_s: float, *, interactive: bool, start: bool
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._interactive = interactive
        self._start = start
        self._owner = ""
        self._owners = 0
        self._owner_changed = asyncio.Event()
        self._heard: Callable[[Signal], None] = lambda _signal: None
        self._moved: Callable[[str], None] = lambda _owner: None

    async def call(
        self,
        member: str,
        signature: str = "",
        *body: Any,
        path: str = names.ROOT,
        interface: str = names.MANAGER,
    ) -> list[Any]:
        """Call a method of the manager, or another; the values of the reply, variants unwrapped."""
        return await self._call(path, interface, member, signature, body, self._timeout_s)

    async def change(
        self,
        member: str,
        signature: str = "",
        *body: Any,
        path: str = names.ROOT,
        interface: str = names.MANAGER,
    ) -> list[Any]:
        """As call(), for a method that changes something: a person may be asked who they are."""
        if not self._interactive:
            return await self._call(path, interface, member, signature, body, self._timeout_s)
        limit = max(self._timeout_s, _INTERACTIVE_S)
        async with agent():
            return await self._call(
                path, interface, member, signature, body, limit, interactive=True
            )

    async def properties(self, path: str, interface: str) -> dict[str, Any]:
        (found,) = await self.call("GetAll", "s", interface, path=path, interface=PROPERTIES)
        return dict(found)

    async def objects(self) -> dict[str, dict[str, dict[str, Any]]]:
        (found,) = await self.call("GetManagedObjects", interface=OBJECT_MANAGER)
        return dict(found)

    async def wait_job(self, number: int) -> tuple[str, dict[str, Any]]:
        """Wait until a job has ended, as long as the daemon shows signs of life."""
        while True:
            try:
                result, details = await self._call(
                    names.ROOT, names.MANAGER, "WaitJob", "u", [number], WAIT_SLICE_S
                )
            except Failure as failure:
                if failure.name != TIMEOUT:
                    raise
            else:
                return result, details
            await self.call("Ping", interface=_PEER)

    async def watch_job(self, on_job: Callable[[str, dict[str, Any]], None]) -> None:
        """From now on tell `on_job` what changes of a job: its path, and the new properties."""

        def heard(signal: Signal) -> None:
            on_job(signal.path, signal.values[1])

        rule = f"interface='{PROPERTIES}',member='PropertiesChanged',arg0='{names.JOB}'"
        await self.follow(heard, rule=rule)

    async def follow(
        self,
        heard: Callable[[Signal], None],
        moved: Callable[[str], None] = lambda _owner: None,
        *,
        rule: str = f"path_namespace='{names.ROOT}'",
    ) -> None:
        """From now on hear the daemon's signals that fit the rule, and who the daemon is.

        moved: given its new owner whenever the name changes hands, "" for none
        """
        self._heard, self._moved = heard, moved
        self._connection.add_handler(self._handle, lambda arrived: arrived.kind == SIGNAL)
        await self._match(
            f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',"
            f"arg0='{names.BUS_NAME}'"
        )
        await self._match(f"type='signal',sender='{names.BUS_NAME}',{rule}")
        # A change that comes with the reply may be newer than the reply: ask again then.
        changes = -1
        while changes != self._owners:
            changes = self._owners
            self._owner = await self._name_owner()

    @property
    def daemon(self) -> str:
        """Who the daemon is at present; "" when there is none. Needs follow()."""
        return self._owner

    async def wait_daemon(self, before: str, limit_s: float) -> bool:
        """Wait for a daemon other than the one before; whether there is any in the end."""
        try:
            async with asyncio.timeout(limit_s):
                while self._owner in ("", before):
                    self._owner_changed.clear()
                    await self._owner_changed.wait()
        except TimeoutError:
            pass
        return self._owner != ""

    async def closed(self) -> None:
        """Wait until nothing can be heard any more, and raise Failure then."""
        try:
            await self._connection.wait_closed()
        except ConnectionLost as error:
            raise _lost(error) from error

    async def _call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: Any,
        timeout_s: float,
        *,
        destination: str = names.BUS_NAME,
        interactive: bool = False,
    ) -> list[Any]:
        try:
            reply = await self._connection.call(
                destination,
                path,
                interface,
                member,
                signature,
                body,
                timeout_s=timeout_s,
                interactive=interactive,
                start=self._start,
            )
        except RemoteError as error:
            raise refused(error.name, error.message) from error
        except CallTimeout as error:
            message = f"the daemon did not answer {member} within {timeout_s:g} s"
            raise Failure(Exit.UNKNOWN, message, TIMEOUT) from error
        except ConnectionLost as error:
            raise _lost(error) from error
        return [_unwrapped(value) for value in reply]

    async def _bus(self, member: str, argument: str) -> list[Any]:
        limit = self._timeout_s
        return await self._call(BUS_PATH, BUS, member, "s", [argument], limit, destination=BUS)

    async def _match(self, rule: str) -> None:
        await self._bus("AddMatch", rule)

    async def _name_owner(self) -> str:
        try:
            (owner,) = await self._bus("GetNameOwner", names.BUS_NAME)
        except Failure as failure:
            if failure.name not in GONE:
                raise
            return ""
        return str(owner)

    def _handle(self, message: Any) -> bool:
        changed = owner_change(message)
        if changed and changed[0] == names.BUS_NAME:
            self._owner = changed[1]
            self._owners += 1
            self._owner_changed.set()
            self._moved(self._owner)
        # Anybody may send a signal that looks like the daemon's.
        elif self._owner and message.sender == self._owner:
            values = tuple(_unwrapped(value) for value in message.body)
            self._heard(Signal(message.path, message.member, values))
        return False


@contextlib.asynccontextmanager
async def client(
    timeout_s: float, *, interactive: bool, start: bool = True, host: str = ""
) -> AsyncIterator[Client]:
    """A client on the system bus, or the one that DBUS_SYSTEM_BUS_ADDRESS names.

    start: whether a daemon that does not run is started by a call
    host: the bus is that of this host, over ssh
    """
    if host:
        async with far(host, interactive=interactive) as other, _on(other, timeout_s) as connection:
            yield Client(connection, timeout_s, interactive=False, start=start)
        return
    try:
        connection = await connect(None, timeout_s=timeout_s)
    except ConnectionLost as error:
        raise Failure(Exit.NO_DAEMON, str(error)) from error
    try:
        yield Client(connection, timeout_s, interactive=interactive, start=start)
    finally:
        connection.close()


@contextlib.asynccontextmanager
async def _on(other: Far, timeout_s: float) -> AsyncIterator[Connection]:
    """A connection to the bus of another host; its failures say what ssh said, and are told apart.

    Nobody is asked for a password there, so that whoever needs one is told what to do.
    """
    try:
        connection = await connect(other.socket, timeout_s=timeout_s)
    except ConnectionLost as error:
        why = await other.why(str(error))
        raise Failure(Exit.NO_DAEMON, f"cannot reach {other.host}: {why}") from error
    try:
        yield connection
    except Failure as failure:
        if isinstance(failure.__cause__, ConnectionLost):
            why = await other.why(str(failure.__cause__))
            message = f"lost {other.host}: {why}"
        elif failure.exit_code is Exit.NOT_ALLOWED:
            message = f"{failure.message}\n{_NOT_ASKED}"
        else:
            message = f"{other.host}: {failure.message}"
        raise Failure(failure.exit_code, message, failure.name) from failure
    finally:
        connection.close()


def options(values: Mapping[str, str | bool | int | list[str]]) -> dict[str, Any]:
    """Options as a{sv}."""
    kinds: dict[type, str] = {str: "s", bool: "b", int: "u", list: "as"}
    return {key: variant(kinds[type(value)], value) for key, value in values.items()}


def _lost(error: ConnectionLost) -> Failure:
    return Failure(Exit.UNKNOWN, f"lost the system bus: {error}")


def _unwrapped(value: Any) -> Any:
    if isinstance(value, _VARIANT):
        return _unwrapped(value.value)
    if isinstance(value, dict):
        return {key: _unwrapped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unwrapped(item) for item in value]
    return value
