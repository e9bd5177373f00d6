"""The units of systemd: seen, stopped with all that stops along, started and waited for."""

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from migd.errors import ClientStuck, MigdError, NoSystemd
from migd.host.bus import Refused, Signal
from migd.host.manager import LOST, Job, Manager
from migd.host.programs import Programs
from migd.printable import printable

_NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"
_NAME = re.compile(
    r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]+)?"
    r"\.(service|socket|target|device|mount|automount|swap|timer|path|slice|scope)"
)
_MAX_NAME = 255
_TRANSIENT = "/run/systemd/transient/"
_ACTIVE = frozenset({"active", "activating", "reloading", "refreshing"})
_ENDED = frozenset({"inactive", "failed"})
_BOOTING = frozenset({"initializing", "starting"})
# Whose stopping stops a unit: the reverse of Requires=, Requisite=, BindsTo=, PartOf= and
# StopPropagatedFrom=.
_STOPS_ALONG = ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo")
_MAX_ALONG = 500
# Signals of the manager; Reloading comes at the begin and at the end.
_FILES_CHANGED = frozenset({"UnitFilesChanged", "Reloading"})
_LINES = 5
_JOURNAL_S = 10.0
# Seconds before each look for a unit's last words.
_LOOKS = (0.0, 0.3, 1.0)


@dataclass(frozen=True)
class UnitState:
    """A unit as systemd shows it; the words are systemd's, whose properties they are.

    name: Id, its own name where it was asked for by an alias; names: all of them
    load: LoadState, "not-found" if there is no such unit
    fragment: the unit file, "" if there is none
    invocation: InvocationID as hex digits, "" if it never ran
    begun: InactiveExitTimestamp, when its last start began, in microseconds since the epoch
    condition: ConditionResult of its last start, False if there was none
    stops_along: units that stop when it stops, whatever their state
    job: the object path of its job, "" if it has none
    kind, kill_mode, result, control_group, main_pid, exit_status, restarts: of a service: Type,
        KillMode, Result, ControlGroup, MainPID (0: it does not run), ExecMainStatus, NRestarts
    """

    name: str
    load: str = "not-found"
    active_state: str = "inactive"
    sub: str = "dead"
    file_state: str = ""
    fragment: str = ""
    transient: bool = False
    can_start: bool = False
    can_stop: bool = False
    refuse_start: bool = False
    refuse_stop: bool = False
    names: tuple[str, ...] = ()
    invocation: str = ""
    begun: int = 0
    condition: bool = False
    stops_along: tuple[str, ...] = ()
    job: str = ""
    kind: str = ""
    kill_mode: str = ""
    result: str = ""
    control_group: str = ""
    main_pid: int = 0
    exit_status: int = 0
    restarts: int = 0

    @property
    def active(self) -> bool:
        """It runs, or is about to: what is down and has a job is to start."""
        return self.active_state in _ACTIVE or (self.active_state in _ENDED and self.job != "")

    @property
    def waits(self) -> bool:
        """It does not run yet, and its start is asked for and has not begun."""
        return self.active_state in _ENDED and self.active

    @property
    def starts_others(self) -> bool:
        """All that it does is to start another unit when that is asked for."""
        return self.name.endswith((".socket", ".timer", ".path"))

    @property
    def loaded(self) -> bool:
        """There is such a unit; also one that runs on without the file it was started from."""
        return self.load == "loaded" or self.active_state not in _ENDED

    @property
    def returnable(self) -> bool:
        """It can be started again when it has been stopped: by its unit file, which stays."""
        return (
            self.load == "loaded"
            and self.fragment != ""
            and not self.transient
            and not self.fragment.startswith(_TRANSIENT)
            and not self.name.endswith(".scope")
            and self.can_start
            and not self.refuse_start
        )

    @property
    def kills_all(self) -> bool:
        """Stopping it ends all of its processes."""
        return self.kill_mode not in ("process", "none")


