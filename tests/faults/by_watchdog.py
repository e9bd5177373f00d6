"""The family of cases where the daemon of a host stands still, and systemd's watchdog ends it.

It is stopped by SIGSTOP when it has written a record of a job, and left to systemd, which waits
less for a sign of life than by its unit. What follows is judged as where it is killed.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from migd.bus.connection import BusError
from tests.faults import behind
from tests.faults.oracle import Broken
from tests.faults.scenes import truths
from tests.host import crash
from tests.host.crash import RUNNING, Round, Syncs, working
from tests.host.host import Host

NAME = "watchdog"
_WATCHDOG_S = 5
_DROP_IN = f"[Service]\nWatchdogSec={_WATCHDOG_S}\n"
# systemd's own words for it.
_BARKS = "Watchdog timeout"
_ABORTED = "code=killed, status=6/ABRT"


@dataclass(frozen=True)
class Case:
    """sync: from 1."""

    sync: int

    def __str__(self) -> str:
        return f"{NAME}:stopped@{self.sync}"

    @classmethod
    def parse(cls, text: str) -> "Case":
        return cls(int(text.partition("@")[2]))

    @property
    def stratum(self) -> tuple[str, ...]:
        return (NAME,)


class Site:
    """A host with clients."""

    def __init__(self, host: Host) -> None:
        assert host.node
        self.host, self.node = host, host.node
        self._reached("split")
        self.goal = truths(self.node)
        self.back()

    def _reached(self, config: str) -> None:
        if (ended := self.host.applied(config))[0] != "done":
            raise Broken(f"{config} cannot be had: {ended}")

    def back(self) -> None:
        self._reached("plain")

    def barked(self) -> tuple[int, int]:
        """How often the watchdog has acted, and how often migd was aborted."""
        told = self.host.journal(None, "_PID=1")
        return told.count(_BARKS), told.count(_ABORTED)


def cases(pool: Executor, notes: list[str], only: str = "") -> list[Case]:
    if only or behind.missing(NAME, notes):
        return []
    count = pool.submit(moments).result()
    notes.append(f"watchdog: {count} syncs of a job with clients")
    return [Case(sync) for sync in range(1, count + 1)]


def moments() -> int:
    """How many syncs there are."""
    with opened(NAME) as site, _traced(site.host) as syncs:
        with working(lambda: site.host.applied("split")) as work:
            while syncs.reach(syncs.count + 1, work):
                syncs.go_on()
        if work.result()[0] != "done":
            raise Broken(f"undisturbed: {work.result()}")
        return syncs.count


def parse(text: str) -> Case:
    return Case.parse(text)


def group(case: Case) -> str:
    return NAME


@contextmanager
def opened(group: str) -> Iterator[Site]:
    def prepare(host: Host) -> None:
        crash.prepared(crash.UNITS, crash.LISTED)(host)
        host.write(f"{crash.ETC}/migd.service.d/watchdog.conf", _DROP_IN)

    with behind.booted([("h100-80gb-sxm5", 2)], prepare) as host:
        host.systemctl("enable", "--quiet", *(f"{u}.service" for u in crash.UNITS if u != "c-off"))
        host.systemctl("start", *RUNNING)
        yield Site(host)


@contextmanager
def _traced(host: Host) -> Iterator[Syncs]:
    with TemporaryDirectory(prefix="migd-trace-") as name:
        syncs = Syncs(host, Path(name))
        try:
            yield syncs
        finally:
            syncs.end()


def run(case: Case, site: Site) -> None:
    """Raises Broken, or whatever else shows that it did not go as it must."""
    host = site.host
    round_ = Round(host, loose=False)
    barks, aborts = site.barked()
    with _traced(host) as syncs, working(lambda: host.applied("split")) as work:
        if not syncs.reach(case.sync, work):
            raise Broken(f"the job was over after {syncs.count} syncs: {work.result()}")
        job, state = round_.job_on_disk()
        # It stands still from here on; nobody but systemd does anything about it.
        round_.back()
        if not isinstance(work.exception(), BusError):
            raise Broken(f"it has answered: {work.result()}")
    if (told := site.barked()) != (barks + 1, aborts + 1):
        raise Broken(f"it was not the watchdog, once: {told}, and before {(barks, aborts)}")
    if job:
        result, details = host.wait(job)
        if result != (state or "interrupted"):
            raise Broken(f"job {job} is {result!r}, and on disk it was {state!r}")
        host.wait_for(lambda: not round_.journaled(), what="the journal stays")
        round_.check(site.goal, details["gpus"])
    else:
        if truths(site.node) != round_.before:
            raise Broken(f"there is no job, and GPUs are not as before: {truths(site.node)}")
        round_.check_clients()
    host.applied("split")
    if truths(site.node) != site.goal:
        raise Broken(f"the next one, undisturbed: {truths(site.node)}")
    site.back()
