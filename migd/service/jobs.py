"""The running job and those before it: started, waited for, canceled, finished, recovered."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from migd import names
from migd.core.asked import BY_ITSELF, ITSELF, Asked
from migd.core.clients import Clearing, Rules
from migd.core.ends import past_job
from migd.core.job import (
    Begun,
    Choice,
    Outcome,
    PastJob,
    Result,
    Unfinished,
    unfinished,
)
from migd.core.model import Gpu, Layout, renamed
from migd.core.plan import Plan
from migd.core.reboot import NOBODY, Asker
from migd.errors import (
    Busy,
    NoSuchJob,
    StateUnwritable,
)
from migd.host.log import Event, fields
from migd.service import audit
from migd.service.job import Job, begin
from migd.service.journal import Journal
from migd.service.runner import Done, Runner, boot_id
from migd.service.state import GpuState, StateStore

log = logging.getLogger(__name__)

_STOP_LIMIT_S = 75.0
# How soon what could not be written is tried again.
_AGAIN_S = 5.0


class Audience(Protocol):
    """Whoever shows the service to the world; `ready` returns when it is heard there."""

    async def ready(self) -> None: ...
    def changed(self) -> None: ...
    def job_new(self, number: int, kind: str) -> None: ...
    def job_removed(self, past: PastJob) -> None: ...


class Node(Protocol):
    """What jobs tell the service around them: a GPU as it is now, and that all is settled."""

    def saw(self, gpu: Gpu) -> None: ...
    def settled(self) -> None: ...


class Jobs:
    """One job at a time. All methods are for one event loop."""

    def __init__(
        self,
        node: Node,
        runner: Runner,
        store: StateStore,
        journal: Journal,
        audience: Audience,
    ) -> None:
        self._node = node
        self._runner = runner
        self._store = store
        self._journal = journal
        self._audience = audience
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
        asked: Asked = BY_ITSELF,
        *,
        reset_peers: bool = False,
        about: str = "",
    ) -> int:
        """Begin to carry out `plan`, and return the job's id. Raises StateUnwritable.

        clearing: what is done to clients before; by: the rules it was decided by
        kind: the type of the job; asked: who wants it; about: as in core.job.Begun
        reset_peers: GPUs may be reset along that the driver resets only together
        """
        self._save()
        begun = begin(
            self._store.next_id(),
            kind,
            plan,
            choice,
            boot_id(),
            asked,
            reset_peers=reset_peers,
            about=about,
        )
        if begun.gpus:
            await self._journal.begin(begun)
            if self._stopping:
                self._drop_journal()
                self.refuse_if_busy()
            steps = sum(len(g.steps) for g in plan.gpus)
            job = Job(begun, steps, self._audience.changed, self._node.saw)
            work = self._runner.carry_out(job, plan, clearing, by, asker)
            self._launch(job, self._to_its_end(job, work))
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

    def running(self, number: int) -> Job:
        """Raises NoSuchJob."""
        if not self.current or self.current.begun.id != number:
            raise NoSuchJob(f"job {number} does not run")
        return self.current

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
            self._launch(job, self._to_its_end(job, self._take_up(job, left)))

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
            "job %d: %s %s", begun.id, begun.type, begun.label,
            extra=fields(Event.JOB_STARTED, job=begun.id, uid=begun.asked.caller.uid),
        )  # fmt: skip
        self.current = job
        self._running = asyncio.create_task(work)
        self._audience.changed()

    async def _take_up(self, job: Job, left: Unfinished) -> Done:
        await self._audience.ready()
        known = next((past for past in self._store.jobs if past.id == left.begun.id), None)
        return await self._runner.take_up(job, left, known)

    async def _to_its_end(self, job: Job, work: Awaitable[Done]) -> PastJob:
        return self._finish(job.begun, await work)

    def _nothing_to_do(self, begun: Begun) -> None:
        states = {b.gpu: GpuState(self._chosen(begun, b.gpu), b.layout) for b in begun.unchanged}
        if any(_differs(self._store.gpus.get(gpu), state) for gpu, state in states.items()):
            self._store.update(states)
        past = past_job(begun, now(), [], Result.DONE)
        self._store.remember(past)
        self._node.settled()
        self._audience.job_new(begun.id, begun.type)
        self._audience.job_removed(past)
        audit.job_over(begun, past)

    def _finish(self, begun: Begun, done: Done) -> PastJob:
        outcomes = [self._told(*end) for end in done.ends]
        past = past_job(begun, now(), outcomes, done.result, done.clients, done.after, done.hooks)
        self._store.remember(past)
        self._keep(begun, {o.gpu: found for o, found in done.ends if found}, wanted=past.wanted)
        # The order that callers may rely on: what changed, then the end, then the job is gone.
        self._node.settled()
        self._audience.job_removed(past)
        self.current = None
        self._audience.changed()
        audit.job_over(begun, past)
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
            asyncio.get_running_loop().call_later(_AGAIN_S, self._save_again)

    def _save_again(self) -> None:
        """Nobody may ask for a job for days, and what is settled should not wait for that."""
        try:
            self._save()
        except StateUnwritable:
            asyncio.get_running_loop().call_later(_AGAIN_S, self._save_again)
        else:
            log.info("the end of the last job is written now")

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


def _differs(kept: GpuState | None, state: GpuState) -> bool:
    if kept is None or kept.settled != state.settled:
        return True
    return state.wanted is not None and not state.wanted.same(kept.wanted)


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000