class Units:
    """Raises NoSystemd where systemd does not answer. All methods are for one event loop."""

    def __init__(self, manager: Manager, programs: Programs) -> None:
        self._manager = manager
        self._programs = programs

    async def available(self) -> bool:
        """Whether there is a systemd to ask; where not, no unit is loaded."""
        return await self._manager.available()

    async def system_state(self) -> str:
        """SystemState of the manager: "running", "stopping", ..."""
        return await self._manager.state()

    async def booting(self) -> bool:
        """Whether starts of the boot are still queued. Waiting for one can be waiting for us."""
        return await self.available() and await self.system_state() in _BOOTING

    async def states(self, names: Iterable[str]) -> dict[str, UnitState]:
        """All of these units, by the name asked for; systemd loads those that are not.

        On a bus without systemd none is there.
        """
        wanted = list(dict.fromkeys(names))
        found = {name: UnitState(name) for name in wanted}
        if not await self.available():
            return found
        loadable = [n for n in wanted if _NAME.fullmatch(n) and len(n) <= _MAX_NAME]
        rows = zip(loadable, await self._list(loadable), strict=True)
        paths = {n: r[6] for n, r in rows if r and (r[2] != "not-found" or r[3] not in _ENDED)}
        states = await asyncio.gather(*(self._read(*item) for item in paths.items()))
        return {**found, **dict(zip(paths, states, strict=True))}

    def when_changed(self, names: Collection[str], call: Callable[[], None]) -> None:
        """Call back when unit files were changed or read anew, or a unit has got or lost a job.

        Only as long as systemd has been asked for something since it came to the bus, and not for
        what changes in other ways: a hint to look again, and no more.
        """

        def heard(signal: Signal) -> None:
            of_jobs = signal.member in ("JobNew", "JobRemoved") and len(signal.values) > 2
            if signal.member in _FILES_CHANGED or (of_jobs and signal.values[2] in names):
                call()

        self._manager.listen(heard)

    async def along(self, name: str) -> tuple[UnitState, ...]:
        """What is active and would stop along with a unit, each before those it needs.

        Raises ClientStuck if that is more than anybody can have meant.
        """
        seen: dict[str, UnitState] = {}
        wave = [name]
        while wave:
            seen.update(await self.states(wave))
            if len(seen) > _MAX_ALONG:
                raise ClientStuck(f"more than {_MAX_ALONG} units would stop along with {name}")
            after = (n for asked in wave for n in seen[asked].stops_along)
            wave = [n for n in dict.fromkeys(after) if n not in seen]
        own = seen[name].name
        order = _dependents_first(name, seen)
        states = {seen[n].name: seen[n] for n in order if seen[n].name != own}
        return tuple(s for s in states.values() if s.active)

    async def stop(self, name: str, limit_s: float) -> None:
        """Stop a unit and see that it is down. On failure the job, if any, is still systemd's.

        limit_s: seconds to wait
        Raises ClientStuck, NoSystemd.
        """
        try:
            job = await self._manager.enqueue("StopUnit", "ss", [name, "replace"])
        except Refused as error:
            if error.name == _NO_SUCH_UNIT:
                return
            raise ClientStuck(f"{name} cannot be stopped: {error.message}") from error
        result = await self._manager.wait(job, limit_s)
        if result is None:
            raise ClientStuck(
                f"{name} did not stop within {limit_s:g} s; `systemctl status {name}` shows why"
            )
        state = (await self.states([name]))[name]
        if state.active_state not in _ENDED:
            raise ClientStuck(
                f"{name} was stopped ({result}) and yet is {state.active_state} ({state.sub}): "
                "something keeps it up"
            )

    async def kill(self, name: str, limit_s: float) -> None:
        """SIGKILL all processes of a unit and wait until it is down; raises as stop() does."""
        with contextlib.suppress(Refused):  # nothing is left that could be killed
            await self._manager.call("KillUnit", "ssi", [name, "all", 9])
        await self.stop(name, limit_s)

    async def queue(self, name: str, *, again: bool = False) -> None:
        """Ask for the start of a unit, and do not wait for it. Raises ClientStuck, NoSystemd."""
        await self.reset_failed(name)
        self._manager.forget(await self._enqueue_start(name, again=again))

    async def start(self, name: str, limit_s: float, *, again: bool = False) -> None:
        """Start a unit and see that it runs, or, of a oneshot, that it has done its work.

        limit_s: seconds to wait
        again: restart it if it is active
        Raises ClientStuck, with the last words of the unit, and NoSystemd.
        """
        async with self._kept_loaded(name):
            # Our own starts must not meet the unit's StartLimitBurst=.
            await self.reset_failed(name)
            result = await self._manager.wait(await self._enqueue_start(name, again=again), limit_s)
            state = (await self.states([name]))[name]
        if result is None:
            raise ClientStuck(f"{name} has not started within {limit_s:g} s; it may still do so")
        if result in ("done", LOST) and _runs(state):
            return
        raise ClientStuck(f"{name} did not start: {_why(state, result)}{await self._words(state)}")

    @asynccontextmanager
    async def _kept_loaded(self, name: str) -> AsyncIterator[None]:
        """How a start went is lost when systemd unloads a unit that is inactive again."""
        with contextlib.suppress(Refused):
            await self._manager.call("RefUnit", "s", [name])
        try:
            yield
        finally:
            with contextlib.suppress(Refused, NoSystemd):
                await self._manager.call("UnrefUnit", "s", [name])

    async def reset_failed(self, name: str) -> None:
        """Let systemd forget that a unit has failed, and how often it was started."""
        with contextlib.suppress(Refused):
            await self._manager.call("ResetFailedUnit", "s", [name])

    async def _enqueue_start(self, name: str, *, again: bool) -> Job:
        member = "RestartUnit" if again else "StartUnit"
        try:
            return await self._manager.enqueue(member, "ss", [name, "replace"])
        except Refused as error:
            raise ClientStuck(f"{name} cannot be started: {error.message}") from error

    async def _list(self, names: Sequence[str]) -> list[list[Any] | None]:
        """A row of ListUnitsByNames for each name, None for one that systemd does not like."""
        with contextlib.suppress(Refused):
            (rows,) = await self._manager.call("ListUnitsByNames", "as", [names])
            if len(rows) == len(names):
                return list(rows)
        if len(names) == 1:
            return [None]
        return [row for name in names for row in await self._list([name])]

    async def _read(self, name: str, path: str) -> UnitState:
        service: Mapping[str, Any] = {}
        try:
            unit = await self._manager.properties(path, "Unit")
            if unit["Id"].endswith(".service"):
                service = await self._manager.properties(path, "Service")
        except Refused:
            return UnitState(name)  # it has gone meanwhile, as a scope does
        return _state(unit, service)

    async def _words(self, state: UnitState) -> str:
        """What the unit said last, for the end of a message; "" if that cannot be known."""
        journalctl = shutil.which("journalctl", path="/usr/bin:/bin")
        if not state.invocation or not journalctl:
            return ""
        command = [
            journalctl, "--quiet", "--no-pager", "--output=cat", f"--lines={_LINES}",
            # Not by its invocation: of a process that was gone when the journal read what it said,
            # that is not known, and the unit is.
            f"--since=@{state.begun / 1_000_000:.6f}", f"_SYSTEMD_UNIT={state.name}",
        ]  # fmt: skip
        try:
            for pause in _LOOKS:
                # What it wrote just before it ended may not be there yet, and --sync may not wait
                # for what the journal has not read from it.
                await asyncio.sleep(pause)
                await self._programs.run([journalctl, "--sync"], limit_s=_JOURNAL_S)
                done = await self._programs.run(command, limit_s=_JOURNAL_S)
                lines = [line.strip() for line in done.output.splitlines() if line.strip()]
                if lines and done.status == 0:
                    return f"; it said: {printable(' | '.join(lines))}"
        except MigdError:
            pass
        return ""


