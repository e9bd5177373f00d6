"""The family of cases where something happens to the daemon just when it has written a record.

Each sync of a transition is such a moment: the daemon is stopped there by strace, what is to happen
happens, and it goes on, if it can. What ends it is followed by another daemon, as with systemd.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryDirectory

from migd import names
from migd.bus.connection import BusError
from migd.simulator.build import compiler
from tests.faults import oracle
from tests.faults.arena import JOB_S, Arena
from tests.faults.oracle import Answer, Broken
from tests.faults.recovery import job_on_disk
from tests.faults.syncs import stops
from tests.faults.transitions import ALL
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon
from tests.support.node import wait_for

NAME = "moment"
_CLOCK = Path(__file__).with_name("clock.c")
_YEARS = 10 * 365 * 86400
_DISK = "256k"


@dataclass(frozen=True)
class Case:
    transition: str
    what: str
    sync: int

    def __str__(self) -> str:
        return f"moment:{self.transition}:{self.what}@{self.sync}"

    @classmethod
    def parse(cls, text: str) -> "Case":
        _, transition, rest = text.split(":")
        what, sync = rest.split("@")
        return cls(transition, what, int(sync))

    @property
    def stratum(self) -> tuple[str, ...]:
        return "moment", self.what


class Field(Arena):
    """An arena with a small disk for the state, and a clock that can be set."""

    def __init__(self, name: str) -> None:
        self._made = TemporaryDirectory(prefix="migd-field-")
        folder = Path(self._made.name)
        shim = folder / "clock.so"
        build = [compiler(), "-O1", "-shared", "-fPIC", str(_CLOCK), "-o", str(shim)]
        subprocess.run(build, check=True)
        offset = folder / "offset"
        offset.write_bytes(bytes(8))
        with offset.open("r+b") as file:
            self._clock = mmap(file.fileno(), 8)
        self.state = folder / "state"
        self.state.mkdir()
        self.disk = _mounted(self.state)
        self.read_only = False
        try:
            super().__init__(
                ALL[name],
                prefix=("env", f"LD_PRELOAD={shim}", f"MIGD_TEST_CLOCK={offset}"),
                state_dir=self.state,
            )
        except BaseException:
            self._remove()
            raise

    def close(self) -> None:
        super().close()
        self._remove()

    def _remove(self) -> None:
        self.make_writable()
        if self.disk:
            subprocess.run(["umount", "-l", str(self.state)], check=False)
        self._clock.close()
        self._made.cleanup()

    def set_aside(self, *, required: bool) -> None:
        """Take away the state that was refused, which an administrator is to look at."""
        aside = self.daemon.state.with_name(f"{names.STATE_FILE}.refused")
        if aside.exists() != required:
            raise Broken(f"{aside} is {'not ' if required else ''}there")
        aside.unlink(missing_ok=True)

    def set_clock(self, seconds: int) -> None:
        self._clock[:] = ctypes.c_int64(seconds)

    def make_read_only(self) -> None:
        """By a mount above: the disk itself cannot be, while a file is open for writing."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        lower = f"lowerdir={self.state}:{empty}"
        command = ["mount", "-t", "overlay", "overlay", "-o", lower, str(self.state)]
        subprocess.run(command, check=True)
        self.read_only = True

    def make_writable(self) -> None:
        if self.read_only:
            subprocess.run(["umount", str(self.state)], check=True)
        self.read_only = False

    def new_bus(self) -> None:
        self.bus.restart()
        self.daemon.address = self.bus.address
        self.ear.__exit__(None, None, None)
        heard = self.ear.heard
        self.listen()
        self.ear.heard[:0] = heard


def _mounted(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=700", "none", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


# -- what happens ------------------------------------------------------------------------------


def _kill(field: Field) -> None:
    field.daemon.kill()


def _abort(field: Field) -> None:
    """What systemd sends a daemon that does not feed its watchdog."""
    os.kill(field.daemon.pid, signal.SIGABRT)
    _until_it_ends(field)


def _end(field: Field) -> None:
    os.kill(field.daemon.pid, signal.SIGTERM)
    if (code := _until_it_ends(field)) != 0:
        raise Broken(f"told to end, it ended with {code}:\n{field.daemon.log[-2000:]}")


def _until_it_ends(field: Field) -> int:
    """Let it go on at each stop, to its end; its exit code."""
    daemon = field.daemon

    def ended() -> bool:
        with suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGCONT)
        return not daemon.running

    wait_for(ended, timeout=JOB_S, what="it does not end")
    return daemon.wait_exit()


