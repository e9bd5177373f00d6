"""After a change and before clients come back: device nodes of instances, and then CDI.

Clients start into what these say. Whatever fails here is told and undoes nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from migd.core.job import Aftermath, Phase
from migd.core.model import Gpu
from migd.core.nodes import capability_files, empty
from migd.errors import MigdError
from migd.host.capabilities import Capabilities
from migd.host.cdi import Cdi
from migd.host.units import Units

log = logging.getLogger(__name__)

# How long it may still take once migd itself is being stopped.
_HURRY_S = 5.0

T = TypeVar("T")
Look = Callable[[], Awaitable[Sequence[Gpu]]]


class Progress(Protocol):
    """What it tells the job, and asks of it."""

    def common(self, phase: Phase | None, waits: str = "") -> None: ...
    @property
    def hurrying(self) -> asyncio.Event: ...


class After:
    """All methods are for one event loop."""

    def __init__(
        self, units: Units, capabilities: Capabilities, cdi: Cdi, cdi_output: Callable[[], str]
    ) -> None:
        """cdi_output: where nvidia-ctk is to write, as migd.yaml says now; "" for nowhere."""
        self._units = units
        self._capabilities = capabilities
        self._cdi = cdi
        self._cdi_output = cdi_output

    async def run(self, job: Progress, look: Look) -> Aftermath:
        """Do what is due; what came of it. Never raises.

        look: gives all GPUs, as they are now
        """
        work = _Work(self, job, look)
        job.common(Phase.NODES)
        task = asyncio.create_task(work.all())
        hurrying = asyncio.create_task(job.hurrying.wait())
        try:
            await asyncio.wait({task, hurrying}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({task}, timeout=_HURRY_S)
            if not task.done():
                work.failed.append(f"migd was stopped while it waited for {work.waits_for}")
        finally:
            for one in (task, hurrying):
                one.cancel()
            await asyncio.gather(task, hurrying, return_exceptions=True)
        for sentence in work.done:
            log.info("%s", sentence)
        for sentence in work.failed:
            log.error("%s", sentence)
        return Aftermath(tuple(work.done), tuple(work.failed))

    async def gpus(self, look: Look) -> Sequence[Gpu] | None:
        """None where nothing could be run, or the system goes down. Raises NoSystemd, and more."""
        if not await self._units.available() or await self._units.system_state() == "stopping":
            return None
        return await look()

    async def nodes(self, gpus: Sequence[Gpu], work: "_Work") -> None:
        """Raises NoSystemd."""
        made = await self._capabilities.make(capability_files(gpus), work.waits)
        if made.made:
            work.done.append(f"device nodes of MIG instances made: {made.made}")
        if made.failed:
            work.failed.append(made.failed)

    async def cdi(self, gpus: Sequence[Gpu], work: "_Work") -> None:
        """Raises NoSystemd."""
        output = self._cdi_output()
        refreshes = await self._cdi.refreshes()
        if not refreshes and not output:
            return
        if without := empty(gpus):
            which = ", ".join(str(g.index) for g in without)
            work.done.append(
                f"CDI is as before: GPU {which} has MIG mode enabled and no instance, with which "
                "nvidia-ctk fails"
            )
            return
        work.waits("CDI's specification to be written")
        told = await (self._cdi.refresh() if refreshes else self._cdi.generate(output))
        (work.failed if told.failed else work.done).append(told.text)


class _Work:
    def __init__(self, after: After, job: Progress, look: Look) -> None:
        self._after = after
        self._job = job
        self._look = look
        self.waits_for = "systemd"
        self.done: list[str] = []
        self.failed: list[str] = []

    def waits(self, what: str) -> None:
        self.waits_for = what
        self._job.common(Phase.NODES, what)

    async def all(self) -> None:
        """Nodes first: a specification made without them lacks them (mig-parted#82).

        It is made without them all the same: the one before names what is no longer there.
        """
        gpus = await self._try("device nodes and CDI", self._after.gpus(self._look))
        if gpus is not None:
            await self._try("device nodes", self._after.nodes(gpus, self))
            await self._try("CDI", self._after.cdi(gpus, self))

    async def _try(self, what: str, part: Awaitable[T]) -> T | None:
        try:
            return await part
        except MigdError as error:
            self.failed.append(f"{what}: {error}")
        except Exception:
            log.exception("%s: defect in migd", what)
            self.failed.append(f"{what}: a defect in migd; the log has more")
        return None
