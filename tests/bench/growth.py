"""How migd's own cost grows: with GPUs, with configurations, with the host's processes.

The driver takes no time here, so whatever is measured is migd's own; CPU time is that of the daemon
and of its worker together.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from migd.bus.connection import connect
from migd.host.nodes import Places
from migd.host.scan import scan
from tests.bench.latency import manager
from tests.bench.scanning import STRANGER, crowd
from tests.bench.table import Report
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon
from tests.support.node import Node, wait_for

_GPUS, _CONFIGS, _PROCESSES = (1, 2, 4, 8, 16), (1, 4, 16, 64), (10, 100, 1000, 5000)
_BOARD, _TIMES, _FILES, _HOLDERS = "h100-80gb-sxm5", 5, 50, 10
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_ENTRY = """\
  - devices: all
    mig-enabled: true
    mig-devices: {1g.10gb: 2, 2g.20gb: 1, 3g.40gb: 1}
"""

Figures = dict[str, float]


def measure(report: Report, folder: Path) -> None:
    tables: dict[str, dict[Any, Figures]] = {
        "what is started": _starts(folder / "starts"),
        "GPUs": {n: _gpus(folder / f"gpus-{n}", n) for n in _GPUS},
        "configurations": {n: _configs(folder / f"configs-{n}", n) for n in _CONFIGS},
    }
    if os.geteuid() == 0:
        tables["processes"] = _processes(folder / "processes")
    for title, rows in tables.items():
        print(f"\nmigd's own cost by {title}; median of {_TIMES}, milliseconds", flush=True)
        for row, figures in rows.items():
            told = "  ".join(f"{name} {ms:.1f}" for name, ms in figures.items())
            print(f"  {row:<28}{told}", flush=True)
    report.keep("growth", tables)


def _starts(folder: Path) -> dict[str, Figures]:
    """What nobody can do without who runs a command, and what a worker that is not there costs."""

    def program(*arguments: str) -> Figures:
        def run() -> None:
            command = [sys.executable, "-IB", *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        return {"from its start": _median(run)}

    node = Node.new(folder, (_BOARD, 8))
    with PrivateBus() as bus, Daemon(node, bus.address, folder / "daemon") as daemon:
        cold = []
        for _ in range(_TIMES):
            wait_for(lambda: not daemon.worker_pids(), what="the worker stays")
            begun = time.perf_counter()
            asyncio.run(_plan(bus.address, "all-1g.10gb"))
            cold.append(1000 * (time.perf_counter() - begun))
        warm = _median(lambda: asyncio.run(_plan(bus.address, "all-1g.10gb")))
    return {
        "Python alone": program("-c", "pass"),
        "migctl --help": program("-m", "migd.cli.main", "--help"),
        "a plan of eight GPUs": {"from its start": statistics.median(cold)},
        "that, the worker there": {"from its start": warm},
    }


def _gpus(folder: Path, count: int) -> Figures:
    """Of one board, all changed at once: five instances gone, two come."""
    node = Node.new(folder, (_BOARD, count))
    with PrivateBus() as bus, Daemon(node, bus.address, folder / "daemon") as daemon:
        daemon.applied("all-1g.10gb")
        figures = {"a plan": _median(lambda: asyncio.run(_plan(bus.address, "all-3g.40gb")))}
        walls, cpus = [], []
        for number in range(2 * _TIMES):
            (worker,) = daemon.worker_pids()
            used, begun = _cpu(daemon.pid, worker), time.perf_counter()
            daemon.applied(("all-balanced", "all-1g.10gb")[number % 2])
            walls.append(1000 * (time.perf_counter() - begun))
            cpus.append(_cpu(daemon.pid, worker) - used)
        figures["all changed"] = statistics.median(walls)
        figures["of it CPU"] = statistics.median(cpus)
        figures["nothing to change"] = _median(lambda: daemon.applied("all-1g.10gb"))
    return figures


def _configs(folder: Path, count: int) -> Figures:
    """In a file of as many configurations of eight lines, on one GPU."""
    node = Node.new(folder, (_BOARD, 1))
    text = "version: v1\nmig-configs:\n"
    text += "".join(f"  config-{n}:\n{2 * _ENTRY}" for n in range(count))
    last = f"config-{count - 1}"
    with PrivateBus() as bus, Daemon(node, bus.address, folder / "daemon", config=text) as daemon:
        daemon.applied(last)
        return {
            "reading the file": _median(lambda: daemon.call("Reload")),
            "a plan": _median(lambda: asyncio.run(_plan(bus.address, last))),
            "nothing to change": _median(lambda: daemon.applied(last)),
        }


def _processes(folder: Path) -> dict[int, Figures]:
    """Looking through all of them for those that have a GPU, as scanning does."""
    places = Places(folder / "dev", folder / "sys")
    places.dev.mkdir(parents=True)
    os.mknod(places.dev / "nvidia0", 0o20666, os.makedev(1, 3))
    look = partial(scan, (), places, STRANGER)
    rows = {}
    for count in _PROCESSES:
        with crowd(places.dev / "nvidia0", count, _FILES, _HOLDERS):
            walls, cpus = [], []
            for _ in range(_TIMES):
                wall, cpu = time.perf_counter(), time.process_time()
                assert len(look()) == _HOLDERS
                walls.append(1000 * (time.perf_counter() - wall))
                cpus.append(1000 * (time.process_time() - cpu))
        rows[count] = {"a look": statistics.median(walls), "of it CPU": statistics.median(cpus)}
    return rows


async def _plan(address: str, config: str) -> object:
    connection = await connect(address, timeout_s=10)
    try:
        return await manager(connection, "Plan", "sa{sv}", config, {})
    finally:
        connection.close()


def _median(act: Callable[[], object]) -> float:
    """Milliseconds, with a worker that is there."""
    act()
    taken = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        act()
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken)


def _cpu(*pids: int) -> float:
    """Milliseconds of processor time, in user and kernel."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return 1000 * ticks * _TICK_S
