"""Clients that stop or start badly: named, within their limits, and all else is back as it was."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.scenes import truths
from tests.host import layer
from tests.host.conftest import Boot
from tests.host.crash import ETC, LISTED, SLEEP, active, boot_clients, check_clean

BAD = "c-bad.service"
# It runs once, and then does something else in its place.
_SECOND = "ExecStartPre=/bin/sh -c 'mkdir /root/ran || {{ {}; }}'\n"


@dataclass(frozen=True)
class Case:
    """service: of its unit file; keys: of its entry in clients.yaml

    fate, says: what is told of it; limit_s: of the whole job; runs: whether it does in the end
    """

    service: str
    keys: str = ""
    result: str = "done"
    fate: str = "returned"
    says: str = ""
    limit_s: float = 8
    runs: bool = True


def trap(what: str) -> str:
    return f"ExecStart=/bin/sh -c 'trap \"{what}\" TERM; while :; do sleep 0.1; done'\n"


CASES = {
    "ignores SIGTERM": Case(trap(":") + "TimeoutStopSec=1\n"),
    "forks": Case(trap("setsid sleep 600 & exit") + "TimeoutStopSec=1\n"),
    "is slow": Case(SLEEP + "ExecStop=/bin/sleep 20\n", limit_s=40),
    "fails to stop": Case(SLEEP + "ExecStop=/bin/false\n"),
    "hangs": Case(
        SLEEP + "ExecStop=/bin/sleep 60\nTimeoutStopSec=4\n",
        "stop-timeout: 1", "failed", says=f"{BAD} did not stop within 1 s", limit_s=10,
    ),
    "hangs and is killed": Case(
        SLEEP + "ExecStop=/bin/sleep 60\nTimeoutStopSec=60\n", "stop-timeout: 1, kill: true"
    ),
    "fails to start": Case(
        _SECOND.format("echo no room is left; exit 1") + SLEEP,
        result="partial", fate="missing", says="no room is left", runs=False,
    ),
    "hangs at its start": Case(
        _SECOND.format("sleep 5") + SLEEP,
        "start-timeout: 1", "partial", "missing", "has not started within 1 s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_client_that(boot: Boot, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    host = boot_clients(boot, "bookworm", tmp_path)
    keys = f", {case.keys}" if case.keys else ""
    listed = LISTED.replace("c-holder.service]", f"{{unit: {BAD}{keys}}}, c-holder.service]")
    host.write(f"{ETC}/{BAD}", f"[Service]\n{case.service}")
    host.write("/etc/migd/clients.yaml", listed)
    host.systemctl("daemon-reload")
    host.systemctl("start", BAD)
    host.call("Reload")
    assert host.node
    running, before = active(host), truths(host.node)
    assert BAD in running
    begun = time.monotonic()
    result, details = host.applied("split")
    assert time.monotonic() - begun < case.limit_s
    assert result == case.result, details
    told = {c["unit"]: c["result"] for c in details["clients"]}
    assert told.pop(BAD) == case.fate
    assert set(told.values()) == {"returned"}
    assert case.says in details["message"]
    assert (truths(host.node) == before) == (result == "failed")
    if case.runs:
        host.wait_for(lambda: active(host) == running, what=str(active(host)))
    else:
        assert active(host) == running - {BAD}
        assert host.systemctl("is-failed", BAD, check=False) == "failed"
        host.systemctl("reset-failed", BAD)
    check_clean(host)


_SUPERVISED = f"while :; do simulator hold {layer.NODE} --gpu 0 -- sleep 86400; done"


def test_a_process_that_is_started_again_outside_systemd(boot: Boot, tmp_path: Path) -> None:
    host = boot_clients(boot, "bookworm", tmp_path)
    node = host.node
    assert node
    running, before = active(host), truths(node)
    supervisor = host.spawn("sh", "-c", _SUPERVISED)
    host.wait_for(lambda: len(node.gpus()[0]["holders"]) == 2)
    result, details = host.applied("split")
    # Whether it is back in time is chance; what is told is true.
    assert result in ("done", "partial", "failed"), details
    changed = details["gpus"][0]["result"] == "done"
    assert (truths(node)[0] == before[0]) != changed
    if not changed:
        assert "sleep 86400" in details["message"]
    ended = [c for c in details["clients"] if c["result"] == "ended"]
    assert ended
    assert active(host) == running
    host.run("kill", str(supervisor.pid))
    host.run("pkill", "-f", "sleep 86400", check=False)
    check_clean(host)
