"""logind: who is logged in, what keeps a shutdown away, and a reboot at a set time."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from migd.errors import NoSystemd
from migd.host.bus import Bus, NoAnswer, Refused

_NAME = "org.freedesktop.login1"
_PATH = "/org/freedesktop/login1"
_MANAGER = f"{_NAME}.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_LIMIT_S = 20.0
_REBOOT = "reboot"
_NO_OBJECT = "org.freedesktop.DBus.Error.UnknownObject"
# Sessions of people; not greeters, lock screens and the managers of users' units.
_PEOPLE = "user"


@dataclass(frozen=True)
class Inhibitor:
    """Who keeps a shutdown away, and why; in words."""

    who: str
    why: str
    pid: int


@dataclass(frozen=True)
class Session:
    """A login session; id: as loginctl shows it."""

    id: str
    user: str


class Logind:
    """Everything raises NoSystemd where logind does not answer, or refuses."""

    def __init__(self, bus: Bus) -> None:
        self._peer = bus.peer(_NAME)

    async def inhibitors(self) -> tuple[Inhibitor, ...]:
        """Those that block a shutdown; who only wants to delay one is asked by logind itself."""
        (rows,) = await self._call("ListInhibitors")
        return tuple(
            Inhibitor(who, why, pid)
            for what, who, why, mode, _, pid in rows
            if "shutdown" in what.split(":") and mode.startswith("block")
        )

    async def sessions(self) -> tuple[Session, ...]:
        """Login sessions of people."""
        (rows,) = await self._call("ListSessions")
        found = []
        for ident, _, user, _, path in rows:
            if await self._class(path) == _PEOPLE:
                found.append(Session(ident, user))
        return tuple(found)

    async def _class(self, path: str) -> str:
        """Of a session; "" if it has ended meanwhile."""
        try:
            kind = await self._get(f"{_NAME}.Session", "Class", path)
        except NoSystemd as error:
            refused = error.__cause__
            if isinstance(refused, Refused) and refused.name == _NO_OBJECT:
                return ""
            raise
        return str(kind)

    async def scheduled(self) -> str:
        """What shutdown is to come at a set time: reboot, poweroff and so on; "" for none."""
        kind, _ = await self._get(_MANAGER, "ScheduledShutdown", _PATH)
        return str(kind)

    async def session_of(self, pid: int) -> str:
        """The session that a process is in; "" for none."""
        try:
            (path,) = await self._call("GetSessionByPID", "u", [pid])
            return str(await self._get(f"{_NAME}.Session", "Id", path))
        except NoSystemd:
            return ""

    async def reboot_at(self, when: int, words: str) -> None:
        """Reboot the host, and tell everyone who is logged in; `shutdown -c` keeps it from that.

        when: microseconds since the epoch; words: for those who are told
        """
        await self._call("SetWallMessage", "sb", [words, True])
        try:
            await self._call("ScheduleShutdown", "st", [_REBOOT, when])
        except NoSystemd:
            if not await self._comes(when):
                raise

    async def _comes(self, when: int) -> bool:
        """Whether that reboot does, where nobody has said so.

        logind takes one call after the other: what it has not done by this answer it never will.
        Without one, the reboot that may come is taken back.
        """
        try:
            scheduled = await self._get(_MANAGER, "ScheduledShutdown", _PATH)
        except NoSystemd:
            with suppress(NoSystemd):
                await self._call("CancelScheduledShutdown")
            return False
        return bool(scheduled == [_REBOOT, when])

    async def _get(self, interface: str, name: str, path: str) -> Any:
        (value,) = await self._call(
            "Get", "ss", [interface, name], path=path, interface=_PROPERTIES
        )
        return value

    async def _call(
        self,
        member: str,
        signature: str = "",
        arguments: list[Any] | None = None,
        *,
        path: str = _PATH,
        interface: str = _MANAGER,
    ) -> list[Any]:
        try:
            return await self._peer.call(
                path, interface, member, signature, arguments or [], limit_s=_LIMIT_S
            )
        except (Refused, NoAnswer) as error:
            raise NoSystemd(f"logind: {member}: {error}") from error
