"""docs/coming-from-nvidia-mig-parted.md, followed word for word on a host that has the service."""

import inspect
import os
import shutil
from pathlib import Path

import pynvml

import migd
from tests.bus.manager import layouts, mig_uuids
from tests.faults.scenes import truths
from tests.host.conftest import Boot
from tests.host.host import Host
from tests.host.layer import NODE
from tests.host.migparted import FOLDER, HOOKS, OVERRIDE, UNIT, UNITS, enable
from tests.support.console import typed
from tests.support.node import Node

PAGE = "docs/coming-from-nvidia-mig-parted.md"
PEER = os.environ.get("PEER")  # NVIDIA's own nvidia-mig-parted, to follow the page with that
PACKAGE = f"/root/migd_{migd.__version__}-1_all.deb"
FILES = {
    **UNITS,
    **HOOKS,
    f"{FOLDER}/service.sh": """\
export MIG_PARTED_CONFIG_FILE MIG_PARTED_SELECTED_CONFIG
nvidia-mig-parted apply && nvidia-mig-parted export
""",
    OVERRIDE: f"""\
[Service]
Environment="MIG_PARTED_CONFIG_FILE={FOLDER}/site.yaml"
Environment="MIG_PARTED_SELECTED_CONFIG=split"
""",
    f"{FOLDER}/site.yaml": """\
version: v1
mig-configs:
  split:
  - {devices: [0], mig-enabled: true, mig-devices: {1g.10gb: 3, 2g.20gb: 1}}
  - {devices: [1], mig-enabled: true, mig-devices: {1g.5gb: 2, 3g.20gb: 1}}
""",
}
# The page begins on a host whose package is there to be installed.
BEGIN = f"cp /srv/migd.deb {PACKAGE}"
REBOOT = "systemctl reboot"


def prepared(host: Host) -> None:
    for path, text in FILES.items():
        host.write(path, text)
    enable(host)
    host.write("/srv/peer/pynvml.py", inspect.getsource(pynvml))
    stand_in = Path(__file__).with_name("migparted_inside.py").read_text()
    host.write("/srv/peer/migparted.py", stand_in)
    program = "PYTHONPATH=/srv/peer exec python3 /srv/peer/migparted.py"
    if PEER:
        shutil.copy(PEER, host.disk / "srv/peer/nvidia-mig-parted")
        program = f"exec simulator run --thin-proc {NODE} -- /srv/peer/nvidia-mig-parted"
    host.write("/usr/bin/nvidia-mig-parted", f'#!/bin/sh\n{program} "$@"\n', mode=0o755)


def type_in(host: Host, command: str) -> str:
    """As root types it, in one folder; what root sees."""
    script = f"cd /root && exec 2>&1; {command}"
    quiet = ("env", "DEBIAN_FRONTEND=noninteractive", "TERM=dumb")
    return host.run(*quiet, "bash", "-c", script, timeout=180).stdout


def check_who_has_booted(host: Host, *, migd: bool) -> None:
    # Where the other service was first, nothing is left to migd.
    told = host.journal("migd-boot.service", "--boot")
    assert ("put back split: 2 GPUs changed" in told) is migd, told
    assert ("Finished" in host.journal(UNIT, "--boot")) is not migd


def test_the_switch_and_the_way_back(boot: Boot, node: Node) -> None:
    host = boot("bookworm", node, prepare=prepared)
    type_in(host, BEGIN)
    before, uuids = layouts(node), [mig_uuids(gpu) for gpu in node.gpus()]
    # What the service has made is what its file says.
    assert [len(one.instances) for one in truths(node)] == [4, 3]
    assert {one.mode for one in truths(node)} == {"enabled"}
    booted = 0
    for one in typed(PAGE):
        assert one.root
        if one.command == REBOOT:
            host.reboot()
            booted += 1
            check_who_has_booted(host, migd=booted == 1)
        else:
            changes = node.mutating_calls()
            shown = type_in(host, one.command)
            assert one.comes(shown), f"{one.command}\n{shown}"
            assert node.mutating_calls() == changes, one.command
        assert layouts(node) == before, one.command
        if booted < 2:
            assert [mig_uuids(gpu) for gpu in node.gpus()] == uuids, one.command
    assert booted == 2
    assert host.run("sh", "-c", "command -v migctl", check=False).returncode != 0
