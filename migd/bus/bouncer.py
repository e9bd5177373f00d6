"""Who may call what: deny unless listed. Reading is free; changing is for root."""

import os
from collections.abc import Awaitable, Callable

from migd import names
from migd.errors import AccessDenied

FREE = ""
# Every method with the action it needs. The actions are those that polkit will ask about; until
# it does, each means uid 0, or the uid of the daemon, which on a private bus need not be root.
ACTIONS = {
    (names.MANAGER, "Plan"): FREE,
    (names.MANAGER, "Apply"): "org.migd1.apply",
    (names.MANAGER, "Stage"): "org.migd1.stage",
    (names.MANAGER, "PutBack"): "org.migd1.apply",
    (names.MANAGER, "WaitJob"): FREE,
    (names.MANAGER, "ListJobs"): FREE,
    (names.MANAGER, "Assert"): FREE,
    (names.MANAGER, "Export"): FREE,
    (names.MANAGER, "ListClients"): FREE,
    (names.MANAGER, "GetConfig"): FREE,
    (names.MANAGER, "GetGpu"): FREE,
    (names.MANAGER, "Reload"): "org.migd1.reload",
    (names.JOB, "Cancel"): "org.migd1.apply",
}


class Bouncer:
    """Knows callers by their uid, which the bus vouches for."""

    def __init__(self, uid_of: Callable[[str], Awaitable[int]]) -> None:
        """uid_of: the uid of a connection, by its unique name."""
        self.uid_of = uid_of

    async def check(self, sender: str, interface: str, member: str) -> None:
        """Raises AccessDenied."""
        action = ACTIONS.get((interface, member))
        if action is None:
            raise AccessDenied(f"{member} is in no list of what may be called")
        if action == FREE:
            return
        uid = await self.uid_of(sender)
        if uid not in (0, os.geteuid()):
            raise AccessDenied(f"{member} needs root (action {action}); you are uid {uid}")
