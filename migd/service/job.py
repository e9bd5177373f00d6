"""A running job: GPUs side by side, each in order, and what readers see of it meanwhile."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from migd.core.asked import Asked
from migd.core.job import Before, Begun, Choice, Ending, Outcome, Phase
from migd.core.model import Gpu, Layout, layout
from migd.core.plan import GpuPlan, Plan
from migd.errors import MigdError, NotCancelable
from migd.nvml.client import NvmlClient
from migd.service.gpurun import GpuRun
from migd.service.journal import Journal
from migd.service.resets import Resets

log = logging.getLogger(__name__)

# How it ended for a GPU, and what is settled on it now if it reached the goal.
End = tuple[Outcome, Layout | None]


def begin(
    number: int,
    kind: str,
    plan: Plan,
    choice: Choice,
    boot: str,
    asked: Asked,
    *,
    reset_peers: bool,
    about: str = "",
) -> Begun:
    """The first record of a job that carries out `plan`."""

    def before(gpu: Gpu) -> Before:
        return Before(gpu.uuid, gpu.index, layout(gpu))

    return Begun(
        number,
        kind,
        choice,
        choice.at,
        boot,
        tuple(before(g.gpu) for g in plan.gpus if g.steps),
        tuple(before(g.gpu) for g in plan.gpus if not g.steps),
        reset_peers,
        asked,
        about,
    )


class Job:
    """What is known of a job while it runs. `changed` is called whenever that changes."""

    def __init__(
        self, begun: Begun, steps: int, changed: Callable[[], None], saw: Callable[[Gpu], None]
    ) -> None:
        """saw: called with each GPU that is looked at again."""
        self.begun = begun
        self.steps = steps
        self.step = 0
        self.acted_on_gpus = False
        self._changed = changed
        self._saw = saw
        self._phases = {b.gpu: Phase.JOURNAL for b in begun.gpus}
        self._waiting: dict[str, str] = {}
        self._over = False
        self._common: Phase | None = None
        self._waits = ""
        self.canceling = asyncio.Event()
        self.hurrying = asyncio.Event()

    @property
    def gpus(self) -> tuple[str, ...]:
        return tuple(b.gpu for b in self.begun.gpus)

    @property
    def phase(self) -> Phase:
        """That of the job as a whole, where it is at clients; or of the GPU furthest behind."""
        if self._common:
            return self._common
        return min(self._phases.values(), key=lambda p: p.rank, default=Phase.SETTLE)

    @property
    def waiting(self) -> str:
        """What is waited for, and for which GPUs, by their indices."""
        if self._common:
            return self._waits
        gpus: dict[str, list[str]] = {}
        for before in self.begun.gpus:
            if what := self._waiting.get(before.gpu):
                gpus.setdefault(what, []).append(str(before.index))
        return "; ".join(f"GPU {', '.join(on)}: {what}" for what, on in gpus.items())

    @property
    def canceled(self) -> bool:
        return self.canceling.is_set()

    @property
    def cancelable(self) -> bool:
        return not self.canceled and not self._over

    def cancel(self) -> None:
        """End it between two steps. Raises NotCancelable."""
        if not self.cancelable:
            raise NotCancelable(
                f"job {self.begun.id} is being canceled already"
                if self.canceled
                else f"job {self.begun.id} is past the point where it could be canceled"
            )
        self.canceling.set()
        self._changed()

    def common(self, phase: Phase | None, waits: str = "") -> None:
        """It is at clients (clientrun.Progress), and waits for one of them; None: no more."""
        self._common, self._waits = phase, waits
        self._changed()

    # -- what its GPUs tell it (gpurun.Progress) -----------------------------------------

    def entered(self, gpu: str, phase: Phase) -> None:
        if self._phases.get(gpu) != phase:
            self._phases[gpu] = phase
            self._changed()

    def stepped(self, gpu: str) -> None:
        self.step += 1
        self._changed()

    def acted(self) -> None:
        """A step was done, on the way there or back."""
        self.acted_on_gpus = True

    def waits(self, gpu: str, what: str) -> None:
        self._waiting[gpu] = what
        self._changed()

    def seen(self, gpu: Gpu) -> None:
        self._saw(gpu)

    # -- what it does --------------------------------------------------------------------

    async def carry_out(
        self,
        plans: Sequence[GpuPlan],
        nvml: NvmlClient,
        journal: Journal,
        resets: Resets,
        *,
        keep_pending: bool = False,
    ) -> list[End]:
        """Take each GPU to its goal, or back. Never raises for what a GPU can do.

        keep_pending: a mode that only a reboot puts in force stays as it is then, not in force
        """

        def forward(plan: GpuPlan) -> Awaitable[End]:
            run = GpuRun(before[plan.gpu.uuid], nvml, journal, self, resets)
            return run.forward(plan, keep_pending=keep_pending)

        before = {b.gpu: b for b in self.begun.gpus}
        runs = [self._guarded(before[p.gpu.uuid], forward(p)) for p in plans if p.steps]
        return await self._all(runs)

    def untouched(self, reason: MigdError) -> list[End]:
        """How it ended for its GPUs where clients could not be cleared away."""
        self._over = True
        return [
            (
                Outcome(
                    before.gpu,
                    before.index,
                    Ending.ROLLED_BACK,
                    error=reason.dbus_name,
                    message=str(reason),
                ),
                None,
            )
            for before in self.begun.gpus
        ]

    async def take_back(
        self, gpus: Sequence[tuple[Before, Gpu]], reason: MigdError, nvml: NvmlClient,
        journal: Journal, resets: Resets,
    ) -> list[End]:  # fmt: skip
        """Put each GPU back to the layout it had, for a job that was cut short."""

        async def back(before: Before, gpu: Gpu) -> End:
            self.entered(gpu.uuid, Phase.CHANGE)
            return await GpuRun(before, nvml, journal, self, resets).back(gpu, reason), None

        return await self._all([self._guarded(b, back(b, g)) for b, g in gpus])

    async def _all(self, runs: Sequence[Awaitable[End]]) -> list[End]:
        try:
            return list(await asyncio.gather(*runs))
        finally:
            self._over = True

    async def _guarded(self, before: Before, run: Awaitable[End]) -> End:
        """A defect of ours on one GPU must not take the others along, nor stay unreported."""
        try:
            return await run
        except Exception:
            log.exception("job %d, GPU %s: defect in migd", self.begun.id, before.gpu)
            return Outcome(
                before.gpu,
                before.index,
                Ending.FAILED,
                error=MigdError.dbus_name,
                message="a defect in migd; the log has the details",
                left="not known; apply a configuration to it again",
            ), None