def _kill_worker(field: Field) -> None:
    for pid in field.daemon.worker_pids():
        os.kill(pid, signal.SIGKILL)


def _fill(field: Field) -> None:
    with (field.state / "filler").open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def _limit(field: Field, which: int, value: int) -> None:
    _, hard = resource.prlimit(field.daemon.pid, which)
    resource.prlimit(field.daemon.pid, which, (value, hard))


def _unlimit(field: Field, which: int) -> None:
    _limit(field, which, resource.prlimit(field.daemon.pid, which)[1])


def _no_descriptors(field: Field) -> None:
    """Not one more can be opened, not even in place of one that is closed."""
    _limit(field, resource.RLIMIT_NOFILE, 3)


def _no_memory(field: Field) -> None:
    """What is allocated now is all there is: Python's small objects often fit, threads never do."""
    pages = int(Path(f"/proc/{field.daemon.pid}/statm").read_text().split()[0])
    _limit(field, resource.RLIMIT_AS, pages * resource.getpagesize())


def _second(field: Field, address: str) -> None:
    """Another daemon with the same folders: it must end, and leave all as it is."""
    before = _content(field.state)
    other = Daemon(
        field.node, address, field.folder / "other", config=field.transition.config,
        state_dir=field.state, runtime_dir=field.daemon.runtime_dir,
    )  # fmt: skip
    other.launch()
    try:
        code = other.wait_exit(20)
    except subprocess.TimeoutExpired:
        raise Broken(f"a second daemon goes on beside it:\n{other.log[-2000:]}") from None
    finally:
        if other.running:
            other.kill()
    if code == 0 or "migd ends: " not in other.log:
        raise Broken(f"a second daemon ends with {code}:\n{other.log[-2000:]}")
    if (after := _content(field.state)) != before:
        raise Broken(f"a second daemon changed files: {before} to {after}")


def _second_elsewhere(field: Field) -> None:
    with PrivateBus() as bus:
        _second(field, bus.address)


def _content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def _cut_journal(field: Field, keep: Callable[[list[bytes]], bytes]) -> None:
    """Kill it, and have the journal as if a sync had not been one; what it began with stays."""
    field.daemon.kill()
    if field.daemon.journal.exists():
        lines = field.daemon.journal.read_bytes().splitlines(keepends=True)
        field.daemon.journal.write_bytes(keep(lines))


def _spoil_state(field: Field, make: Callable[[bytes], bytes]) -> None:
    """Kill it, and have a state that cannot be read."""
    field.daemon.kill()
    field.daemon.state.write_bytes(make(field.daemon.state.read_bytes()))


def _newer(state: bytes) -> bytes:
    return json.dumps({**json.loads(state), "version": 99}).encode()


def _lose_bus(field: Field) -> None:
    field.bus.kill()
    _until_it_ends(field)
    field.new_bus()


@dataclass(frozen=True)
class What:
    """act: while the daemon is stopped; undo: once the job is over, if the daemon still runs.

    cut: the daemon is not there any more then
    unkept: what came of the job could perhaps not be written, and is when there is room again
    forgets: the state is set aside, with what was wanted and which jobs there were
    """

    act: Callable[[Field], None]
    undo: Callable[[Field], None] = lambda _: None
    cut: bool = False
    unkept: bool = False
    forgets: bool = False
    disk: bool = False


