"""Who may, with the real polkit: every method and option against every caller, by the table."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dbus_next.signature import Variant

from migd import names
from migd.bus.options import _SIGNATURES
from migd.core.permissions import (
    ACTIONS,
    APPLYING,
    CANCELING,
    CREATING,
    CREATING_COMPUTE,
    DESTROYING,
    DESTROYING_COMPUTE,
    PLAIN_OPTIONS,
    PUTTING_BACK,
    RELOADING,
    RESTORING,
    SETTING_MODE,
    STAGING,
    TABLE,
    Action,
    Method,
    When,
    needed,
)
from migd.host.log import Event
from tests.bus.manager import document, entry
from tests.host import conftest, image
from tests.host.conftest import Layers
from tests.host.host import Done, Host
from tests.host.process import Process
from tests.support.node import Node

DENIED = f"{names.DBUS_ERROR}.AccessDenied"
INTERACTION = f"{names.DBUS_ERROR}.InteractiveAuthorizationRequired"
PASSWORD = "of the administrator"
PYTHON = ("/usr/lib/migd/bin/python3", "-I")
CALLER, TYPIST, CASES = "/srv/caller.py", "/srv/typist.py", "/srv/cases.json"
RULES = "/etc/polkit-1/rules.d/10-test.rules"
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
TEXT = entry({})
INSIDE = Path(__file__).parent


@pytest.fixture(scope="module", params=image.RELEASES)
def booted(
    request: pytest.FixtureRequest, layers: Layers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """One host for all tests of a release: alice is a member of group migd, bob of nothing."""
    folder = tmp_path_factory.mktemp("authorization")
    node = Node.new(folder / "node", ("h100-80gb-sxm5", 2))
    host = Host(layers[request.param], node, folder / "host")
    host.write("/etc/migd/migd.yaml", "reboot: when-needed\n")
    host.write(CALLER, (INSIDE / "caller_inside.py").read_text())
    host.write(TYPIST, (INSIDE / "typist_inside.py").read_text())
    with host:
        # As the packages do.
        host.run("systemd-sysusers", "migd.conf")
        host.run("gpasswd", "--add", "alice", "migd")
        host.run("chpasswd", text=f"root:{PASSWORD}\n")
        host.run("mkdir", "--mode=1777", "/srv/results")
        yield host


@pytest.fixture
def host(booted: Host, request: pytest.FixtureRequest) -> Host:
    """With MIG on and no instances, and that wanted."""
    request.node.stash[conftest._HOSTS] = [booted]
    assert booted.applied("all-enabled", max_impact="reset")[0] == "done"
    return booted


@pytest.fixture
def populated(host: Host) -> Host:
    """And with two instances on GPU 1, a compute instance in each that does not fill it."""
    assert host.node
    path = names.gpu_path(host.node.gpus()[1]["uuid"])
    given = {"compute": Variant("as", ["1c.3g.40gb"])}
    for _ in range(2):
        call = ("CreateInstance", "sa{sv}", "3g.40gb", given)
        number, _ = host.call(*call, path=path, interface=names.GPU)
        assert host.wait(number)[0] == "done"
    assert sorted(i["gi"] for i in host.node.gpus()[1]["instances"]) == [1, 2]
    return host


# -- what is asked ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A call, and in which cases of the table it is.

    at: the object; {0} and {1} are those of the GPUs
    """

    method: Method
    arguments: Sequence[Any] = ()
    cases: frozenset[When] = field(default=frozenset())
    at: str = names.ROOT

    @property
    def actions(self) -> tuple[Action, ...]:
        return needed(self.method, self.cases)

    def as_plain(self, gpus: Sequence[str]) -> list[Any]:
        kinds = {str: "s", bool: "b", int: "u", dict: "a{sv}"}
        signature = "".join(kinds[type(a)] for a in self.arguments)
        return [self.at.format(*gpus), *self.method, signature, list(self.arguments)]


