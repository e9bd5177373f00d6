"""After a change: nodes of instances, CDI, and only then clients; judged by what a client sees."""

import time
from contextlib import suppress

from migd import names
from migd.bus.connection import BusError
from tests.host.after import (
    EARLY,
    LATE,
    LOOKER,
    OUTPUT,
    REFRESH,
    break_ctk,
    change,
    check_seen,
    devices,
    mend_ctk,
    modprobe_calls,
    nodes,
    saw,
    set_up,
    slow_ctk,
    spec,
)
from tests.host.clients import ETC, failed, main_pid, seen
from tests.host.conftest import Boot
from tests.host.host import Host
from tests.support.node import Node

MODPROBE = "/usr/bin/nvidia-modprobe"


def test_clients_start_into_nodes_and_cdi(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node, prepare=lambda host: set_up(host, LATE))
    assert not nodes(host)
    result, details = host.applied("all-balanced", max_impact="reset")
    assert result == "done", details
    assert [len(node.layout(gpu)) for gpu in (0, 1)] == [4, 4]
    check_seen(host)
    made = len(nodes(host))
    assert details["after"] == [
        f"device nodes of MIG instances made: {made}",
        f"{REFRESH} has written CDI's specification anew",
    ]
    (call,) = modprobe_calls(host)  # one for all
    assert call.count("-f /proc/driver/nvidia/capabilities/gpu") == made
    modes = host.run("stat", "--format=%a", *(f"/dev/nvidia-caps/{n}" for n in nodes(host))).stdout
    assert set(modes.split()) == {"444"}

    # Nothing to do runs nothing.
    before, times = seen(host, [REFRESH, LOOKER]), len(saw(host))
    result, details = host.applied("all-balanced", max_impact="reset")
    assert (result, details["after"]) == ("done", [])
    assert (seen(host, [REFRESH, LOOKER]), len(saw(host))) == (before, times)
    assert len(modprobe_calls(host)) == 1

    # One GPU only; what has its node needs no other.
    old = nodes(host)
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    assert len(node.layout(0)) == 7
    check_seen(host)
    assert modprobe_calls(host)[1].count("-f") == len(nodes(host) - old)

    # Put back: instances are there anew, and may have other names.
    node.fault("nvmlGpuInstanceCreateComputeInstance", nth=2, returns="INSUFFICIENT_RESOURCES")
    result, details = host.applied("all-3g.40gb", gpus=["0"])
    node.clear_faults()
    assert (result, len(node.layout(0))) == ("failed", 7)
    assert details["after"]
    check_seen(host)

    # The first step has no effect: clients were away, and nothing else is new.
    before = seen(host, [REFRESH, LOOKER])
    node.fault("nvmlComputeInstanceDestroy", returns="NO_PERMISSION")
    result, details = host.applied("all-3g.40gb", gpus=["0"])
    node.clear_faults()
    assert (result, details["after"], len(node.layout(0))) == ("failed", [], 7)
    after = seen(host, [REFRESH, LOOKER])
    assert after[REFRESH] == before[REFRESH]
    assert after[LOOKER].invocation != before[LOOKER].invocation

    # In MIG mode and empty: nvidia-ctk would fail.
    written = spec(host)
    result, details = host.applied("all-enabled")
    assert result == "done", details
    (sentence,) = details["after"]
    assert "CDI is as before: GPU 0, 1 has MIG mode enabled" in sentence
    assert spec(host) == written
    assert host.active(LOOKER)
    result, _ = host.applied("all-disabled", max_impact="reset")
    assert result == "done"
    check_seen(host)
    assert not failed(host)


def broken(host: Host, config: str) -> str:
    """What fails after a change is told, undoes nothing, and clients come back."""
    times = len(saw(host))
    result, details = host.applied(config, gpus=["0"])
    assert result == "partial", details
    assert details["gpus"][0]["result"] == "done"
    assert details["wanted"]
    assert len(saw(host)) == times + 1
    assert host.active(LOOKER)
    last = str(details["after"][-1])
    assert last in details["message"]
    return last


def test_what_fails_after_a_change(boot: Boot, node: Node) -> None:
    settings = f"cdi-output: {OUTPUT}\n"
    host = boot("bookworm", node, prepare=lambda host: set_up(host, settings=settings))
    result, details = host.applied("all-1g.10gb", gpus=["0"])
    assert result == "done", details
    assert f"nvidia-ctk has written {OUTPUT}" in details["after"]
    check_seen(host)

    break_ctk(host)
    told = broken(host, "all-2g.20gb")
    assert OUTPUT in told
    assert "nvidia-ctk ended with exit status 1 (the other)" in told
    assert len(node.layout(0)) == 3
    assert (spec(host, OUTPUT) or {})["devices"] != devices(host)
    host.run("rm", "/usr/bin/nvidia-ctk")
    assert "nvidia-ctk, which is to write" in broken(host, "all-1g.10gb")
    mend_ctk(host)

    # nvidia-modprobe that hangs, fails, is not there: CDI is written without the nodes.
    modprobe = host.read(MODPROBE)
    host.run("sh", "-c", "rm /dev/nvidia-caps/nvidia-cap?*")
    change(host, MODPROBE, "#!/bin/sh\nexec sleep infinity\n")
    _, details = host.applied("all-2g.20gb", gpus=["0"])
    assert "nvidia-modprobe did not end in time" in details["message"]
    assert not set(saw(host)[-1]["nodes"]) & nodes(host)
    assert saw(host)[-1]["cdi"]["devices"] == devices(host)
    change(host, MODPROBE, "#!/bin/sh\necho no such thing >&2\nexit 1\n")
    _, details = host.applied("all-1g.10gb", gpus=["0"])
    assert "nvidia-modprobe ended with exit status 1 (no such thing)" in details["message"]
    host.run("rm", MODPROBE)
    _, details = host.applied("all-2g.20gb", gpus=["0"])
    assert "nvidia-modprobe is not installed" in details["message"]
    change(host, MODPROBE, modprobe)
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    check_seen(host)
    assert not failed(host)


