"""The end of a job, as it is told and kept: from what came of its GPUs, clients and the rest."""

from collections.abc import Sequence

from migd.core.hooks import HookOutcome, failures
from migd.core.job import (
    NOTHING_AFTER,
    Aftermath,
    Before,
    Begun,
    ClientOutcome,
    Ending,
    Outcome,
    PastJob,
    Result,
)
from migd.errors import Canceled, ResetRequired


def past_job(
    begun: Begun,
    ended: int,
    outcomes: Sequence[Outcome],
    result: Result,
    clients: tuple[ClientOutcome, ...] = (),
    after: Aftermath = NOTHING_AFTER,
    hooks: tuple[HookOutcome, ...] = (),
) -> PastJob:
    """ended: microseconds since the epoch; outcomes: of the GPUs that it was to change."""
    unchanged = [Outcome(b.gpu, b.index, Ending.UNCHANGED) for b in begun.unchanged]
    every = sorted([*unchanged, *outcomes], key=lambda o: o.index)
    wanted = all(o.ending in (Ending.DONE, Ending.UNCHANGED) for o in every)
    return PastJob(
        begun.id,
        begun.type,
        begun.choice,
        begun.started,
        ended,
        result,
        "; ".join([_message(every, result), *missing(clients), *after.failed, *failures(hooks)]),
        changed=any(o.ending is not Ending.UNCHANGED for o in every),
        wanted=wanted,
        outcomes=tuple(every),
        clients=clients,
        after=after,
        about=begun.about,
        hooks=hooks,
    )


def missing(clients: Sequence[ClientOutcome]) -> list[str]:
    """Which clients did not come back, and why, in sentences."""
    return [f"{c.unit} did not come back: {c.message}" for c in clients if c.missing]


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


def waits_for_reboot(outcome: Outcome) -> bool:
    """Its mode is pending, and left so."""
    return outcome.error == ResetRequired.dbus_name and outcome.ending is Ending.FAILED


def lost(before: Before, why: str) -> Outcome:
    """Of a GPU that nobody knows what came of; why: it is not looked at."""
    return Outcome(
        before.gpu,
        before.index,
        Ending.FAILED,
        error=Canceled.dbus_name,
        message="migd ended in the middle of the job",
        left=f"not looked at: {why}",
    )