def _state(unit: Mapping[str, Any], service: Mapping[str, Any]) -> UnitState:
    job_id, job = unit["Job"]
    return UnitState(
        name=unit["Id"],
        load=unit["LoadState"],
        active_state=unit["ActiveState"],
        sub=unit["SubState"],
        file_state=unit["UnitFileState"],
        fragment=unit["FragmentPath"],
        transient=unit["Transient"],
        can_start=unit["CanStart"],
        can_stop=unit["CanStop"],
        refuse_start=unit["RefuseManualStart"],
        refuse_stop=unit["RefuseManualStop"],
        names=tuple(unit["Names"]),
        invocation=bytes(unit["InvocationID"]).hex(),
        begun=unit["InactiveExitTimestamp"],
        condition=unit["ConditionResult"],
        stops_along=tuple(dict.fromkeys(n for key in _STOPS_ALONG for n in unit.get(key, ()))),
        job=job if job_id else "",
        kind=service.get("Type", ""),
        kill_mode=service.get("KillMode", ""),
        result=service.get("Result", ""),
        control_group=service.get("ControlGroup", ""),
        main_pid=service.get("MainPID", 0),
        exit_status=service.get("ExecMainStatus", 0),
        restarts=service.get("NRestarts", 0),
    )


def _dependents_first(root: str, seen: Mapping[str, UnitState]) -> list[str]:
    """All that `root` takes along, and itself last; where there are cycles, in some order."""
    order: list[str] = []
    begun = {root}
    stack = [(root, iter(seen[root].stops_along))]
    while stack:
        name, others = stack[-1]
        after = next((n for n in others if n not in begun), None)
        if after is None:
            order.append(name)
            stack.pop()
        else:
            begun.add(after)
            stack.append((after, iter(seen[after].stops_along)))
    return order


def _runs(state: UnitState) -> bool:
    if state.active_state in ("active", "reloading", "refreshing"):
        return True
    done = state.active_state == "inactive" and state.kind == "oneshot" and state.condition
    return done and state.result == "success"


def _why(state: UnitState, result: str) -> str:
    if result not in ("done", "failed", LOST):
        return f"systemd says {result!r}"
    if not state.condition:
        return "its conditions (Condition...= in the unit file) do not hold"
    if state.result in ("", "success"):
        return f"it is {state.active_state} ({state.sub})"
    return f"{state.result}, exit status {state.exit_status}"
