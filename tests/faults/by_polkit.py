"""The family of cases where polkit, or what the bus says of it, fails, is late, or never comes.

A member of group migd applies a configuration while polkit does not run yet, so that all of it is
in the calls: who asks, who polkit is, its start, and its verdicts.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from tests.faults import behind
from tests.faults.behind import Case
from tests.faults.oracle import Broken
from tests.faults.proxy import BUS, KINDS, LATE, Place, Proxy
from tests.faults.scenes import truths
from tests.host import crash
from tests.host.host import Host
from tests.host.process import Process

NAME = "polkit"
POLKIT = "org.freedesktop.PolicyKit1"
SERVICES = frozenset({POLKIT, BUS})
_UNIT = "polkit.service"
# What migd can do without: of who calls it wants to know only how much they have not read.
_SPARE = "GetConnectionStats"
_DENIED = 4
_APPLY = ("migctl", "--no-ask-password", "apply")


class Site:
    """A host with a member of group migd, alice."""

    def __init__(self, host: Host, proxy: Proxy) -> None:
        assert host.node
        self.host, self.proxy, self.node = host, proxy, host.node
        self.before = truths(self.node)
        self.goal = self._reached("split")
        self._reached("plain")

    def _reached(self, config: str) -> list[object]:
        if (ended := self.host.applied(config))[0] != "done":
            raise Broken(f"root cannot have {config}: {ended}")
        return [*truths(self.node)]

    def member(self) -> Process:
        """alice asks, with polkit still to be started."""
        self.host.systemctl("stop", _UNIT)
        start = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--uid=alice")
        return self.host.spawn(*start, *_APPLY, "split")

    def well(self) -> None:
        """Root and members can do what they can do."""
        if self._reached("split") != self.goal or self._reached("plain") != self.before:
            raise Broken(f"root has it done, and there is {truths(self.node)}")
        member = self.member()
        if (code := member.wait()) or truths(self.node) != self.goal:
            raise Broken(f"a member, undisturbed: {code}: {member.output}")
        self._reached("plain")


def cases(pool: Executor, notes: list[str], only: str = "") -> list[Case]:
    if only or behind.missing(NAME, notes):
        return []
    places = pool.submit(_places).result()
    notes.append(f"polkit: {len(places)} calls of a job of a member of group migd")
    return [Case(NAME, place, kind) for place in places for kind in KINDS]


def _places() -> list[Place]:
    with opened(NAME) as site:
        site.proxy.begin()
        member = site.member()
        if member.wait() or truths(site.node) != site.goal:
            raise Broken(f"undisturbed: {member.output}")
        # How often it looks at what a caller has not read is a matter of time.
        return [c for c in site.proxy.calls if c.member != _SPARE or c.nth == 1]


def parse(text: str) -> Case:
    return Case.parse(text)


def group(case: Case) -> str:
    return case.scene


@contextmanager
def opened(group: str) -> Iterator[Site]:
    prepare = crash.prepared({}, "version: v1\n")
    with (
        behind.booted([("h100-80gb-sxm5", 2)], prepare) as host,
        behind.proxied(host, SERVICES) as proxy,
    ):
        # As the packages do.
        host.run("systemd-sysusers", "migd.conf")
        host.run("gpasswd", "--add", "alice", "migd")
        yield Site(host, proxy)


def run(case: Case, site: Site) -> None:
    """Raises Broken, or whatever else shows that it did not go as it must."""
    host, node, proxy = site.host, site.node, site.proxy
    calls = node.mutating_calls()
    proxy.begin(case.place, case.kind)
    member = site.member()
    host.wait_for(lambda: proxy.met or not member.alive(), what="it neither asks nor ends")
    if not proxy.met:
        raise Broken(f"it never came to that call: {proxy.calls}")
    # Nobody waits for that.
    host.plan("split")
    code, found = member.wait(), truths(node)
    proxy.begin()
    if code == 0:
        if found != site.goal:
            raise Broken(f"it is said to be done, and there is {found}: {member.output}")
        if case.kind != LATE and case.place.member != _SPARE:
            raise Broken(f"it was done without {case.place.member}: {member.output}")
        site.host.applied("plain")
    else:
        if case.kind == LATE or case.place.member == _SPARE:
            raise Broken(f"refused, with {code}: {member.output}")
        if found != site.before or node.mutating_calls() != calls:
            raise Broken(f"refused, and GPUs were touched: {found}")
        _check_told(case, code, member.output)
    site.well()


def _check_told(case: Case, code: int, output: str) -> None:
    told = "whether you may is not known: polkit " in output
    if case.place.member.startswith("GetConnection"):
        told = "the bus does not say who you are" in output
    if code != _DENIED or not told:
        raise Broken(f"refused with {code}: {output}")
