"""The family of cases where systemd fails, is late, or never answers: on a real host.

A job that stops clients is done, with one call meddled with; then GPUs are judged by the simulator,
and clients by systemd.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from migd import names
from migd.bus.connection import BusError, RemoteError
from tests.faults import behind
from tests.faults.behind import Case
from tests.faults.oracle import Broken
from tests.faults.proxy import KINDS, LATE, Place, Proxy
from tests.faults.scenes import Truth, truths
from tests.host import crash
from tests.host.crash import RUNNING, Round
from tests.host.host import Host

NAME = "systemd"
SERVICES = frozenset({"org.freedesktop.systemd1"})
_JOB_S = 55.0


class Site:
    """A host with clients, migd behind a proxy, and a goal."""

    def __init__(self, host: Host, proxy: Proxy) -> None:
        assert host.node
        self.host, self.proxy, self.node = host, proxy, host.node
        self.goal = self._reached("split")
        self._reached("plain")

    def _reached(self, config: str) -> list[Truth]:
        result, details = self.host.applied(config)
        if result != "done":
            raise Broken(f"{config} cannot be had again: {result} {details}")
        return truths(self.node)

    def recorded(self) -> list[Place]:
        self.proxy.begin()
        self._reached("split")
        calls = list(self.proxy.calls)
        self._reached("plain")
        return calls


def cases(pool: Executor, notes: list[str], only: str = "") -> list[Case]:
    if only or behind.missing(NAME, notes):
        return []
    places = pool.submit(_places).result()
    notes.append(f"systemd: {len(places)} calls of a job with clients")
    return [Case(NAME, place, kind) for place in places for kind in KINDS]


def _places() -> list[Place]:
    with opened("") as site:
        return site.recorded()


def parse(text: str) -> Case:
    return Case.parse(text)


def group(case: Case) -> str:
    return case.scene


@contextmanager
def opened(group: str) -> Iterator[Site]:
    prepare = crash.prepared(crash.UNITS, crash.LISTED)
    with (
        behind.booted([("h100-80gb-sxm5", 2)], prepare) as host,
        behind.proxied(host, SERVICES) as proxy,
    ):
        host.systemctl("enable", "--quiet", *(f"{u}.service" for u in crash.UNITS if u != "c-off"))
        host.systemctl("start", *RUNNING)
        yield Site(host, proxy)


def run(case: Case, site: Site) -> None:
    """Raises Broken, or whatever else shows that it did not go as it must."""
    host = site.host
    round_ = Round(host, loose=False)
    site.proxy.begin(case.place, case.kind)
    result = ""
    details: dict[str, Any] = {}
    try:
        number, _ = host.apply("split")
        result, details = host.wait(number, _JOB_S)
    except RemoteError as error:
        if not error.name.startswith(f"{names.ERROR}.") or error.name == f"{names.ERROR}.Failed":
            raise Broken(f"refused with {error.name}: {error.message}") from None
        if truths(site.node) != round_.before:
            raise Broken(f"refused, and GPUs are not as before: {error.message}") from None
    except BusError as error:
        raise Broken(f"migd has ended: {error}\n{host.journal('migd.service')[-3000:]}") from None
    met, calls = site.proxy.met, list(site.proxy.calls)
    site.proxy.begin()
    if not met:
        raise Broken(f"it never came to that call: {calls}")
    missing = _missing(details)
    if missing:
        # It was named; whoever reads that starts it.
        host.systemctl("start", *missing)
    if result:
        _check_result(case, result, details, missing)
        round_.check(site.goal, details["gpus"])
    else:
        round_.check_clients()
    again = host.applied("split")
    if again[0] != "done" or truths(site.node) != site.goal:
        raise Broken(f"the next one, undisturbed: {again}")
    if host.applied("plain")[0] != "done":
        raise Broken("before cannot be had again")


def _missing(details: Any) -> list[str]:
    return [c["unit"] for c in details.get("clients", ()) if c["result"] == "missing"]


def _check_result(case: Case, result: str, details: Any, missing: list[str]) -> None:
    endings = {o["result"] for o in details["gpus"]}
    well = endings <= {"done", "unchanged"}
    expected = "done" if well else "partial" if "done" in endings else "failed"
    if well and (missing or result == "partial"):
        expected = "partial"
    if result != expected or not details["message"]:
        raise Broken(f"the job is {result!r}, and its GPUs {sorted(endings)}: {details}")
    if case.kind == LATE and (result, missing) != ("done", []):
        raise Broken(f"one answer was late, and the job is {result!r}: {details}")
