"""Tells a signal of the real owner of a bus name from one that anybody sent."""

from collections.abc import Callable

from dbus_next.constants import MessageType
from dbus_next.message import Message

from migd.bus.connection import BUS, BUS_PATH, Connection, RemoteError
from migd.bus.incoming import Incoming


class NameOwner:
    """Who owns a bus name just now. Anybody may send us a signal that looks like the owner's."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._unique = ""
        self._changes = 0
        self._moved: Callable[[], None] | None = None

    @property
    def known(self) -> bool:
        """Whether somebody owns the name, as far as follow() has learned."""
        return bool(self._unique)

    async def follow(self, moved: Callable[[], None] | None = None) -> None:
        """Learn the owner, and each later one until the connection ends.

        moved: called after each change
        """
        self._moved = moved
        self._connection.add_handler(
            self._on_message, lambda arrived: changing(arrived) == self._name
        )
        try:
            await self._learn()
        except BaseException:
            self._connection.remove_handler(self._on_message)
            raise

    async def _learn(self) -> None:
        await self._connection.match(
            f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',"
            f"arg0='{self._name}'"
        )
        # A change that comes with the reply may be newer than the reply: ask again then.
        while True:
            changes = self._changes
            owner = await self._ask()
            if changes == self._changes:
                self._unique = owner
                return

    async def _ask(self) -> str:
        try:
            (owner,) = await self._connection.call(
                BUS, BUS_PATH, BUS, "GetNameOwner", "s", [self._name]
            )
        except RemoteError as error:
            if error.name != f"{BUS}.Error.NameHasNoOwner":
                raise
            return ""
        return str(owner)

    def sent(self, message: Message | Incoming) -> bool:
        return bool(self._unique) and message.sender == self._unique

    def _on_message(self, message: Message) -> bool:
        changed = owner_change(message)
        if changed and changed[0] == self._name:
            self._unique = changed[1]
            self._changes += 1
            if self._moved:
                self._moved()
        return False


def changing(arrived: Incoming) -> str:
    """The name that changed hands, if a message says so: "" if not, or if others made it up."""
    if arrived.sender != BUS or arrived.member != "NameOwnerChanged":
        return ""
    return arrived.text


def owner_change(message: Message) -> tuple[str, str] | None:
    """(name, new owner or "") if the bus itself says that a name changed hands."""
    if (message.sender, message.interface, message.member) != (BUS, BUS, "NameOwnerChanged"):
        return None
    if message.message_type is not MessageType.SIGNAL or message.signature != "sss":
        return None
    name, _, new = message.body
    return name, new
