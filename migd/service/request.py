"""What a caller asks for, and what stands in the way of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

from migd.core.clients import Clearing
from migd.core.holders import Client, Use
from migd.core.model import Impact
from migd.core.plan import Plan
from migd.core.reboot import Reboots
from migd.errors import (
    Changed,
    ConfigRefused,
    Conflict,
    HookFailed,
    ImpactExceeded,
    InUse,
    MigdError,
    Overruled,
)

_NAMED = 5
_SHOWN = 200


@dataclass(frozen=True)
class Request:
    """A configuration by name or as text, and the options of Plan, Apply and Assert.

    checkpoint: of mig-parted, to be made a text of
    gpus: only these, by UUID, PCI address or index; expect: the digest of a plan, or ""
    terminate: who is in the way and listed nowhere may be stopped or ended, too
    allow_reboot: the host may be rebooted, if migd.yaml allows it as well
    reset_peers: GPUs that the driver resets only together with one of the plan may be reset, too
    no_reset: a MIG mode that takes a reset is left pending
    """

    config: str
    text: str = ""
    gpus: tuple[str, ...] = ()
    mode_only: bool = False
    max_impact: Impact = Impact.GPU
    expect: str = ""
    terminate: bool = False
    allow_reboot: bool = False
    reset_peers: bool = False
    no_reset: bool = False
    checkpoint: str | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """The options that are on, by their names."""
        return tuple(
            f.name.replace("_", "-") for f in fields(self) if getattr(self, f.name) is True
        )

    @property
    def options(self) -> tuple[str, ...]:
        """All that differ from what holds without them, for a record; the text only by its name."""
        told = {"gpus": ",".join(self.gpus)[:_SHOWN], "expect": self.expect[:_SHOWN]}
        if self.max_impact is not Impact.GPU:
            told["max-impact"] = self.max_impact.value
        given = [f"{name}={value}" for name, value in told.items() if value]
        return (*(["text"] if self.text else []), *self.flags, *given)


@dataclass(frozen=True)
class InstanceRequest(Request):
    """The options of the methods of GPUs and instances; config is a profile, or a mode.

    start: the first memory slice; compute: names of compute instances, None for the one that fills
    profile, uuid: what is meant is of this profile, or this MIG device, or it is not meant
    """

    start: int | None = None
    compute: tuple[str, ...] | None = None
    profile: str = ""
    uuid: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        told = {
            "start": "" if self.start is None else str(self.start),
            "compute": "" if self.compute is None else f"[{','.join(self.compute)}]"[:_SHOWN],
            "profile": self.profile[:_SHOWN],
            "uuid": self.uuid[:_SHOWN],
        }
        return (*super().options, *(f"{name}={value}" for name, value in told.items() if value))


@dataclass(frozen=True)
class Blocker:
    """One thing that Apply would refuse for; with the client and what it has, if it is one's.

    module: of the kernel, if it is one's
    """

    error: MigdError
    client: Client | None = None
    use: Use | None = None
    module: str = ""


def blockers(
    plan: Plan,
    clearing: Clearing,
    request: Request,
    conflicts: Sequence[str] = (),
    hooks: Sequence[str] = (),
    unknown_clients: str = "",
) -> list[Blocker]:
    """All that stands in the way of `plan`, the worst first.

    conflicts: with what else is on this host; hooks: which cannot be run, and why; in sentences
    unknown_clients: why it is not known whom to stop, if so
    """
    found = []
    if plan.impact.rank > request.max_impact.rank:
        reach = [str(g.gpu) for g in plan.gpus if g.impact.rank > request.max_impact.rank]
        found.append(
            Blocker(
                ImpactExceeded(
                    f"the plan has impact {plan.impact} on {', '.join(reach)}, and the most "
                    f"allowed is {request.max_impact}: allow it with max-impact={plan.impact} "
                    f"(migctl apply --max-impact {plan.impact})"
                )
            )
        )
    found += [Blocker(Conflict(sentence)) for sentence in conflicts]
    if unknown_clients and plan.impact is not Impact.NONE:
        # Who is stopped without need comes back; who should have been stopped and was not can keep
        # what is destroyed from being made again.
        found.append(
            Blocker(
                ConfigRefused(
                    f"which clients are to be stopped is not known: {unknown_clients}. Mend that "
                    "(`migctl check` judges files), or move the file away"
                )
            )
        )
    found += [Blocker(HookFailed(sentence)) for sentence in hooks]
    found += [Blocker(InUse(b.message), b.client, b.use, b.module) for b in clearing.blocked]
    return found


def refuse_if_blocked(found: list[Blocker]) -> None:
    """Raise the first blocker's error; of clients, name the first few in one sentence."""
    if not found:
        return
    if not isinstance(found[0].error, InUse):
        raise found[0].error
    named = "; ".join(str(b.error) for b in found[:_NAMED])
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    raise InUse(named + more)


def digest(plan: Plan, clearing: Clearing) -> str:
    """Names what would be done: to GPUs, and to clients where it is anything."""
    if not clearing.stops and not clearing.ends:
        return plan.digest
    ends = [[e.client.holder.pid, e.client.holder.started] for e in clearing.ends]
    told = json.dumps([plan.digest, clearing.units, clearing.lost, ends])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def refuse_reboot_if_never(request: Request, reboots: Reboots) -> None:
    """Raises Overruled where a reboot is allowed that migd.yaml forbids."""
    if request.allow_reboot and reboots is Reboots.NEVER:
        raise Overruled(
            "a reboot is allowed by the call, but not by migd.yaml, which has reboot: never; "
            "write reboot: when-needed there, or leave allow-reboot out"
        )


def refuse_if_changed(would_be: str, request: Request) -> None:
    """would_be: the digest of what would be done now. Raises Changed."""
    if request.expect and request.expect != would_be:
        raise Changed(
            f"the plan would be another now (its digest is {would_be}, expected was "
            f"{request.expect}): look at it again before applying"
        )
