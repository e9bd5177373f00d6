"""One GPU in a job: its steps, the check of what came of them, and the way back."""

import asyncio
import logging
from typing import Protocol

from migd.core.job import Before, Ending, Outcome, Phase, Reached, Record, Returned, Stepping
from migd.core.model import Gpu, Layout, Mode, Target, layout
from migd.core.plan import GpuPlan, plan_gpu
from migd.core.steps import DestroyCompute, DestroyInstance, SetMode, Step, sentence
from migd.errors import Canceled, InUse, MigdError, Nvml, ResetRequired, StateUnwritable
from migd.nvml.client import NvmlClient
from migd.nvml.protocol import Performed
from migd.service.journal import Journal

log = logging.getLogger(__name__)

_IN_USE, _NOT_SUPPORTED, _RESET_REQUIRED = 19, 3, 16

# Seconds before each look on the way back, where something may be seen that is destroyed already.
_LOOKS = (0.0, 0.1, 0.2, 0.4)


class Progress(Protocol):
    """What a GPU tells its job, and asks of it."""

    def entered(self, gpu: str, phase: Phase) -> None: ...
    def stepped(self, gpu: str) -> None: ...
    def acted(self) -> None: ...
    def waits(self, gpu: str, what: str) -> None: ...
    def seen(self, gpu: Gpu) -> None: ...
    @property
    def canceled(self) -> bool: ...