# A value for each option that changes nothing about all-enabled.
VALUES = {
    "gpus": ["0"],
    "mode-only": True,
    "max-impact": "gpu",
    "expect": "digest of all-enabled",
    "terminate": True,
    "allow-reboot": True,
    "reset-peers": True,
    "no-reset": True,
}


def option(name: str) -> dict[str, list[Any]]:
    return {name: [_SIGNATURES[name], VALUES[name]]}


def about(method: Method, options: Sequence[str]) -> Iterator[Case]:
    """Apply or Stage by name, as text, with each option, and with a plan that sets modes."""
    text = {"text": ["s", TEXT]}
    named = frozenset({When.NAMED})
    yield Case(method, ("all-enabled", {}), named)
    yield Case(method, ("", text), frozenset({When.TEXT}))
    for name in options:
        deciding = frozenset({When(name)} if name in set(When) else ())
        yield Case(method, ("all-enabled", option(name)), named | deciding)
    yield Case(method, ("all-disabled", {}), named | {When.SETS_MODE})
    if method == APPLYING:
        yield Case(method, ("all-enabled", {}), named | {When.SETS_MODE})


def restoring(options: Sequence[str]) -> Iterator[Case]:
    """Restore, with each option, and with a plan that sets modes."""
    on, off = "checkpoint of all-enabled", "checkpoint of all-disabled"
    yield Case(RESTORING, (on, {}))
    for name in options:
        deciding = frozenset({When(name)} if name in set(When) else ())
        yield Case(RESTORING, (on, option(name)), deciding)
    yield Case(RESTORING, (off, {}), frozenset({When.SETS_MODE}))
    yield Case(RESTORING, (on, {}), frozenset({When.SETS_MODE}))


def of_instances() -> Iterator[Case]:
    """What leaves each object that is asked about later, where not all of them are allowed."""
    for name in ("max-impact", "terminate", "allow-reboot", "reset-peers", "no-reset"):
        deciding = frozenset({When(name)} if name in set(When) else ())
        yield Case(SETTING_MODE, (True, option(name)), deciding, "{0}")
    yield Case(SETTING_MODE, (True, {}), at="{0}")
    yield Case(CREATING_COMPUTE, ("1c.3g.40gb", {}), at="{1}/gi/1")
    ends = frozenset({When.TERMINATE})
    for given, cases, gi in ((option("terminate"), ends, 1), ({}, frozenset[When](), 2)):
        yield Case(CREATING, ("1g.10gb", given), cases, "{0}")
        yield Case(DESTROYING_COMPUTE, (given,), cases, f"{{1}}/gi/{gi}/ci/0")
        yield Case(DESTROYING, (given,), cases, f"{{1}}/gi/{gi}")


# Stands for one that migd still knows: it forgets the first ones meanwhile.
_LAST_JOB = 4_294_967_295


def free(member: str, *arguments: Any) -> Case:
    return Case((names.MANAGER, member), arguments)


EVERY = [
    free("Plan", "all-disabled", {}),
    free("WaitJob", _LAST_JOB),
    free("ListJobs", {}),
    free("Assert", "all-disabled", {}),
    free("Export", {}),
    free("Generate", {}),
    free("Checkpoint", {}),
    free("ListClients", {}),
    free("GetConfig", "all-enabled"),
    free("GetGpu", "0"),
    *of_instances(),
    *about(APPLYING, tuple(VALUES)),
    *about(STAGING, ("gpus", "mode-only")),
    *restoring(tuple(VALUES)),
    Case(PUTTING_BACK, ({},), frozenset({When.MAY_REBOOT})),
    Case(RELOADING),
]


def test_nothing_is_left_out() -> None:
    assert {case.method for case in EVERY} | {CANCELING} == set(TABLE)
    assert set(VALUES) | {"text"} == set(_SIGNATURES) >= set(PLAIN_OPTIONS)
    told = {(c.method, when) for c in EVERY for when in (*c.cases, When.ALWAYS)}
    needs = {(m, need.when) for m, needs in TABLE.items() for need in needs if m != CANCELING}
    assert needs <= told


# -- who asks ----------------------------------------------------------------------------------


