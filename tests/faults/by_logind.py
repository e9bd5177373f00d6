"""The family of cases where logind fails, is late, or never answers, when the host is to reboot.

Only logind knows whether the host will: by its file, not by what migd says, it is judged. The
notice is so long that no case comes to its end.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, NamedTuple

from migd import names
from tests.faults import behind
from tests.faults.behind import Case
from tests.faults.oracle import Broken
from tests.faults.proxy import KINDS, LATE, SILENT, Place, Proxy
from tests.faults.scenes import Truth, truths
from tests.host.clients import install, unit
from tests.host.host import Host

NAME = "logind"
SERVICES = frozenset({"org.freedesktop.login1"})
# Who is logged in: only who asks, whose session may end; or somebody else, too.
ALONE, BESIDE = SCENES = (f"{NAME}:alone", f"{NAME}:beside")
_CONFIG = """\
version: v1
mig-configs:
  mine:
  - {devices: [0], mig-enabled: true, mig-devices: {1g.5gb: 2, 3g.20gb: 1}}
"""
_CLIENT = "job.service"
_SETTINGS = "reboot: when-needed\ntime-limits: {reboot-notice: 3600}\n"
_SCHEDULED = "/run/systemd/shutdown/scheduled"
_ASK = ("migctl", "apply", "mine", "--max-impact=reset", "--allow-reboot")
_OWED = f"{names.ERROR}.RebootOwed"
_COMES = "the host is rebooted for it at"


class Asked(NamedTuple):
    """What came of one request: the outcome of the GPU, and what logind has then."""

    outcome: dict[str, Any]
    scheduled: str


class Site:
    """A host whose GPU 0 needs a reboot for its mode."""

    def __init__(self, host: Host, proxy: Proxy, *, beside: bool) -> None:
        assert host.node
        self.host, self.proxy, self.node = host, proxy, host.node
        self.before = truths(self.node)
        if beside:
            host.spawn(*_logged_in("bob"), "sleep", "infinity")
        self._sessions = int(beside)
        self._last = 0
        self.settled()

    def settled(self) -> None:
        """Wait until nobody is logged in who was for a request before."""
        self.host.wait_for(lambda: len(self._logged_in()) == self._sessions, what="sessions")

    def _logged_in(self) -> list[str]:
        return self.host.run("loginctl", "list-sessions", "--no-legend").stdout.splitlines()

    def ask(self) -> Asked:
        """By somebody who is logged in."""
        self.settled()
        done = self.host.run(*_logged_in("root"), *_ASK, check=False)
        if done.returncode == 0:
            raise Broken(f"a mode that only a reboot puts in force is said to be: {done.stdout}")
        (jobs,) = self.host.call("ListJobs", "a{sv}", {})
        last = max((job["id"] for job in jobs), default=0)
        if last == self._last:
            raise Broken(f"refused: {done.stdout}{done.stderr}")
        self._last = last
        _, details = self.host.wait(last)
        (outcome,) = details["gpus"]
        return Asked(outcome, self.host.run("cat", _SCHEDULED, check=False).stdout)

    def back(self) -> None:
        """Without a reboot that is to come, and with the mode as it was."""
        self.host.run("shutdown", "-c")
        if self.host.run("cat", _SCHEDULED, check=False).stdout:
            raise Broken("the reboot cannot be canceled")
        if truths(self.node) != self.before:
            self.host.applied("all-disabled", gpus=["0"], max_impact="reset")
        if truths(self.node) != self.before:
            raise Broken(f"before cannot be had again: {truths(self.node)}")


def _logged_in(user: str) -> tuple[str, ...]:
    """Runs a command in a session as sshd's are: what has no terminal is nobody's otherwise."""
    return (
        "systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--uid={user}",
        "--property=PAMName=login", "--setenv=XDG_SESSION_CLASS=user",
    )  # fmt: skip


def cases(pool: Executor, notes: list[str], only: str = "") -> list[Case]:
    if only or behind.missing(NAME, notes):
        return []
    found = []
    for scene, places in zip(SCENES, pool.map(_places, SCENES), strict=True):
        notes.append(f"{scene}: {len(places)} calls of a job that needs a reboot")
        found += [Case(scene, place, kind) for place in places for kind in (*KINDS, SILENT)]
    return found


def _places(scene: str) -> list[Place]:
    with opened(scene) as site:
        site.proxy.begin()
        asked = site.ask()
        calls = list(site.proxy.calls)
        if bool(asked.scheduled) != (scene == ALONE):
            raise Broken(f"undisturbed: {asked}")
        return calls


def parse(text: str) -> Case:
    return Case.parse(text)


def group(case: Case) -> str:
    return case.scene


@contextmanager
def opened(group: str) -> Iterator[Site]:
    with (
        behind.booted([("a100-40gb", 1), ("h100-80gb-sxm5", 1)], _prepare) as host,
        behind.proxied(host, SERVICES) as proxy,
    ):
        yield Site(host, proxy, beside=group == BESIDE)


def _prepare(host: Host) -> None:
    assert host.node
    host.node.surprise("passthrough", gpu=0)
    install(host, {_CLIENT: unit("--hold=1")})
    host.write("/etc/migd/config.yaml", _CONFIG)
    host.write("/etc/migd/migd.yaml", _SETTINGS)
    host.write("/etc/migd/clients.yaml", f"version: v1\nsystemd-services: [{_CLIENT}]\n")


def run(case: Case, site: Site) -> None:
    """Raises Broken, or whatever else shows that it did not go as it must."""
    site.settled()
    site.proxy.begin(case.place, case.kind)
    asked = site.ask()
    met, calls = site.proxy.met, list(site.proxy.calls)
    site.proxy.begin()
    if not met:
        raise Broken(f"it never came to that call: {calls}")
    _judge(site, asked, calls)
    if case.scene == BESIDE and asked.scheduled:
        raise Broken(f"somebody who is logged in is cut off: {asked.outcome}")
    if case.scene == ALONE and case.kind == LATE and not asked.scheduled:
        raise Broken(f"an answer was late, and there is no reboot: {asked.outcome}")
    site.back()
    again = site.ask()
    _judge(site, again, [])
    if bool(again.scheduled) != (case.scene == ALONE):
        raise Broken(f"the next one, undisturbed: {again}")
    site.back()


def _judge(site: Site, asked: Asked, calls: list[Place]) -> None:
    """The host is rebooted, and that is told; or it is not, and all is as before, and told."""
    outcome, scheduled = asked
    told = _COMES in outcome["message"]
    if outcome["error"] != _OWED or told != bool(scheduled):
        raise Broken(f"told is {outcome}, and logind has {scheduled!r}; {calls}")
    if len([c for c in calls if c.member == "ScheduleShutdown"]) > 1:
        raise Broken(f"scheduled more than once: {calls}")
    host, found = site.host, truths(site.node)
    if scheduled:
        if "MODE=reboot" not in scheduled:
            raise Broken(f"no reboot: {scheduled}")
        if not _waits(found, site.before):
            raise Broken(f"the mode does not wait for the reboot: {found}")
        if not host.property("RebootOwed"):
            raise Broken("a reboot is scheduled, and migd owes none")
    else:
        if outcome["result"] != "rolled-back" or found != site.before:
            raise Broken(f"there is no reboot, and GPUs are not as before: {found}; {outcome}")
        if host.property("RebootOwed"):
            raise Broken("there is no reboot, and migd owes one")
    host.wait_for(lambda: host.active(_CLIENT), what="its client is not back")


def _waits(found: list[Truth], before: list[Truth]) -> bool:
    return found == [before[0]._replace(pending="enabled"), *before[1:]]
