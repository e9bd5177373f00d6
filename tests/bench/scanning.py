"""What it costs to look through all processes of a busy host for those that have a GPU."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from migd.host.nodes import Places
from migd.host.scan import scan
from tests.bench.table import Report, Row, percentile

_PROCESSES, _FILES, _HOLDERS, _TIMES = 2000, 50, 100, 5
# These processes are this one's children, and a scan leaves its own out.
STRANGER = 2**22 + 1

# The processes are a bare interpreter's: what is mapped counts, too, and this one has much.
_CROWD = """
import os, signal, sys
node, processes, files, holders = sys.argv[1], *map(int, sys.argv[2:])
opened = [os.open("/dev/null", os.O_RDWR) for _ in range(files - 3)]
pids = []
for number in range(processes):
    pid = os.fork()
    if pid == 0:
        if number < holders:
            os.dup2(os.open(node, os.O_RDWR), opened[0])
        while True:
            signal.pause()
    pids.append(pid)
print(flush=True)
sys.stdin.read()
for pid in pids:
    os.kill(pid, signal.SIGKILL)
for pid in pids:
    os.waitpid(pid, 0)
"""


def measure(report: Report, folder: Path) -> None:
    """Needs root, who makes the stand-in node."""
    if os.geteuid() != 0:
        print("\nthe scan is not measured: its stand-in for a GPU's node needs root")
        return
    places = Places(folder / "dev", folder / "sys")
    places.dev.mkdir(parents=True)
    os.mknod(places.dev / "nvidia0", 0o20666, os.makedev(1, 3))
    section = f"{_PROCESSES} processes with {_FILES} descriptors each, {_HOLDERS} have a GPU's node"
    with crowd(places.dev / "nvidia0", _PROCESSES, _FILES, _HOLDERS):
        look = partial(scan, (), places, STRANGER)
        walls, cpus = [], []
        for _ in range(_TIMES):
            wall, cpu = time.perf_counter(), time.process_time()
            assert len(look()) == _HOLDERS
            walls.append(1000 * (time.perf_counter() - wall))
            cpus.append(1000 * (time.process_time() - cpu))
        best = f"best of {_TIMES}"
        report.add(section, Row("scan", min(walls), "ms", best))
        report.add(section, Row("scan, CPU time", min(cpus), "ms", best))
        for during, work in (("a scan", look), ("idleness", partial(time.sleep, 1))):
            late = [1000 * s for _ in range(_TIMES) for s in asyncio.run(_lateness(work))]
            what = f"event loop late during {during}"
            for share, name in ((0.5, "p50"), (0.99, "p99"), (1, "longest")):
                row = Row(f"{what}, {name}", percentile(late, share), "ms", f"of {len(late)}")
                report.add(section, row)


async def _lateness(work: Callable[[], object]) -> list[float]:
    """Seconds that a loop woke up late, each time, while a thread did `work`."""
    working = asyncio.create_task(asyncio.to_thread(work))
    late = []
    while not working.done():
        begun = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - begun - 0.001)
    await working
    return late


@contextmanager
def crowd(node: Path, processes: int, files: int, holders: int) -> Iterator[None]:
    """Real processes with so many descriptors each, of which some have the node open."""
    numbers = map(str, (processes, files, holders))
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CROWD, str(node), *numbers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as crowd:
        assert crowd.stdout is not None
        crowd.stdout.readline()
        yield