def asked(host: Host, cases: Sequence[Case], *start: str, agent: bool = False) -> list[list[str]]:
    """Name and text of the error of each; start: runs a command as the caller."""
    assert host.node
    gpus = [names.gpu_path(gpu["uuid"]) for gpu in host.node.gpus()]
    (jobs,) = host.call("ListJobs", "a{sv}", {})
    last = max(job["id"] for job in jobs)
    plain = [case.as_plain(gpus) for case in cases]
    host.write(CASES, json.dumps(plain).replace(json.dumps(_LAST_JOB), str(last)))
    results = "/srv/results/all.json"
    host.run("rm", "--force", results)
    done = host.run(*start, *PYTHON, CALLER, CASES, results, *(["agent"] if agent else []))
    found: list[list[str]] = json.loads(host.read(results))
    assert len(found) == len(cases), done.stdout
    return found


def in_unit(*properties: str) -> tuple[str, ...]:
    given = (f"--property={line}" for line in properties)
    return ("systemd-run", "--quiet", "--wait", "--pipe", "--collect", *given)


ROOT = in_unit()
MEMBER = in_unit("User=alice")
ORDINARY = in_unit("User=bob")
# By a user that is there: dbus-daemon looks up users without those that systemd makes up, and lets
# nobody in whom it does not know.
SANDBOXED = in_unit(
    "DynamicUser=yes", "User=games", "PrivateDevices=yes", "ReadWritePaths=/srv/results"
)
# In a session: without one, polkit does not fall back to an agent such as migctl registers.
TYPING = (*in_unit("PAMName=login", "User=bob", "Type=exec"), *PYTHON, TYPIST)


def untouched(host: Host) -> tuple[Any, ...]:
    assert host.node
    return host.node.gpus(), host.node.mutating_calls(), host.property("Wanted")


def check(host: Host, found: list[list[str]], allowed: set[Action]) -> None:
    """Each call that needs no more than that was done, and all others need somebody to ask."""
    for case, (name, text) in zip(EVERY, found, strict=True):
        expected = "" if set(case.actions) <= allowed else INTERACTION
        assert name == expected, (case, name, text)
        if expected:
            lacking = [a.id for a in case.actions if a not in allowed]
            assert lacking[0] in text, (case, text)


@pytest.mark.parametrize("start", [ORDINARY, SANDBOXED], ids=["ordinary", "sandboxed"])
def test_others_only_look(populated: Host, start: tuple[str, ...]) -> None:
    before = untouched(populated)
    check(populated, asked(populated, EVERY, *start), set())
    assert untouched(populated) == before


def test_root_may_all(populated: Host) -> None:
    check(populated, asked(populated, EVERY, *ROOT), set(ACTIONS))


def test_members_of_group_migd_operate(populated: Host) -> None:
    check(populated, asked(populated, EVERY, *MEMBER), {a for a in ACTIONS if a.operators})


def test_others_with_an_administrator_beside_them(populated: Host) -> None:
    """Every action is asked about on the terminal, and the password typed there."""
    check(populated, asked(populated, EVERY, *TYPING, PASSWORD, agent=True), set(ACTIONS))


# -- at the terminal -----------------------------------------------------------------------------


def at_terminal(host: Host, words: str, *command: str) -> Done:
    return host.run(*TYPING, words, *command, check=False)


def waiting(host: Host, words: str, *command: str) -> Process:
    """The same, which goes on; return when it asks for a password."""
    typist = host.spawn(*TYPING, words, *command)
    host.wait_for(lambda: "assword:" in typist.output or not typist.alive())
    assert typist.alive(), typist.output
    return typist


def test_wrong_password_and_none(host: Host) -> None:
    before = untouched(host)
    wrong = at_terminal(host, "guessed", "migctl", "apply", "all-1g.10gb")
    assert wrong.returncode == 4
    assert "Authentication is needed to apply a named MIG configuration: apply all-1g.10gb" in (
        wrong.stdout
    )
    assert "somebody must authenticate (org.migd1.apply), and that failed" in wrong.stdout
    unasked = at_terminal(host, PASSWORD, "migctl", "--no-ask-password", "apply", "all-1g.10gb")
    assert unasked.returncode == 4
    assert "assword:" not in unasked.stdout
    assert host.run_unit("migctl", "reload", user="bob", check=False).returncode == 4
    assert untouched(host) == before


