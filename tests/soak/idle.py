"""`make idle`: a daemon left alone for ten minutes, on a node whose GPUs are all split up."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from migd.simulator.node import python_command
from tests.bench.process import resident, wakeups
from tests.bench.table import Report, Row
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon
from tests.support.node import Node, wait_for

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Use:
    """Of a process, so far. cpu_ms: in user mode and in the kernel, of ended children, too."""

    cpu_ms: float
    wakeups: int
    resident_mb: float
    descriptors: int


def used(pid: int) -> Use:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    # utime, stime, cutime, cstime: fields 14 to 17 of proc(5), the third being the first here
    cpu = sum(int(field) for field in fields[11:15]) * _TICK_MS
    return Use(cpu, wakeups(pid), resident(pid), len(list(Path(f"/proc/{pid}/fd").iterdir())))


def idle(report: Report, folder: Path, minutes: float) -> None:
    node = Node.new(folder / "node", ("h100-80gb-sxm5", 8))
    # So that it sees the driver's files and looks at them, as on a host with a driver.
    view = (*python_command(), "run", str(node.path), "--")
    with (
        PrivateBus() as bus,
        Daemon(node, bus.address, folder / "migd", prefix=view) as daemon,
    ):
        result, details = daemon.applied("all-1g.10gb")
        assert result == "done", details
        wait_for(lambda: not daemon.worker_pids(), timeout=30, what="the worker stays")
        calls, before = sum(node.calls().values()), used(daemon.pid)
        time.sleep(60 * minutes)
        after = used(daemon.pid)
        assert sum(node.calls().values()) == calls, "NVML was asked for something"
        assert not daemon.worker_pids()
        cpu = after.cpu_ms - before.cpu_ms
        report.add(
            f"{minutes:g} idle minutes, 8 GPUs with 56 instances",
            Row("CPU time", cpu, "ms", f"{cpu / (600 * minutes):.4f} % of one core"),
            Row("wake-ups", after.wakeups - before.wakeups, ""),
            Row("memory more than before", after.resident_mb - before.resident_mb, "MB", "RSS"),
            Row("descriptors more than before", after.descriptors - before.descriptors, ""),
        )
