"""Boots: what is wanted is there before a client starts, and nothing of ours holds a boot up."""

import re
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from migd import names
from tests.bus.manager import layout, mig_uuids
from tests.host.clients import (
    ETC,
    PERSISTENCED,
    UNITS,
    install,
    main_pid,
    seen,
    unit,
)
from tests.host.conftest import Boot
from tests.host.crash import last_change, migd_pid, started_at
from tests.host.host import Host
from tests.support.node import Node

BOOT = names.BOOT_UNIT
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
CONFIG = """\
version: v1
mig-configs:
  mine:
  - {devices: [0], mig-enabled: true, mig-devices: {1g.10gb: 3, 2g.20gb: 1}}
  - {devices: [1], mig-enabled: true, mig-devices: {1g.5gb: 2, 3g.20gb: 1}}
"""
WANTED = "config: mine\n"

# The ways in which NVIDIA's own service has kept hosts from booting (mig-parted#408, #449, #103):
# clients that wait for its target are started and waited for from before it; a socket that somebody
# uses meanwhile starts a client that waits for us; and what must be before us is not.
# slurmd and docker as their packages have them, as far as their order goes; docker also comes by
# its socket, which somebody knocks at while the host boots.
DOCKER = {
    "docker.socket": "[Socket]\nListenStream=/run/docker.sock\n"
    "[Install]\nWantedBy=sockets.target\n",
    "docker.service": unit(
        "--open=/dev/nvidiactl",
        unit=["After=network-online.target docker.socket nvidia-gpu-reset.target",
              "Wants=network-online.target", "Requires=docker.socket"],
    ),
    "slurmd.service": unit(
        "--hold=0", "--hold=1", "--hidden",
        unit=["After=network-online.target remote-fs.target nvidia-gpu-reset.target",
              "Wants=network-online.target nvidia-gpu-reset.target"],
    ),
    "knocks.service": "[Unit]\nDefaultDependencies=no\nAfter=sockets.target\n[Service]\n"
    "ExecStart=/usr/bin/python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); "
    's.connect("/run/docker.sock")\'\n[Install]\nWantedBy=sysinit.target\n',
    "nvidia-gpu-reset.target": "[Unit]\nDescription=as of NVIDIA's MIG manager\n",
    # It lets go of GPUs that are reset by itself, which an NVML session of the simulator would not.
    "nvidia-fabricmanager.service": unit("--open=/dev/nvidia0"),
}  # fmt: skip
CLIENTS = ("nvidia-dcgm.service", "dcgm-exporter.service", "slurmd.service", "docker.service")


def prepared(host: Host, settings: str = "", config: str = CONFIG) -> None:
    install(host, {**UNITS, **DOCKER})
    wants = host.disk / f"{ETC}/sockets.target.wants".lstrip("/")
    wants.mkdir(parents=True)
    (wants / "docker.socket").symlink_to(f"{ETC}/docker.socket")
    host.write("/etc/migd/config.yaml", config)
    host.write("/etc/migd/migd.yaml", settings)
    host.write(
        "/etc/migd/clients.d/site.yaml",
        "version: v1\nsystemd-services: [slurmd.service, docker.service, docker.socket]\n",
    )


def booted(host: Host) -> str:
    """What migd-boot.service came to, in its one line; all of the boot is in order."""
    journal = host.journal(None, "--boot")
    assert "ordering cycle" not in journal
    assert "Job migd" not in journal
    return status(host)


def status(host: Host) -> str:
    """The line that `systemctl status` shows."""
    shown = host.systemctl("status", BOOT, check=False)
    line = re.search(r"^ *Status: \"(.*)\"$", shown, re.MULTILINE)
    assert line, shown
    return line[1]


def everything(node: Node) -> list[object]:
    return [(layout(gpu), mig_uuids(gpu)) for gpu in node.gpus()]


def check_order(host: Host, clients: Iterable[str] = CLIENTS) -> None:
    """Clients run, and were started once the last change of this boot was done."""
    assert host.node
    changed = last_change(host.node)
    for name in clients:
        assert host.active(name), name
        assert started_at(host, name) > changed, f"{name} ran while GPUs changed"


def test_a_configuration_stays_over_reboots(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node, prepare=prepared)
    assert booted(host) == "nothing is wanted of the GPUs of this host"
    assert host.systemctl("is-system-running") == "running"
    result, details = host.applied("mine", max_impact="reset", terminate=True)
    assert result == "done", details
    before = everything(node)

    host.reboot()
    told = booted(host)
    assert "put back mine: 2 GPUs changed" in told
    assert everything(node) == before
    assert "other UUIDs" not in told
    check_order(host)
    # Who was before us stays before us.
    assert host.active("nvidia-fabricmanager.service")
    assert host.active(PERSISTENCED)
    assert host.systemctl("is-system-running") == "running"
    *_, put_back = [
        entry for entry in host.entries("migd.service")
        if entry.get("MESSAGE_ID") == "6efa7e3a6c5847a492aafa4030d4066f"
    ]  # fmt: skip
    assert put_back["MESSAGE"] == told

    node.surprise("gi-ids-other-order-after-reboot", True)
    host.reboot()
    assert [row[0] for row in everything(node)] == [row[0] for row in before]  # type: ignore[index]
    assert everything(node) != before
    assert "MIG devices have other UUIDs: " in booted(host)
    check_order(host)