def test_nobody_waits_for_who_types(host: Host) -> None:
    assert host.node
    typist = waiting(host, "-", "migctl", "apply", "all-1g.10gb")
    assert host.applied("all-balanced", max_impact="reset")[0] == "done"
    done = host.run_unit("migctl", "apply", "all-enabled", user="alice")
    assert "done" in done.stdout
    # Whoever leaves is not asked any more, and nothing is done.
    before = untouched(host)
    host.run("pkill", "--full", "^/usr/lib/migd/bin/python3 -IB /usr/bin/migctl")
    host.wait_for(lambda: not typist.alive())
    host.wait_for(lambda: "FAILED to authenticate" in host.journal("polkit.service"))
    assert untouched(host) == before
    left = at_terminal(host, "^C", "migctl", "apply", "all-1g.10gb")
    assert left.returncode != 0
    assert untouched(host) == before


def test_polkit_restarted_while_somebody_types(host: Host) -> None:
    before = untouched(host)
    typist = waiting(host, "-", "migctl", "apply", "all-1g.10gb")
    host.systemctl("restart", "polkit.service")
    assert typist.wait() == 4
    assert "whether you may is not known" in typist.output
    assert untouched(host) == before


# -- rules, jobs, records ------------------------------------------------------------------------

RULE = """\
polkit.addRule(function(action, subject) {
    if (subject.user != "bob" || action.id.indexOf("org.migd1.") != 0)
        return polkit.Result.NOT_HANDLED;
    if (action.id == "org.migd1.apply" && action.lookup("config") == "all-1g.10gb" &&
        action.lookup("gpu-indices") == "0" && action.lookup("impact") == "instances" &&
        action.lookup("text") == "no" && action.lookup("type") == "apply")
        return polkit.Result.YES;
    return polkit.Result.NO;
});
"""


def test_a_rule_decides_by_what_is_asked_for(host: Host) -> None:
    assert host.node
    host.write(RULES, RULE)
    try:
        host.systemctl("restart", "polkit.service")
        calls = [Case(APPLYING, ("all-1g.10gb", {"gpus": ["as", [gpu]]})) for gpu in ("0", "1")]
        calls += [Case(APPLYING, (config, {})) for config in ("all-1g.10gb", "all-balanced")]
        text = document({"all-1g.10gb": [("all", {})]})
        calls += [Case(APPLYING, ("all-1g.10gb", {"text": ["s", text], "gpus": ["as", ["0"]]}))]
        calls += [Case(STAGING, ("all-1g.10gb", {"gpus": ["as", ["0"]]}))]
        # What is there by then has another impact.
        calls += [Case(APPLYING, ("all-1g.10gb", {"gpus": ["as", ["0"]]}))]
        found = asked(host, calls, *ORDINARY)
        assert [name for name, _ in found] == ["", *[DENIED] * 6]
        assert all("polkit does not allow bob" in text for _, text in found[1:])
        assert [len(host.node.layout(gpu)) for gpu in (0, 1)] == [7, 0]
    finally:
        host.run("rm", RULES)
        host.systemctl("restart", "polkit.service")


def test_no_polkit(host: Host) -> None:
    before = untouched(host)
    host.systemctl("mask", "--runtime", "--now", "--quiet", "polkit.service")
    try:
        (refused,) = asked(host, [Case(APPLYING, ("all-1g.10gb", {}))], *MEMBER)
        assert refused[0] == DENIED
        assert "polkit cannot be asked" in refused[1]
        assert "ask as root, or see to polkit" in refused[1]
        assert untouched(host) == before
        assert asked(host, [Case(RELOADING)], *ROOT) == [["", ""]]
    finally:
        host.systemctl("unmask", "--runtime", "--quiet", "polkit.service")
    # One that does not run is started.
    assert not host.active("polkit.service")
    assert asked(host, [Case(RELOADING)], *MEMBER) == [["", ""]]


