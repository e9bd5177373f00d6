"""What there is of everything, minute by minute, and whether it became more."""

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migd import names
from migd.bus.connection import BUS, BUS_PATH
from tests.bench.process import wakeups
from tests.soak.stage import Stage
from tests.support.node import wait_for

_IDLE_S = 3.0
_JOURNAL = ("journalctl", "--quiet", "--unit=migd.service", "--output=cat")
_CURSOR = "--cursor-file=/run/soak.cursor"
# What migd says where it has met a bug of its own.
_BUGS = ("Traceback (most recent", "never retrieved", "was never awaited", "Task was destroyed")


@dataclass(frozen=True)
class Metric:
    """most: how much the median of the last quarter may be above that of the first.

    life: it begins anew with each migd, so only one life is judged; share: `most` also as a part
    of the first, the smaller of the two counts
    floor: the least of a quarter instead: what requests take and give back comes and goes
    """

    name: str
    unit: str
    most: float
    life: bool = False
    share: float = 0.0
    floor: bool = False


# asyncio's pool starts threads when it needs one more, up to so many, and keeps them.
_POOL = (os.cpu_count() or 1) + 4
METRICS = (
    Metric("memory (RSS)", "KiB", 4096, life=True, share=0.05, floor=True),
    Metric("memory of its own", "KiB", 4096, life=True, share=0.08, floor=True),
    Metric("descriptors", "", 0, life=True),
    Metric("threads", "", _POOL, life=True),
    Metric("inotify watches", "", 0, life=True),
    Metric("match rules on the bus", "", 0, life=True),
    Metric("wake-ups in 3 quiet s", "", 6, life=True),
    Metric("units of systemd", "", 2),
    Metric("transient units", "", 0),
    Metric("units that failed", "", 0),
    Metric("processes", "", 1),
    Metric("zombies", "", 0),
    Metric("workers", "", 0),
    Metric("holders nobody knows", "", 0),
    Metric("files in /run/migd", "", 0),
    Metric("files in /var/lib/migd", "", 0),
    Metric("size of the state", "KiB", 128),
    Metric("lines of log a round", "", 20),
)


@dataclass(frozen=True)
class Sample:
    """values: by the names of METRICS; life: migd's pid."""

    life: int
    values: dict[str, float]


@dataclass(frozen=True)
class Trend:
    """first, last: of the quarters; bound: what the last may be at most; most: of all."""

    metric: Metric
    first: float
    last: float
    bound: float
    most: float

    @property
    def holds(self) -> bool:
        return self.last <= self.bound


def trends(samples: Sequence[Sample]) -> list[Trend]:
    """Of each metric; of what begins anew with each migd, over the life of the last one."""
    life = [s for s in samples if s.life == samples[-1].life]
    found = []
    for metric in METRICS:
        values = [s.values[metric.name] for s in (life if metric.life else samples)]
        quarter = max(1, len(values) // 4)
        figure = min if metric.floor else statistics.median
        first, last = figure(values[:quarter]), figure(values[-quarter:])
        room = min(metric.most, metric.share * first) if metric.share else metric.most
        found.append(Trend(metric, first, last, first + room, max(values)))
    return found


def table(found: Sequence[Trend]) -> str:
    lines = [f"{'':<26}{'first':>10}{'last':>10}{'most':>10}{'bound':>10}  verdict"]
    for trend in found:
        figures = "".join(f"{v:>10.0f}" for v in (trend.first, trend.last, trend.most, trend.bound))
        verdict = "holds" if trend.holds else "GROWS"
        lines.append(f"{trend.metric.name:<26}{figures}  {verdict} {trend.metric.unit}".rstrip())
    return "\n".join(lines)


class Sampler:
    """Looks when all is quiet: no job is at work and nothing is asked."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._rounds = 0
        self.bugs: list[str] = []

    def take(self, rounds: int, known: int) -> Sample:
        """rounds: so far; known: holders that are there because a test wants them."""
        host, pid = self._stage.host, self._stage.pid
        outer = self._stage.outer(pid)
        with suppress(AssertionError):
            wait_for(lambda: not self._stage.workers(pid), timeout=15)
        woken = wakeups(outer)
        time.sleep(_IDLE_S)
        status = _status(Path(f"/proc/{outer}/status"))
        units = host.systemctl("list-units", "--all", "--plain", "--no-legend").splitlines()
        states = [line.split()[2] for line in units]
        transient = self._names("/run/systemd/transient")
        running, zombies = self._processes()
        state = self._stage.path(f"{names.STATE_DIR}/{names.STATE_FILE}")
        lines = self.read_log(rounds)
        return Sample(
            pid,
            {
                "memory (RSS)": status["VmRSS"],
                "memory of its own": status["RssAnon"],
                "descriptors": len(list(Path(f"/proc/{outer}/fd").iterdir())),
                "threads": status["Threads"],
                "inotify watches": _watches(outer),
                "match rules on the bus": self._rules(),
                "wake-ups in 3 quiet s": wakeups(outer) - woken,
                "units of systemd": len(units),
                "transient units": len([n for n in transient if n.startswith("migd")]),
                "units that failed": states.count("failed"),
                "processes": running,
                "zombies": zombies,
                "workers": len(self._stage.workers(pid)),
                "holders nobody knows": self._holders() - known,
                "files in /run/migd": len(self._names(names.RUNTIME_DIR)),
                "files in /var/lib/migd": len(self._names(names.STATE_DIR)),
                "size of the state": state.stat().st_size / 1024,
                "lines of log a round": lines,
            },
        )

    def _names(self, folder: str) -> list[str]:
        path = self._stage.path(folder)
        return [entry.name for entry in path.iterdir()] if path.exists() else []

    def _processes(self) -> tuple[int, int]:
        states = []
        for folder in self._stage.path("/proc").iterdir():
            with suppress(OSError):
                if folder.name.isdecimal():
                    states.append((folder / "stat").read_text().rpartition(")")[2].split()[0])
        return len(states), states.count("Z")

    def _holders(self) -> int:
        return sum(len(gpu["holders"]) for gpu in self._stage.node.gpus())

    def _rules(self) -> int:
        """Of migd's connection, as dbus-daemon counts them."""
        (owner,) = self._bus("GetNameOwner", BUS)
        (stats,) = self._bus("GetConnectionStats", f"{BUS}.Debug.Stats", owner)
        return int(stats["MatchRules"])

    def _bus(self, member: str, interface: str, name: str = names.BUS_NAME) -> list[Any]:
        return self._stage.host.call(
            member, "s", name, destination=BUS, path=BUS_PATH, interface=interface
        )

    def read_log(self, rounds: int) -> float:
        """Lines a round since the last look; bugs are kept."""
        lines = self._stage.host.run(*_JOURNAL, _CURSOR, check=False).stdout.splitlines()
        for number, line in enumerate(lines):
            if any(bug in line for bug in _BUGS):
                self.bugs.append("\n".join(lines[max(0, number - 2) : number + 30]))
        since, self._rounds = max(1, rounds - self._rounds), rounds
        return len(lines) / since


def _status(path: Path) -> dict[str, int]:
    """Of proc_pid_status(5): what is a number, in KiB where it has a unit."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if (words := value.split()) and words[0].isdecimal():
            found[name] = int(words[0])
    return found


def _watches(pid: int) -> int:
    count = 0
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):
            count += entry.read_text().count("inotify wd:")
    return count
