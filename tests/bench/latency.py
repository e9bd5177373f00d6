"""How long callers wait: a property, a plan, an apply with nothing to do; eight GPUs."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from migd import names
from migd.bus.connection import Connection, connect
from tests.bench.table import Report, Row, percentile
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon
from tests.support.node import Node, wait_for

_READS, _PLANS, _COLD, _APPLIES = 2000, 100, 10, 50
_PROPERTIES = "org.freedesktop.DBus.Properties"

Call = Callable[[Connection], Awaitable[object]]


def measure(report: Report, folder: Path) -> None:
    node = Node.new(folder / "node", ("h100-80gb-sxm5", 8))
    with PrivateBus() as bus, Daemon(node, bus.address, folder / "daemon") as daemon:
        daemon.applied("all-balanced")
        asyncio.run(_warm(report, bus.address))
        cold = []
        for _ in range(_COLD):
            wait_for(lambda: not daemon.worker_pids(), timeout=20, what="the worker stays")
            cold += asyncio.run(_times(bus.address, 1, _plan))
        _add(report, "Plan, cold (worker started)", cold)


async def _warm(report: Report, address: str) -> None:
    for name, count, call in (
        ("property read", _READS, read),
        ("Plan, warm", _PLANS, _plan),
        ("Apply and WaitJob, nothing to do, warm", _APPLIES, _nothing),
    ):
        await _times(address, 3, call)
        _add(report, name, await _times(address, count, call))


async def _times(address: str, count: int, call: Call) -> list[float]:
    """Milliseconds of each call, one after the other, on a connection that is there."""
    connection = await connect(address, timeout_s=10)
    taken = []
    try:
        for _ in range(count):
            begun = time.perf_counter()
            await call(connection)
            taken.append(1000 * (time.perf_counter() - begun))
    finally:
        connection.close()
    return taken


def _add(report: Report, name: str, taken: list[float]) -> None:
    for share in (0.5, 0.99):
        row = Row(f"{name}, p{100 * share:g}", percentile(taken, share), "ms", f"of {len(taken)}")
        report.add("latency of a call, both ends in Python", row)


async def manager(connection: Connection, member: str, signature: str, *body: object) -> list[Any]:
    """The values that a method of the manager answers with."""
    return await connection.call(
        names.BUS_NAME, names.ROOT, names.MANAGER, member, signature, body, timeout_s=60
    )


async def read(connection: Connection) -> object:
    return await connection.call(
        names.BUS_NAME, names.ROOT, _PROPERTIES, "Get", "ss", [names.MANAGER, "Match"]
    )


async def _plan(connection: Connection) -> object:
    return await manager(connection, "Plan", "sa{sv}", "all-1g.20gb", {})


async def _nothing(connection: Connection) -> object:
    number, _ = await manager(connection, "Apply", "sa{sv}", "all-balanced", {})
    return await manager(connection, "WaitJob", "u", number)
