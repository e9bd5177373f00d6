"""What happens when files have changed: they are read, and if migd.yaml says so, applied."""

import asyncio
import logging
from collections import defaultdict

from migd.config.settings import OnChange
from migd.core.job import Choice
from migd.core.wanted import ITSELF
from migd.errors import Busy, ConfigRefused, MigdError
from migd.service.request import Request
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
                refused = await self._bring()
            except Busy as error:
                if left:
                    self._again = True  # and then anew, since that job may change what is wanted
                    continue
                refused = [str(error)]
            for sentence in refused:
                log.error("files have changed, but the node could not follow: %s", sentence)
            self._service.could_not(refused)

    async def _bring(self) -> list[str]:
        """Make the node what is wanted of it now; what is refused, in sentences. Raises Busy."""
        try:
            await self._service.look()
        except MigdError as error:
            return [str(error)]
        refused = []
        for choice, gpus in self._by_choice():
            request = Request(choice.config, choice.text, tuple(gpus), choice.mode_only)
            try:
                await self._make(request)
            except Busy:
                raise
            except MigdError as error:
                refused.append(f"{choice.label}: {error}")
        return refused

    def _by_choice(self) -> list[tuple[Choice, list[str]]]:
        """What is wanted of the GPUs that are there, each thing once."""
        there = {gpu.uuid for gpu in self._service.view.gpus}
        found: defaultdict[Choice, list[str]] = defaultdict(list)
        for uuid, choice in self._service.wanted.items():
            if uuid in there:
                same = next((known for known in found if known.same(choice)), choice)
                found[same].append(uuid)
        return list(found.items())

    async def _make(self, request: Request) -> None:
        planned = await self._service.plan(request)
        if any(gpu.steps for gpu in planned.plan.gpus):
            # A job that is begun is begun to the end, even if we are stopped meanwhile.
            number = await asyncio.shield(self._service.apply(request, ITSELF))
            await self._service.jobs.wait(number)
