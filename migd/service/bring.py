"""Making the node what is wanted of it with nobody asking: after files or GPUs have changed."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from migd.core.job import Choice, PastJob
from migd.errors import Busy, ImpactExceeded, InUse, MigdError
from migd.service.request import Request
from migd.service.service import Service


@dataclass(frozen=True)
class Brought:
    """What became of the GPUs that one choice is for: refused says why no job was begun."""

    gpus: tuple[str, ...]
    label: str
    refused: str = ""
    job: PastJob | None = None

    def __str__(self) -> str:
        return f"{self.label}: {self.refused}" if self.label else self.refused


async def bring(
    service: Service, only: Collection[str] | None = None, *, settle: bool = False
) -> list[Brought]:
    """Make GPUs what is wanted of them now, one choice after the other. Raises Busy.

    only: UUIDs, None for all; settle: what is there and is what is wanted counts as settled
    """
    try:
        await service.look()
    except MigdError as error:
        return [Brought(tuple(only or ()), "", str(error))]
    brought = []
    for choice, gpus in _by_choice(service, only):
        try:
            brought.append(await _one(service, choice, gpus, settle=settle))
        except (InUse, ImpactExceeded) as error:
            if not settle or len(gpus) == 1:
                brought.append(Brought(tuple(gpus), choice.label, str(error)))
                continue
            # What is in the way on one GPU must not keep the others from theirs.
            for gpu in gpus:
                try:
                    brought.append(await _one(service, choice, [gpu], settle=settle))
                except (InUse, ImpactExceeded) as hindered:
                    brought.append(Brought((gpu,), choice.label, str(hindered)))
    return brought


async def _one(service: Service, choice: Choice, gpus: list[str], *, settle: bool) -> Brought:
    """Raises Busy, and InUse and ImpactExceeded, which may be about some of the GPUs only."""
    request = Request(choice.config, choice.text, tuple(gpus), choice.mode_only)
    try:
        job = await _make(service, request, settle=settle)
    except (Busy, InUse, ImpactExceeded):
        raise
    except MigdError as error:
        return Brought(tuple(gpus), choice.label, str(error))
    return Brought(tuple(gpus), choice.label, job=job)


def _by_choice(service: Service, only: Collection[str] | None) -> list[tuple[Choice, list[str]]]:
    """What is wanted of the GPUs that are there, each thing once."""
    there = {gpu.uuid for gpu in service.view.gpus if only is None or gpu.uuid in only}
    found: defaultdict[Choice, list[str]] = defaultdict(list)
    for uuid, choice in service.wanted.items():
        if uuid in there:
            same = next((known for known in found if known.same(choice)), choice)
            found[same].append(uuid)
    return list(found.items())


async def _make(service: Service, request: Request, *, settle: bool) -> PastJob | None:
    planned = await service.plan(request)
    if not settle and not any(gpu.steps for gpu in planned.plan.gpus):
        return None
    number = await service.apply(request)
    return await service.jobs.wait(number)
