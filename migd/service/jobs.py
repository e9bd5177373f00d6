"""The running job and those before it: started, waited for, canceled, finished, recovered."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from migd import names
from migd.core.clients import Clearing, Rules
from migd.core.holders import Holder
from migd.core.job import (
    NOTHING_AFTER,
    Aftermath,
    Before,
    Begun,
    Choice,
    ClientOutcome,
    Ending,
    Outcome,
    PastJob,
    Result,
    Unfinished,
    result_of,
    unfinished,
)
from migd.core.model import Gpu, Impact, Layout, renamed
from migd.core.plan import GpuPlan, Plan
from migd.core.reboot import NOBODY, Asker
from migd.core.wanted import ITSELF
from migd.errors import (
    Busy,
    Canceled,
    Hung,
    InUse,
    MigdError,
    NoSuchJob,
    NoSystemd,
    RebootOwed,
    ResetRequired,
    StateUnwritable,
)
from migd.host.log import Event, fields
from migd.host.reset import Smi
from migd.nvml.client import NvmlClient
from migd.service.after import After
from migd.service.clientrun import ClientRun
from migd.service.clients import Clients
from migd.service.job import End, Job, begin
from migd.service.journal import Journal
from migd.service.reboot import Reboot
from migd.service.resets import Resets
from migd.service.state import GpuState, StateStore

log = logging.getLogger(__name__)

_STOP_LIMIT_S = 75.0
# A call that a killed daemon's worker is in goes on to its end: as long as a step may take.
_LINGER_LIMIT_S = 200.0
_LINGER_PAUSE_S = 0.5
# Of those who hold a GPU that the driver says is in use.
_NAMED = 5
_IN_USE = "IN_USE"


class Audience(Protocol):
    """Whoever shows the service to the world; `ready` returns when it is heard there."""

    async def ready(self) -> None: ...
    def changed(self) -> None: ...
    def job_new(self, number: int, kind: str) -> None: ...
    def job_removed(self, past: PastJob) -> None: ...


class Node(Protocol):
    """What jobs need of the service around them."""

    @property
    def seen_gpus(self) -> Sequence[Gpu]: ...
    async def observe(self) -> Sequence[Gpu]: ...
    async def clearing(self, plan: Plan, by: Rules) -> Clearing: ...
    async def holders(self, gpu: str) -> Sequence[Holder]: ...
    def saw(self, gpu: Gpu) -> None: ...
    def settled(self) -> None: ...


class Jobs:
    """One job at a time. All methods are for one event loop."""

    def __init__(
        self,
        node: Node,
        nvml: NvmlClient,
        clients: Clients,
        after: After,
        store: StateStore,
        journal: Journal,
        audience: Audience,
        reboot: Reboot,
        smi: Smi,
    ) -> None:
        self._smi = smi
        self._node = node
        self._nvml = nvml
        self._clients = clients
        self._after = after
        self._store = store
        self._journal = journal
        self._audience = audience
        self._reboot = reboot
        self._running: asyncio.Task[PastJob] | None = None
        self._unsaved: dict[str, GpuState] | None = None
        self._stopping = False
        self.current: Job | None = None

    def refuse_if_busy(self) -> None:
        """Raises Busy, naming the job that is at work."""
        if self._stopping:
            raise Busy("migd is being stopped; ask again when it is back")
        if self.current:
            number = self.current.begun.id
            raise Busy(
                f"job {number} is at work ({names.job_path(number)}); wait for it, or cancel it"
            )

    async def start(
        self,
        plan: Plan,
        choice: Choice,
        clearing: Clearing,
        by: Rules,
        kind: str = "apply",
        asker: Asker = NOBODY,
        *,
        reset_peers: bool = False,
    ) -> int:
        """Begin to carry out `plan`, and return the job's id. Raises StateUnwritable.

        clearing: what is done to clients before; by: the rules it was decided by
        kind: the type of the job, apply or put-back
        reset_peers: GPUs may be reset along that the driver resets only together
        """
        self._save()
        begun = begin(self._store.next_id(), kind, plan, choice, _boot(), reset_peers=reset_peers)
        if begun.gpus:
            await self._journal.begin(begun)
            if self._stopping:
                self._drop_journal()
                self.refuse_if_busy()
            steps = sum(len(g.steps) for g in plan.gpus)
            job = Job(begun, steps, self._audience.changed, self._node.saw)
            self._launch(job, self._carry_out(job, plan, clearing, by, asker))
            self._audience.job_new(begun.id, begun.type)
        else:
            self._nothing_to_do(begun)
        return begun.id

    def choose(self, choice: Choice, gpus: Sequence[str]) -> None:
        """Keep what is wanted of these GPUs from now on; nothing else. Raises StateUnwritable."""
        self._save()
        kept = {gpu: self._kept(gpu) for gpu in gpus}
        if any(not choice.same(state.wanted) for state in kept.values()):
            self._store.update({gpu: GpuState(choice, s.settled) for gpu, s in kept.items()})

    @property
    def settled(self) -> dict[str, Layout]:
        """By UUID, what each GPU last reached; also where the state could not be written yet."""
        kept = {**self._store.gpus, **(self._unsaved or {})}
        return {uuid: state.settled for uuid, state in kept.items() if state.settled}

    async def idle(self) -> None:
        """Return when the running job has ended."""
        if self._running:
            await asyncio.wait([self._running])

    async def wait(self, number: int) -> PastJob:
        """The end of a job, once it has ended. Raises NoSuchJob."""
        if self._running and self.current and self.current.begun.id == number:
            return await asyncio.shield(self._running)
        for past in self._store.jobs:
            if past.id == number:
                return past
        raise NoSuchJob(f"job {number} does not run and is not among the last that ended")

    def cancel(self, number: int) -> None:
        """Raises NoSuchJob, NotCancelable."""
        if not self.current or self.current.begun.id != number:
            raise NoSuchJob(f"job {number} does not run")
        self.current.cancel()

    def recover(self) -> None:
        """Take up the job that an earlier daemon left unfinished, if it did.

        It is the running job from now on, so that none begins over its journal; but nothing is
        done before the audience is ready: another daemon may own the bus name, and this node.
        """
        left = unfinished(self._journal.read())
        if left:
            log.warning("job %d was cut short; finishing it", left.begun.id)
            self._store.seen(left.begun.id)
            job = Job(left.begun, 0, self._audience.changed, self._node.saw)
            self._launch(job, self._recover(job, left))

    async def stop(self) -> None:
        """Cancel what runs, and wait until it has put back what it did not finish."""
        self._stopping = True
        if self.current:
            self.current.hurrying.set()
            if self.current.cancelable:
                self.current.cancel()
        if self._running:
            done, _ = await asyncio.wait([self._running], timeout=_STOP_LIMIT_S)
            for task in done:
                if not task.cancelled() and task.exception():
                    log.error("the next migd takes up the job: %s", task.exception())
        try:
            self._save()
        except StateUnwritable as error:
            log.error("%s, ignoring", error)

    # -- how a job runs and ends ---------------------------------------------------------

    def _launch(self, job: Job, work: Coroutine[None, None, PastJob]) -> None:
        begun = job.begun
        log.info(
            "job %d: %s %s", begun.id, begun.type, begun.choice.label,
            extra=fields(Event.JOB_STARTED, job=begun.id, uid=begun.choice.uid),
        )  # fmt: skip
        self.current = job
        self._running = asyncio.create_task(work)
        self._audience.changed()

    async def _carry_out(
        self, job: Job, plan: Plan, clearing: Clearing, by: Rules, asker: Asker
    ) -> PastJob:
        run = ClientRun(self._clients, self._journal, job)
        try:
            await run.clear(clearing, lambda: self._node.clearing(plan, by))
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
        result = result_of((o for o, _ in ends), clients, after, canceled=job.canceled)
        return self._finish(job.begun, ends, result, clients, after)

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
        owing = {o.gpu: o for o, _ in ends if _waits_for_reboot(o)}
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
        if why := await self._reboot.against(begun, gpus, asker, _boot()):
            raise RebootOwed(f"{needed}: {why}")
        try:
            return await self._reboot.ask(begun, gpus, _boot())
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

    async def _recover(self, job: Job, left: Unfinished) -> PastJob:
        """Keep what was reached, put back what was not, and tell those who wait."""
        await self._audience.ready()
        begun = left.begun
        ends: list[End] = [(outcome, None) for outcome in left.returned.values()]
        for before in begun.gpus:
            if before.gpu in left.reached:
                done = Outcome(before.gpu, before.index, Ending.DONE)
                ends.append((done, left.reached[before.gpu]))
        clients: tuple[ClientOutcome, ...] = ()
        after = NOTHING_AFTER
        known = next((past for past in self._store.jobs if past.id == begun.id), None)
        if known:
            # All was done, only the journal was still to go.
            return self._finish(begun, ends, known.result, known.clients, known.after)
        if begun.boot != _boot():
            # Which units run is decided by the boot.
            ends += [(_lost(b, "the host was rebooted meanwhile"), None) for b in left.open]
        else:
            clients, after = await self._recover_here(job, left, ends)
        return self._finish(begun, ends, Result.INTERRUPTED, clients, after)

    async def _recover_here(
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
            return [(_lost(b, str(error)), None) for b in gpus]
        return await self._take_back(job, gpus, Canceled("migd ended in the middle of the job"))

    async def _take_back(self, job: Job, gpus: Sequence[Before], reason: MigdError) -> list[End]:
        try:
            there = {g.uuid: g for g in await self._observed()}
        except MigdError as error:
            return [(_lost(b, str(error)), None) for b in gpus]
        missing = [(_lost(b, "it is not there"), None) for b in gpus if b.gpu not in there]
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

    def _nothing_to_do(self, begun: Begun) -> None:
        states = {b.gpu: GpuState(self._chosen(begun, b.gpu), b.layout) for b in begun.unchanged}
        if any(_differs(self._store.gpus.get(gpu), state) for gpu, state in states.items()):
            self._store.update(states)
        past = _past(begun, [], Result.DONE)
        self._store.remember(past)
        self._node.settled()
        self._audience.job_new(begun.id, begun.type)
        self._audience.job_removed(past)

    def _finish(
        self,
        begun: Begun,
        ends: Sequence[End],
        result: Result,
        clients: tuple[ClientOutcome, ...] = (),
        after: Aftermath = NOTHING_AFTER,
    ) -> PastJob:
        past = _past(begun, [self._told(*end) for end in ends], result, clients, after)
        self._store.remember(past)
        self._keep(begun, {o.gpu: found for o, found in ends if found}, wanted=past.wanted)
        # The order that callers may rely on: what changed, then the end, then the job is gone.
        self._node.settled()
        self._audience.job_removed(past)
        self.current = None
        self._audience.changed()
        log.info(
            "job %d: %s: %s", past.id, past.result, past.message,
            extra=fields(Event.JOB_ENDED, job=past.id, result=past.result),
        )  # fmt: skip
        return past

    def _told(self, outcome: Outcome, found: Layout | None) -> Outcome:
        """With the UUIDs that are others than when the same layout was settled before."""
        before = self._kept(outcome.gpu).settled
        if outcome.message or not (found and before and (other := renamed(before, found))):
            return outcome
        log.warning("GPU %d: %s", outcome.index, other)
        return replace(outcome, message=other)

    def _keep(self, begun: Begun, settled: Mapping[str, Layout], *, wanted: bool) -> None:
        """Write what is settled now, and what is wanted if the job ended well."""
        reached = {b.gpu: b.layout for b in begun.unchanged} | dict(settled)
        states = {}
        for gpu, found in reached.items():
            chosen = self._chosen(begun, gpu) if wanted else self._kept(gpu).wanted
            states[gpu] = GpuState(chosen, found)
        self._unsaved = states
        try:
            self._save()
        except StateUnwritable as error:
            # The journal holds it all and stays; the next job, or the next start, writes it first.
            log.error("the end of job %d is kept in the journal only: %s", begun.id, error)

    def _chosen(self, begun: Begun, gpu: str) -> Choice | None:
        """Who wants what of a GPU after a job that ended well; migd itself is nobody."""
        return self._kept(gpu).wanted if begun.choice.uid == ITSELF else begun.choice

    def _kept(self, gpu: str) -> GpuState:
        return self._store.gpus.get(gpu, GpuState())

    def _save(self) -> None:
        """Write the end of the last job, unless it is written. Raises StateUnwritable."""
        if self._unsaved is None:
            return
        self._store.update(self._unsaved)
        self._drop_journal()
        self._unsaved = None

    def _drop_journal(self) -> None:
        try:
            self._journal.remove()
        except OSError as error:
            raise StateUnwritable(f"the journal cannot be removed ({error.strerror})") from error


def _past(
    begun: Begun,
    outcomes: Sequence[Outcome],
    result: Result,
    clients: tuple[ClientOutcome, ...] = (),
    after: Aftermath = NOTHING_AFTER,
) -> PastJob:
    unchanged = [Outcome(b.gpu, b.index, Ending.UNCHANGED) for b in begun.unchanged]
    every = sorted([*unchanged, *outcomes], key=lambda o: o.index)
    wanted = all(o.ending in (Ending.DONE, Ending.UNCHANGED) for o in every)
    missing = [f"{c.unit} did not come back: {c.message}" for c in clients if c.missing]
    return PastJob(
        begun.id,
        begun.type,
        begun.choice,
        begun.started,
        now(),
        result,
        "; ".join([_message(every, result), *missing, *after.failed]),
        changed=any(o.ending is not Ending.UNCHANGED for o in every),
        wanted=wanted,
        outcomes=tuple(every),
        clients=clients,
        after=after,
    )


def _message(outcomes: Sequence[Outcome], result: Result) -> str:
    if all(o.ending is Ending.UNCHANGED for o in outcomes):
        return "nothing was left to do"
    counts = [
        f"{count} {ending}"
        for ending in Ending
        if (count := sum(o.ending is ending for o in outcomes))
    ]
    reason = next((f"; GPU {o.index}: {o.message}" for o in outcomes if o.message), "")
    told = "migd ended in the middle; " if result is Result.INTERRUPTED else ""
    return f"{told}GPUs: {', '.join(counts)}{reason}"


def _waits_for_reboot(outcome: Outcome) -> bool:
    """Its mode is pending, and left so."""
    return outcome.error == ResetRequired.dbus_name and outcome.ending is Ending.FAILED


def _lost(before: Before, why: str) -> Outcome:
    return Outcome(
        before.gpu,
        before.index,
        Ending.FAILED,
        error=Canceled.dbus_name,
        message="migd ended in the middle of the job",
        left=f"not looked at: {why}",
    )


def _differs(kept: GpuState | None, state: GpuState) -> bool:
    if kept is None or kept.settled != state.settled:
        return True
    return state.wanted is not None and not state.wanted.same(kept.wanted)


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def _boot() -> str:
    return Path(names.BOOT_ID_FILE).read_text().strip()
