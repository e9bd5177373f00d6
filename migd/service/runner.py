"""How one job goes, from its clients to its clients: carried out, or taken up after a crash."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from migd import names
from migd.core.clients import Clearing, Rules
from migd.core.ends import lost, waits_for_reboot
from migd.core.holders import Holder
from migd.core.hooks import HookOutcome, Moment, due_before
from migd.core.job import (
    NOTHING_AFTER,
    Aftermath,
    Before,
    Begun,
    ClientOutcome,
    Ending,
    Outcome,
    PastJob,
    Result,
    Unfinished,
    result_of,
)
from migd.core.model import Gpu, Impact
from migd.core.plan import GpuPlan, Plan
from migd.core.reboot import Asker
from migd.errors import Canceled, Hung, InUse, MigdError, NoSystemd, RebootOwed
from migd.host.reset import Smi
from migd.nvml.client import NvmlClient
from migd.service.after import After
from migd.service.clientrun import ClientRun
from migd.service.clients import Clients
from migd.service.hookrun import HookRun
from migd.service.hooks import Hooks
from migd.service.job import End, Job
from migd.service.journal import Journal
from migd.service.reboot import Reboot
from migd.service.resets import Resets

log = logging.getLogger(__name__)

# A call that a killed daemon's worker is in goes on to its end: as long as a step may take.
_LINGER_LIMIT_S = 200.0
_LINGER_PAUSE_S = 0.5
# Of those who hold a GPU that the driver says is in use.
_NAMED = 5
_IN_USE = "IN_USE"


class Node(Protocol):
    """What a job needs of the service around it."""

    @property
    def seen_gpus(self) -> Sequence[Gpu]: ...
    async def observe(self) -> Sequence[Gpu]: ...
    async def clearing(self, plan: Plan, by: Rules) -> Clearing: ...
    async def holders(self, gpu: str) -> Sequence[Holder]: ...
    def saw(self, gpu: Gpu) -> None: ...


@dataclass(frozen=True)
class Done:
    """What came of a job."""

    ends: tuple[End, ...]
    result: Result
    clients: tuple[ClientOutcome, ...]
    after: Aftermath
    hooks: tuple[HookOutcome, ...] = ()


class Runner:
    """All methods are for one event loop."""

    def __init__(
        self,
        node: Node,
        nvml: NvmlClient,
        clients: Clients,
        after: After,
        hooks: Hooks,
        journal: Journal,
        reboot: Reboot,
        smi: Smi,
    ) -> None:
        self._node = node
        self._nvml = nvml
        self._clients = clients
        self._after = after
        self._hooks = hooks
        self._journal = journal
        self._reboot = reboot
        self._smi = smi

    async def carry_out(
        self, job: Job, plan: Plan, clearing: Clearing, by: Rules, asker: Asker
    ) -> Done:
        """Do all of `plan`, with everything around it. Raises NoSystemd as bring_back() does."""
        run = ClientRun(self._clients, self._journal, job)
        hooks = self._hooks_of(job)
        try:
            await hooks.first(Moment.START)
            await run.clear(clearing, lambda: self._node.clearing(plan, by))
            for moment in due_before(plan):
                await hooks.first(moment)
            job.common(None)
            keep = self._reboot.possible(asker)
            resets = self._resets(job, plan.gpus)
            ends = await job.carry_out(
                plan.gpus, self._nvml, self._journal, resets, keep_pending=keep
            )
            ends = await self._reboot_for(job, ends, asker)
            ends = [(await self._naming_holders(outcome), found) for outcome, found in ends]
        except MigdError as error:
            log.warning("no GPU is touched: %s", error)
            ends = job.untouched(error)
        except Exception:
            log.exception("job %d: defect in migd", job.begun.id)
            ends = job.untouched(MigdError("a defect in migd; the log has the details"))
        after = await self._after_change(job, ends)
        clients = await run.bring_back()

        def result(hooks: Sequence[HookOutcome]) -> Result:
            return result_of((o for o, _ in ends), clients, after, hooks, canceled=job.canceled)

        ended = await hooks.last(result, clients)
        return Done(tuple(ends), ended, clients, after, tuple(hooks.outcomes))

    def _hooks_of(self, job: Job, left: Unfinished | None = None) -> HookRun:
        return HookRun(self._hooks, job, self._journal, lambda: self._node.seen_gpus, left)

    async def _after_change(
        self, job: Job, ends: Sequence[End], *, earlier: bool = False
    ) -> Aftermath:
        """What is due once GPUs have been changed; earlier: maybe before a restart of migd."""
        unknown = any(o.ending is Ending.FAILED for o, _ in ends)
        if job.acted_on_gpus or unknown or earlier:
            return await self._after.run(job, self._there)
        return NOTHING_AFTER

    async def _there(self) -> Sequence[Gpu]:
        """All GPUs: a job has read back what it changed, only what nobody has seen is looked at."""
        return self._node.seen_gpus or await self._node.observe()

    async def _reboot_for(self, job: Job, ends: list[End], asker: Asker) -> list[End]:
        """Have the host rebooted for GPUs whose mode waits for that, or put them back, too."""
        owing = {o.gpu: o for o, _ in ends if waits_for_reboot(o)}
        if not owing:
            return ends
        try:
            clock = await self._rebooted(job.begun, [*owing], asker)
        except RebootOwed as reason:
            befores = [b for b in job.begun.gpus if b.gpu in owing]
            back = {end[0].gpu: end for end in await self._take_back(job, befores, reason)}
            return [back.get(end[0].gpu, end) for end in ends]
        told = f"the host is rebooted for it at {clock}; `shutdown -c` keeps it from that"
        return [
            (replace(o, error=RebootOwed.dbus_name, message=f"{o.message}; {told}"), None)
            if o.gpu in owing
            else (o, found)
            for o, found in ends
        ]

    async def _rebooted(self, begun: Begun, gpus: list[str], asker: Asker) -> str:
        """Ask for the reboot; when it comes. Raises RebootOwed if it does not."""
        needed = "only a reboot puts the MIG mode in force, and there is none"
        if why := await self._reboot.against(begun, gpus, asker, boot_id()):
            raise RebootOwed(f"{needed}: {why}")
        try:
            return await self._reboot.ask(begun, gpus, boot_id())
        except MigdError as error:
            raise RebootOwed(f"{needed}: {error}") from error

    async def _naming_holders(self, outcome: Outcome) -> Outcome:
        """With those who have the GPU open, where the driver only says that it is in use."""
        if outcome.error != InUse.dbus_name and outcome.code_name != _IN_USE:
            return outcome
        try:
            holders = await self._node.holders(outcome.gpu)
        except Exception:
            log.exception("who holds GPU %d is not known, ignoring", outcome.index)
            return outcome
        named = "; ".join(map(str, holders[:_NAMED])) or "no process that can be seen from here"
        return replace(outcome, message=f"{outcome.message}. It is held by {named}")

    async def take_up(self, job: Job, left: Unfinished, known: PastJob | None) -> Done:
        """Keep what was reached of a job that was cut short, and put back what was not.

        known: how it ended, if all was done and only the journal was still to go
        Raises NoSystemd as bring_back() does.
        """
        begun = left.begun
        ends: list[End] = [(outcome, None) for outcome in left.returned.values()]
        for before in begun.gpus:
            if before.gpu in left.reached:
                done = Outcome(before.gpu, before.index, Ending.DONE)
                ends.append((done, left.reached[before.gpu]))
        if known:
            told = [o for o in known.outcomes if o.ending is not Ending.UNCHANGED]
            ends = [(outcome, left.reached.get(outcome.gpu)) for outcome in told]
            return Done(tuple(ends), known.result, known.clients, known.after, known.hooks)
        clients: tuple[ClientOutcome, ...] = ()
        after = NOTHING_AFTER
        hooks = self._hooks_of(job, left)
        await hooks.taken_up()
        if begun.boot != boot_id():
            # Which units run is decided by the boot.
            ends += [(lost(b, "the host was rebooted meanwhile"), None) for b in left.open]
        else:
            clients, after = await self._take_up_here(job, left, ends)
        ended = await hooks.last(lambda _: Result.INTERRUPTED, clients)
        return Done(tuple(ends), ended, clients, after, tuple(hooks.outcomes))

    async def _take_up_here(
        self, job: Job, left: Unfinished, ends: list[End]
    ) -> tuple[tuple[ClientOutcome, ...], Aftermath]:
        """On the boot that it began on: put back GPUs, to `ends`, and then clients."""
        run = ClientRun(self._clients, self._journal, job, left.stopped, left.signaled, held=True)
        if left.open or left.stepped:
            try:
                # Where all GPUs are at their end, clients may have been started again already.
                await run.hold_again(anew=bool(left.open))
            except MigdError as error:
                log.error("%s; going on without the hold", error)
            except Exception:
                log.exception("going on without the hold: defect in migd")
        if left.open:
            ends += await self._take_back_left(job, left.open)
        after = await self._after_change(job, ends, earlier=left.stepped)
        return await run.bring_back(), after

    async def _take_back_left(self, job: Job, gpus: Sequence[Before]) -> list[End]:
        """Once a reset is over that the daemon before us began: it would undo what we do."""
        try:
            await self._smi.settled()
        except NoSystemd as error:
            # Without systemd none can have been begun.
            log.warning("whether a GPU is being reset is not known, ignoring: %s", error)
        except MigdError as error:
            return [(lost(b, str(error)), None) for b in gpus]
        return await self._take_back(job, gpus, Canceled("migd ended in the middle of the job"))

    async def _take_back(self, job: Job, gpus: Sequence[Before], reason: MigdError) -> list[End]:
        try:
            there = {g.uuid: g for g in await self._observed()}
        except MigdError as error:
            return [(lost(b, str(error)), None) for b in gpus]
        missing = [(lost(b, "it is not there"), None) for b in gpus if b.gpu not in there]
        pairs = [(b, there[b.gpu]) for b in gpus if b.gpu in there]
        resets = self._resets(job)
        return missing + await job.take_back(pairs, reason, self._nvml, self._journal, resets)

    def _resets(self, job: Job, plans: Sequence[GpuPlan] = ()) -> Resets:
        switching = [g.gpu.uuid for g in plans if g.impact is Impact.RESET]
        return Resets(self._nvml, self._smi, self._clients, job.begun, switching)

    async def _observed(self) -> Sequence[Gpu]:
        """What is there, once the worker of the daemon that died has let go of it."""
        end = time.monotonic() + _LINGER_LIMIT_S
        while True:
            try:
                return await self._node.observe()
            except Hung as error:
                if time.monotonic() > end:
                    raise
                log.warning("%s; trying again", error)
            await asyncio.sleep(_LINGER_PAUSE_S)


def boot_id() -> str:
    """Of this boot."""
    return Path(names.BOOT_ID_FILE).read_text().strip()
