"""The scriptlets of the .rpm, in the order of rpm, on the nearest that there is to an RHEL here.

Nobody has tried the .rpm where it is for. What this shows: that its scriptlets do with systemd what
those of the .deb do, and that migd runs with the libraries that it carries.
"""

from pathlib import Path

from migd import names
from tests.faults.scenes import truths
from tests.host.clients import main_pid
from tests.host.conftest import Boot
from tests.host.crash import CONFIG, RUNNING, active, boot_clients
from tests.host.host import Host

RPM = "/srv/rpm"
MIGD, BOOT = "migd.service", "migd-boot.service"
PUT_BACK = f"{names.RUNTIME_DIR}/{names.PUT_BACK_FILE}"


def scriptlet(host: Host, name: str, *arguments: int) -> None:
    host.run("sh", f"{RPM}/{name}", *map(str, arguments), timeout=180)


def install(host: Host, count: int) -> None:
    """count: 1 for an installation, 2 for an upgrade."""
    scriptlet(host, "pre", count)
    host.run("tar", "-C", "/", "-xf", f"{RPM}/files.tar")
    scriptlet(host, "post", count)
    if count > 1:
        scriptlet(host, "preun", 1)
        scriptlet(host, "postun", 1)
    scriptlet(host, "posttrans")


def remove(host: Host) -> None:
    scriptlet(host, "preun", 0)
    host.run("sh", "-c", f"xargs -d '\\n' rm -f <{RPM}/files.list")
    scriptlet(host, "postun", 0)


def pids(host: Host) -> dict[str, int]:
    return {unit: main_pid(host, unit) for unit in RUNNING}


def test_scriptlets(boot: Boot, tmp_path: Path) -> None:
    host = boot_clients(boot, "bookworm", tmp_path)
    assert host.node
    node, clients = host.node, pids(host)
    host.write("/etc/migd/config.yaml", CONFIG)
    host.write("/etc/migd/migd.yaml", "boot: fail-closed\n")

    install(host, 1)
    for unit in (MIGD, BOOT):
        assert host.systemctl("is-enabled", unit) == "enabled"
    assert host.active(MIGD)
    assert not host.active(BOOT)
    assert host.read(PUT_BACK) == "installed in this boot\n"
    assert (pids(host), node.mutating_calls()) == (clients, 0)
    assert host.run("getent", "group", "migd").stdout.startswith("migd:")
    where = "import dbus_next, pynvml, sdnotify; print(dbus_next.__file__, sdnotify.__file__)"
    found = host.run("/usr/lib/migd/bin/python3", "-I", "-c", where).stdout.split()
    assert {str(Path(name).parents[1]) for name in found} == {"/usr/lib/migd/vendor"}

    assert host.applied("split")[0] == "done"
    layout, calls, clients = truths(node), node.mutating_calls(), pids(host)
    before = main_pid(host, MIGD)
    install(host, 2)
    assert host.active(MIGD)
    assert main_pid(host, MIGD) != before
    assert set(host.property("Wanted").values()) == {"split"}
    assert (pids(host), truths(node), node.mutating_calls()) == (clients, layout, calls)

    remove(host)
    assert not host.systemctl("list-units", "--all", "--plain", "--no-legend", "migd*")
    assert host.run("ls", "/run/migd", "/usr/lib/migd", check=False).stdout == ""
    assert host.run("find", "/etc/systemd", "-name", "migd*").stdout == ""
    assert host.read("/etc/migd/config.yaml") == CONFIG
    assert active(host) == set(RUNNING)
    assert (pids(host), truths(node), node.mutating_calls()) == (clients, layout, calls)

    host.systemctl("disable", "--quiet", MIGD, check=False)
    install(host, 1)
    assert set(host.property("Wanted").values()) == {"split"}
    host.systemctl("disable", "--quiet", "--now", MIGD)
    install(host, 2)
    assert not host.active(MIGD), "an upgrade starts what an administrator has disabled"
    assert host.systemctl("is-enabled", MIGD, check=False) == "disabled"
