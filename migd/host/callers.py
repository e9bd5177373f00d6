"""Who a caller is by name: user, unit, session. It is for records, so nothing waits long for it."""

import asyncio
import pwd
import threading
from dataclasses import replace

from migd.core.asked import Caller
from migd.host.processes import own_container, owner
from migd.host.threads import in_thread
from migd.printable import printable

_LIMIT_S = 2.0
_AT_ONCE = 4


class Callers:
    """For one event loop."""

    def __init__(self) -> None:
        self._stuck: threading.Event | None = None
        self._few = asyncio.Semaphore(_AT_ONCE)

    async def described(self, caller: Caller) -> Caller:
        """With all that can be found out quickly.

        A user's name may come from a directory service. As long as that does not answer, nobody
        is looked up any more: each would be a thread for ever.
        """
        async with self._few:
            if self._stuck and not self._stuck.is_set():
                return caller
            return await self._looked_up(caller)

    async def _looked_up(self, caller: Caller) -> Caller:
        ended = threading.Event()

        def look() -> Caller:
            try:
                return _described(caller)
            finally:
                ended.set()

        try:
            return await in_thread(look, _LIMIT_S)
        except TimeoutError:
            self._stuck = ended
            return caller


def _described(caller: Caller) -> Caller:
    try:
        user = pwd.getpwuid(caller.uid).pw_name
    except (KeyError, OverflowError):
        user = ""
    if not caller.pid:
        return replace(caller, user=printable(user))
    of = owner(caller.pid, own_container())
    return replace(
        caller,
        user=printable(user),
        unit=printable(of.user_unit or of.unit or of.container),
        session=printable(of.session),
    )
