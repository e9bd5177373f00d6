"""A stand-in for polkit on a private bus: it answers as a test tells it. And callers of any uid."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dbus_next.constants import MessageType
from dbus_next.message import Message

from migd.bus.connection import Connection, connect
from migd.bus.polkit import INTERFACE, NAME
from tests.support.bus import plain

NOBODY = 65534


@dataclass(frozen=True)
class Question:
    message: Message
    name: str
    action: str
    details: dict[str, str]
    interactive: bool
    number: str


# The reply to a question; None: none, for now.
Answers = Callable[[Question], Message | None]


class Polkit:
    """Owns polkit's name. asked: every question; withdrawn: the numbers of those called off."""

    def __init__(self, connection: Connection, answers: Answers) -> None:
        self.connection = connection
        self.answers = answers
        self.asked: list[Question] = []
        self.withdrawn: list[str] = []
        self._heard = asyncio.Event()
        connection.add_handler(self._hear)

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._heard.clear()
            await self._heard.wait()

    def questions(self, *, interactive: bool) -> list[Question]:
        return [q for q in self.asked if q.interactive == interactive]

    def _hear(self, message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL or message.interface != INTERFACE:
            return False
        if message.member == "CancelCheckAuthorization":
            self.withdrawn.append(message.body[0])
        else:
            (kind, subject), action, details, flags, number = plain(message.body)
            assert kind == "system-bus-name"
            question = Question(message, subject["name"], action, details, flags == 1, number)
            self.asked.append(question)
            if reply := self.answers(question):
                self.connection.send(reply)
        self._heard.set()
        return True


def says(
    question: Question, *, authorized: bool = False, challenge: bool = False, **details: str
) -> Message:
    told = {name.replace("_", "."): text for name, text in details.items()}
    body = [[authorized, challenge, told]]
    return Message.new_method_return(question.message, "(bba{ss})", body)


def yes(question: Question) -> Message:
    return says(question, authorized=True)


def no(question: Question) -> Message:
    return says(question)


def challenge(question: Question) -> Message:
    return says(question, challenge=True)


def nothing(_: Question) -> None:
    return None


def with_a_person(person: Answers) -> Answers:
    """A challenge for everything, and `person` where that may be asked."""
    return lambda question: (person if question.interactive else challenge)(question)


@asynccontextmanager
async def polkit(address: str, answers: Answers) -> AsyncIterator[Polkit]:
    async with connected(address) as connection:
        stand_in = Polkit(connection, answers)
        await connection.request_name(NAME)
        yield stand_in


@asynccontextmanager
async def connected(address: str, uid: int = 0) -> AsyncIterator[Connection]:
    """A connection of a user; the bus knows callers by who connects. Others than root need root."""
    before = os.getresuid()
    if uid:
        os.setresuid(uid, uid, before[2])
    try:
        connection = await connect(address, timeout_s=10)
    finally:
        os.setresuid(*before)
    try:
        yield connection
    finally:
        connection.close()
