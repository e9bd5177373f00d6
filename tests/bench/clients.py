"""Apply to clients running again on a real systemd, beside their own stop and start times."""

import statistics
import time
from pathlib import Path

from tests.bench.table import Report, Row
from tests.host import available, image, layer
from tests.host.host import Host
from tests.support.node import Node

_ROUNDS = 7
_UNITS = [f"bench-{name}.service" for name in "abc"]
_UNIT = """\
[Service]
Type=exec
ExecStartPre=sleep 0.1
ExecStart=sleep infinity
ExecStop=sleep 0.1
"""
_BY_HAND = """
begun=$(date +%s%N)
for unit in "$@"; do systemctl stop "$unit"; done
for unit in "$@"; do systemctl start "$unit"; done
echo $(($(date +%s%N) - begun))
"""
_HOLD = """
import asyncio, pathlib, sys, time
from migd.bus.connection import connect
from migd.bus.remote import RemoteBus
from migd.host.holding import Hold
from migd.host.manager import Manager

async def main():
    connection = await connect(None, timeout_s=10)
    hold = Hold(Manager(RemoteBus(connection)), pathlib.Path(sys.argv[1]))
    for _ in range(int(sys.argv[2]) + 1):
        begun = time.perf_counter()
        await hold.take(sys.argv[3:])
        await hold.release()
        print(1000 * (time.perf_counter() - begun))
    connection.close()

asyncio.run(main())
"""


def measure(report: Report, folder: Path) -> None:
    if reason := available.incapable() or available.missing():
        print(f"\nclients are not measured: {reason}", flush=True)
        return
    base = image.base("bookworm")
    project = layer.project(folder / "layer", [base])
    driver = layer.driver(folder / "driver")
    node = Node.new(folder / "node", ("h100-80gb-sxm5", 1))
    host = Host([project, driver, base], node, folder / "host")
    for unit in _UNITS:
        host.write(f"/etc/systemd/system/{unit}", _UNIT)
    host.write("/etc/migd/clients.yaml", f"systemd-services: [{', '.join(_UNITS)}]\n")
    with host:
        host.systemctl("start", *_UNITS)
        _measure(report, host)


def _measure(report: Report, host: Host) -> None:
    section = f"{len(_UNITS)} units that take 0.1 s to stop and 0.1 s to start"
    host.applied("all-balanced")
    applied, by_hand = [], []
    for number in range(_ROUNDS):
        begun = time.perf_counter()
        result, details = host.applied(("all-1g.10gb", "all-balanced")[number % 2])
        applied.append(1000 * (time.perf_counter() - begun))
        assert result == "done", details
        assert len(details["clients"]) == len(_UNITS), details
        done = host.run("sh", "-c", _BY_HAND, "sh", *_UNITS)
        by_hand.append(int(done.stdout) / 1e6)
    assert all(host.active(unit) for unit in _UNITS)
    ratios = [one / other for one, other in zip(applied, by_hand, strict=True)]
    for name, values, unit in (
        ("Apply to clients running again", applied, "ms"),
        ("their own stop and start, by systemctl", by_hand, "ms"),
        ("ratio", ratios, "x"),
    ):
        note = f"of {_ROUNDS}, {min(values):.2f} to {max(values):.2f}"
        report.add(section, Row(name, statistics.median(values), unit, note))
    host.run("mkdir", "/run/bench")
    shown = host.run(
        "/usr/lib/migd/bin/python3", "-I", "-c", _HOLD, "/run/bench", str(_ROUNDS), *_UNITS
    ).stdout
    _first, *held = map(float, shown.split())
    note = f"of {_ROUNDS}, {min(held):.2f} to {max(held):.2f}"
    report.add(section, Row("the hold: take and release", statistics.median(held), "ms", note))
