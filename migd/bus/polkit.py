"""polkit, as service.permit.Judge: asked about one action at a time, and each question ends."""

import asyncio
import itertools
from collections.abc import Mapping

from dbus_next.constants import MessageFlag
from dbus_next.message import Message
from dbus_next.signature import Variant

from migd.bus.connection import BUS, BUS_PATH, BusError, CallTimeout, Connection, RemoteError
from migd.service.permit import NoVerdict, Verdict

NAME = "org.freedesktop.PolicyKit1"
PATH = "/org/freedesktop/PolicyKit1/Authority"
INTERFACE = f"{NAME}.Authority"

_ALLOW_INTERACTION = 1
_NO_OWNER = f"{BUS}.Error.NameHasNoOwner"


class Polkit:
    """For one connection: questions are known by numbers, which are its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)

    async def check(
        self,
        name: str,
        action: str,
        details: Mapping[str, str],
        *,
        interactive: bool,
        limit_s: float,
    ) -> Verdict:
        """See Judge."""
        question = f"migd-{next(self._numbers)}"
        owner = ""
        try:
            async with asyncio.timeout(max(limit_s, 0)):
                owner = await self._owner()
                reply = await self._ask(owner, name, action, details, question, interactive)
        except (TimeoutError, CallTimeout) as error:
            self._withdraw(owner, question)
            raise NoVerdict("polkit does not answer", late=True) from error
        except asyncio.CancelledError:
            # Whoever called has left: nobody is to type a password for that.
            self._withdraw(owner, question)
            raise
        except RemoteError as error:
            raise NoVerdict(f"polkit cannot be asked ({error.name}: {error.message})") from error
        except BusError as error:
            raise NoVerdict(f"polkit cannot be asked ({error})") from error
        return _verdict(reply)

    async def _owner(self) -> str:
        """The unique name of polkit, which is started where it does not run.

        Asked by that name, nobody can answer who takes over the other meanwhile.
        """
        try:
            (owner,) = await self._of_bus("GetNameOwner", "s", NAME)
        except RemoteError as error:
            if error.name != _NO_OWNER:
                raise
            await self._of_bus("StartServiceByName", "su", NAME, 0)
            (owner,) = await self._of_bus("GetNameOwner", "s", NAME)
        return str(owner)

    async def _of_bus(self, member: str, signature: str, *body: object) -> list[object]:
        return await self._connection.call(BUS, BUS_PATH, BUS, member, signature, body)

    async def _ask(
        self,
        owner: str,
        name: str,
        action: str,
        details: Mapping[str, str],
        question: str,
        interactive: bool,  # noqa: FBT001
    ) -> Message:
        subject = ["system-bus-name", {"name": Variant("s", name)}]
        flags = _ALLOW_INTERACTION if interactive else 0
        body = [subject, action, dict(details), flags, question]
        return await self._connection.exchange(
            _message(owner, "CheckAuthorization", "(sa{sv})sa{ss}us", body), timeout_s=3600
        )

    def _withdraw(self, owner: str, question: str) -> None:
        if owner:
            message = _message(owner, "CancelCheckAuthorization", "s", [question])
            message.flags = MessageFlag.NO_REPLY_EXPECTED | MessageFlag.NO_AUTOSTART
            self._connection.send(message)


def _message(owner: str, member: str, signature: str, body: list[object]) -> Message:
    return Message(
        destination=owner,
        path=PATH,
        interface=INTERFACE,
        member=member,
        signature=signature,
        body=body,
    )


def _verdict(reply: Message) -> Verdict:
    """What a reply means. Raises NoVerdict."""
    if reply.signature != "(bba{ss})":
        raise NoVerdict(f"polkit has answered with {reply.signature!r}, which is no answer of its")
    authorized, challenge, details = reply.body[0]
    if authorized:
        return Verdict.YES
    if details.get("polkit.dismissed"):
        return Verdict.DISMISSED
    return Verdict.CHALLENGE if challenge else Verdict.NO
