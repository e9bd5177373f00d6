"""Reboots for a MIG mode: once, only where both allow it, and only if nobody is cut off."""

from pathlib import Path

import pytest

from migd import names
from tests.bus.manager import layout
from tests.faults.scenes import truths
from tests.host.clients import install, started, unit
from tests.host.conftest import Boot
from tests.host.host import Host
from tests.host.test_boot import status
from tests.support.daemon import options
from tests.support.node import Node

CONFIG = """\
version: v1
mig-configs:
  mine:
  - {devices: [0], mig-enabled: true, mig-devices: {1g.5gb: 2, 3g.20gb: 1}}
"""
SETTINGS = "reboot: when-needed\ntime-limits: {reboot-notice: 3}\n"
OWED = f"{names.ERROR}.RebootOwed"
ALLOWED = {"max_impact": "reset", "allow_reboot": True}


@pytest.fixture
def passed(tmp_path: Path) -> Node:
    """An A100 passed through to this host, and a card beside it."""
    node = Node.new(tmp_path / "node", ("a100-40gb", 1), ("h100-80gb-sxm5", 1))
    node.surprise("passthrough", gpu=0)
    return node


def prepared(host: Host, settings: str = SETTINGS) -> None:
    install(host, {"job.service": unit("--hold=1")})
    host.write("/etc/migd/config.yaml", CONFIG)
    host.write("/etc/migd/migd.yaml", settings)
    host.write("/etc/migd/clients.yaml", "version: v1\nsystemd-services: [job.service]\n")


def test_a_mode_that_needs_a_reboot_gets_one(boot: Boot, passed: Node, release: str) -> None:
    host = boot(release, passed, prepare=prepared)
    result, details = host.applied("mine", **ALLOWED)
    assert result == "failed"
    (gpu,) = details["gpus"]
    assert gpu["error"] == OWED
    assert "the host is rebooted for it at" in gpu["message"]
    assert passed.gpus()[0]["mode"] == {"current": "disabled", "pending": "enabled"}
    assert host.property("RebootOwed") != ""
    assert host.active("job.service")
    assert host.wait_off() == "reboot"
    host.start()
    assert "put back mine: 1 GPUs changed" in status(host)
    assert len(layout(passed.gpus()[0])[1]) == 3
    assert host.property("Match") == "yes"
    assert host.property("RebootOwed") == ""


def test_once_for_what_is_wanted(boot: Boot, passed: Node) -> None:
    """A machine whose boots never put the mode in force."""
    passed.surprise("pending-survives-reboot", gpu=0)
    host = boot(
        "bookworm", passed, prepare=lambda host: prepared(host, f"config: mine\n{SETTINGS}")
    )
    assert host.wait_off() == "reboot"
    for boots in range(3):
        if boots:
            host.crash()
        host.start()
        told = status(host)
        assert "it was rebooted for this once" in told, told
        assert passed.gpus()[0]["mode"] == {"current": "disabled", "pending": "disabled"}
    # Something else that is wanted may be tried again.
    result, details = host.applied("all-1g.5gb", gpus=["0"], **ALLOWED)
    assert result == "failed"
    assert "the host is rebooted for it at" in details["message"]
    host.run("shutdown", "-c")


@pytest.mark.parametrize("who", ["an inhibitor", "a holder", "a session", "the setting"])
def test_nobody_is_cut_off(boot: Boot, passed: Node, who: str) -> None:
    release = "trixie" if who == "an inhibitor" else "bookworm"
    settings = SETTINGS.replace("when-needed", "never") if who == "the setting" else SETTINGS
    host = boot(release, passed, prepare=lambda host: prepared(host, settings))
    before = truths(passed)
    if who == "the setting":
        name, message = host.refused("Apply", "sa{sv}", "mine", options(ALLOWED))
        assert name == f"{names.ERROR}.Overruled"
        assert "reboot: when-needed" in message
        return
    if who == "an inhibitor":
        host.spawn("systemd-inhibit", "--what=shutdown", "--who=backup", "sleep", "infinity")
        host.wait_for(lambda: "backup" in host.run("systemd-inhibit", "--list").stdout)
        says = ["shutdown is inhibited by backup"]
    elif who == "a holder":
        # And somebody who wants the host down at another time, and not up again.
        host.run("shutdown", "--poweroff", "+600")
        holder = started(host, "--hold=1", user="alice")
        says = [f"pid {holder.pid} (", "somebody has scheduled a poweroff"]
    else:
        # As sshd's are; what has no terminal is a session of a job, whom nobody logged in for.
        host.spawn(
            "systemd-run", "--quiet", "--wait", "--pipe", "--uid=alice", "--property=PAMName=login",
            "--setenv=XDG_SESSION_CLASS=user", "sleep", "infinity",
        )  # fmt: skip
        host.wait_for(lambda: "alice" in host.run("loginctl", "list-sessions").stdout)
        says = ["alice in session"]
    result, details = host.applied("mine", **ALLOWED)
    assert result == "failed"
    (gpu,) = details["gpus"]
    assert (gpu["error"], gpu["result"]) == (OWED, "rolled-back")
    assert all(words in gpu["message"] for words in says), gpu["message"]
    assert truths(passed) == before
    assert host.property("RebootOwed") == ""
    scheduled = host.run("sh", "-c", "cat /run/systemd/shutdown/*", check=False).stdout
    assert ("MODE=poweroff" in scheduled) == (who == "a holder"), scheduled
    assert "MODE=reboot" not in scheduled


def test_the_administrator_cancels_it(boot: Boot, passed: Node, release: str) -> None:
    host = boot(release, passed, prepare=lambda host: prepared(host, SETTINGS.replace("3}", "30}")))
    assert host.applied("mine", **ALLOWED)[0] == "failed"
    assert "scheduled" in host.run("ls", "/run/systemd/shutdown").stdout
    host.run("shutdown", "-c")
    assert "scheduled" not in host.run("ls", "/run/systemd/shutdown").stdout
    assert host.property("RebootOwed") != ""
    assert host.active("job.service")
    # What was asked for is wanted: whenever it is rebooted, it is put back.
    host.reboot()
    assert "put back mine: 1 GPUs changed" in status(host)