def test_who_may_end_a_job(host: Host) -> None:
    assert host.node
    host.node.latency(CREATE, 1500)
    try:
        number, path = host.apply("all-1g.10gb", terminate=True)
        cancel = ("busctl", "call", names.BUS_NAME, path, names.JOB, "Cancel")
        for user in ("bob", "alice"):
            done = host.run_unit(*cancel, user=user, check=False)
            assert done.returncode != 0, "the job needed terminate, which neither has"
            assert "somebody must authenticate" in done.stderr
        assert host.property("Job") == path
        host.run_unit(*cancel)
        assert host.wait(number)[0] == "canceled"

        started = host.run_unit("migctl", "apply", "--no-wait", "all-1g.10gb", user="alice").stdout
        path = names.job_path(int(started.split()[1]))
        cancel = (*cancel[:3], path, *cancel[4:])
        assert host.run_unit(*cancel, user="bob", check=False).returncode != 0
        host.run_unit(*cancel, user="alice")
        assert host.wait(int(started.split()[1]))[0] == "canceled"
    finally:
        host.node.latency(profile="none")


def test_each_job_has_its_record(host: Host) -> None:
    host.session("alice", "migctl", "apply", "all-1g.10gb", "--gpu=1")
    host.run_unit("migctl", "apply", "--file=-", user="alice", text=f"{TEXT}# \u202e\n")
    host.run_unit("migctl", "stage", "all-enabled", user="alice")
    records = [json.loads(r) for r in host.journal("migd.service", "--output=json").splitlines()]
    (jobs,) = host.call("ListJobs", "a{sv}", {})
    ended = [r for r in records if r.get("MESSAGE_ID") == Event.JOB_ENDED]
    # Of each that there was, exactly one.
    told = [int(r["MIGD_JOB"]) for r in ended]
    assert len(told) == len(set(told))
    assert {job["id"] for job in jobs} <= set(told)

    named, texted = ended[-2:]
    assert named["MIGD_UNIT"] == f"session-{named['MIGD_SESSION']}.scope"
    for record, actions in (
        (named, "org.migd1.apply=policy"),
        (texted, "org.migd1.apply-text=policy"),
    ):
        assert record["MIGD_UID"] == "1001"
        assert record["MIGD_USER"] == "alice"
        assert int(record["MIGD_PID"]) > 1
        assert record["MIGD_SENDER"].startswith(":")
        assert record["MIGD_ACTIONS"] == actions
        assert record["MIGD_RESULT"] == "done"
        assert int(record["MIGD_DURATION_USEC"]) > 0
    assert named["MIGD_CONFIG"] == "all-1g.10gb"
    assert named["MIGD_OPTIONS"] == "gpus=1"
    assert named["MIGD_IMPACT"] == "instances"
    assert host.node
    assert named["MIGD_GPUS"] == host.node.gpus()[1]["uuid"]
    assert texted["MIGD_TEXT"] == f"{TEXT}# \ufffd"
    assert texted["MIGD_UNIT"].startswith("run-")

    staged = [r for r in records if r.get("MESSAGE_ID") == Event.REQUEST][-1]
    assert (staged["MIGD_TYPE"], staged["MIGD_USER"]) == ("stage", "alice")
    # Of all that was refused in the last minute, only some have records of their own.
    host.systemctl("restart", "migd.service")
    before = len(records)
    host.run_unit("migctl", "apply", "all-1g.10gb", "--terminate", user="alice", check=False)
    refused = [json.loads(r) for r in host.journal("migd.service", "--output=json").splitlines()]
    (record,) = [r for r in refused[before:] if r.get("MESSAGE_ID") == Event.REFUSED]
    assert (record["MIGD_USER"], record["MIGD_CONFIG"]) == ("alice", "all-1g.10gb")
    assert record["MIGD_ACTIONS"] == "org.migd1.apply org.migd1.terminate"