def test_only_a_line_in_a_file(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node, prepare=lambda host: prepared(host, WANTED))
    assert "put back mine: 2 GPUs changed" in booted(host)
    assert [gpu["mode"]["current"] for gpu in node.gpus()] == ["enabled", "enabled"]
    assert [len(node.layout(gpu)) for gpu in (0, 1)] == [4, 3]
    check_order(host)
    # For the A100's reset, and started again without waiting for it.
    assert host.active(PERSISTENCED)


@pytest.mark.parametrize("settings", ["boot: fail-open\n", "boot: fail-closed\n"])
def test_no_start_but_that_of_the_boot_changes_a_gpu(boot: Boot, node: Node, settings: str) -> None:
    host = boot("bookworm", node, prepare=lambda host: prepared(host, WANTED + settings))
    by_hand = "import pynvml as n; n.nvmlInit(); d = n.nvmlDeviceGetHandleByIndex(0)\n"
    by_hand += "g = n.nvmlDeviceGetGpuInstanceById(d, 9)\n"
    by_hand += "n.nvmlComputeInstanceDestroy(n.nvmlGpuInstanceGetComputeInstanceById(g, 0))\n"
    by_hand += "n.nvmlGpuInstanceDestroy(g)"
    host.systemctl("stop", "slurmd.service")
    node.python(by_hand.replace("9", str(node.gpus()[0]["instances"][-1]["gi"])))
    host.systemctl("start", "slurmd.service")
    calls, every = node.mutating_calls(), (*CLIENTS, PERSISTENCED, BOOT)
    before, pid = seen(host, every), migd_pid(host)

    host.systemctl("restart", "migd.service")
    host.systemctl("kill", "--signal=KILL", "migd.service")
    host.wait_for(lambda: migd_pid(host) not in (0, pid), what="migd does not come back")
    host.systemctl("daemon-reload")
    host.systemctl("stop", "migd.service")
    assert host.property("Match") == "no"  # by activation
    assert main_pid(host, "migd.service") != pid
    assert seen(host, every) == before
    assert node.mutating_calls() == calls


HANG = "time-limits: {boot: 10, nvml-change: 12}\n"
BROKEN = {
    "the driver hangs": "was not over after 10 s",
    "no driver": "",
    "config.yaml is broken": "/etc/migd/config.yaml is refused",
    "migd.yaml is broken": "migd.yaml",
    "the disk is full": "No space left",
    "the hardware refuses": "9g.90gb",
    "clients.yaml is broken": "put back mine: 2 GPUs changed",
}


@pytest.mark.parametrize("boots", ["fail-open", "fail-closed"])
@pytest.mark.parametrize("what", BROKEN)
def test_the_host_boots_though(boot: Boot, what: str, boots: str, tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", ("h100-80gb-sxm5", 1), ("a100-40gb", 1))
    settings = f"{WANTED}boot: {boots}\n"
    config = CONFIG
    if what == "the driver hangs":
        settings += HANG
        node.fault(CREATE, hang=True, gpu=0)
    if what == "config.yaml is broken":
        config = "version: v1\nmig-configs: [\n"
    if what == "migd.yaml is broken":
        settings += "config: again\n"
    if what == "the hardware refuses":
        config = CONFIG.replace("2g.20gb", "9g.90gb")

    def prepare(host: Host) -> None:
        prepared(host, settings, config)
        # Each knock at docker would be one more start of what it requires.
        host.write(f"{ETC}/knocks.service", "[Service]\nExecStart=true\n")
        if what == "the disk is full":
            host.write(
                f"{ETC}/var-lib-migd.mount",
                "[Unit]\nBefore=migd.service\n[Mount]\nWhat=tmpfs\nWhere=/var/lib/migd\n"
                "Type=tmpfs\nOptions=size=4k\n[Install]\nRequiredBy=migd.service\n",
            )
            host.write(f"{ETC}/migd.service.d/full.conf", "[Service]\nExecStartPre=-/bin/sh -c "
                       "'cat /dev/zero >/var/lib/migd/filler'\n")  # fmt: skip
            wants = host.disk / f"{ETC}/migd.service.requires".lstrip("/")
            wants.mkdir()
            (wants / "var-lib-migd.mount").symlink_to(f"{ETC}/var-lib-migd.mount")
        if what == "clients.yaml is broken":
            host.write("/etc/migd/clients.yaml", "systemd-services: [\n")

    begun = time.monotonic()
    host = boot("bookworm", None if what == "no driver" else node, prepare=prepare)
    assert time.monotonic() - begun < 60
    told = status(host)
    assert BROKEN[what] in told
    good = what in ("no driver", "clients.yaml is broken")
    assert host.active(BOOT) == good
    if what != "no driver":
        for name in CLIENTS:
            assert host.active(name) == (good or boots == "fail-open"), name


def test_a_boot_waits_for_nothing_but_the_put_back(boot: Boot, node: Node) -> None:
    node.latency("nvmlGpuInstanceCreateComputeInstance", 300)
    host = boot("trixie", node, prepare=lambda host: prepared(host, WANTED))
    chain = host.run("systemd-analyze", "critical-chain", "slurmd.service").stdout
    assert BOOT in chain
    before_us = {"migd.service", PERSISTENCED, "nvidia-fabricmanager.service"}
    assert before_us <= set(host.properties(BOOT, "After")["After"].split())
    # Who is no client has not waited: the manager of sessions, for one.
    assert started_at(host, "systemd-logind.service") < last_change(node)
    check_order(host)
