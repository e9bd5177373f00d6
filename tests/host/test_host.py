"""The test hosts themselves: what a test in them relies on, and that they leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from migd import names
from tests.host import layer
from tests.host.conftest import Boot, Layers
from tests.host.host import Host
from tests.host.machine import cgroups
from tests.support.daemon import processes_about
from tests.support.node import Node, wait_for

PROPERTIES = "org.freedesktop.DBus.Properties"


def gpus(host: Host) -> dict[int, dict[str, Any]]:
    """The GPUs as migd shows them, by index."""
    (objects,) = host.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager")
    shown = [about[names.GPU] for about in objects.values() if names.GPU in about]
    return {gpu["Index"]: gpu for gpu in shown}


def test_boots_with_the_project_installed(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node)
    assert host.systemctl("is-system-running") == "running"
    assert f"VERSION_CODENAME={release}\n" in host.read("/etc/os-release")
    for unit in ("dbus.service", "migd.service", "systemd-logind.service"):
        assert host.active(unit)
    shown = {index: gpu["Uuid"] for index, gpu in gpus(host).items()}
    assert shown == {gpu["index"]: gpu["uuid"] for gpu in node.gpus()}
    # As everybody, through programs.
    version = host.run(
        "busctl", "--json=short", "get-property", names.BUS_NAME, names.ROOT, names.MANAGER,
        "Version", user="bob",
    )  # fmt: skip
    assert json.loads(version.stdout)["data"] == host.property("Version")
    assert "H100" in host.run("migctl", "status", user="bob").stdout
    polkit = "org.freedesktop.PolicyKit1"
    (backend,) = host.call(
        "Get", "ss", f"{polkit}.Authority", "BackendName",
        destination=polkit, path="/org/freedesktop/PolicyKit1/Authority",
        interface=PROPERTIES,
    )  # fmt: skip
    assert backend == "js"


def test_migd_is_activated_by_a_call(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node)
    host.systemctl("stop", "migd.service")
    assert not host.active("migd.service")
    host.run("migctl", "status", user="alice")
    assert host.active("migd.service")


def test_reboot_keeps_the_disk_and_what_the_hardware_keeps(
    boot: Boot, node: Node, release: str
) -> None:
    host = boot(release, node)
    host.run("migctl", "apply", "all-balanced", "--max-impact=reset")
    assert node.layout(0)
    instance = node.gpus()[0]["instances"][0]["gi"]
    capability = f"/proc/driver/nvidia/capabilities/gpu0/mig/gi{instance}/access"
    # As the kernel module shows it, in the very moment that an instance is made: nv-caps.c.
    assert host.read(capability).startswith(f"DeviceFileMinor: {3 + 9 * instance}\n")
    vendors = host.run("sh", "-c", "cat /sys/bus/pci/devices/*/vendor").stdout.split()
    assert vendors == ["0x10de", "0x10de"]
    host.write("/root/note", "kept")
    host.write("/run/note", "lost")
    before = host.boot_id()
    host.systemctl("mask", "--quiet", "migd-boot.service")

    host.reboot()

    assert host.boot_id() != before
    assert host.read("/root/note") == "kept"
    assert host.run("cat", "/run/note", check=False).returncode != 0
    assert host.run("cat", capability, check=False).returncode != 0
    assert node.gpus()[0]["uuid"] in host.run("grep", "-r", "UUID", "/proc/driver/nvidia").stdout
    hopper, ampere = node.gpus()
    assert (hopper["instances"], ampere["instances"]) == ([], [])
    assert [gpu["mode"]["current"] for gpu in (hopper, ampere)] == ["disabled", "enabled"]
    assert len(host.systemctl("list-units", "--state=failed", "--no-legend")) == 0
    boots = {entry["_BOOT_ID"] for entry in host.entries("migd.service")}
    assert len(boots) == 2


def test_power_loss_and_power_off(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node)
    host.write("/root/note", "kept")
    host.crash()
    assert not host.running
    assert host.read("/root/note") == "kept"
    host.write("/etc/migd/migd.yaml", "config: all-enabled\n")
    host.start()
    assert host.read("/etc/migd/migd.yaml") == "config: all-enabled\n"
    host.poweroff()
    assert not host.running
    assert "Started" in host.journal("migd.service")


def test_holders_have_the_pids_of_the_host(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node)
    holder = host.hold(0, user="bob")
    assert holder.pid != 1
    assert "sleep" in host.read(f"/proc/{holder.pid}/cmdline")
    host.write("/etc/systemd/system/hold.service", _HOLD)
    host.systemctl("daemon-reload")
    host.systemctl("start", "hold.service")
    main = int(host.properties("hold.service", "MainPID")["MainPID"])
    wait_for(lambda: {holder.pid, main} == {row["pid"] for row in node.gpus()[0]["holders"]})
    # migd sees them too, by the same numbers.
    host.plan("all-balanced", max_impact="reset")
    assert {row["pid"] for row in gpus(host)[0]["Processes"]} == {holder.pid, main}
    host.run("kill", str(holder.pid))
    holder.wait()
    wait_for(lambda: [main] == [row["pid"] for row in node.gpus()[0]["holders"]])


_HOLD = f"""\
[Service]
Type=exec
ExecStart=/usr/bin/simulator hold {layer.NODE} --gpu 0 -- sleep infinity
"""


def test_device_nodes_open_after_each_boot(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node)
    address = node.gpus()[1]["pci"].lower()[-12:]
    first = 3 + 135  # of GPU 1: gi0/access, then gi0/ci0/access
    devices = [
        "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1", "/dev/dri/renderD129",
        f"/dev/nvidia-caps/nvidia-cap{first}", f"/dev/nvidia-caps/nvidia-cap{first + 1}",
        f"/dev/dri/by-path/pci-{address}-render",
    ]  # fmt: skip
    for _ in range(2):
        host.run("head", "--bytes=1", *devices, user="bob")
        assert host.run("readlink", "--canonicalize", devices[-1]).stdout == "/dev/dri/renderD129\n"
        opened = host.spawn("sh", "-c", "exec sleep infinity 3</dev/nvidia1", user="bob")
        target = f"/proc/{opened.pid}/fd/3"
        wait_for(lambda: host.run("readlink", target, check=False).stdout == "/dev/nvidia1\n")  # noqa: B023
        host.reboot()


def test_units_and_sessions_are_those_of_systemd(boot: Boot, release: str) -> None:
    host = boot(release, None)
    assert "no GPUs" in host.run("migctl", "status", check=False).stdout
    own = ("cat", "/proc/self/cgroup")
    assert "/system.slice/run-" in host.run_unit(*own).stdout
    assert "/session-" in host.session("alice", *own).stdout
    shown = host.session(
        "alice", "sh", "-c", "loginctl show-session $XDG_SESSION_ID -p Name -p State"
    )
    assert set(shown.stdout.split()) == {"Name=alice", "State=active"}
    assert (
        host.session("bob", "systemctl", "--user", "is-system-running", "--wait").stdout
        == "running\n"
    )
    assert host.run_unit("id", "--user", "--name", user="bob").stdout == "bob\n"
    assert host.run("cat", user="bob", text="through").stdout == "through"


def test_hosts_side_by_side(boot: Boot, tmp_path: Path) -> None:
    nodes = [Node.new(tmp_path / name, ("h100-80gb-sxm5", 1)) for name in ("one", "two")]
    hosts = [
        boot(release, node) for release, node in zip(("bookworm", "trixie"), nodes, strict=True)
    ]
    assert hosts[0].applied("all-balanced")[0] == "done"
    assert [bool(node.layout(0)) for node in nodes] == [True, False]
    hosts[0].poweroff()
    assert hosts[1].applied("all-balanced")[0] == "done"
    assert nodes[1].layout(0)


def left(pid: int, folder: Path) -> list[object]:
    """What there is of the hosts that a process has booted: processes and mounts."""
    lists = [path for cgroup in cgroups(pid) for path in cgroup.rglob("cgroup.procs")]
    inside = [pid for path in lists for pid in path.read_text().split()]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    mounted = [line for line in mounts if str(folder) in line]
    return [*processes_about(folder).items(), *mounted, *inside]


def test_nothing_is_left(layers: Layers, node: Node, tmp_path: Path) -> None:
    with Host(layers["bookworm"], node, tmp_path / "host") as host:
        host.hold(0)
        assert left(os.getpid(), tmp_path)
    assert not left(os.getpid(), tmp_path)
    assert not cgroups(os.getpid())
    assert not (tmp_path / "host").exists()


def test_a_boot_that_fails_tells_why_and_leaves_nothing(layers: Layers, tmp_path: Path) -> None:
    host = Host(layers["bookworm"], None, tmp_path / "host")
    host.write("/usr/lib/systemd/systemd", "#!/bin/sh\necho no more than this\n", 0o755)
    with pytest.raises(AssertionError, match="no more than this"), host:
        pass
    assert not left(os.getpid(), tmp_path)


def test_hosts_end_with_a_killed_test_run(layers: Layers, tmp_path: Path) -> None:
    script = """
import pathlib, sys
from tests.host.host import Host
folder, *layers = map(pathlib.Path, sys.argv[1:])
host = Host(layers, None, folder).start()
host.spawn("sleep", "infinity")
print("up", flush=True)
sys.stdin.read()
"""
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "host"), *map(str, layers["trixie"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=layer.CHECKOUT,
    )
    with run:
        assert run.stdout
        assert run.stdout.readline() == b"up\n"
        assert left(run.pid, tmp_path)
        run.send_signal(signal.SIGKILL)
    wait_for(lambda: not left(run.pid, tmp_path), what="something is left")
    # What the killed one could not remove does not hinder the next, which does.
    with Host(layers["trixie"], None, tmp_path / "next"):
        pass
    assert not cgroups(run.pid)
