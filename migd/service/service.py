"""The use cases: look, plan, apply, assert, export, reload. Knows no bus."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from migd.config.checkpoint import as_text, checkpoint
from migd.config.configs import Configs
from migd.config.devices import find_gpu, listed
from migd.config.export import Form, exported, rendered
from migd.config.generate import generated
from migd.config.settings import Settings
from migd.core.asked import ITSELF, Asked
from migd.core.clients import Blocked, Clearing, Rules, Standing, standing, steps_aside
from migd.core.differences import difference
from migd.core.holders import Holder
from migd.core.job import Choice, PastJob
from migd.core.model import Gpu, Layout
from migd.core.permissions import APPLYING, STAGING, Method
from migd.core.plan import Plan
from migd.core.putback import Return
from migd.core.reboot import NOBODY, Asker
from migd.core.wanted import Authority
from migd.errors import ConfigRefused, MigdError, NoDriver, NotSupported, Overruled, StateUnwritable
from migd.host.logind import Logind
from migd.host.reset import Smi
from migd.host.threads import in_thread
from migd.nvml.client import NvmlClient
from migd.service import audit
from migd.service.after import After
from migd.service.clients import Clients
from migd.service.configuration import Configuration
from migd.service.conflicts import Conflicts
from migd.service.demand import Demand
from migd.service.drift import Drift
from migd.service.hooks import Hooks
from migd.service.instances import Change
from migd.service.jobs import Audience, Jobs, now
from migd.service.journal import Journal
from migd.service.permit import BY_MIGD, Permit, permitted
from migd.service.planning import Planned, Planning
from migd.service.reboot import Reboot
from migd.service.request import (
    Request,
    refuse_if_blocked,
    refuse_reboot_if_never,
)
from migd.service.runner import Runner
from migd.service.state import StateStore
from migd.service.view import Match, View, match, seen

log = logging.getLogger(__name__)

# A checkpoint is read within a second, be it as long as it may.
_CHECKPOINT_LIMIT_S = 30.0

# What migd.yaml calls the limits of NVML.
LIMITS = {
    "nvml-open": "open_s",
    "nvml-read": "snapshot_s",
    "nvml-change": "perform_s",
    "nvml-in-use": "retry_s",
    "nvml-idle": "idle_s",
}


class Service:
    """One node. All methods are for one event loop."""

    def __init__(
        self,
        nvml: NvmlClient,
        clients: Clients,
        after: After,
        hooks: Hooks,
        configuration: Configuration,
        store: StateStore,
        journal: Journal,
        audience: Audience,
        logind: Logind,
        smi: Smi,
    ) -> None:
        self._smi = smi
        self._nvml = nvml
        self._clients = clients
        self._configuration = configuration
        self._store = store
        self._audience = audience
        self._preparing = asyncio.Lock()
        self._reboot = Reboot(logind, store, self._strangers)
        runner = Runner(self, nvml, clients, after, hooks, journal, self._reboot, smi)
        self.jobs = Jobs(self, runner, store, journal, audience)
        self.conflicts = Conflicts(clients.units, audience.changed)
        self._planning = Planning(self, clients, configuration, self.conflicts, hooks)
        self.view = View()
        self.match = Match.UNKNOWN
        self.match_since = now()
        self.wanted: dict[str, Choice] = {}
        self._judged: object = None
        self._not_done: tuple[str, ...] = ()
        self.drift = Drift(audience.changed)

    def load(self) -> None:
        """Read what was kept and what is configured; what cannot be used is logged and left."""
        self._store.load()
        try:
            self._store.reserve_ids()
        except StateUnwritable as error:
            log.error("%s", error)
        try:
            self.reload()
        except ConfigRefused as error:
            log.error("%s", error)

    async def stop(self) -> None:
        await self.jobs.stop()
        await self.conflicts.stop()
        await self._nvml.close()
        self._store.close()

    # -- reading -------------------------------------------------------------------------

    async def look(self) -> View:
        """Observe the node anew. Raises NoDriver, Nvml, Hung."""
        before = self.jobs.current, self.past_jobs[:1]
        try:
            view = await seen(await self._nvml.observe())
        except MigdError as error:
            if isinstance(error, NoDriver):
                self._show(View())
            self._compare(before, str(error))
            raise
        self._show(view)
        self._compare(before)
        return view

    async def checkpoint(self) -> str:
        """What is on the node now, as a checkpoint of mig-parted. Raises Hung, Nvml too."""
        view = await self.look()
        view.refuse_troubled([g.uuid for g in view.gpus])
        if view.unseen:
            raise view.unseen[0]
        return checkpoint(view.gpus)

    async def read(self, request: Request) -> Request:
        """The request with a text of its checkpoint, if it has one, in place of it."""
        if request.checkpoint is None:
            return request
        view = await self.look()
        if view.unseen and not request.gpus:
            raise view.unseen[0]
        made = partial(as_text, request.checkpoint, view.gpus, request.gpus)
        try:
            text = await in_thread(made, _CHECKPOINT_LIMIT_S)
        except TimeoutError:
            raise ConfigRefused(
                f"the checkpoint could not be read within {_CHECKPOINT_LIMIT_S:g} s; ask again"
            ) from None
        return replace(request, checkpoint=None, text=text)

    async def plan(self, request: Request, uid: int = ITSELF) -> Planned:
        """What Apply would do now, from a fresh look. Raises what says why it cannot be."""
        choice = Choice(request.config, request.text, request.mode_only, uid, now())
        return await self._planning.plan(request, choice)

    async def clients(self) -> list[Standing]:
        """Everyone who has a GPU now, and what would become of each."""
        view = await self.look()
        by = self._planning.rules()
        found = await self._clients.look(view.gpus)
        return standing(found, await self._clients.loaded(found, by), by, view.gpus)

    async def differences(self, request: Request) -> list[str]:
        """One sentence for each GPU that is not what is asked for; none if all are."""
        planned = await self.plan(request)
        return [f"{g.gpu}: {told}" for g in planned.plan.gpus if (told := difference(g))]

    async def export(self, form: Form, *, exact: bool) -> str:
        """What is on the node now, as a text that `apply` takes back."""
        return exported((await self.look()).gpus, form=form, exact=exact)

    async def generate(self, form: Form) -> str:
        """The configurations that the hardware gives. Raises NotSupported where it gives none."""
        gpus = (await self.look()).gpus
        made = generated(gpus)
        if not made.configs:
            here = f"{listed(gpus)} have no MIG" if gpus else "this node has no GPU"
            raise NotSupported(f"there is nothing to generate a configuration from: {here}")
        return rendered(made, form)

    async def gpu(self, ident: str) -> Gpu:
        """Raises NoSuchGpu."""
        view = self.view if self.view.gpus else await self.look()
        return find_gpu(view.gpus, ident)

    @property
    def config_names(self) -> list[str]:
        return sorted(self._configuration.all(self.view.gpus).configs)

    @property
    def config_errors(self) -> tuple[str, ...]:
        return (*self._configuration.errors, *self._not_done)

    async def config_text(self, name: str) -> str:
        """One configuration, or all of them for "", as YAML. Raises NoSuchConfig."""
        view = self.view if self.view.gpus else await self.look()
        known = self._configuration.all(view.gpus)
        if name:
            config = self._configuration.choose(name, "", view.gpus)
            known = Configs(known.source, {name: config})
        return rendered(known)

    @property
    def settings(self) -> Settings:
        return self._configuration.settings

    @property
    def settled_layouts(self) -> dict[str, Layout]:
        """By UUID, what each GPU reached last."""
        return self.jobs.settled

    @property
    def wishes(self) -> bool:
        """Whether anything is wanted of any GPU, be it there or not."""
        chosen = any(s.wanted for s in self._store.gpus.values())
        return chosen or self.settings.config != ""

    @property
    def unreadable(self) -> str:
        """Why it is not known what is wanted, if so: a file that says it could not be read."""
        if self._store.refused:
            return self._store.refused
        return "" if self.wishes else "; ".join(self._configuration.refused_settings)

    @property
    def past_jobs(self) -> tuple[PastJob, ...]:
        return self._store.jobs

    # -- doing ---------------------------------------------------------------------------

    async def apply(
        self, request: Request, permit: Permit = BY_MIGD, method: Method = APPLYING
    ) -> int:
        """Start a job that makes the node what is asked for, and return its id.

        Raises everything that can be known beforehand; once this returns, the job is under way,
        or over because nothing was left to do.
        """

        async def plan() -> Planned:
            return await self.plan(request, permit.caller.uid)

        return await self._begin(method, "apply", request, plan, permit)

    async def change(self, change: Change, permit: Permit) -> int:
        """As apply(), for a change to one GPU. What is wanted of it is then what it got."""

        async def plan() -> Planned:
            return await self._planning.change(change, permit.caller.uid)

        about = change.request.config
        return await self._begin(change.method, change.kind, change.request, plan, permit, about)

    async def _begin(
        self,
        method: Method,
        kind: str,
        request: Request,
        plan: Callable[[], Awaitable[Planned]],
        permit: Permit,
        about: str = "",
    ) -> int:
        async def ready() -> tuple[Planned, Demand]:
            self.jobs.refuse_if_busy()
            planned = await plan()
            refuse_if_blocked(planned.blockers)
            refuse_reboot_if_never(request, self.settings.reboot)
            return planned, Demand.of(method, kind, request, planned.plan)

        async def start(planned: Planned, demand: Demand) -> int:
            asker = NOBODY
            if request.allow_reboot:
                # Its session may be cut off: it has asked for that.
                asker = await self._reboot.asker(permit.caller.pid)
            return await self.jobs.start(
                planned.plan,
                planned.choice,
                planned.clearing,
                planned.by,
                kind,
                asker,
                permit.asked(demand, request.options),
                reset_peers=request.reset_peers,
                about=about,
            )

        return await permitted(permit, self._preparing, ready, start)

    async def _strangers(self) -> list[str]:
        """Who has a GPU and is not in clients.yaml, so that a reboot would cut them off unasked."""
        found = await self.clients()
        return [
            str(s.client.holder)
            for s in found
            if isinstance(s.decision, Blocked) and s.client and not steps_aside(s.client.holder)
        ]

    async def put_back(self, asked: Asked) -> tuple[int, Return]:
        """Start a job that gives all GPUs back what they should have; its id, and who gets what.

        At boot nobody has been asked, so a GPU that is in use is left, and may be reset if not.
        Raises Busy, Conflict, HookFailed, StateUnwritable, and what look() raises.
        """
        async with self._preparing:
            self.jobs.refuse_if_busy()
            view = await self.look()
            if not view.gpus and not view.unseen:
                raise NoDriver("the driver shows no GPU any more")
            made, clearing, back = await self._planning.put_back(view, self.wanted)
            label = ", ".join(dict.fromkeys(c.label for c in self.wanted.values()))
            choice = Choice(label, "", mode_only=False, uid=ITSELF, at=now())
            number = await self.jobs.start(
                made,
                choice,
                clearing,
                self._planning.rules(),
                "put-back",
                Asker(reboots=True),
                asked,
            )
            return number, back

    async def stage(self, request: Request, permit: Permit) -> None:
        """Keep what is asked for as wanted, and touch nothing now.

        Raises what Apply would raise for the configuration itself, and Overruled.
        """

        async def ready() -> tuple[Planned, Demand]:
            self.jobs.refuse_if_busy()
            planned = await self.plan(request, permit.caller.uid)
            self._refuse_if_overruled(planned.plan)
            return planned, Demand.of(STAGING, "stage", request, planned.plan)

        async def choose(planned: Planned, demand: Demand) -> bool:
            gpus = [g.gpu.uuid for g in planned.plan.gpus]
            self.jobs.choose(planned.choice, gpus)
            self._show(self.view)
            asked = permit.asked(demand, request.options)
            audit.done("stage", asked, request.config, request.text, gpus=" ".join(gpus))
            return True

        await permitted(permit, self._preparing, ready, choose)

    async def cancel(self, number: int, permit: Permit) -> None:
        """Have a job end. Free to whoever started it. Raises NoSuchJob, NotCancelable."""
        begun = self.jobs.running(number).begun
        demand = Demand.to_cancel(begun, permit.caller.uid)
        await permit.obtain(demand)
        self.jobs.running(number).cancel()
        audit.done("cancel", permit.asked(demand), begun.choice.config, job=number)

    def _refuse_if_overruled(self, made: Plan) -> None:
        if self.settings.authority is Authority.FILE:
            for gpu_plan in made.gpus:
                decides = self.wanted.get(gpu_plan.gpu.uuid)
                if decides and decides.uid == ITSELF:
                    raise Overruled(
                        f"{gpu_plan.gpu} is to have {decides.config}, whatever is chosen at run "
                        "time: migd.yaml has config-authority: file; change its config instead"
                    )

    def reload(self) -> None:
        """Read the files again. Raises ConfigRefused; what was in force of a refused one stays."""
        try:
            self._configuration.reload()
        finally:
            limits = self.settings.time_limits
            self._nvml.set_limits({LIMITS[k]: s for k, s in limits.items() if k in LIMITS})
            self._reboot.allowed = self.settings.reboot
            self._reboot.notice_s = self.settings.limits["reboot-notice"]
            self._smi.limit_s = self.settings.limits["gpu-reset"]
            self.could_not(())

    def could_not(self, errors: Iterable[str]) -> None:
        """Show why the node could not be made what files say, until it matches or they change."""
        self._not_done = tuple(errors)
        self._show(self.view)

    # -- what jobs need (jobs.Node) ------------------------------------------------------

    @property
    def seen_gpus(self) -> Sequence[Gpu]:
        """All GPUs as they were seen last."""
        return self.view.gpus

    async def observe(self) -> Sequence[Gpu]:
        return (await self.look()).gpus

    async def clearing(self, plan: Plan, by: Rules) -> Clearing:
        return await self._planning.clearing(plan, by)

    async def holders(self, gpu: str) -> list[Holder]:
        """Who has a GPU now, by whatever evidence. Raises what look() raises."""
        found = await self._clients.look(await self.observe())
        return [c.holder for c in found if c.of(gpu)]

    def saw(self, gpu: Gpu) -> None:
        self.view = self.view.with_gpu(gpu)
        self._audience.changed()

    def settled(self) -> None:
        self._show(self.view)
        self.drift.saw(self.view, self.settled_layouts)

    def _compare(self, before: object, trouble: str = "") -> None:
        """What was seen with what is settled, unless a job was at work from `before` to now."""
        if before == (None, self.past_jobs[:1]) and not self.jobs.current:
            self.drift.saw(self.view, self.settled_layouts, trouble)

    def _show(self, view: View) -> None:
        self.view = view
        chosen = {u: s.wanted for u, s in self._store.gpus.items() if s.wanted}
        self.wanted = self._configuration.wanted(chosen, view.gpus)
        # Most looks find what was there: what was judged then need not be judged again.
        basis = (view.gpus, [*view.troubled], self.wanted, self._configuration.reloads)
        if basis != self._judged:
            self._judge(view)
            self._judged = basis
        if self.match is Match.YES:
            self._not_done = ()
        self._audience.changed()

    def _judge(self, view: View) -> None:
        found = match(view, self.wanted, self._configuration)
        if found is Match.NONE and self.settings.config:
            # It wants something of GPUs that are not to be seen.
            found = Match.UNKNOWN
        if found is not self.match:
            self.match, self.match_since = found, now()
