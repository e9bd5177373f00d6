"""What becomes of each GPU client for a plan: who stops, who ends, who is in the way."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from migd.core.holders import Client, Holder, How, Use
from migd.core.listed import From, Listed, ListedProcess, ListedUnit, Unlisted
from migd.core.model import Gpu, Impact
from migd.core.plan import GpuPlan, Plan

# They have GPUs open and let go of them for a reset by themselves (deepops#633).
_STEP_ASIDE = frozenset({"nvidia-fabricmanager.service"})


@dataclass(frozen=True)
class Unit:
    """A unit of systemd, as far as this decision needs it.

    name: its own, where it was asked for by another
    active: it runs, or is about to
    returnable: it has a unit file that outlives it, so it can be started again
    stoppable: it may be stopped by hand (RefuseManualStop=)
    whole: stopping it ends all of its processes (KillMode=); else only `main`, a pid, is sure to go
    along: active units that stop along with it, each before those it needs
    """

    name: str
    active: bool
    returnable: bool
    stoppable: bool = True
    whole: bool = True
    main: int = 0
    along: tuple["Unit", ...] = ()


@dataclass(frozen=True)
class Stop:
    """A unit that is stopped, and afterwards started again with those that stopped along.

    stop_s, start_s: seconds; kill: SIGKILL what is left when stop_s is over
    """

    unit: str
    along: tuple[str, ...]
    stop_s: int
    start_s: int
    kill: bool = False


@dataclass(frozen=True)
class End:
    """A process that is ended for good: SIGTERM, and after grace_s seconds SIGKILL if `kill`.

    tree: its descendants too
    """

    client: Client
    uses: tuple[Use, ...]
    grace_s: int
    kill: bool = False
    tree: bool = False


@dataclass(frozen=True)
class Blocked:
    """Why the plan cannot be carried out; the client and what it has, where it is one's fault.

    message: the whole of it for people: where, who, and what to do; advice: only what to do
    module: of the kernel, where it is one's fault; gpus: UUIDs of those that it hinders
    """

    message: str
    advice: str
    client: Client | None = None
    use: Use | None = None
    module: str = ""
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clearing:
    """What is done to clients for a plan: stops, then ends, in order; or what is in the way.

    lost: units that stop along and cannot be started again
    """

    stops: tuple[Stop, ...] = ()
    ends: tuple[End, ...] = ()
    lost: tuple[str, ...] = ()
    blocked: tuple[Blocked, ...] = ()

    @property
    def units(self) -> tuple[str, ...]:
        """All that stop and are to come back, in the order of stopping, each once."""
        names = (name for stop in self.stops for name in (*stop.along, stop.unit))
        return tuple(dict.fromkeys(n for n in names if n not in self.lost))


@dataclass(frozen=True)
class Rules:
    """By what is decided.

    terminate: who is in the way and listed nowhere may be stopped or ended, too
    forbidden: why a unit must never be stopped, "" if it may
    stop_s, start_s, grace_s: seconds, for those that are not listed
    """

    listed: Listed
    terminate: bool
    forbidden: Callable[[str], str]
    stop_s: int
    start_s: int
    grace_s: int

    @property
    def ends_unlisted(self) -> bool:
        return self.terminate or self.listed.unlisted is Unlisted.TERMINATE


def decide(
    plan: Plan, clients: Sequence[Client], units: Mapping[str, Unit], rules: Rules
) -> Clearing:
    """What is to be done to clients before `plan`, or why nothing can be.

    units: by the names that clients.yaml lists and that clients run in; those not loaded are left
    out. A plan without steps touches nobody.
    """
    reach = reached(plan)
    if reach is None:
        return Clearing()
    found = _Found(rules, units, reach, [g.gpu for g in plan.gpus])
    for entry in rules.listed.units:
        found.listed_unit(entry)
    for client in clients:
        if not steps_aside(client.holder):
            found.client(client, _in_way(plan, client), _watching(plan, client))
    return found.clearing()


def steps_aside(holder: Holder) -> bool:
    """It lets go of a GPU by itself for whatever is done to that."""
    return holder.unit in _STEP_ASIDE


def reached(plan: Plan) -> From | None:
    """How far a plan reaches, as clients.yaml counts it; None if it changes nothing."""
    if plan.impact is Impact.NONE:
        return None
    if plan.impact.rank >= Impact.RESET.rank:
        return From.RESET
    return From.MODE if any(g.switches for g in plan.gpus) else From.ANY


@dataclass(frozen=True)
class Standing:
    """A client as it stands, without a plan: what would become of it, and from which impact on.

    client: None for a unit that is listed and active, and that nobody was seen of
    """

    decision: Stop | End | Blocked
    since: From
    client: Client | None = None


def standing(
    clients: Sequence[Client], units: Mapping[str, Unit], rules: Rules, gpus: Sequence[Gpu]
) -> list[Standing]:
    """What would become of each client if what it has of GPUs were to change."""
    found = _Found(rules, units, From.RESET, gpus)
    for entry in rules.listed.units:
        found.listed_unit(entry)
    told = [_standing(found, client, rules) for client in clients if client.uses]
    seen = {s.decision.unit for s in told if isinstance(s.decision, Stop)}
    since = {units[e.name].name: e.since for e in rules.listed.units if e.name in units}
    rest = [s for s in found.clearing().stops if s.unit not in seen]
    return told + [Standing(s, since[s.unit]) for s in rest]


def _standing(found: "_Found", client: Client, rules: Rules) -> Standing:
    decision = found.fate(client, client.uses)
    listed = [e.since for e in rules.listed.units if e.name == client.holder.unit]
    watches = all(u.merely_open for u in client.uses)
    default = From.RESET if watches else From.ANY
    return Standing(decision, listed[0] if listed else default, client)


class _Found:
    """What has been decided so far."""

    def __init__(
        self, rules: Rules, units: Mapping[str, Unit], reach: From, gpus: Sequence[Gpu]
    ) -> None:
        self._rules = rules
        self._units = units
        self._reach = reach
        self._gpus = gpus
        self._stops: dict[str, Stop] = {}
        self._ends: list[End] = []
        self._lost: list[str] = []
        self._blocked: list[Blocked] = []

    def clearing(self) -> Clearing:
        # Who runs in a unit that stops along for good ends with it.
        ends = tuple(e for e in self._ends if e.client.holder.unit not in self._lost)
        return Clearing(tuple(self._stops.values()), ends, tuple(self._lost), tuple(self._blocked))

    def listed_unit(self, entry: ListedUnit) -> None:
        """Stop it whether it was seen holding a GPU or not.

        What a client holds cannot always be seen (DCGM#276); some only start others (deepops#633).
        """
        unit = self._units.get(entry.name)
        if unit is None or not unit.active or entry.since.rank > self._reach.rank:
            return
        if why := self._rules.forbidden(unit.name):
            # clients.yaml refuses its name, but may list an alias of it.
            advice = f"take it from clients.yaml: {unit.name} is {why}"
            self._blocked.append(Blocked(f"{entry.name} must not be stopped: {advice}", advice))
        elif not unit.stoppable:
            advice = f"it refuses that (RefuseManualStop=); take {entry.name} from clients.yaml"
            self._blocked.append(Blocked(f"{unit.name} cannot be stopped: {advice}", advice))
        elif unit.returnable:
            stop_s = self._rules.stop_s if entry.stop_s is None else entry.stop_s
            start_s = self._rules.start_s if entry.start_s is None else entry.start_s
            self._stop(unit, Stop(unit.name, (), stop_s, start_s, entry.kill))

    def client(self, client: Client, in_way: tuple[Use, ...], watching: tuple[Use, ...]) -> None:
        """Decide on a client by what it has that is in the way, or that it merely watches."""
        if not in_way and not self._entry(client.holder):
            return
        match self.fate(client, in_way or watching):
            case Stop() as stop if in_way:
                self._stop(self._units[client.holder.unit], stop)
            case End() as end if in_way or watching:
                self._ends.append(end)
            case Blocked() as blocked if in_way:
                self._blocked.append(blocked)

    def fate(self, client: Client, uses: tuple[Use, ...]) -> Stop | End | Blocked:
        holder = client.holder
        unit = self._units.get(holder.unit)
        use = uses[0] if uses else None
        goes = unit is not None and (unit.whole or unit.main == holder.pid)
        if unit and goes and unit.name in self._gone:
            return self._stops.get(unit.name, Stop(unit.name, (), 0, 0))
        if holder.container:
            advice = "stop the container, which migd never does itself"
        elif why := self._rules.forbidden(holder.unit):
            advice = f"end it by hand, migd must not: {holder.unit} is {why}"
        elif entry := self._entry(holder):
            return self._end(client, uses, entry)
        elif not holder.started:
            advice = "end it where it runs, it cannot be reached from here"
        elif unit and goes and unit.active and unit.returnable and unit.stoppable:
            if self._rules.ends_unlisted:
                return Stop(unit.name, (), self._rules.stop_s, self._rules.start_s)
            advice = (
                f"stop {unit.name}, list it under systemd-services in clients.yaml, or apply with "
                "terminate, which starts it again afterwards"
            )
        elif self._rules.ends_unlisted:
            return End(client, uses, self._rules.grace_s)
        else:
            advice = "end it, list it under processes in clients.yaml, or apply with terminate"
        return Blocked(_message(client, use, self._gpus, advice), advice, client, use)

    def _entry(self, holder: Holder) -> ListedProcess | None:
        """The first entry of clients.yaml that means this process, in a plan of this reach."""
        unit = self._units.get(holder.unit)
        for entry in self._rules.listed.processes:
            if entry.since.rank <= self._reach.rank and entry.matches(holder):
                return entry
        # A unit that cannot be started again is listed like a process: it may be ended.
        for listed in self._rules.listed.units:
            reached = listed.name == holder.unit and listed.since.rank <= self._reach.rank
            if reached and unit and not unit.returnable:
                return ListedProcess(unit=holder.unit, grace_s=listed.stop_s, kill=listed.kill)
        return None

    def _end(self, client: Client, uses: tuple[Use, ...], entry: ListedProcess) -> End:
        grace_s = self._rules.grace_s if entry.grace_s is None else entry.grace_s
        return End(client, uses, grace_s, entry.kill, entry.tree)

    @property
    def _gone(self) -> Collection[str]:
        return {n for s in self._stops.values() for n in (s.unit, *s.along)}

    def _stop(self, unit: Unit, stop: Stop) -> None:
        if unit.name in self._gone:
            return
        along = [u for u in unit.along if u.name not in self._gone]
        for other in along:
            if why := self._rules.forbidden(other.name):
                advice = f"take {unit.name} from clients.yaml: {other.name} is {why}"
                self._along(other, unit, "must not be stopped", advice)
            elif not other.returnable:
                self._lose(other, unit)
        names = tuple(u.name for u in along)
        self._stops[unit.name] = Stop(unit.name, names, stop.stop_s, stop.start_s, stop.kill)

    def _lose(self, other: Unit, unit: Unit) -> None:
        if self._rules.ends_unlisted or any(u.name == other.name for u in self._rules.listed.units):
            self._lost.append(other.name)
        else:
            advice = "stop it, list it in clients.yaml, or apply with terminate"
            self._along(other, unit, "has no unit file to be started from again", advice)

    def _along(self, other: Unit, unit: Unit, why: str, advice: str) -> None:
        message = f"{other.name} would stop along with {unit.name} and {why}: {advice}"
        self._blocked.append(Blocked(message, advice))


def _in_way(plan: Plan, client: Client) -> tuple[Use, ...]:
    return tuple(u for g in plan.gpus for u in client.of(g.gpu.uuid) if _hinders(g, u))


def _hinders(plan: GpuPlan, use: Use) -> bool:
    """Whether what a process has of the GPU must be gone for the steps.

    A reset needs that nobody has the GPU open (mig-ug). A mode that switches without one, and the
    first instance, need that nobody has a context on it (ogkm kmigmgrCreateGPUInstanceCheck_GA100);
    NVML sessions do not hinder them (mig-parted stops nobody for that on Hopper).
    """
    if plan.impact.rank >= Impact.RESET.rank:
        return True
    if plan.whole:
        return use.how is not How.OPEN
    if use.gi in plan.gone:
        return True
    # Of whoever has a GPU instance it is not always known which compute instance in it.
    return any(gi == use.gi and use.ci in (None, ci) for gi, ci in plan.parts)


def _watching(plan: Plan, client: Client) -> tuple[Use, ...]:
    """GPUs to be changed that it has only open, if it uses no GPU for more than looking at it."""
    if any(not u.merely_open for u in client.uses):
        return ()
    changed = {g.gpu.uuid for g in plan.gpus if g.steps}
    return tuple(u for u in client.uses if u.gpu in changed)


def _message(client: Client, use: Use | None, gpus: Iterable[Gpu], advice: str) -> str:
    if use is None:
        return f"{client.holder}: {advice}"
    gpu = next((g for g in gpus if g.uuid == use.gpu), None)
    does = "is held open by" if use.how is How.OPEN else "is used by"
    return f"{gpu or use.gpu}{_inside(gpu, use.gi)} {does} {client.holder}: {advice}"


def _inside(gpu: Gpu | None, gi: int | None) -> str:
    if gi is None:
        return ""
    instance = next((i for i in gpu.instances if i.id == gi), None) if gpu else None
    name = f" ({gpu.profile_name(instance.profile_id)})" if gpu and instance else ""
    return f", GPU instance {gi}{name},"
