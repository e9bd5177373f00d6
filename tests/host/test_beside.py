"""Beside nvidia-mig-manager.service: nothing is changed, and what it does is taken over."""

import json
import re
from typing import Any

from migd import names
from tests.bus.manager import changing_calls
from tests.host.clients import ETC
from tests.host.conftest import Boot
from tests.host.host import Host
from tests.host.migparted import FOLDER, HOOKS, OVERRIDE, UNIT, UNITS, enable
from tests.support.daemon import options
from tests.support.node import Node

CONFLICT = f"{names.ERROR}.Conflict"
# What it was started with, and what it waits for in its work.
SEEN, WAIT = "/run/seen", "/run/wait"

# The script does nothing to GPUs.
FILES = {
    **UNITS,
    **HOOKS,
    f"{FOLDER}/service.sh": f"""\
env >{SEEN}
if [ -p {WAIT} ]; then read -r _ <{WAIT}; fi
""",
    OVERRIDE: """\
[Service]
Environment="MIG_PARTED_SELECTED_CONFIG=all-disabled"
""",
    # What a person adds: systemd's quoting, a path with a space, a line that goes on.
    f"{ETC}/{UNIT}.d/site.conf": """\
# site
[Service]
TimeoutStartSec=900
Environment='MIG_PARTED_CONFIG_FILE=/srv/mig\\x20files/site.yaml' \\
  MIG_PARTED_SELECTED_CONFIG=sp"li"t
""",
    "/srv/mig files/site.yaml": """\
# made by hand
version: v1
mig-configs:
  split:
  - {devices: [0], mig-enabled: true, mig-devices: {1g.10gb: 3, 2g.20gb: 1}}
""",
}
# The GPU whose mode needs no reset.
HOPPER: dict[str, Any] = {"gpus": ["0"]}
SETTINGS = "# This node.\non-config-change: {on_change}  # as agreed\n"


def prepared(host: Host) -> None:
    for path, text in FILES.items():
        host.write(path, text)
    enable(host)
    settings = SETTINGS.format(on_change="report")
    host.write("/etc/migd/migd.yaml", f"{settings}config: all-1g.10gb\n")


def refused(host: Host, config: str) -> str:
    name, message = host.refused("Apply", "sa{sv}", config, options(HOPPER))
    assert name == CONFLICT, message
    return message


def own_files(host: Host) -> str:
    return host.run("sh", "-c", "cd /etc/migd && md5sum $(ls)").stdout


def conflicts(host: Host, *parts: str) -> list[str]:
    """Wait until as many conflicts are shown as there are parts, each of which is in one."""

    def shown() -> list[str]:
        found: list[str] = host.property("Conflicts")
        return found

    def met() -> bool:
        found = shown()
        return len(found) == len(parts) and all(p in f for p, f in zip(parts, found, strict=True))

    host.wait_for(met, what=f"conflicts: {shown()}")
    return shown()


def imported(host: Host, *arguments: str, code: int = 0) -> str:
    done = host.run("migctl", "import-mig-parted", *arguments, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def check_nothing_is_changed(host: Host, node: Node) -> None:
    """Whoever asks, and however: with a unit that is enabled nothing is changed."""
    summary, _ = host.plan("all-enabled")
    assert [b["kind"] for b in summary["blockers"]] == ["impact", "conflict"]
    summary, steps = host.plan("all-1g.10gb", **HOPPER)
    assert steps
    (blocker,) = summary["blockers"]
    assert blocker["kind"] == "conflict"
    assert blocker["message"] == refused(host, "all-1g.10gb")
    assert f"`systemctl disable --now {UNIT}`" in blocker["message"]
    # Where nothing is to be done, nothing is refused; and what is only kept touches nothing.
    assert host.applied("all-disabled")[0] == "done"
    host.call("Stage", "sa{sv}", "all-balanced", options(HOPPER))
    shown = host.run("migctl", "plan", "all-1g.10gb", "--gpu=0").stdout
    assert f"{UNIT} is enabled" in shown
    assert f"nothing is changed: {UNIT} is enabled" in host.run("migctl", "status").stdout
    assert not changing_calls(node)


def test_beside_nvidias_mig_manager(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node, prepare=prepared)
    seen = dict(line.partition("=")[::2] for line in host.read(SEEN).splitlines())
    # The boot put back nothing, and said why; the property tells it before anybody asks.
    conflicts(host, f"{UNIT} is enabled")
    assert f"{UNIT} is enabled" in host.systemctl("status", names.BOOT_UNIT, check=False)
    assert any(
        entry.get("MESSAGE_ID") == "00b4fa0b7c6c411ab7ac04a3176d478e" and UNIT in entry["MESSAGE"]
        for entry in host.entries("migd.service")
    )
    check_nothing_is_changed(host, node)

    # A change of files that would be applied.
    host.write("/etc/migd/migd.yaml", SETTINGS.format(on_change="apply") + "config: all-1g.20gb\n")
    host.wait_for(
        lambda: [e for e in host.property("ConfigErrors") if f"{UNIT} is enabled" in e],
        what="the change was not followed",
    )
    host.write("/etc/migd/migd.yaml", SETTINGS.format(on_change="report"))
    host.run("migctl", "reload")
    assert host.property("ConfigErrors") == []
    assert not changing_calls(node)

    # What it is told is what systemd has told it.
    before = own_files(host)
    told: dict[str, Any] = json.loads(imported(host, "--json"))
    values = {row["what"]: row["value"] for row in told["found"]}
    assert values["config file"] == seen["MIG_PARTED_CONFIG_FILE"] == "/srv/mig files/site.yaml"
    assert values["selected"] == seen["MIG_PARTED_SELECTED_CONFIG"] == "split"
    assert "nothing was done" in imported(host)
    assert own_files(host) == before

    shown = imported(host, "--yes", "--disable")
    assert "done, and migd has read its files\n" in shown
    assert host.read("/etc/migd/config.yaml") == FILES["/srv/mig files/site.yaml"]
    settings = SETTINGS.format(on_change="report")
    assert host.read("/etc/migd/migd.yaml") == f"{settings}config: split\n"
    assert host.run("ls", "/etc/migd").stdout.split() == ["config.yaml", "migd.yaml"]
    assert host.systemctl("is-enabled", UNIT, check=False) == "disabled"
    assert set(host.property("Configs")) >= {"split", "all-1g.10gb"}
    assert not changing_calls(node)

    # Off: it is seen without a look, and what was taken over can be applied.
    conflicts(host)
    assert host.applied("split")[0] == "done"
    profiles = sorted(row["profile"] for row in node.gpus()[0]["instances"])
    assert profiles == ["1g.10gb"] * 3 + ["2g.20gb"]
    assert host.property("Match") == "yes"

    # At work, which nobody has enabled.
    host.run("mkfifo", WAIT)
    host.systemctl("start", "--no-block", UNIT)
    conflicts(host, f"{UNIT} is at work")
    assert f"`systemctl stop {UNIT}`" in refused(host, "all-1g.20gb")
    host.run("sh", "-c", f"echo >{WAIT}; rm {WAIT}")
    conflicts(host)

    # Until the next boot only, which is turned off in another way.
    host.systemctl("enable", "--quiet", "--runtime", UNIT)
    (sentence,) = conflicts(host, f"{UNIT} is enabled")
    command = re.search(r"`(systemctl [^`]*)`", sentence)
    assert command
    host.run(*command[1].split())
    conflicts(host)
    assert host.applied("all-1g.20gb", **HOPPER)[0] == "done"
