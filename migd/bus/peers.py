"""Who is behind the unique names that call: learned from the bus, once for each connection."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from dbus_next.message import Message

from migd.bus.connection import BUS, BUS_PATH, BusError, Connection
from migd.bus.incoming import Incoming
from migd.bus.owner import changing, owner_change
from migd.bus.quota import OTHERS, User

log = logging.getLogger(__name__)

# Connections that have called: more than a system bus has (2,048).
MAX_PEERS = 4_096

# Calls are held until the bus has said whose they are, some ms: so many of a connection (the bus
# itself allows 128 that want an answer), and of all.
MAX_HELD = 1_024
MAX_HELD_OF_ALL = 8_192
MAX_HELD_BYTES = 16 * 2**20

# Questions to the bus at a time.
_LOOKUPS = 16


@dataclass
class Peer:
    """A connection; uid is None until it is known.

    unread: bytes of answers that it may not have read yet, which `user` is charged with
    """

    sender: str
    uid: int | None = None
    held: list[Incoming] = field(default_factory=list)
    user: User[Incoming] | None = None
    unread: int = 0

    def owes(self, unread: int) -> None:
        if self.user:
            self.user.unread += unread - self.unread
            self.unread = unread


class Peers:
    def __init__(
        self,
        connection: Connection,
        known: Callable[[Peer, list[Incoming]], None],
        left: Callable[[str], None],
    ) -> None:
        """known: told once that a peer's uid is known, with the calls that were held for it.

        left: told the unique name of each peer that has left the bus
        """
        self._connection = connection
        self._known = known
        self._left = left
        self._peers: dict[str, Peer] = {}
        self._held = 0
        self._held_bytes = 0
        self._asking = asyncio.Semaphore(_LOOKUPS)
        self._lookups: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self._connection.match(
            f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg2=''"
        )
        self._connection.add_handler(self._gone, lambda arrived: changing(arrived) in self._peers)

    def __contains__(self, sender: str) -> bool:
        return sender in self._peers

    def find(self, sender: str) -> Peer:
        """Who that is; if it has not called before, the bus is asked."""
        peer = self._peers.get(sender)
        if peer is None:
            if len(self._peers) >= MAX_PEERS:
                return Peer(sender, OTHERS)
            peer = self._peers[sender] = Peer(sender)
            task = asyncio.get_running_loop().create_task(self._learn(peer))
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)
        return peer

    def of(self, user: User[Incoming]) -> list[Peer]:
        """Those of a user that may not have read all."""
        return [c for c in self._peers.values() if c.user is user and c.unread]

    def hold(self, peer: Peer, call: Incoming) -> bool:
        """Keep a call until it is known whose it is; False if there are too many."""
        few = len(peer.held) < MAX_HELD and self._held < MAX_HELD_OF_ALL
        if not few or self._held_bytes + len(call.data) > MAX_HELD_BYTES:
            return False
        peer.held.append(call)
        self._held += 1
        self._held_bytes += len(call.data)
        return True

    async def unread(self, sender: str) -> int:
        """Bytes in the bus's queue for a connection; 0 where it does not say.

        dbus-broker does not; it has bounds of its own for them, a user each.
        """
        try:
            (found,) = await self._connection.call(
                BUS, BUS_PATH, f"{BUS}.Debug.Stats", "GetConnectionStats", "s", [sender]
            )
        except BusError as error:
            log.debug("the bus does not say what %s has not read: %s", sender, error)
            return 0
        return int(found["OutgoingBytes"].value) if "OutgoingBytes" in found else 0

    async def _learn(self, peer: Peer) -> None:
        async with self._asking:
            if self._peers.get(peer.sender) is not peer:
                return
            try:
                (uid,) = await self._connection.call(
                    BUS, BUS_PATH, BUS, "GetConnectionUnixUser", "s", [peer.sender]
                )
            except BusError as error:
                log.debug("the bus does not say who %s is: %s", peer.sender, error)
                text = f"the bus does not say who you are: {error}"
                for call in self._forget(peer.sender):
                    self._connection.refuse(call, "AccessDenied", text)
                return
        peer.uid = int(uid)
        self._known(peer, self._released(peer))

    def _gone(self, message: Message) -> bool:
        changed = owner_change(message)
        if changed is not None and not changed[1]:
            self._forget(changed[0])
            self._left(changed[0])
        return False

    def _forget(self, sender: str) -> list[Incoming]:
        """The calls that were held for it."""
        peer = self._peers.pop(sender, None)
        if peer is None:
            return []
        peer.owes(0)
        return self._released(peer)

    def _released(self, peer: Peer) -> list[Incoming]:
        held, peer.held = peer.held, []
        self._held -= len(held)
        self._held_bytes -= sum(len(c.data) for c in held)
        return held
