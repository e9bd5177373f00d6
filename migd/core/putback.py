"""What each GPU gets back at boot: what is wanted of it, or else what it had last. Pure."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from migd.core.job import Choice
from migd.core.model import Gpu, Layout, Target
from migd.core.plan import GpuPlan, plan_gpu
from migd.errors import MigdError

# What a choice wants of some GPUs, by UUID: the choice, all GPUs, and the UUIDs of those asked for.
Targets = Callable[[Choice, Sequence[Gpu], Collection[str]], Mapping[str, Target]]


@dataclass(frozen=True)
class Return:
    """How GPUs get back what they should have.

    plans: in index order; instead: of those that get what was settled in place of what is wanted,
    why, and those that are not there; refused: why others get nothing. Sentences.
    """

    plans: tuple[GpuPlan, ...]
    instead: tuple[str, ...]
    refused: tuple[str, ...]


def planned(
    gpus: Sequence[Gpu],
    wanted: Mapping[str, Choice],
    targets: Targets,
    settled: Mapping[str, Layout],
) -> Return:
    """A name means what the file says now; where it is gone or refused, what was settled counts.

    wanted, settled: by UUID; targets: what a choice wants of some GPUs, by UUID
    """
    plans, instead, refused = [], [], []
    for gpu in sorted(gpus, key=lambda g: g.index):
        choice, was = wanted.get(gpu.uuid), settled.get(gpu.uuid)
        if choice is None:
            continue
        try:
            plans.append(_as_wanted(gpu, choice, gpus, targets, was))
        except MigdError as error:
            try:
                if was is None:
                    raise
                plans.append(plan_gpu(gpu, was.target(), was))
            except MigdError:
                refused.append(f"{gpu} cannot have {choice.label}: {error}")
            else:
                instead.append(
                    f"{gpu} cannot have {choice.label} ({error}), so it gets the layout that it "
                    "had last"
                )
    return Return(tuple(plans), tuple(instead), tuple(refused))


def _as_wanted(
    gpu: Gpu, choice: Choice, gpus: Sequence[Gpu], targets: Targets, was: Layout | None
) -> GpuPlan:
    target = targets(choice, gpus, [gpu.uuid])[gpu.uuid]
    if target.instances is None and was and was.mode is target.mode:
        # Only the mode was chosen, and its instances left as they were: so they are again.
        target = was.target()
    return plan_gpu(gpu, target, was)
