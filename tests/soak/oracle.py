"""What must hold when a job is over, whatever went wrong: the simulator and systemd are asked.

Each GPU is new or as before, and as it was told; nobody who ran is down, and nobody was started
while GPUs changed; who uses an instance still has it; and nothing of the job is left anywhere.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from migd import names
from migd.bus.connection import BusError
from tests.faults.asking import Asked, Want, reached
from tests.faults.scenes import Truth, settled_truth, truths
from tests.soak.stage import ALWAYS, FLAKY_UNIT, SERVICES, Stage
from tests.soak.weather import Hold
from tests.support.node import MUTATING, wait_for

_SYSTEMD = "org.freedesktop.systemd1"
_QUIET_S = 120.0
_START = "ExecMainStartTimestampMonotonic"
# What stays in migd's folders between jobs.
_LEFT_RUN = {"worker.lock", names.PUT_BACK_FILE}
_LEFT_STATE = {names.STATE_FILE, "lock"}


@dataclass(frozen=True)
class Before:
    """As it was when all was quiet."""

    truths: Sequence[Truth]
    active: frozenset[str]
    last: int
    log: int
    files: frozenset[str]


@dataclass(frozen=True)
class Ended:
    """A job that has. started, over: seconds since the epoch."""

    id: int
    started: float
    over: float
    result: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Reached:
    """What a GPU must have that is done, and what it had before, if that is known."""

    want: Want
    earlier: Truth | None


# Of one GPU: exactly that; what somebody wanted; or whatever migd itself found right, but whole.
Expected = Truth | Reached | None


@dataclass(frozen=True)
class Circumstances:
    """What a job may be excused by.

    wants: what was asked for, by the number of the job; calm: nothing that can make one fail
    flaky: FLAKY_UNIT may not start; dies: migd was ended; killed: without a word
    unkept: there was no room to write down how it ended
    """

    wants: Mapping[int, Asked]
    holds: Sequence[Hold]
    calm: bool
    canceled: bool
    flaky: bool
    dies: bool
    killed: bool
    unkept: bool


@dataclass
class Oracle:
    """heard: what migd signaled, member and arguments, in order."""

    stage: Stage
    heard: list[tuple[str, list[Any]]] = field(default_factory=list)
    results: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._boards = [gpu["board"] for gpu in self.stage.node.gpus()]
        self._uuids = [gpu["uuid"] for gpu in self.stage.node.gpus()]

    # -- quiet ---------------------------------------------------------------------------

    def settle(self) -> None:
        """Return when migd answers, no job is at work, and systemd has nothing to do."""
        why = ""

        def quiet() -> bool:
            nonlocal why
            why = self._unrest()
            if why:
                time.sleep(0.05)  # each look costs the host something
            return not why

        try:
            wait_for(quiet, timeout=_QUIET_S)
        except AssertionError:
            raise AssertionError(f"after {_QUIET_S:g} s still {why}") from None

    def _unrest(self) -> str:
        host = self.stage.host
        try:
            if (job := host.property("Job")) != "/":
                return f"at work: {job}"
        except BusError as error:
            return f"no answer: {error}"
        if self._state(names.JOURNAL_FILE).exists():
            return "a journal"
        (jobs,) = host.call(
            "ListJobs", destination=_SYSTEMD, path="/org/freedesktop/systemd1",
            interface=f"{_SYSTEMD}.Manager",
        )  # fmt: skip
        if jobs:
            return f"jobs of systemd: {jobs}"
        changing = [u for u, state in self._units().items() if state.endswith("ing")]
        return f"units in between: {changing}" if changing else ""

    def _state(self, name: str) -> Any:
        return self.stage.path(f"{names.STATE_DIR}/{name}")

    def _units(self) -> dict[str, str]:
        (rows,) = self.stage.host.call(
            "ListUnits", destination=_SYSTEMD, path="/org/freedesktop/systemd1",
            interface=f"{_SYSTEMD}.Manager",
        )  # fmt: skip
        return {row[0]: row[3] for row in rows}

    def _ours(self) -> dict[str, str]:
        """Holds, resets and the like."""
        prefixes = ("migd-h", "migd-r")
        return {u: state for u, state in self._units().items() if u.startswith(prefixes)}

    def _active(self) -> frozenset[str]:
        units = self._units()
        return frozenset(name for name in SERVICES if units.get(name) == "active")

    def look(self) -> Before:
        """All as it is, once all is quiet."""
        while True:
            self._started_again()
            self.settle()
            self.heard.clear()
            last = max((job["id"] for job in self._jobs()), default=0)
            log = (self.stage.node.path / "calls.log").stat().st_size
            files = frozenset(path.name for path in self._state("").iterdir())
            before = Before(truths(self.stage.node), self._active(), last, log, files)
            # One that nobody asked for can have begun meanwhile.
            if not self._newer(last):
                return before

    def _newer(self, last: int) -> list[dict[str, Any]]:
        """Jobs since, and one that runs."""
        return [job for job in self._jobs() if job["id"] > last or not job["result"]]

    def _jobs(self) -> list[dict[str, Any]]:
        (jobs,) = self.stage.host.call("ListJobs", "a{sv}", {})
        ids = [job["id"] for job in jobs]
        assert ids == sorted(set(ids), reverse=True), f"the ids of jobs are {ids}"
        return list(jobs)

    def _started_again(self) -> None:
        """Have the unit that was made to fail run again, as an administrator would."""
        if FLAKY_UNIT not in self._active():
            self.stage.host.systemctl("reset-failed", FLAKY_UNIT, check=False)
            self.stage.host.systemctl("start", FLAKY_UNIT)

    # -- the promises --------------------------------------------------------------------

    def check(self, before: Before, given: Circumstances) -> set[int]:
        """Which GPUs are neither new nor as before. Raises AssertionError for a broken promise."""
        while True:
            self.settle()
            jobs = [job for job in self._jobs() if job["id"] > before.last]
            ended = [self._ended(job) for job in reversed(jobs)]
            last = max((end.id for end in ended), default=before.last)
            try:
                failed = self._promises(before, given, ended)
            except AssertionError:
                if self._newer(last):
                    continue
                raise
            if not self._newer(last):
                self.results.update(end.result for end in ended)
                return failed
            # A job that nobody asked for has begun meanwhile, and is judged, too.

    def _promises(self, before: Before, given: Circumstances, ended: Sequence[Ended]) -> set[int]:
        failed = self._gpus(before, given, ended, truths(self.stage.node))
        self._signals(given, ended)
        self._clients(before, given, ended)
        self._starts(before, ended)
        self._holders(given, ended)
        self._nothing_left(before, given)
        return failed

    def _ended(self, job: Mapping[str, Any]) -> Ended:
        result, details = self.stage.host.wait(job["id"])
        return Ended(job["id"], job["start"] / 1e6, job["end"] / 1e6, result, details)

    def _gpus(
        self, before: Before, given: Circumstances, ended: Sequence[Ended], found: Sequence[Truth]
    ) -> set[int]:
        """Each is what the last job about it says; those that failed are given back."""
        expected: list[Expected] = list(before.truths)
        failed: set[int] = set()
        for end in ended:
            asked = given.wants.get(end.id)
            outcomes = {self._uuids.index(o["gpu"]): o for o in end.details["gpus"]}
            _check_words(end, given)
            if asked and not asked.unsure and asked.wants:
                assert set(outcomes) == set(asked.wants), f"{end}, asked was {asked}"
            for gpu, outcome in outcomes.items():
                failed.discard(gpu)
                if outcome["result"] == "failed":
                    assert outcome["left"], outcome
                    failed.add(gpu)
                elif outcome["result"] == "done":
                    earlier = expected[gpu]
                    want = asked.wants.get(gpu) if asked else None
                    known = earlier if isinstance(earlier, Truth) else None
                    expected[gpu] = Reached(want, known) if want else None
        for gpu, (now, then) in enumerate(zip(found, expected, strict=True)):
            if gpu not in failed:
                self._gpu(gpu, now, then)
        if not given.unkept:
            self._settled(ended, found)
        return failed

    def _gpu(self, gpu: int, now: Truth, then: Expected) -> None:
        if isinstance(then, Truth):
            assert now == then, f"GPU {gpu} was {then}, and is {now}"
            return
        whole = now.mode == now.pending and all(i[3] for i in now.instances)
        assert whole, f"GPU {gpu} is in between: {now}"
        # Only the mode was asked for: what it has is what it had, if that is known.
        if then and (then.want.profiles is not None or then.earlier):
            there = reached(self._boards[gpu], now, then.want, then.earlier or now)
            assert there, f"GPU {gpu} is done, should have {then.want}, and has {now}"

    def _settled(self, ended: Sequence[Ended], found: Sequence[Truth]) -> None:
        """What is kept for the next boot is what is there, where the last job says so."""
        last = {o["gpu"]: o["result"] for end in ended for o in end.details["gpus"]}
        kept = json.loads(self._state(names.STATE_FILE).read_text())["gpus"]
        for uuid, ending in last.items():
            now = found[self._uuids.index(uuid)]
            if ending in ("done", "unchanged"):
                assert settled_truth(kept[uuid]["settled"]) == now, (
                    f"{uuid}: {kept[uuid]}, and {now}"
                )

    def _signals(self, given: Circumstances, ended: Sequence[Ended]) -> None:
        """One JobRemoved for each JobNew, which says what WaitJob says."""

        def ids(wanted: str) -> list[int]:
            return [body[0] for member, body in self.heard if member == wanted]

        if not given.killed:
            wait_for(
                lambda: set(ids("JobNew")) <= set(ids("JobRemoved")),
                what=f"JobNew and JobRemoved: {self.heard}",
            )
        for heard in (ids("JobNew"), ids("JobRemoved")):
            assert len(heard) == len(set(heard)), f"told twice: {heard}"
        removed = {body[0]: body[3:] for member, body in self.heard if member == "JobRemoved"}
        for end in ended:
            told = removed.get(end.id, [end.result, end.details])
            assert told == [end.result, end.details], f"{end}, and JobRemoved told {told}"

    def _clients(self, before: Before, given: Circumstances, ended: Sequence[Ended]) -> None:
        """Who ran runs; a unit that does not is told, and was made to fail."""
        clients = [client for end in ended for client in end.details["clients"]]
        missing = {c["unit"] for c in clients if c["result"] == "missing"}
        excused = {FLAKY_UNIT} if given.flaky else set()
        assert missing <= excused, f"did not come back: {missing - excused}: {ended}"
        wanted = (before.active | set(ALWAYS)) - excused
        wait_for(
            lambda: wanted <= self._active(),
            what=f"{wanted - self._active()} ran, and do not",
        )

    def _starts(self, before: Before, ended: Sequence[Ended]) -> None:
        """No unit that a job stopped was started while that job changed GPUs."""
        calls = self._changes(before.log)
        offset = time.time() - time.monotonic()
        shown = self.stage.host.systemctl(
            "show", *SERVICES, "--property=Id", f"--property={_START}"
        )
        started = {}
        for block in shown.split("\n\n"):
            row = dict(line.split("=", 1) for line in block.splitlines())
            started[row["Id"]] = int(row[_START]) / 1e6
        for end in ended:
            first, last = end.started - offset, end.over - offset
            ours = [at for at in calls if first - 0.5 <= at <= last + 0.5]
            for client in end.details["clients"]:
                at = started.get(client.get("unit", ""))
                if at is not None and ours and client["result"] == "returned":
                    assert not min(ours) < at < max(ours), f"{client} ran while GPUs changed"

    def _changes(self, offset: int) -> list[float]:
        """When GPUs were changed since, in seconds of CLOCK_MONOTONIC."""
        with (self.stage.node.path / "calls.log").open() as log:
            log.seek(offset)
            rows = [line.split() for line in log if line.endswith("\n")]
        return [int(row[5]) / 1e9 for row in rows if row[2] in MUTATING]

    def _holders(self, given: Circumstances, ended: Sequence[Ended]) -> None:
        """Who lives has the very instance that he had; who does not was told of."""
        told = {c.get("pid") for end in ended for c in end.details["clients"]}
        gpus = self.stage.node.gpus()
        for hold in given.holds:
            if not hold.process.alive():
                assert hold.process.pid in told, f"{hold.process.pid} was ended, and not told of"
            elif hold.instance:
                there = {i["gi"]: i for i in gpus[hold.gpu]["instances"]}
                now = there.get(hold.instance["gi"])
                assert _identity(now) == _identity(hold.instance), f"{hold} has {now}"

    def _nothing_left(self, before: Before, given: Circumstances) -> None:
        """No unit, no file, no job."""
        units = self._units()
        failed = {u for u, state in units.items() if state == "failed"}
        assert failed <= ({FLAKY_UNIT} if given.flaky else set()), f"failed: {failed}"
        # What is only looked up is there for a moment, too.
        wait_for(lambda: not self._ours(), timeout=5, what=f"left: {self._ours()}")
        run = {path.name for path in self.stage.path(names.RUNTIME_DIR).iterdir()}
        assert run <= _LEFT_RUN, f"left in {names.RUNTIME_DIR}: {run - _LEFT_RUN}"
        state = {path.name for path in self._state("").iterdir()} - _LEFT_STATE
        # What was being written when migd was killed stays until it is written again.
        state = {name for name in state - before.files if not (given.killed and ".new" in name)}
        assert not state, f"left in {names.STATE_DIR}: {state}"
        json.loads(self._state(names.STATE_FILE).read_text())


def _check_words(end: Ended, given: Circumstances) -> None:
    """The result fits what became of the GPUs, and there is a reason for what is not done."""
    endings = {o["result"] for o in end.details["gpus"]}
    assert endings <= {"done", "unchanged", "rolled-back", "failed"}, end
    well = endings <= {"done", "unchanged"}
    right = {"done", "partial"} if well else {"partial"} if "done" in endings else {"failed"}
    if not well and (given.canceled or given.dies):
        right |= {"canceled"}
    if given.dies:
        right |= {"interrupted"}
    assert end.result in right, end
    if given.calm and not given.canceled and not given.holds:
        assert end.result == "done", f"for no reason: {end}"


def _identity(instance: Mapping[str, Any] | None) -> Any:
    if instance is None:
        return None
    inside = [(c["ci"], c["uuid"]) for c in instance["compute_instances"]]
    return instance["gi"], instance["profile_id"], instance["placement"], inside
