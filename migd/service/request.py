"""What a caller asks for, and what stands in the way of it."""

from dataclasses import dataclass

from migd.core.model import Impact
from migd.core.plan import GpuPlan, Plan
from migd.errors import Changed, ImpactExceeded, InUse, MigdError
from migd.host.processes import Holder
from migd.service.view import View

_NAMED = 5


@dataclass(frozen=True)
class Request:
    """A configuration by name or as text, and the options of Plan, Apply and Assert.

    gpus: only these, by UUID, PCI address or index; expect: the digest of a plan, or ""
    """

    config: str
    text: str = ""
    gpus: tuple[str, ...] = ()
    mode_only: bool = False
    max_impact: Impact = Impact.GPU
    expect: str = ""


@dataclass(frozen=True)
class Blocker:
    """One thing that Apply would refuse for; `holder` with its GPU and instance if a process is."""

    error: MigdError
    holder: Holder | None = None
    gpu: str = ""
    gi: int | None = None


def blockers(plan: Plan, request: Request, view: View) -> list[Blocker]:
    """All that stands in the way of `plan`, the worst first."""
    found = []
    if plan.impact.rank > request.max_impact.rank:
        reach = [str(g.gpu) for g in plan.gpus if g.impact.rank > request.max_impact.rank]
        found.append(
            Blocker(
                ImpactExceeded(
                    f"the plan has impact {plan.impact} on {', '.join(reach)}, and the most "
                    f"allowed is {request.max_impact}: allow it with max-impact={plan.impact}"
                )
            )
        )
    found += [
        Blocker(_in_use(gpu_plan, holder), holder, gpu_plan.gpu.uuid, process.gi)
        for gpu_plan in plan.gpus
        for process in gpu_plan.holders
        for holder in (view.holder(process),)
    ]
    return found


def _in_use(plan: GpuPlan, holder: Holder) -> InUse:
    return InUse(f"{plan.gpu} is used by {holder}: end it, or leave out that GPU")


def refuse_if_blocked(found: list[Blocker]) -> None:
    """Raise the first blocker's error; of processes, name the first few in one sentence."""
    if not found:
        return
    if found[0].holder is None:
        raise found[0].error
    named = "; ".join(str(b.error) for b in found[:_NAMED])
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    raise InUse(named + more)


def refuse_if_changed(plan: Plan, request: Request) -> None:
    if request.expect and request.expect != plan.digest:
        raise Changed(
            f"the plan would be another now (its digest is {plan.digest}, expected was "
            f"{request.expect}): look at it again before applying"
        )
