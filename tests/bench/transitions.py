"""What changing a node takes, beside the least that any tool could need for it.

The least is counted from the simulator's own state before and after: what is not there any more
must have been destroyed, what is new created, a mode that differs switched, each at the latency
that the simulator charges; the slowest GPU's sum, or where one lock serves the node, that of all.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migd.bus.connection import connect
from tests.bench.latency import manager
from tests.bench.table import Report, Row
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon
from tests.support.node import Node

_ROUNDS = 3
_DESTROY_GI, _DESTROY_CI = "nvmlGpuInstanceDestroy", "nvmlComputeInstanceDestroy"
_CREATE_GI = "nvmlDeviceCreateGpuInstanceWithPlacement"
_CREATE_CI = "nvmlGpuInstanceCreateComputeInstance"
_MODE = "nvmlDeviceSetMigMode"


@dataclass(frozen=True)
class Transition:
    """From one configuration to another; text configurations by the names below."""

    name: str
    start: str
    end: str


def _entry(devices: str, instances: str) -> str:
    return f"  - devices: {devices}\n    mig-enabled: true\n    mig-devices: {instances}\n"


_CONFIGS = "version: v1\nmig-configs:\n" + "".join(
    f"  {name}:\n{entries}"
    for name, entries in {
        "sliced": _entry("all", "{1g.10gb: 7}"),
        "balanced": _entry("all", "{1g.10gb: 2, 2g.20gb: 1, 3g.40gb: 1}"),
        "one-gpu-of-eight": _entry("[0]", "{3g.40gb: 2}")
        + _entry("[1,2,3,4,5,6,7]", "{1g.10gb: 2, 2g.20gb: 1, 3g.40gb: 1}"),
        "one-instance": _entry("[0]", "{1g.10gb: 1, 2g.20gb: 1, 3g.40gb: 1}")
        + _entry("[1,2,3,4,5,6,7]", "{1g.10gb: 2, 2g.20gb: 1, 3g.40gb: 1}"),
        "hard": _entry("all", "{4g.40gb: 1, 1g.20gb: 1, 1g.10gb: 2}"),
    }.items()
)
_TRANSITIONS = (
    Transition("off to 7 x 1g", "all-disabled", "sliced"),
    Transition("7 x 1g to balanced", "sliced", "balanced"),
    Transition("one GPU of eight", "balanced", "one-gpu-of-eight"),
    Transition("one instance", "balanced", "one-instance"),
    Transition("off to 4g + 1g.20gb + 2 x 1g", "all-disabled", "hard"),
    Transition("balanced to off", "balanced", "all-disabled"),
    Transition("nothing to change", "balanced", "balanced"),
)


def measure(report: Report, folder: Path) -> None:
    for lock in ("gpu", "node"):
        node = Node.new(folder / lock, ("h100-80gb-sxm5", 8))
        node.latency(lock=lock)
        where = folder / f"{lock}-daemon"
        with (
            PrivateBus() as bus,
            Daemon(node, bus.address, where, config=_CONFIGS) as daemon,
        ):
            for transition in _TRANSITIONS:
                _one(report, node, daemon, transition, lock)


def _one(report: Report, node: Node, daemon: Daemon, transition: Transition, lock: str) -> None:
    taken: list[float] = []
    calls, least_calls, least_ms = 0, 0, 0.0
    for _ in range(_ROUNDS):
        node.latency(profile="none")
        daemon.applied(transition.start)
        before = node.gpus()
        made = node.mutating_calls()
        node.latency(profile="default")
        taken.append(asyncio.run(_applied(daemon.address, transition.end)))
        calls = node.mutating_calls() - made
        least_calls, least_ms = _least(node, before, node.gpus(), lock)
    section = f"transitions of 8 x H100, one lock a {'GPU' if lock == 'gpu' else 'node'}"
    median = sorted(taken)[len(taken) // 2]
    row = Row(
        transition.name,
        median / least_ms if least_ms else median,
        "x" if least_ms else "ms",
        f"{median:.0f} ms, least {least_ms:.0f}; {calls} mutating calls, least {least_calls}",
        modelled=bool(least_ms),
    )
    report.add(section, row)


async def _applied(address: str, config: str) -> float:
    """Milliseconds from asking on a connection that is there to the end of the job."""
    connection = await connect(address, timeout_s=10)
    try:
        begun = time.perf_counter()
        number, _ = await manager(connection, "Apply", "sa{sv}", config, {})
        result, _ = await manager(connection, "WaitJob", "u", number)
        assert result == "done", (config, result)
        return 1000 * (time.perf_counter() - begun)
    finally:
        connection.close()


def _least(
    node: Node, before: list[dict[str, Any]], after: list[dict[str, Any]], lock: str
) -> tuple[int, float]:
    """The mutating calls that cannot be done without, and their milliseconds."""
    charged = node.show()["latencies"]

    def cost(call: str) -> float:
        resetless = charged.get(f"{call}@resetless", charged.get(call, {"ms": 0}))
        return float(resetless["ms"])

    sums = []
    count = 0
    for old, new in zip(before, after, strict=True):
        had = {_identity(i): len(i["compute_instances"]) for i in old["instances"]}
        has = {_identity(i): len(i["compute_instances"]) for i in new["instances"]}
        gone = [n for key, n in had.items() if key not in has]
        come = [n for key, n in has.items() if key not in had]
        switched = old["mode"]["current"] != new["mode"]["current"]
        count += len(gone) + sum(gone) + len(come) + sum(come) + switched
        sums.append(
            len(gone) * cost(_DESTROY_GI)
            + sum(gone) * cost(_DESTROY_CI)
            + len(come) * cost(_CREATE_GI)
            + sum(come) * cost(_CREATE_CI)
            + switched * cost(_MODE)
        )
    return count, max(sums) if lock == "gpu" else sum(sums)


def _identity(instance: dict[str, Any]) -> tuple[int, int]:
    return instance["profile_id"], instance["placement"]["start"]
