"""Processes that are ended for good: each by its pidfd, SIGTERM first, and told truthfully."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence

from migd.core.clients import End
from migd.core.holders import Holder
from migd.core.job import Signaling
from migd.errors import ClientStuck
from migd.host.processes import descendants, describe, stat
from migd.host.signals import Target
from migd.host.threads import in_thread

log = logging.getLogger(__name__)

# How long the kernel may take to remove a process after SIGKILL.
_KILL_S = 10.0
_FAMILY_S = 20.0


class Ending:
    """note: called with a record before a process is signaled; waits: with what is waited for."""

    def __init__(
        self,
        note: Callable[[Signaling], Awaitable[None]],
        waits: Callable[[str], None],
        forbidden: Callable[[str], str],
    ) -> None:
        """forbidden: as in core.clients.Rules, for descendants."""
        self._note = note
        self._waits = waits
        self._forbidden = forbidden

    async def end(self, ends: Sequence[End]) -> None:
        """End these side by side.

        Raises ClientStuck for the first that cannot be, when all have been tried, and
        StateUnwritable.
        """
        await _all([self._end(end) for end in ends])

    async def _end(self, end: End) -> None:
        holder = end.client.holder
        target = _target(holder)
        if target is None:
            return
        with target:
            family = await self._family(holder) if end.tree else []
            for one in (holder, *family):
                await self._note(Signaling(one.pid, one.started, one.unit, str(one)))
            await _all([self._signal(target, holder, end), *(self._child(c, end) for c in family)])

    async def _family(self, holder: Holder) -> list[Holder]:
        """Its descendants, but for those that must never be ended."""
        try:
            found = await in_thread(lambda: describe(descendants(holder.pid)), _FAMILY_S)
        except TimeoutError:
            raise ClientStuck(
                f"the descendants of {holder} could not be looked at in time"
            ) from None
        # The pid is that of the target as long as that lives; later it could be anybody's.
        now = stat(holder.pid)
        if now is None or now.started != holder.started:
            return []
        return [
            child
            for child in found.values()
            if child.started and not child.container and not self._forbidden(child.unit)
        ]

    async def _child(self, holder: Holder, end: End) -> None:
        if target := _target(holder):
            with target:
                await self._signal(target, holder, end)

    async def _signal(self, target: Target, holder: Holder, end: End) -> None:
        log.info("ending %s", holder)
        self._waits(f"{holder} to end")
        target.send(signal.SIGTERM)
        if await target.gone(end.grace_s):
            return
        if not end.kill:
            raise ClientStuck(
                f"{holder} did not end within {end.grace_s} s after SIGTERM; end it by hand, or "
                "allow kill: true for it in clients.yaml"
            )
        log.warning("%s did not end within %d s; killing it", holder, end.grace_s)
        target.send(signal.SIGKILL)
        if not await target.gone(_KILL_S):
            raise ClientStuck(f"{holder} did not end even after SIGKILL: the kernel keeps it")


def lives(record: Signaling) -> bool:
    """Whether a process that was to end is still there."""
    now = stat(record.pid)
    return now is not None and now.started == record.started and now.state != "Z"


def _target(holder: Holder) -> Target | None:
    """None if it is gone."""
    try:
        return Target(holder)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise ClientStuck(f"{holder} cannot be signaled: {error.strerror}") from error


async def _all(tries: Iterable[Awaitable[None]]) -> None:
    """Raises the first error, when all have come to their end."""
    for result in await asyncio.gather(*tries, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
