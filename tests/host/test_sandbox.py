"""The sandbox of migd: what it keeps from it, and that it keeps from it nothing that it needs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.conftest import Layers
from tests.host.host import Host
from tests.host.image import RELEASES
from tests.support.node import Node

MIGD, BOOT = "migd.service", "migd-boot.service"
# As `systemd-analyze security` counts, from 0 to 10.
MOST_EXPOSED = {MIGD: 2.5, BOOT: 1.0}

_INSIDE = Path(__file__).with_name("sandbox_inside.py")
_PROGRAM = "/srv/sandbox_inside.py"
_PYTHON = "/usr/lib/migd/bin/python3"
_OUTPUT = "/run/sandbox.json"
# The unit as it is shipped, with another program in it.
_INSTEAD = f"""\
[Service]
Type=oneshot
Restart=no
WatchdogSec=0
StandardOutput=truncate:{_OUTPUT}
ExecStart=
ExecStart={_PYTHON} -IB {_PROGRAM} {{pid}}
"""


@pytest.fixture(scope="module", params=RELEASES)
def host(
    request: pytest.FixtureRequest, layers: Layers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("sandbox")
    node = Node.new(folder / "node", ("h100-80gb-sxm5", 1))
    with Host(layers[request.param], node, folder / "host") as booted:
        yield booted


@pytest.fixture(scope="module")
def tried(host: Host) -> dict[str, Any]:
    """What sandbox_inside.py says: `free`, and in the place of migd."""
    assert host.node
    host.node.surprise("sys-admin-needed")
    host.write(_PROGRAM, _INSIDE.read_text())
    for theirs in ("/root/theirs", "/tmp/theirs"):
        host.write(theirs, "")
    somebody = host.spawn("sh", "-c", "exec sleep infinity 3</dev/nvidia0", user="bob")
    host.wait_for(lambda: somebody.program.endswith("/sleep"))
    free = host.run(_PYTHON, "-IB", _PROGRAM, str(somebody.pid)).stdout
    drop_in = f"/run/systemd/system/{MIGD}.d/instead.conf"
    host.write(drop_in, _INSTEAD.format(pid=somebody.pid))
    host.systemctl("stop", MIGD)
    host.systemctl("daemon-reload")
    try:
        host.systemctl("start", MIGD)
    finally:
        host.run("rm", drop_in)
        host.systemctl("daemon-reload")
        host.systemctl("start", MIGD)
    return {"free": json.loads(free), **json.loads(host.read(_OUTPUT))}


@pytest.mark.parametrize("unit", MOST_EXPOSED)
def test_exposure(host: Host, unit: str) -> None:
    told = host.run("systemd-analyze", "security", "--no-pager", unit).stdout
    (exposure,) = re.findall(rf"Overall exposure level for {unit}: ([0-9.]+)", told)
    assert float(exposure) <= MOST_EXPOSED[unit], told
    # Nothing in it is unknown to this systemd.
    verified = host.run("systemd-analyze", "verify", "--man=no", f"/usr/lib/systemd/system/{unit}")
    assert not verified.stdout + verified.stderr


def test_what_migd_does_not_need_is_refused(tried: dict[str, Any]) -> None:
    assert not any(tried["free"]["refused"].values()), "it would be refused without a sandbox, too"
    assert len(tried["refused"]) > 20
    assert [what for what, why in tried["refused"].items() if not why] == []


def test_what_migd_needs_it_may_and_no_capability_is_idle(
    host: Host, tried: dict[str, Any]
) -> None:
    fails = dict(tried["fails"])
    assert fails.pop("") == {}
    bounding = host.properties(MIGD, "CapabilityBoundingSet")["CapabilityBoundingSet"]
    assert len(fails) == len(bounding.split())
    assert [number for number, failing in fails.items() if not failing] == []


def test_no_disks(host: Host) -> None:
    """Which device is refused cannot be seen here: the kernel asks no policy in a container."""
    shown = host.properties(MIGD, "DevicePolicy")
    assert shown == {"DevicePolicy": "closed"}
    allowed = host.systemctl("show", MIGD, "--property=DeviceAllow", "--value").splitlines()
    assert "char-* rwm" in allowed
    assert not [line for line in allowed if line.startswith(("block-", "/dev"))]


def test_the_worker_has_less_than_the_daemon(host: Host) -> None:
    host.plan("all-balanced")
    daemon = host.properties(MIGD, "MainPID")["MainPID"]
    worker = host.run("pgrep", "--parent", daemon).stdout.strip()
    assert "migd.nvml.worker" in host.read(f"/proc/{worker}/cmdline")
    has, may = _status(host, daemon), _status(host, worker)
    for told in (has, may):
        assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    capabilities = [int(told["CapPrm"], 16) for told in (has, may)]
    assert [number.bit_count() for number in capabilities] == [5, 2]
    assert capabilities[1] == capabilities[0] & capabilities[1]


def _status(host: Host, pid: str) -> dict[str, str]:
    lines = host.read(f"/proc/{pid}/status").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
