"""The .deb on booted hosts: installed, upgraded, removed, purged, under clients that run."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import migd
from migd import names
from migd.bus.connection import BusError
from tests.faults.scenes import Truth, truths
from tests.host import layer
from tests.host.clients import main_pid
from tests.host.conftest import Boot, Layers
from tests.host.crash import CONFIG, LISTED, RUNNING, active, boot_clients
from tests.host.host import Host
from tests.packaging.built import OLDER
from tests.support.node import Node

PUT_BACK = f"{names.RUNTIME_DIR}/{names.PUT_BACK_FILE}"
INSTALLED = "installed in this boot\n"
NEW, OLD = "/srv/migd.deb", "/srv/older.deb"
MIGD, BOOT, HOLD = "migd.service", "migd-boot.service", "migd-hold.service"
# Whoever has edited these must find them so again.
EDITED = {
    "/etc/migd/config.yaml": CONFIG,
    "/etc/migd/clients.yaml": LISTED,
    "/etc/migd/clients.d/site.yaml": "version: v1\nsystemd-services: []\n",
    # Clients require migd-boot.service then: what happens to it happens to them.
    "/etc/migd/migd.yaml": "boot: fail-closed\n",
    "/etc/systemd/system/migd.service.d/site.conf": "[Service]\nNice=1\n",
}

_CHROOT = """\
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root" &&
mount -t proc proc "$2/root/proc" &&
exec chroot "$2/root" dpkg --install "$3"
"""


def apt(host: Host, *words: str) -> str:
    """apt as an administrator runs it; the host has no network and no lists of packages."""
    frontend = ("env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
    done = host.run(*frontend, "apt-get", "--assume-yes", *words, timeout=180)
    return done.stdout + done.stderr


def status(host: Host) -> str:
    form = "--showformat=${db:Status-Status}"
    return host.run("dpkg-query", "--show", form, "migd", check=False).stdout


def pids(host: Host) -> dict[str, int]:
    return {unit: main_pid(host, unit) for unit in RUNNING}


def units(host: Host) -> list[str]:
    """Units of migd that are more than a name that another unit has: enable links stay."""
    lines = host.systemctl("list-units", "--all", "--plain", "--no-legend", "migd*").splitlines()
    return [line for line in lines if line.split()[1:4] != ["not-found", "inactive", "dead"]]


def about_migd(host: Host, *folders: str) -> list[str]:
    """Files whose name has migd in it, without those of this test and what is only read."""
    found = host.run("find", *folders, "-xdev", "-name", "*migd*", check=False).stdout.split()
    ours = (str(layer.DROP_IN.parent), "/srv", "/var/log", "/var/lib/dpkg/alt")
    return sorted(name for name in found if not name.startswith(ours))


def check_edited(host: Host) -> None:
    for path, text in EDITED.items():
        assert host.read(path) == text, path


def test_install_upgrade_remove_purge(boot: Boot, release: str, tmp_path: Path) -> None:
    host = boot_clients(boot, release, tmp_path)
    assert host.node
    node = host.node
    for path, text in EDITED.items():
        host.write(path, text)
    clients, before = pids(host), truths(node)

    # Installed: it runs, answers, and has touched nothing.
    apt(host, "install", OLD)
    assert status(host) == "installed"
    assert host.active(MIGD)
    assert host.systemctl("is-enabled", MIGD) == "enabled"
    ask = ("busctl", "--json=short", "get-property", names.BUS_NAME, names.ROOT, names.MANAGER)
    version = json.loads(host.run(*ask, "Version", user="bob").stdout)["data"]
    assert version == OLDER
    host.systemctl("stop", MIGD)
    host.run(*ask, "Version", user="bob")
    assert host.active(MIGD), "a call does not start it"
    assert {"plain", "split"} <= set(host.property("Configs"))
    assert host.property("ConfigErrors") == []
    assert (truths(node), node.mutating_calls()) == (before, 0)
    assert pids(host) == clients
    # The put-back of this boot is not due any more; that of the next one is.
    assert host.read(PUT_BACK) == INSTALLED
    assert host.run("stat", "--format=%a", names.RUNTIME_DIR).stdout == "700\n"
    assert host.systemctl("is-enabled", BOOT) == "enabled"
    assert not host.active(BOOT)
    # Whom polkit's rule lets operate: it is there, and nobody is in it.
    assert host.run("getent", "group", "migd").stdout.endswith(":\n")
    compiled = host.run("find", "/usr/lib/migd/python", "-name", "daemon.*.pyc").stdout
    assert compiled, "every start would compile it anew"

    goal = upgrade_in_mid_job(host, node, clients)

    # The next boot is no different from any other.
    host.reboot()
    assert truths(node) == goal
    assert host.read(PUT_BACK) != INSTALLED
    assert active(host) >= set(clients)

    # Removed: nothing of it is active, and nobody notices.
    clients, layout, calls = pids(host), truths(node), node.mutating_calls()
    wanted = host.property("Wanted")
    assert set(wanted.values()) == {"split"}
    apt(host, "remove", "migd")
    assert status(host) == "config-files"
    assert not units(host)
    assert not host.systemctl("list-jobs", "--no-legend")
    assert not host.systemctl("list-units", "--failed", "--plain", "--no-legend")
    assert host.run("pgrep", "--full", "migd.nvml|migd.daemon", check=False).stdout == ""
    assert about_migd(host, "/run", "/usr") == []
    assert (pids(host), truths(node), node.mutating_calls()) == (clients, layout, calls)
    check_edited(host)

    # Installed again: what was wanted is known, and still nothing is changed.
    apt(host, "install", NEW)
    assert host.active(MIGD)
    assert host.property("Wanted") == wanted
    assert host.property("Match") == "yes"
    assert host.read(PUT_BACK) == INSTALLED
    assert (pids(host), truths(node), node.mutating_calls()) == (clients, layout, calls)
    check_edited(host)

    # Purged: as if it had never been there, but for what is nobody's but the administrator's.
    apt(host, "purge", "migd")
    assert status(host) == ""
    assert about_migd(host, "/") == ["/etc/systemd/system/migd.service.d"]
    assert not units(host)
    assert (pids(host), truths(node), node.mutating_calls()) == (clients, layout, calls)

    apt(host, "install", NEW)
    assert host.active(MIGD)
    assert host.systemctl("is-enabled", MIGD) == "enabled"
    assert host.property("Wanted") == {}
    assert node.mutating_calls() == calls


def upgrade_in_mid_job(host: Host, node: Node, clients: dict[str, int]) -> list[Truth]:
    """The upgrade waits for the job; what that made is returned."""
    assert host.applied("split")[0] == "done"
    goal = truths(node)
    assert host.applied("plain")[0] == "done"
    assert set(pids(host)) == active(host)
    outside = {"outside.service": start_outside(host)}
    node.latency("nvmlGpuInstanceCreateComputeInstance", 1500)
    number, path = host.apply("split")
    host.wait_for(lambda: phase(host, path) == "change", what="it never changes a GPU")
    apt(host, "install", NEW)
    node.latency("nvmlGpuInstanceCreateComputeInstance", 0)
    assert host.active(MIGD)
    assert host.property("Version") == migd.__version__
    assert host.property("ConfigErrors") == []
    result, details = host.wait(number)
    assert result == "done", details
    assert truths(node) == goal
    assert {c["result"] for c in details["clients"]} == {"returned"}
    assert active(host) == set(clients)
    assert {unit: main_pid(host, unit) for unit in outside} == outside
    assert host.property("Match") == "yes"
    assert set(host.property("Wanted").values()) == {"split"}
    assert host.properties(MIGD, "Nice") == {"Nice": "1"}
    check_edited(host)

    # Without a job no client notices: not those that migd knows either.
    running, calls = pids(host), node.mutating_calls()
    assert host.active(BOOT), "clients that were started again require it"
    invocation = host.properties(BOOT, "InvocationID")
    apt(host, "install", "--reinstall", NEW)
    assert host.active(MIGD)
    assert (pids(host), node.mutating_calls()) == (running, calls)
    assert host.properties(BOOT, "InvocationID") == invocation
    assert host.wait(number)[0] == "done"
    return goal


def start_outside(host: Host) -> int:
    """A unit that no list has, which no job and no package has to do with."""
    name = "outside.service"
    host.run("systemd-run", "--quiet", f"--unit={name}", "sleep", "infinity")
    return main_pid(host, name)


def phase(host: Host, path: str) -> str:
    try:
        return str(host.property("Phase", path=path, interface=names.JOB))
    except BusError:
        return ""


def test_removed_while_a_dead_daemon_holds(boot: Boot, tmp_path: Path) -> None:
    """What a killed migd keeps down comes up, though nobody is there any more to start it."""
    host = boot_clients(boot, "bookworm", tmp_path)
    assert host.node
    for path, text in EDITED.items():
        host.write(path, text)
    apt(host, "install", NEW)
    host.node.latency("nvmlGpuInstanceCreateComputeInstance", 1500)
    with ThreadPoolExecutor() as pool, killed(host):
        work = pool.submit(host.applied, "split")
        host.wait_for(lambda: host.systemctl("is-active", HOLD, check=False) == "activating")
        host.wait_for(lambda: not active(host), what="no client was stopped")
        host.systemctl("mask", "--runtime", "--quiet", MIGD)
        host.systemctl("kill", "--signal=KILL", MIGD)
        assert isinstance(work.exception(), BusError)
    assert host.systemctl("is-active", HOLD, check=False) == "activating"
    apt(host, "remove", "migd")
    host.wait_for(lambda: active(host) == set(RUNNING), what=str(active(host)))
    assert not units(host)
    assert about_migd(host, "/run/migd") == []


@contextmanager
def killed(host: Host) -> Iterator[None]:
    yield
    host.wait_for(lambda: not host.active(MIGD))
    host.systemctl("unmask", "--runtime", "--quiet", MIGD)


def test_disabled_stays_disabled(boot: Boot, tmp_path: Path) -> None:
    host = boot("trixie", Node.new(tmp_path / "node", ("h100-80gb-sxm5", 1)))
    apt(host, "install", OLD)
    host.systemctl("disable", "--quiet", "--now", MIGD)
    apt(host, "install", NEW)
    assert host.systemctl("is-enabled", MIGD, check=False) == "disabled"
    assert not host.active(MIGD)
    # But it is there for who asks.
    assert host.property("Version") == migd.__version__


def test_installed_into_an_image(boot: Boot, layers: Layers, tmp_path: Path) -> None:
    """Where no systemd runs, as where images are made: one line, and the first boot does it all."""

    def install(host: Host) -> None:
        lower = ":".join(map(str, layers["trixie"]))
        command = ["unshare", "--mount", "sh", "-c", _CHROOT, "sh", lower, str(host.disk.parent)]
        subprocess.run([*command, NEW], check=True, capture_output=True, timeout=120)
        host.write("/etc/migd/migd.yaml", "config: all-balanced\n")

    node = Node.new(tmp_path / "node", ("h100-80gb-sxm5", 1))
    host = boot("trixie", node, prepare=install)
    assert host.active(MIGD)
    assert host.property("Version") == migd.__version__
    assert host.active(BOOT)
    assert host.read(PUT_BACK) != INSTALLED
    # Two small ones, one of each larger size: what is balanced on an H100.
    assert sorted(Counter(profile for profile, _, _ in node.layout(0)).values()) == [1, 1, 2]
    assert not host.systemctl("list-units", "--failed", "--plain", "--no-legend")
