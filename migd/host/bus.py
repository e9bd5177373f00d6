"""What this package needs of a message bus, in plain values; migd.bus.remote has it.

Arguments are what the signature says; a variant is given as (signature, value). In replies and
signals a variant is its value, and a structure a list.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class BusTrouble(Exception):
    """A program on the bus did not do what it was asked for; see the two kinds."""


class Refused(BusTrouble):
    """It answered with an error: `name` is the error's on the bus, `message` its text."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message or name)
        self.name = name
        self.message = message


class NoAnswer(BusTrouble):
    """Nobody has the name, or it did not answer in time, or the bus is gone.

    Whether what was asked for is done is not known.
    """


@dataclass(frozen=True)
class Signal:
    path: str
    interface: str
    member: str
    values: tuple[Any, ...]


class Peer(Protocol):
    """A program on the bus, by its well-known name, whoever owns that at the time."""

    @property
    def present(self) -> bool:
        """Whether somebody owns the name now; known once follow() has returned."""

    async def follow(
        self, interface: str, heard: Callable[[Signal], None], moved: Callable[[], None]
    ) -> None:
        """Hear the signals of one interface from now on, those of the name's real owner only.

        moved: called when the name has got or lost its owner
        Raises NoAnswer. To be called once; a call that failed can be repeated.
        """

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
        """Call a method and give the values of its reply.

        Never makes the bus start the program. Raises Refused, and NoAnswer after limit_s seconds
        or as soon as it is known.
        """

    async def gone(self) -> None:
        """Wait for the end of the connection, after which nothing will be heard or answered."""


class Bus(Protocol):
    def peer(self, name: str) -> Peer: ...
