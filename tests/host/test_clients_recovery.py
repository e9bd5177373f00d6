"""migd killed, stopped, or taken along by the host in mid-job: clients and GPUs are back."""

import time
from pathlib import Path

import pytest

from migd import names
from migd.bus.connection import BusError
from tests.faults.scenes import Truth, truths
from tests.host.conftest import Boot
from tests.host.crash import (
    ETC,
    RUNNING,
    Round,
    Syncs,
    active,
    boot_clients,
    check_clean,
    starts,
    working,
)
from tests.host.host import Host
from tests.host.image import RELEASES

# begun (file and folder), two stops, one process, a step or more of each GPU, its end, the state.
LEAST = 10


def goal_of(host: Host) -> list[Truth]:
    """What the configuration makes when nobody disturbs; as it was again afterwards."""
    assert host.node
    assert host.applied("split")[0] == "done"
    goal = truths(host.node)
    assert host.applied("plain")[0] == "done"
    return goal


@pytest.mark.parametrize("release", RELEASES)
def test_killed_at_each_sync(boot: Boot, release: str, tmp_path: Path) -> None:
    host = boot_clients(boot, release, tmp_path)
    goal = goal_of(host)
    number = 1
    while killed_at(host, number, goal, tmp_path):
        # On the other release every third: what differs there is systemd, not the journal.
        number += 1 if release == RELEASES[0] else 3
    assert number > LEAST


def killed_at(host: Host, number: int, goal: list[Truth], folder: Path) -> bool:
    """False when the job was over before it came to that sync."""
    round_ = Round(host)
    syncs = Syncs(host, folder)
    job, state = 0, ""
    try:
        with working(lambda: host.applied("split")) as work:
            reached = syncs.reach(number, work)
            if reached:
                job, state = round_.job_on_disk()
                # Somebody starts what is down: that waits for as long as GPUs are in between.
                host.systemctl("start", "--no-block", "c-second.service")
                syncs.kill()
                assert isinstance(work.exception(), BusError)
    finally:
        syncs.end()
    if reached:
        round_.back()
        if job:
            result, details = host.wait(job)
            assert result == (state or "interrupted"), details
            host.wait_for(lambda: not round_.journaled(), what="the journal stays")
            round_.check(goal, details["gpus"])
        else:
            assert truths(round_.node) == round_.before
            round_.check_clients()
    else:
        assert work.result()[0] == "done", work.result()
    round_.end()
    assert host.applied("plain")[0] == "done"
    return reached


def phase(host: Host, number: int) -> str:
    path = names.job_path(number)
    try:
        return str(host.property("Phase", path=path, interface=names.JOB))
    except BusError:
        return ""  # it has ended, or migd has


def waiting(host: Host, number: int) -> str:
    path = names.job_path(number)
    return str(host.property("Waiting", path=path, interface=names.JOB))


def slowly(host: Host, where: str) -> None:
    """Let a job stay in a phase long enough for something to happen there."""
    assert host.node
    calls = {
        "change": ("nvmlGpuInstanceCreateComputeInstance", 1000.0),
        "mode": ("nvmlDeviceSetMigMode", 1000.0),
    }
    if where in calls:
        host.node.latency(*calls[where])


@pytest.mark.parametrize("where", ["stop", "change", "restart"])
def test_migd_is_stopped_in_mid_job(boot: Boot, where: str, tmp_path: Path) -> None:
    host = at_work(boot, "bookworm", where, tmp_path)
    round_ = Round(host, loose=False)
    number, _ = host.apply("split")
    host.wait_for(lambda: phase(host, number) == where, what=f"never in {where}")
    begun = time.monotonic()
    host.systemctl("stop", "migd.service")
    assert time.monotonic() - begun < 30
    assert not host.active("migd.service")
    if where != "restart":
        assert truths(round_.node) == round_.before
    round_.check_clients()
    # What was left to systemd is done, and what the job came to is told by the next daemon.
    result, details = host.wait(number)
    assert result == ("done" if where == "restart" else "canceled"), details
    assert {c["result"] for c in details["clients"]} == {"returned"}, details


def at_work(boot: Boot, release: str, where: str, folder: Path) -> Host:
    host = boot_clients(boot, release, folder)
    slowly(host, where)
    lag = {"stop": "ExecStop=/bin/sleep 1\n", "restart": "ExecStartPre=/bin/sleep 1\n"}
    if where in lag:
        host.write(f"{ETC}/c-second.service.d/lag.conf", f"[Service]\n{lag[where]}")
        host.systemctl("daemon-reload")
    return host


@pytest.mark.parametrize("how", ["reboot", "crash"])
@pytest.mark.parametrize("where", ["stop", "change", "restart"])
def test_the_host_goes_down_in_mid_job(boot: Boot, where: str, how: str, tmp_path: Path) -> None:
    release = "trixie" if where == "change" else "bookworm"
    host = at_work(boot, release, where, tmp_path)
    number, _ = host.apply("split")
    host.wait_for(lambda: phase(host, number) == where, what=f"never in {where}")
    if where == "restart":
        # The last one to start, slowly; the others have been started.
        host.wait_for(lambda: waiting(host, number) == "c-second.service to start")
    count = len(starts(host))
    begun = time.monotonic()
    if how == "reboot":
        host.reboot()
    else:
        host.crash()
        host.start()
    took = time.monotonic() - begun
    assert took < 15, f"{how} took {took:.1f} s"
    # The boot decides: all that is enabled runs, also what was not running, each started once.
    host.wait_for(lambda: active(host) == {*RUNNING, "c-idle.service"}, what=str(active(host)))
    after = starts(host)[count:]
    booted = [u for u in after if after.count(u) > 1]
    # What the job was starting just then may have come to that after it was counted.
    assert set(booted) <= ({"c-second.service"} if where == "restart" else set()), after
    result, details = host.wait(number)
    expected = {"interrupted"} if how == "crash" else {"interrupted", "canceled", "done", "partial"}
    assert result in expected, details
    check_clean(host)
    assert host.node
    # Only what a job has reached to its end is put back.
    assert any(t.instances for t in truths(host.node)) == details["wanted"]


def test_migd_comes_back_late(boot: Boot, release: str, tmp_path: Path) -> None:
    host = boot_clients(boot, release, tmp_path)
    slowly(host, "change")
    round_ = Round(host, loose=False)
    number, _ = host.apply("split")
    host.wait_for(lambda: phase(host, number) == "change")
    assert active(host) == set()
    host.systemctl("mask", "--runtime", "--quiet", "migd.service")
    host.systemctl("kill", "--signal=KILL", "migd.service")
    host.wait_for(lambda: not host.active("migd.service"))
    assert host.properties("migd-hold.service", "ActiveState")["ActiveState"] == "activating"
    # In place of its grace, which is a minute; what it does then is tried in test_units.py.
    host.systemctl("stop", "migd-hold.service")
    assert not active(host)
    host.systemctl("unmask", "--runtime", "--quiet", "migd.service")
    host.systemctl("reset-failed", "migd.service", check=False)
    host.systemctl("start", "migd.service")
    result, details = host.wait(number)
    assert result == "interrupted"
    assert truths(round_.node) == round_.before
    round_.check_clients()
    assert {c["result"] for c in details["clients"]} == {"returned"}
