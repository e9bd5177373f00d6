"""Start, memory and idleness of the daemon and its worker."""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from migd.simulator.node import python_command
from tests.bench.table import Report, Row
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon
from tests.support.node import Node, wait_for

_STARTS = 7
_IDLE_S = 20.0
_GENERATED = 20
_GENERATOR = str(Path(__file__).parents[2] / "migd/host/generator.py")
_ALL = "all-1g.10gb"


def measure(report: Report, folder: Path) -> None:
    node = Node.new(folder / "node", ("h100-80gb-sxm5", 8))
    with PrivateBus() as bus:
        _start(report, node, bus, folder)
        _generator(report, folder)
        # As root the daemon sees the driver's files, and looks at them every 3 s when idle.
        run = (*python_command(), "run", str(node.path), "--")
        daemon = Daemon(node, bus.address, folder / "memory", prefix=run)
        with daemon:
            _memory(report, daemon)


def _start(report: Report, node: Node, bus: PrivateBus, folder: Path) -> None:
    """From exec to READY=1, with the first look at eight GPUs in it."""
    taken = []
    for number in range(_STARTS):
        path = str(folder / f"notify-{number}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(path)
            listener.settimeout(30)
            os.environ["NOTIFY_SOCKET"] = path
            daemon = Daemon(node, bus.address, folder / f"start-{number}")
            begun = time.perf_counter()
            daemon.launch()
            while b"READY=1" not in listener.recv(4096):
                pass
            taken.append(1000 * (time.perf_counter() - begun))
            del os.environ["NOTIFY_SOCKET"]
            daemon.stop()
    report.add("start", Row("exec to READY", statistics.median(taken), "ms", f"of {_STARTS}"))


def _generator(report: Report, folder: Path) -> None:
    """As systemd runs it at each boot and each reload, with the packaged list of clients."""
    # As a script, which is compiled each time, but for where the files are.
    script = "import sys; g = {}; exec(compile(open(sys.argv[1]).read(), '', 'exec'), g); "
    script += "g['generate'](*sys.argv[2:])"
    packaged = Path(__file__).parents[2] / "packaging/defaults"
    arguments = (_GENERATOR, str(folder), "/nowhere", str(packaged))

    def took(*command: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-IB", *command], check=True)
        return 1000 * (time.perf_counter() - begun)

    taken = [took("-c", script, *arguments) for _ in range(_GENERATED)]
    bare = [took("-c", "pass") for _ in range(_GENERATED)]
    report.add(
        "start",
        Row("generator", statistics.median(taken), "ms", f"median of {_GENERATED}"),
        Row("Python alone", statistics.median(bare), "ms", f"median of {_GENERATED}"),
    )


def _memory(report: Report, daemon: Daemon) -> None:
    daemon.plan(_ALL)
    (worker,) = daemon.worker_pids()
    rows = [
        Row("worker, busy", resident(worker), "MB", "RSS; there only while needed"),
        Row("worker, busy, its own", _private(worker), "MB", "private pages"),
    ]
    for config in (_ALL, "all-balanced", "all-disabled"):
        daemon.applied(config)
    rows.append(Row("daemon, after three jobs", resident(daemon.pid), "MB", "RSS"))
    wait_for(lambda: not daemon.worker_pids(), timeout=20, what="the worker stays")
    rows.append(Row("daemon, idle", resident(daemon.pid), "MB", "RSS"))
    rows.append(Row("daemon, idle, its own", _private(daemon.pid), "MB", "private pages"))
    report.add("memory", *rows)
    before = wakeups(daemon.pid)
    time.sleep(_IDLE_S)
    count = wakeups(daemon.pid) - before
    report.add("idle", Row("wake-ups without a watchdog", count, "", f"in {_IDLE_S:g} s"))


def resident(pid: int) -> float:
    """RSS in MB."""
    return _smaps(pid, ("Rss",))


def _private(pid: int) -> float:
    return _smaps(pid, ("Private_Clean", "Private_Dirty"))


def _smaps(pid: int, names: tuple[str, ...]) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = sum(int(line.split()[1]) for line in lines if line.split(":")[0] in names)
    return kib * 1024 / 1e6


def wakeups(pid: int) -> int:
    """How often all its threads have gone to sleep by themselves."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    count += int(line.split()[1])
    return count
