"""One GPU in a job: its steps, the check of what came of them, and the way back."""

import asyncio
import logging
from typing import Protocol

from migd.core.job import Before, Ending, Outcome, Phase, Reached, Record, Returned, Stepping
from migd.core.model import Gpu, Impact, Layout, Mode, Target, layout
from migd.core.plan import GpuPlan, plan_gpu
from migd.core.steps import DestroyCompute, DestroyInstance, SetMode, Step, sentence
from migd.errors import (
    Canceled,
    InUse,
    MigdError,
    NoSystemd,
    NotSupported,
    Nvml,
    ResetRequired,
    StateUnwritable,
)
from migd.nvml.client import NvmlClient
from migd.nvml.protocol import Performed
from migd.service.journal import Journal
from migd.service.resets import CALL, Resets

log = logging.getLogger(__name__)

_IN_USE, _NOT_SUPPORTED, _RESET_REQUIRED = 19, 3, 16
_SET_MODE = "nvmlDeviceSetMigMode"

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

    def __init__(
        self,
        before: Before,
        nvml: NvmlClient,
        journal: Journal,
        job: Progress,
        resets: Resets,
    ) -> None:
        self._before = before
        self._nvml = nvml
        self._journal = journal
        self._job = job
        self._resets = resets
        # Whether clients were cleared away for a reset.
        self._may_reset = False
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
        self._may_reset = plan.impact.rank >= Impact.RESET.rank
        try:
            for step in plan.steps:
                self._stop_if_canceled()
                self._job.entered(uuid, Phase.MODE if isinstance(step, SetMode) else Phase.CHANGE)
                await self._do(plan.gpu, step)
                self._job.stepped(uuid)
            if plan.goal.no_reset:
                await self._if_in_force(plan)
            self._stop_if_canceled()
            self._job.entered(uuid, Phase.VERIFY)
            now = await self._verified(plan.gpu, plan.goal)
            settled = layout(now)
            self._job.entered(uuid, Phase.SETTLE)
            await self._write(Reached(uuid, settled))
        except MigdError as error:
            if keep_pending and (kept := await self._kept_pending(plan, error)):
                return kept, None
            log.warning("%s: %s; putting back what was there", plan.gpu, error)
            return await self.back(plan.gpu, error), None
        finally:
            self._resets.asked(uuid)
        return Outcome(uuid, plan.gpu.index, Ending.DONE, message=_still_pending(now)), settled

    async def _if_in_force(self, plan: GpuPlan) -> None:
        """What is possible at once where the driver has reset an idle GPU by itself."""
        now = await self._nvml.snapshot(plan.gpu)
        for step in plan_gpu(now, plan.goal).steps:
            self._stop_if_canceled()
            await self._do(now, step)

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

    async def _kept_pending(self, plan: GpuPlan, reason: MigdError) -> Outcome | None:
        """The end of a GPU whose new mode is pending, for a reboot; None if it goes back."""
        if not isinstance(reason, ResetRequired):
            return None
        try:
            now = await self._nvml.snapshot(plan.gpu)
        except MigdError:
            return None
        self._job.seen(now)
        if now.pending != plan.goal.mode or now.pending == now.mode:
            return None
        log.warning("%s: %s; MIG mode %s stays pending", now, reason, now.pending)
        left = f"MIG mode {now.pending} is pending, and nothing is put back before that"
        return self._outcome(Ending.FAILED, reason, left)

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
        await self._note(gpu, does, going_back=going_back)
        self._job.waits(gpu.uuid, does)
        self._in_doubt |= isinstance(step, DestroyInstance | DestroyCompute)
        performed = await self._nvml.perform(gpu, step)
        self._job.acted()
        # On the way back it is about the way there, too.
        self._in_doubt &= going_back
        self._job.waits(gpu.uuid, "")
        if isinstance(step, SetMode):
            self._resets.asked(gpu.uuid)
            await self._put_in_force(gpu, step, performed, going_back=going_back)

    async def _put_in_force(
        self, gpu: Gpu, step: SetMode, performed: Performed, *, going_back: bool
    ) -> None:
        """Have the GPU reset if the driver did not do it by itself.

        NVML's SUCCESS alone does not mean that it did (nvml.h, NVIDIA/gpu-operator issue 118).
        """
        if performed.pending == step.mode and (step.pending or performed.mode == step.mode):
            return
        # What is pending and cannot be withdrawn: once it is in force, it can be switched back.
        stuck = going_back and self._may_reset and performed.pending != performed.mode
        if not stuck and not (step.reset and performed.pending == step.mode):
            raise _refusal(gpu, step.mode, performed)
        await self._note(gpu, f"reset GPU {gpu.index} with nvidia-smi", going_back=going_back)
        self._job.waits(gpu.uuid, f"a reset of GPU {gpu.index}")
        try:
            await self._resets.reset(gpu, step.mode)
        except (NoSystemd, NotSupported) as error:
            raise _refusal(gpu, step.mode, performed, f"{error}") from error
        finally:
            self._job.waits(gpu.uuid, "")
        # Nothing of before holds: a reset can change even the minor.
        now = await self._nvml.snapshot(gpu)
        self._job.seen(now)
        if not now.mode == now.pending == step.mode:
            found = Performed(mode=now.mode, pending=now.pending)
            raise _no_effect(gpu, f"{CALL} succeeded", CALL, found)

    async def _note(self, gpu: Gpu, does: str, *, going_back: bool) -> None:
        try:
            await self._write(Stepping(gpu.uuid, does))
        except StateUnwritable:
            # The way back is in the first record already; better undone than written down.
            if not going_back:
                raise

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


def _still_pending(gpu: Gpu) -> str:
    if gpu.mode == gpu.pending:
        return ""
    return (
        f"MIG mode {gpu.pending} is pending: a reset of the GPU or a reboot puts it in force; the "
        "boot then makes the rest, and after a reset that is to apply again"
    )


def _refusal(gpu: Gpu, wanted: Mode, performed: Performed, also: str = "") -> MigdError:
    """Why a mode is not in force, by what the driver says; also: why nvidia-smi did not help."""
    also = also and f". nvidia-smi could not be run to reset it: {also}"
    if performed.activation == _IN_USE:
        return InUse(
            f"{gpu}: the MIG mode was not switched: held, reset needed. Another process uses the "
            f"driver, perhaps one that NVML does not list; end it and apply again{also}"
        )
    if performed.activation in (_RESET_REQUIRED, _NOT_SUPPORTED):
        return ResetRequired(
            f"{gpu}: the MIG mode switches to {wanted} only with a reset that this host does not "
            f"allow (a virtual machine, perhaps): set it with `nvidia-smi -i {gpu.index} -mig "
            f"{int(wanted is Mode.ENABLED)}`, reboot the machine, and apply again{also}"
        )
    did = f"{_SET_MODE} returned SUCCESS"
    return _no_effect(gpu, did, _SET_MODE, performed)


def _no_effect(gpu: Gpu, did: str, call: str, found: Performed) -> Nvml:
    text = f"{gpu}: {did}, but the mode is {found.mode}, pending {found.pending}"
    return Nvml(text, call=call, code=found.activation, name="NO_EFFECT")