WHAT: Mapping[str, What] = {
    "KILL": What(_kill, cut=True),
    "KILL-torn": What(lambda f: _cut_journal(f, lambda r: b"".join(r) + r[-1][:20]), cut=True),
    "KILL-one-less": What(
        lambda f: _cut_journal(f, lambda r: b"".join(r[: len(r) - 1] or r)), cut=True
    ),
    "KILL-first-only": What(lambda f: _cut_journal(f, lambda r: r[0]), cut=True),
    "KILL-state-half": What(
        lambda f: _spoil_state(f, lambda s: s[: len(s) // 2]), cut=True, forgets=True
    ),
    "KILL-state-newer": What(lambda f: _spoil_state(f, _newer), cut=True, forgets=True),
    "ABRT": What(_abort, cut=True),
    "TERM": What(_end, cut=True),
    "STOP": What(lambda _: None),
    "worker": What(_kill_worker),
    "full": What(
        _fill, lambda f: (f.state / "filler").unlink(missing_ok=True), unkept=True, disk=True
    ),
    "read-only": What(Field.make_read_only, Field.make_writable, unkept=True, disk=True),
    "descriptors": What(
        _no_descriptors, lambda f: _unlimit(f, resource.RLIMIT_NOFILE), unkept=True
    ),
    "memory": What(_no_memory, lambda f: _unlimit(f, resource.RLIMIT_AS), unkept=True),
    "clock-forward": What(lambda f: f.set_clock(_YEARS), lambda f: f.set_clock(0)),
    "clock-back": What(lambda f: f.set_clock(-_YEARS), lambda f: f.set_clock(0)),
    "bus": What(_lose_bus, cut=True),
    "second": What(lambda f: _second(f, f.bus.address)),
    "second-elsewhere": What(_second_elsewhere),
}


# -- the family --------------------------------------------------------------------------------


def cases(pool: Executor, notes: list[str], only: str = "") -> list[Case]:
    chosen = [name for name in ALL if only in ("", name)]
    found = [
        Case(name, what, sync)
        for name, (count, disk) in zip(chosen, pool.map(moments, chosen), strict=True)
        for what in WHAT
        for sync in range(1, count + 1)
        if disk or not WHAT[what].disk
    ]
    notes.append(f"moment: {len(found)} cases, of {len(WHAT)} things at each sync of a transition")
    return found


def moments(name: str) -> tuple[int, bool]:
    """How many syncs a transition has, and whether there can be a disk."""
    with opened(name) as field:
        promise = field.ready()
        with stops(field.daemon, field.ask) as (syncs, work):
            syncs.go_on()
        field.check(promise, work.result())
        return syncs.count, field.disk


def parse(text: str) -> Case:
    return Case.parse(text)


def group(case: Case) -> str:
    return case.transition


@contextmanager
def opened(group: str) -> Iterator[Field]:
    field = Field(group)
    try:
        yield field
    finally:
        field.close()


def run(case: Case, field: Field) -> None:
    """Raises Broken, or whatever else shows that it did not go as it must."""
    what = WHAT[case.what]
    promise = field.ready()
    try:
        with stops(field.daemon, lambda: _asked(field)) as (syncs, work):
            # GPUs side by side can share the last ones.
            if syncs.reach(case.sync):
                what.act(field)
        if field.daemon.running:
            what.undo(field)
    finally:
        if what.disk:
            what.undo(field)
    answer = work.result()
    if not field.daemon.running or answer is None:
        answer = _by_the_next(field, promise.last, forgets=what.forgets)
    field.set_aside(required=what.forgets)
    promise = replace(promise, unkept=what.unkept or what.forgets, forgotten=what.forgets)
    field.check(promise, answer)
    field.again(promise)
    if broken := [*oracle.left(field.daemon)]:
        raise Broken("\n".join(broken))


def _asked(field: Field) -> Answer | None:
    """None: whoever was asked is gone."""
    try:
        return field.ask()
    except BusError:
        return None


def _on_disk(field: Field, *, forgets: bool) -> tuple[int, str]:
    """The job that the next daemon has to know, and how it ended; 0 for none."""
    if forgets:
        if not field.daemon.journal.exists():
            return 0, ""
        return int(json.loads(field.daemon.journal.read_bytes().splitlines()[0])[1]["id"]), ""
    job, _, ended = job_on_disk(field.daemon)
    return job, ended


def _by_the_next(field: Field, last: int, *, forgets: bool) -> Answer:
    """What the next daemon makes of it."""
    if field.daemon.running:
        field.daemon.kill()
    field.set_clock(0)
    job, ended = _on_disk(field, forgets=forgets)
    field.daemon.start()
    if job <= last:
        return Answer(cut=True)
    result, details = field.daemon.wait(job, JOB_S)
    if result != (ended or "interrupted"):
        raise Broken(f"job {job} is {result!r}, and on disk it was {ended!r}")
    wait_for(lambda: not field.daemon.journal.exists(), what="the journal stays")
    return Answer(job, result, details, cut=True)
