"""What happens when files have changed: they are read, and if migd.yaml says so, applied."""

import asyncio
import logging

from migd.config.settings import OnChange
from migd.errors import Busy, ConfigRefused
from migd.service.bring import bring
from migd.service.service import Service

log = logging.getLogger(__name__)

# Others who start jobs come first, but not for ever.
_TRIES = 100


class Follower:
    """One at work at a time; a change meanwhile makes it begin again. For one event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._begun = False

    def begin(self) -> None:
        """Apply changes from now on, and those before: once a job cut short is taken up again."""
        self._begun = True
        if self._again:
            self._task = asyncio.create_task(self._follow())

    def changed(self) -> None:
        """Files may have changed. Where one is refused, nothing is applied."""
        try:
            self._service.reload()
        except ConfigRefused as error:
            log.error("a changed file is refused, and the one before stays in force: %s", error)
            return
        log.info("files have changed; does the node match: %s", self._service.match)
        if self._service.settings.on_change is OnChange.APPLY:
            self._again = True
            if self._begun and (self._task is None or self._task.done()):
                self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        for left in reversed(range(_TRIES)):
            await self._service.jobs.idle()
            if not self._again or self._service.settings.on_change is not OnChange.APPLY:
                return
            self._again = False
            try:
                refused = [str(b) for b in await bring(self._service) if b.refused]
            except Busy as error:
                if left:
                    self._again = True  # and then anew, since that job may change what is wanted
                    continue
                refused = [str(error)]
            for sentence in refused:
                log.error("files have changed, but the node could not follow: %s", sentence)
            self._service.could_not(refused)
