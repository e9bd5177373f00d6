"""Who is let in: what is in no table is denied. And who they are, which the bus vouches for."""

from migd.bus.connection import BUS, BUS_PATH, BusError, Connection
from migd.core.asked import Caller
from migd.core.permissions import TABLE
from migd.errors import AccessDenied
from migd.host.callers import Callers


class Bouncer:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._callers = Callers()

    async def check(self, interface: str, member: str) -> None:
        """What is free is done then; for the rest the service asks, once it knows what it would do.

        Raises AccessDenied.
        """
        if (interface, member) not in TABLE:
            raise AccessDenied(f"{member} is in no list of what may be called")

    async def caller(self, sender: str) -> Caller:
        """sender: a unique name. Raises AccessDenied."""
        try:
            (told,) = await self._connection.call(
                BUS, BUS_PATH, BUS, "GetConnectionCredentials", "s", [sender]
            )
        except BusError as error:
            raise AccessDenied(f"the bus does not say who you are: {error}") from error
        if "UnixUserID" not in told:
            raise AccessDenied("the bus does not say who you are")
        pid = int(told["ProcessID"].value) if "ProcessID" in told else 0
        return await self._callers.described(Caller(int(told["UnixUserID"].value), sender, pid))