def test_the_unit_of_the_toolkit(boot: Boot, node: Node) -> None:
    settings = f"cdi-output: {OUTPUT}\n"
    host = boot("bookworm", node, prepare=lambda host: set_up(host, LATE, settings))
    unit = f"{ETC}/{REFRESH}"
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    assert spec(host, OUTPUT) is None  # the unit decides
    # It fails, and again.
    change(host, unit, LATE.replace("'nvidia-smi -L'", "'exit 9'"))
    told = broken(host, "all-2g.20gb")
    assert f"{REFRESH} did not start: exit-code, exit status 9" in told
    # It fails once, and is started again by systemd.
    once = "'[ -e /run/once ] || { touch /run/once; exit 9; }'"
    change(host, unit, LATE.replace("'nvidia-smi -L'", once))
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    check_seen(host)
    # Its conditions do not hold: that is how the host is meant.
    host.write("/run/no-driver", "")
    result, details = host.applied("all-2g.20gb", gpus=["0"])
    assert result == "done", details
    assert "conditions" in details["after"][-1]
    # Masked it is not there, and the setting counts.
    host.run("rm", "/run/no-driver", unit)
    host.systemctl("daemon-reload")
    host.systemctl("mask", "--quiet", REFRESH)
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    assert spec(host, OUTPUT) is not None
    assert (spec(host, OUTPUT) or {})["devices"] == devices(host)


def test_killed_in_between(boot: Boot, node: Node) -> None:
    host = boot("bookworm", node, prepare=lambda host: set_up(host, LATE))
    assert host.applied("all-2g.20gb", gpus=["0"])[0] == "done"
    node.latency("nvmlGpuInstanceCreateComputeInstance", 700)
    number, _ = host.apply("all-1g.10gb", gpus=["0"])
    host.wait_for(lambda: len(node.layout(0)) not in (0, 3), what="no step is done")
    pid = main_pid(host, "migd.service")
    host.systemctl("kill", "--signal=KILL", "migd.service")
    host.wait_for(lambda: main_pid(host, "migd.service") not in (0, pid))
    host.wait_for(lambda: host.active("migd.service"))
    result, details = host.wait(number)
    assert (result, len(node.layout(0))) == ("interrupted", 3), details
    assert f"{REFRESH} has written CDI's specification anew" in details["after"]
    check_seen(host)
    node.latency("nvmlGpuInstanceCreateComputeInstance", 0)

    # All GPUs are at their end, and clients still wait for CDI: they do so under the next migd.
    slow_ctk(host)
    times = len(saw(host))
    number = in_nodes(host, "all-1g.10gb")
    pid = main_pid(host, "migd.service")
    host.systemctl("kill", "--signal=KILL", "migd.service")
    host.wait_for(lambda: main_pid(host, "migd.service") not in (0, pid))
    host.wait_for(lambda: phase(host, number) == "nodes")
    host.systemctl("start", "--no-block", LOOKER)
    host.write("/run/go", "")
    result, details = host.wait(number)
    assert (result, len(node.layout(0))) == ("interrupted", 7), details
    assert len(saw(host)) == times + 1
    check_seen(host)

    # A migd that is stopped leaves it to systemd, and brings clients back.
    host.run("rm", "/run/go")
    number = in_nodes(host, "all-2g.20gb")
    begun = time.monotonic()
    host.systemctl("stop", "migd.service")
    assert time.monotonic() - begun < 30
    assert host.active(LOOKER)
    result, details = host.wait(number)
    assert (result, len(node.layout(0))) == ("partial", 3), details
    assert "migd was stopped while it waited for CDI's specification" in details["message"]
    host.write("/run/go", "")
    host.wait_for(lambda: (spec(host) or {}).get("devices") == devices(host))


def phase(host: Host, number: int) -> str:
    with suppress(BusError):
        return str(host.property("Phase", path=names.job_path(number), interface=names.JOB))
    return ""  # migd is away


def in_nodes(host: Host, config: str) -> int:
    """Apply, and return the job when it waits for CDI."""
    number, _ = host.apply(config, gpus=["0"])
    host.wait_for(lambda: host.run("pgrep", "-f", "nvidia-ctk cdi", check=False).stdout)
    assert phase(host, number) == "nodes"
    assert not host.active(LOOKER)
    return number


def test_at_boot_it_is_not_waited_for(boot: Boot, node: Node, release: str) -> None:
    """It comes after multi-user.target, which comes after us: a wait would last to its limit."""

    def prepare(host: Host) -> None:
        set_up(host, EARLY, "config: all-balanced\n")

    host = boot(release, node, prepare=prepare)
    _, details = host.wait(1)
    assert "is to write CDI's specification anew" in details["after"][-1], details
    host.wait_for(lambda: (spec(host) or {}).get("devices") == devices(host))
    assert host.properties(REFRESH, "ActiveState", "Result") == {
        "ActiveState": "active",
        "Result": "success",
    }
