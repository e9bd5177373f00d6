"""Notices that something has happened to the driver or its GPUs, looks, and may put it right."""

import asyncio
import logging
from collections.abc import Callable

from migd.config.settings import OnDrift
from migd.core.patience import QUIET_S, ROUNDS, Patience
from migd.errors import Busy, MigdError
from migd.host.driver import Driver, driver
from migd.host.threads import in_thread
from migd.service.bring import Brought, bring
from migd.service.putback import PutBack
from migd.service.service import Service

log = logging.getLogger(__name__)

# Files of procfs tell nobody when they change, so they are looked at: how often, in seconds, and
# how often where there is neither a driver nor a GPU whose layout is settled.
_PAUSE_S, _SLOW_S = 3.0, 30.0
_READ_S = 10.0
# A look that failed is tried again, each time after twice as long.
_FIRST_RETRY_S, _LAST_RETRY_S = 3.0, 600.0


class Lookout:
    """For one event loop. Between jobs; what a job changes is looked at once more after it."""

    def __init__(
        self, service: Service, boot: PutBack, read: Callable[[], Driver] = driver
    ) -> None:
        self._service = service
        self._boot = boot
        self._read = read
        self._known: Driver | None = None
        self._task: asyncio.Task[None] | None = None
        self._patience = Patience()
        self._retry_s = _FIRST_RETRY_S
        self._retry_at = 0.0
        self._begun = 0.0
        self._reading = False

    async def note(self) -> None:
        """Take the driver as it is for known: to be called before the node is first looked at."""
        self._known = await self._seen()

    def begin(self) -> None:
        """Look from now on: once a job that was cut short is taken up again.

        What has drifted is told, and put right, once this boot's layout is back, or it was tried in
        vain; if nobody asks for that, after as long as it may take.
        """
        if self._boot.over:
            self._service.drift.begin()
        self._begun = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await self._service.jobs.idle()
            found = await self._seen()
            if found and not self._service.jobs.current:
                try:
                    await self.heed(found, asyncio.get_running_loop().time())
                except Exception:
                    log.exception("drift is not looked at this time: defect in migd")
            quiet = found and not found.loaded and not self._service.settled_layouts
            await asyncio.sleep(_SLOW_S if quiet else _PAUSE_S)

    async def _seen(self) -> Driver | None:
        """The driver from outside; None where that takes too long, as while it is suspended."""
        if self._reading:
            return None  # the look before hangs yet, and each takes a thread
        try:
            return await in_thread(self._one_read, _READ_S)
        except TimeoutError:
            return None

    def _one_read(self) -> Driver:
        self._reading = True
        try:
            return self._read()
        finally:
            self._reading = False

    async def heed(self, found: Driver, now: float) -> None:
        """One turn, with the driver as it is; now: seconds of a clock that only goes forward."""
        if found != self._known:
            self._known = found
            self._retry_s = _FIRST_RETRY_S
            self._patience.changed(now)
            await self._look(now)
        elif self._service.drift.blind and found.loaded and now >= self._retry_at:
            await self._look(now)
        late = now - self._begun >= self._service.settings.limits["boot"]
        if (self._boot.over or self._boot.tried or late) and not self._boot.running:
            self._service.drift.begin()
        if not self._service.drift.sentences:
            self._patience.over()
        elif self._boot.running:
            return
        elif self._service.settings.on_drift is OnDrift.REAPPLY:
            await self._put_right(now)
        else:
            self._service.drift.left({})

    async def _look(self, now: float) -> None:
        try:
            await self._service.look()
        except MigdError as error:
            log.warning("%s", error)
            self._retry_at = now + self._retry_s
            self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    async def _put_right(self, now: float) -> None:
        drift = self._service.drift
        gpus = drift.gpus
        if self._patience.fought(now):
            again = "it was put right {} times and changed again; it is tried anew once nothing"
            again += " has changed for {:g} minutes"
            drift.left(dict.fromkeys(gpus, again.format(ROUNDS, QUIET_S / 60)))
        elif gpus and self._patience.may(now):
            try:
                brought = await bring(self._service, gpus, settle=True)
            except Busy:
                return  # after that job, if there is still anything
            self._judge(gpus, brought, now)

    def _judge(self, gpus: frozenset[str], brought: list[Brought], now: float) -> None:
        """What came of it, for patience and for those who read."""
        drift = self._service.drift
        left = dict.fromkeys(gpus, "nothing is wanted of it")
        for one in brought:
            message = one.refused or (one.job.message if one.job else "")
            left.update(dict.fromkeys(one.gpus, message))
        still = gpus & drift.gpus
        if any(one.job and still & set(one.gpus) for one in brought):
            self._patience.failed(now)
        elif still:
            self._patience.refused(now)
        else:
            self._patience.put_right(now)
        drift.left({uuid: left[uuid] for uuid in still})
