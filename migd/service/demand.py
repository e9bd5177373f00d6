"""What a call needs to be permitted: actions of polkit, and what its rules can decide by."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from migd.core.job import TEXT, Begun
from migd.core.permissions import PUTTING_BACK, Action, Method, When, needed, to_cancel
from migd.core.plan import Plan
from migd.core.reboot import Reboots
from migd.service.audit import shown
from migd.service.request import Request


@dataclass(frozen=True)
class Demand:
    """A grant is for these details and no others."""

    actions: tuple[Action, ...]
    details: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def plain(cls, method: Method, kind: str, cases: Collection[When] = ()) -> "Demand":
        """Of a method that is about no configuration; kind: as the type of a job."""
        return cls(needed(method, cases), {"type": kind, "config": ""})

    @classmethod
    def to_put_back(cls, reboots: Reboots) -> "Demand":
        """It resets GPUs and reboots the host where that is needed, and nobody else is asked."""
        cases = [] if reboots is Reboots.NEVER else [When.MAY_REBOOT]
        return cls.plain(PUTTING_BACK, "put-back", cases)

    @classmethod
    def of(cls, method: Method, kind: str, request: Request, plan: Plan) -> "Demand":
        cases = [When(option) for option in request.flags if option in set(When)]
        cases += [When.TEXT if request.text else When.NAMED]
        cases += [When.SETS_MODE] if plan.sets_mode else []
        details = {
            "type": kind,
            # A name that somebody gives a text of theirs must be taken for no other.
            "config": TEXT if request.text else shown(request.config),
            "text": "yes" if request.text else "no",
            **_gpus({g.gpu.uuid: g.gpu.index for g in plan.gpus}),
            "impact": plan.impact.value,
            "options": " ".join(request.flags),
        }
        return cls(needed(method, cases), details)

    @classmethod
    def to_cancel(cls, begun: Begun, uid: int) -> "Demand":
        """Whoever started a job needs nothing to end it."""
        own = uid == begun.asked.caller.uid
        actions = () if own else to_cancel([g.action for g in begun.asked.grants])
        details = {
            "type": "cancel",
            "config": shown(begun.label),
            "text": "yes" if begun.choice.text else "no",
            **_gpus({b.gpu: b.index for b in begun.gpus}),
            "impact": begun.asked.impact,
        }
        return cls(actions, details)


def _gpus(indices: Mapping[str, int]) -> dict[str, str]:
    return {
        "gpus": " ".join(indices),
        "gpu-indices": " ".join(map(str, indices.values())),
    }
