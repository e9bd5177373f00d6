"""Puts back, once a boot, what each GPU should have; migd-boot.service asks for it.

No other start of the daemon changes a GPU. It is all that can be had: a GPU that somebody uses, or
that cannot have what is wanted, is told of and left, and the others get theirs.
"""

import asyncio
import contextlib
import logging
from pathlib import Path

from migd.core.asked import Asked
from migd.core.ends import missing
from migd.core.job import Ending, PastJob
from migd.core.model import Mode
from migd.core.putback import Return
from migd.errors import Busy, Hung, MigdError, NoDriver, NotPutBack
from migd.host import files, trusted
from migd.host.log import Event, fields
from migd.host.pci import has_nvidia_gpu
from migd.service.service import Service

log = logging.getLogger(__name__)

# How often the driver is asked whether it is there.
_PAUSE_S = 0.5
# How long a job that is late may take to put back what it has not finished.
_BACK_S = 20.0
_MARK_LIMIT = 4096


class PutBack:
    """marker: a file that lasts until the next boot, and says what was done in this one."""

    def __init__(self, service: Service, marker: Path) -> None:
        self._service = service
        self._marker = marker
        self._one = asyncio.Lock()
        self._waits = ""
        self.tried = False

    @property
    def running(self) -> bool:
        """Whether it is being done; `tried` says whether it was, well or not, by this daemon."""
        return self._one.locked()

    @property
    def over(self) -> bool:
        """Whether it has been done in this boot, or was not due."""
        return self._marker.exists()

    async def run(self, asked: Asked) -> str:
        """Do it, if it is still to be done in this boot; what came of it, in a sentence.

        Raises NotPutBack, when it can be asked for again.
        """
        async with self._one:
            if self.over:
                return self._told()
            try:
                told = await self._bounded(asked, self._service.settings.limits["boot"])
            except NotPutBack as error:
                log.error("%s", error, extra=fields(Event.NOT_PUT_BACK))
                raise
            except MigdError as error:
                log.error("%s", error, extra=fields(Event.NOT_PUT_BACK))
                raise NotPutBack(str(error)) from error
            finally:
                self.tried = True
            log.info("%s", told, extra=fields(Event.PUT_BACK))
            self._mark(told)
            return told

    def _told(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            text = (trusted.read(self._marker, _MARK_LIMIT) or b"").decode()
            return f"nothing is done again in this boot: {text.strip()}"
        return "nothing is done again in this boot"

    def _mark(self, told: str) -> None:
        try:
            files.replace(self._marker, told.encode()[:_MARK_LIMIT])
        except OSError as error:
            log.error("%s cannot be written, ignoring: %s", self._marker, error)

    async def _bounded(self, asked: Asked, limit_s: int) -> str:
        work = asyncio.create_task(self._work(asked))
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.shield(work)
        except TimeoutError:
            if job := self._service.jobs.current:
                with contextlib.suppress(MigdError):
                    job.cancel()
                await asyncio.wait({work}, timeout=_BACK_S)
            raise NotPutBack(
                f"it was not over after {limit_s} s, while waiting for {self._waits}; "
                "`time-limits: {boot: ...}` in migd.yaml can give it longer"
            ) from None
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self, asked: Asked) -> str:
        service = self._service
        if lost := service.unreadable:
            raise NotPutBack(lost)
        if not service.wishes:
            return "nothing is wanted of the GPUs of this host"
        self._waits = "the driver"
        if none := await self._no_driver():
            return none
        if all(gpu.mode is Mode.UNSUPPORTED for gpu in service.view.gpus):
            return "no GPU of this host has MIG"
        number, back = await self._begin(asked)
        self._waits = f"job {number}"
        past = await service.jobs.wait(number)
        return _verdict(past, back.instead, back.refused)

    async def _begin(self, asked: Asked) -> tuple[int, Return]:
        """Start the job, once no other runs."""
        while True:
            self._waits = "another job"
            await self._service.jobs.idle()
            try:
                return await self._service.put_back(asked)
            except Busy:
                await asyncio.sleep(_PAUSE_S)

    async def _no_driver(self) -> str:
        """Wait until NVML answers; why it never will, if so. Raises Hung, Nvml, NoDriver."""
        while True:
            try:
                view = await self._service.look()
            except NoDriver as error:
                if not has_nvidia_gpu():
                    return "there is no NVIDIA GPU in this host"
                if not error.installed:
                    return f"{error}, so nothing can be put back"
                self._waits = f"the driver ({error})"
            except Hung as error:
                # A worker of a daemon that was killed may be in a call yet.
                self._waits = str(error)
            else:
                if view.gpus or view.unseen or not has_nvidia_gpu():
                    return ""
                self._waits = "the driver, which shows no GPU yet, while the host has some"
            await asyncio.sleep(_PAUSE_S)


def _verdict(past: PastJob, instead: tuple[str, ...], refused: tuple[str, ...]) -> str:
    """What came of it all. Raises NotPutBack where a GPU has not what it should have."""
    changed = sum(o.ending is Ending.DONE for o in past.outcomes)
    same = sum(o.ending is Ending.UNCHANGED for o in past.outcomes)
    counts = [f"{changed} GPUs changed"] if changed else []
    counts += [f"{same} as they should be"] if same else []
    told = [f"put back {past.choice.label}: {', '.join(counts) or 'no GPU'} (job {past.id})"]
    notes = [f"GPU {o.index}: {o.message}" for o in past.outcomes if o.message]
    notes += [*missing(past.clients), *past.after.failed]
    told += [*notes, *instead, *refused]
    if refused or not past.wanted:
        raise NotPutBack("not all of it: " + "; ".join(told))
    return "; ".join(told)