class GpuRun:
    """Takes one GPU to the goal of its plan, or back to the layout it had."""

    def __init__(self, before: Before, nvml: NvmlClient, journal: Journal, job: Progress) -> None:
        self._before = before
        self._nvml = nvml
        self._journal = journal
        self._job = job
        # Whether a destroy was asked for of which it is not known what it did.
        self._in_doubt = True

    async def forward(
        self, plan: GpuPlan, *, keep_pending: bool = False
    ) -> tuple[Outcome, Layout | None]:
        """Do the plan. Returns how it ended, and what is settled now if that is the goal.

        keep_pending: a mode that waits for a reboot is left pending, which ends as FAILED
        """
        uuid = plan.gpu.uuid
        self._in_doubt = False
        try:
            for step in plan.steps:
                self._stop_if_canceled()
                self._job.entered(uuid, Phase.MODE if isinstance(step, SetMode) else Phase.CHANGE)
                await self._do(plan.gpu, step)
                self._job.stepped(uuid)
            self._stop_if_canceled()
            self._job.entered(uuid, Phase.VERIFY)
            now = await self._verified(plan.gpu, plan.goal)
            settled = layout(now)
            self._job.entered(uuid, Phase.SETTLE)
            await self._write(Reached(uuid, settled))
        except MigdError as error:
            if keep_pending and isinstance(error, ResetRequired):
                left = f"MIG mode {plan.goal.mode} is pending, and nothing is put back before that"
                return self._outcome(Ending.FAILED, error, left), None
            log.warning("%s: %s; putting back what was there", plan.gpu, error)
            return await self.back(plan.gpu, error), None
        return Outcome(uuid, plan.gpu.index, Ending.DONE), settled

    async def back(self, gpu: Gpu, reason: MigdError) -> Outcome:
        """Put the GPU back to the layout it had. Never raises: the outcome says what is left."""
        try:
            await self._put_back(gpu)
            outcome = self._outcome(Ending.ROLLED_BACK, reason)
        except MigdError as error:
            log.error("%s could not be put back: %s", gpu, error)
            left = f"{await self._left(gpu)}: {error}. Apply a configuration once that is mended"
            outcome = self._outcome(Ending.FAILED, reason, left)
        try:
            await self._write(Returned(outcome))
        except StateUnwritable as error:
            log.error("%s: %s, ignoring", gpu, error)
        return outcome

    async def _put_back(self, gpu: Gpu) -> None:
        goal = self._before.layout.target()
        try:
            await self._go_back(gpu, goal)
        except Nvml as error:
            log.warning("%s: %s; trying once more to put it back", gpu, error)
            await self._go_back(gpu, goal)

    async def _go_back(self, gpu: Gpu, goal: Target) -> None:
        for pause in _LOOKS if self._in_doubt else _LOOKS[:1]:
            await asyncio.sleep(pause)
            now = await self._nvml.snapshot(gpu)
            self._job.seen(now)
            # What is there is planned from, not what is believed to have been done: a call whose
            # answer never came may have had its effect, or half of it.
            for step in plan_gpu(now, goal).steps:
                await self._do(now, step, going_back=True)
        await self._verified(gpu, goal)

    async def _left(self, gpu: Gpu) -> str:
        """What is on the GPU instead of what was there before, for a sentence."""
        try:
            now = await self._nvml.snapshot(gpu)
        except MigdError:
            return "not as before, and what it has cannot be read"
        self._job.seen(now)
        has = [f"{i.profile} at {i.placement}" for i in layout(now).instances]
        mode = f"{now.mode}, {now.pending} pending" if now.pending != now.mode else now.mode
        return f"not as before: MIG mode {mode}, {', '.join(has) or 'no instances'}"

    async def _do(self, gpu: Gpu, step: Step, *, going_back: bool = False) -> None:
        does = sentence(step, gpu)
        try:
            await self._write(Stepping(gpu.uuid, does))
        except StateUnwritable:
            # The way back is in the first record already; better undone than written down.
            if not going_back:
                raise
        self._job.waits(gpu.uuid, does)
        self._in_doubt |= isinstance(step, DestroyInstance | DestroyCompute)
        performed = await self._nvml.perform(gpu, step)
        self._job.acted()
        # On the way back it is about the way there, too.
        self._in_doubt &= going_back
        self._job.waits(gpu.uuid, "")
        if isinstance(step, SetMode):
            _check_mode(gpu, step.mode, performed)

    async def _verified(self, gpu: Gpu, goal: Target) -> Gpu:
        """The GPU as it is now. Raises Nvml where that differs from the goal."""
        now = await self._nvml.snapshot(gpu)
        self._job.seen(now)
        missing = plan_gpu(now, goal).steps
        if missing:
            raise Nvml(
                f"{gpu} is not as the driver's answers say: left to do is to "
                + ", ".join(sentence(s, now) for s in missing),
                call="",
                code=0,
                name="READ_BACK_DIFFERS",
            )
        return now

    async def _write(self, record: Record) -> None:
        await self._journal.write(record)

    def _stop_if_canceled(self) -> None:
        if self._job.canceled:
            raise Canceled("the job was canceled before this GPU was finished")

    def _outcome(self, ending: Ending, error: MigdError, left: str = "") -> Outcome:
        nvml = error if isinstance(error, Nvml) else None
        return Outcome(
            self._before.gpu,
            self._before.index,
            ending,
            error=error.dbus_name,
            message=str(error),
            call=nvml.call if nvml else "",
            code=nvml.code if nvml else 0,
            code_name=nvml.name if nvml else "",
            left=left,
        )


def _check_mode(gpu: Gpu, wanted: Mode, performed: Performed) -> None:
    """NVML's SUCCESS alone does not mean that the mode is in force (nvml.h, gpu-operator#118)."""
    if performed.mode == performed.pending == wanted:
        return
    if performed.activation == _IN_USE:
        raise InUse(
            f"{gpu}: the MIG mode was not switched: held, reset needed. Another process uses the "
            "driver, perhaps one that NVML does not list; end it and apply again"
        )
    if performed.activation in (_RESET_REQUIRED, _NOT_SUPPORTED):
        raise ResetRequired(
            f"{gpu}: the MIG mode switches to {wanted} only with a reset that this host does not "
            f"allow (a virtual machine, perhaps): set it with `nvidia-smi -i {gpu.index} -mig "
            f"{int(wanted is Mode.ENABLED)}`, reboot the machine, and apply again"
        )
    raise Nvml(
        f"{gpu}: nvmlDeviceSetMigMode returned SUCCESS, but the mode is {performed.mode}, "
        f"pending {performed.pending}",
        call="nvmlDeviceSetMigMode",
        code=performed.activation,
        name="NO_EFFECT",
    )
