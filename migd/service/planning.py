"""What would be done for what is asked for: from a fresh look, with who and what is in the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from migd.config.devices import find_gpu
from migd.core import putback
from migd.core.clients import Clearing, Rules
from migd.core.job import Choice
from migd.core.listed import Listed
from migd.core.model import Gpu, Layout, Target
from migd.core.plan import Plan, plan
from migd.errors import ConfigRefused
from migd.host.threads import in_thread
from migd.service.clients import Clients, rules
from migd.service.configuration import Configuration
from migd.service.conflicts import Conflicts
from migd.service.hooks import Hooks
from migd.service.instances import Change
from migd.service.request import Blocker, Request, blockers, digest, refuse_if_changed
from migd.service.view import View

_TEXT_LIMIT_S = 60.0


@dataclass(frozen=True)
class Planned:
    """A plan, who asked for what, and what stands in its way; by: the rules for clients."""

    choice: Choice
    plan: Plan
    clearing: Clearing
    blockers: list[Blocker]
    by: Rules

    @property
    def digest(self) -> str:
        return digest(self.plan, self.clearing)


class Seen(Protocol):
    """Where plans begin: what is there, and what each GPU reached last, by UUID."""

    async def look(self) -> View: ...

    @property
    def settled_layouts(self) -> Mapping[str, Layout]: ...


class Planning:
    def __init__(
        self,
        seen: Seen,
        clients: Clients,
        configuration: Configuration,
        conflicts: Conflicts,
        hooks: Hooks,
    ) -> None:
        self._seen = seen
        self._clients = clients
        self._configuration = configuration
        self._conflicts = conflicts
        self._hooks = hooks

    async def plan(self, request: Request, choice: Choice) -> Planned:
        """Raises what says why it cannot be."""
        view = await self._seen.look()
        targets = await self._targets(choice, view.gpus, request.gpus)
        if request.no_reset:
            targets = {gpu: replace(t, no_reset=True) for gpu, t in targets.items()}
        view.refuse_troubled(targets)
        if view.unseen and not request.gpus:
            # It may be one that is meant: saying that all is done without it would be a lie.
            raise view.unseen[0]
        made = plan(view.gpus, targets, self._seen.settled_layouts)
        by = self.rules(terminate=request.terminate)
        return await self._with_clients(request, choice, made, view, by)

    async def change(self, change: Change, uid: int) -> Planned:
        """As `plan`, for a change to one GPU."""
        view = await self._seen.look()
        view.refuse_troubled([change.gpu])
        gpu = find_gpu(view.gpus, change.gpu)
        made = Plan((change.plan(gpu, self._seen.settled_layouts.get(gpu.uuid)),))
        by = self.rules(terminate=change.request.terminate)
        if made.only_adds:
            # It is in nobody's way, not even in that of those who are stopped for any change.
            by = replace(by, listed=Listed())
        choice = change.choice(made.gpus[0], uid)
        return await self._with_clients(change.request, choice, made, view, by)

    async def _with_clients(
        self, request: Request, choice: Choice, made: Plan, view: View, by: Rules
    ) -> Planned:
        clearing = await self._clients.decide(made, view.gpus, by)
        if any(b.client and not b.client.holder.started for b in clearing.blocked):
            # It has ended since NVML listed it, or is out of sight: NVML's next list tells which.
            clearing = await self.clearing(made, by)
        conflicts = await self._conflicts.against(made)
        unknown = self._configuration.unknown_clients
        hooks = self._hooks.against(made)
        in_way = blockers(made, clearing, request, conflicts, hooks, unknown)
        planned = Planned(choice, made, clearing, in_way, by)
        refuse_if_changed(planned.digest, request)
        return planned

    async def _targets(
        self, choice: Choice, gpus: Sequence[Gpu], only: Sequence[str]
    ) -> Mapping[str, Target]:
        """What is asked for; a text of 1 MiB takes seconds to be read, which delays nobody else."""
        find = partial(self._configuration.targets, choice, gpus, only)
        if not choice.text:
            return find()
        try:
            return await in_thread(find, _TEXT_LIMIT_S)
        except TimeoutError:
            raise ConfigRefused(
                f"the text could not be read within {_TEXT_LIMIT_S:g} s; make it shorter, or write "
                "it to config.yaml"
            ) from None

    def rules(self, *, terminate: bool = False) -> Rules:
        """What is done to clients now; terminate: also to those that nobody listed."""
        limits = self._configuration.settings.limits
        return rules(self._configuration.clients, limits, terminate=terminate)

    async def clearing(self, made: Plan, by: Rules) -> Clearing:
        """What is to be done to clients for a plan by who has its GPUs now."""
        gpus = (await self._seen.look()).gpus
        now_on = {g.uuid: g.processes for g in gpus}
        fresh = tuple(
            replace(g, gpu=replace(g.gpu, processes=now_on.get(g.gpu.uuid, ()))) for g in made.gpus
        )
        return await self._clients.decide(Plan(fresh), gpus, by)

    async def put_back(
        self, view: View, wanted: Mapping[str, Choice]
    ) -> tuple[Plan, Clearing, putback.Return]:
        """What gives all GPUs back what they should have, so far as nobody is in the way.

        wanted: by UUID. Raises Conflict, HookFailed.
        """
        there = [g for g in view.gpus if g.uuid not in view.troubled]
        back = putback.planned(
            there, wanted, self._configuration.targets, self._seen.settled_layouts
        )
        await self._conflicts.refuse(Plan(back.plans))
        self._hooks.refuse(Plan(back.plans))
        trouble = (*map(str, view.troubled.values()), *map(str, view.unseen))
        made, clearing, in_use = await self._unblocked(Plan(back.plans), view.gpus)
        told = replace(
            back,
            instead=(*back.instead, *_absent(view, wanted)),
            refused=(*back.refused, *trouble, *in_use),
        )
        return made, clearing, told

    async def _unblocked(
        self, made: Plan, gpus: Sequence[Gpu]
    ) -> tuple[Plan, Clearing, tuple[str, ...]]:
        """What of a plan nobody is in the way of, and who is in the way of the rest."""
        in_use: list[str] = []
        while True:
            clearing = await self._clients.decide(made, gpus, self.rules())
            if not clearing.blocked:
                return made, clearing, tuple(in_use)
            in_use += [b.message for b in clearing.blocked]
            blocked = {b.use.gpu for b in clearing.blocked if b.use}
            blocked |= {gpu for b in clearing.blocked for gpu in b.gpus}
            left = [g for g in made.gpus if g.gpu.uuid not in blocked]
            # Where it is nobody's use of a GPU, it is about units, and so about all of them.
            made = Plan(tuple(left) if blocked and len(left) < len(made.gpus) else ())


def _absent(view: View, wanted: Mapping[str, Choice]) -> list[str]:
    """GPUs of which something is wanted and that are not there, in sentences."""
    gone = wanted.keys() - {g.uuid for g in view.gpus}
    return [
        f"GPU {uuid}, which should have {wanted[uuid].label}, is not there"
        for uuid in sorted(gone)
        if not view.unseen  # it may be one of those of which nothing is known
    ]
