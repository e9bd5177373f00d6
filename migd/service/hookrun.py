"""Runs the hooks of one job, each as a unit of its own, and keeps what came of them.

What a crash leaves: before the first GPU is touched no hook is run again, since the job only puts
back then. At its end each hook that was not seen to its end is run, maybe for the second time: to
leave out what hooks are to undo would be worse.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from migd.core.hooks import (
    Hook,
    HookOutcome,
    Moment,
    Told,
    environment,
    last_lines,
    sentence,
)
from migd.core.job import (
    Begun,
    ClientOutcome,
    Fate,
    Hooked,
    Hooking,
    Phase,
    Result,
    Unfinished,
)
from migd.core.model import Gpu
from migd.errors import Canceled, HookFailed, MigdError, StateUnwritable
from migd.host.programs import Finished
from migd.service.hooks import Hooks, not_runnable, program
from migd.service.journal import Journal

log = logging.getLogger(__name__)

# How long hooks may still take, all together, once migd itself is being stopped.
_HURRY_S = 10.0
# How long one may take to be gone that was told to end.
_END_S = 15.0


class Progress(Protocol):
    """What hooks tell the job, and ask of it."""

    begun: Begun

    def common(self, phase: Phase | None, waits: str = "") -> None: ...
    @property
    def canceling(self) -> asyncio.Event: ...
    @property
    def hurrying(self) -> asyncio.Event: ...


class HookRun:
    """The hooks of one job.

    outcomes: of those that were run, also before a crash
    """

    def __init__(
        self,
        shared: Hooks,
        job: Progress,
        journal: Journal,
        gpus: Callable[[], Sequence[Gpu]],
        left: Unfinished | None = None,
    ) -> None:
        """gpus: as seen last; left: what the journal says of a job that was cut short."""
        self._shared = shared
        self._hooks = shared.configuration.hooks
        self._limit_s = shared.configuration.settings.limits["hook"]
        self._job = job
        self._journal = journal
        self._gpus = gpus
        self._told: Told | None = None
        self._hurried: float | None = None
        seen = left.hooked if left else ()
        self.outcomes = [hooked.outcome for hooked in seen]
        self._seen = {(h.outcome.moment, h.number, h.outcome.command): h.outcome for h in seen}
        # mig-parted runs none at the end then.
        self._start_failed = any(map(_failed_start, self.outcomes))
        self._cut = left.cut if left else None

    # -- before a GPU is touched ---------------------------------------------------------

    async def first(self, moment: Moment) -> None:
        """Run those of a moment before the first GPU is touched. Raises HookFailed, Canceled."""
        for number, hook in enumerate(self._of(moment)):
            outcome = await self._one(moment, number, hook)
            self._start_failed = _failed_start(outcome)
            if self._job.canceling.is_set():
                raise Canceled(f"the job was canceled while it ran hooks ({moment})")
            if outcome.failure:
                raise HookFailed(sentence(outcome))

    # -- at the end ----------------------------------------------------------------------

    async def taken_up(self) -> None:
        """End what an earlier daemon was running, so that no two are at work. Never raises."""
        if self._cut is None:
            return
        try:
            await self._shared.programs.end(_END_S)
        except MigdError as error:
            log.warning("a hook of an earlier migd may still run, ignoring: %s", error)
        if self._cut.moment.first:
            self.outcomes.append(
                HookOutcome(self._cut.moment, self._cut.command, "was ended: migd ended meanwhile")
            )

    async def last(
        self,
        result: Callable[[Sequence[HookOutcome]], Result],
        clients: Sequence[ClientOutcome],
    ) -> Result:
        """Run what is due at the end, and say how the job has ended with that. Never raises."""
        if any(c.fate in (Fate.RETURNED, Fate.MISSING) for c in clients):
            await self._at_end(Moment.RESTARTED, result(self.outcomes))
        if (so_far := result(self.outcomes)) is not Result.DONE:
            await self._at_end(Moment.FAILED, so_far)
        if not self._start_failed:
            await self._at_end(Moment.EXIT, result(self.outcomes))
        self._shared.forget()
        self._job.common(None)
        return result(self.outcomes)

    async def _at_end(self, moment: Moment, result: Result) -> None:
        if self._hooks is None:
            self._skip(moment)
            return
        for number, hook in enumerate(self._of(moment)):
            outcome = self._seen.get((moment, number, str(hook)))
            if outcome is None:
                outcome = await self._one(moment, number, hook, result)
            if outcome.failure:
                log.error("%s", sentence(outcome))
                return

    def _skip(self, moment: Moment) -> None:
        """Of a job that was cut short, where hooks.yaml has been broken since."""
        why = (
            f"is refused, and none of its hooks is run: {self._shared.configuration.hooks_refused}"
        )
        file = str(self._shared.configuration.hooks_path)
        self.outcomes.append(HookOutcome(moment, file, why))

    # -- one -----------------------------------------------------------------------------

    def _of(self, moment: Moment) -> Sequence[Hook]:
        return self._hooks.hooks.get(moment, ()) if self._hooks else ()

    async def _one(
        self, moment: Moment, number: int, hook: Hook, result: Result | None = None
    ) -> HookOutcome:
        """What came of it, which is in the journal then."""
        self._job.common(Phase.HOOKS, f"hook {moment}: {hook}")
        log.info("running hook %s: %s", moment, hook)
        await self._note(Hooking(moment, number, str(hook)))
        failure, output = await self._came_of(moment, hook, result)
        outcome = HookOutcome(moment, str(hook), failure, output)
        await self._note(Hooked(number, outcome))
        self.outcomes.append(outcome)
        return outcome

    async def _came_of(
        self, moment: Moment, hook: Hook, result: Result | None
    ) -> tuple[str, tuple[str, ...]]:
        """How it failed, "" if it did not, and its last lines then."""
        if why := not_runnable(hook):
            return f"is not run: {why}", ()
        if not moment.first and self._job.hurrying.is_set() and not self._left_s():
            return "is not run: migd was being stopped", ()
        try:
            if self._told is None:
                self._told = await self._shared.told(self._job.begun, self._gpus())
            variables = environment(hook, self._told, moment, result.value if result else "")
            work = self._shared.programs.run_bare(
                (program(hook), *hook.args),
                variables,
                limit_s=self._limit_s,
                folder=hook.workdir,
            )
            done = await self._unless_ended(work, moment)
        except MigdError as error:
            return f"was not run: {error}", ()
        except Exception:
            log.exception("hook %s: defect in migd", moment)
            return "was not run: a defect in migd; the log has more", ()
        if done is None:
            why = "the job was canceled" if moment.first else "migd was being stopped"
            return f"was ended, because {why}", ()
        failure = done.failure
        if failure and not done.in_time:
            failure += f"; `time-limits: {{hook: ...}}` in migd.yaml is {self._limit_s} s"
        return failure, last_lines(done.output) if failure else ()

    async def _unless_ended(self, work: Awaitable[Finished], moment: Moment) -> Finished | None:
        """None where it was ended: by Cancel while nothing is done yet, else with migd itself."""
        ending = self._job.canceling if moment.first else self._job.hurrying
        task = asyncio.ensure_future(work)
        told = asyncio.create_task(ending.wait())
        try:
            await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and not moment.first:
                await asyncio.wait({task}, timeout=self._left_s())
            if task.done():
                return task.result()
        finally:
            told.cancel()
            task.cancel()
            await asyncio.gather(told, task, return_exceptions=True)
        with suppress(MigdError):
            await self._shared.programs.end(_END_S)
        return None

    def _left_s(self) -> float:
        """How long hooks may still take, from when it was first known that migd is to end."""
        now = asyncio.get_running_loop().time()
        if self._hurried is None:
            self._hurried = now
        return max(0.0, self._hurried + _HURRY_S - now)

    async def _note(self, record: Hooking | Hooked) -> None:
        try:
            await self._journal.write(record)
        except StateUnwritable as error:
            # What comes before a GPU is touched has records of its own that must be written.
            log.warning("%s, ignoring: what came of a hook is not kept", error)


def _failed_start(outcome: HookOutcome) -> bool:
    return outcome.moment is Moment.START and outcome.failure != ""
