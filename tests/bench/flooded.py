"""How long one user waits for a property while another user floods the bus: that of a host."""

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dbus_next.signature import Variant

from migd.bus.connection import BusError, connect
from tests.bench.latency import read
from tests.bench.table import Report, Row, percentile
from tests.support.bus import SystemBus
from tests.support.daemon import Daemon
from tests.support.hostile import DAEMON, NOBODY, OBJECT_MANAGER, VERSION, Raw, as_user, call
from tests.support.node import Node, wait_for

_READS, _SECONDS = 1000, 8.0
_SERIALS = range(2, 130)


def _text() -> bytes:
    text = "a: [" + "&a 1," * 170_000 + "]"
    return call("Plan", "sa{sv}", ["", {"text": Variant("s", text)}], reply=False)


def _megabytes() -> bytes:
    return call("Plan", "sa{sv}", ["", {"text": Variant("ay", b"x" * (28 << 20))}], reply=False)


# By name: what is sent again and again, and on how many connections.
_FLOODS: dict[str, tuple[Callable[[], bytes], int]] = {
    "property reads": (lambda: b"".join(call(*VERSION, serial=n) for n in _SERIALS), 4),
    "reads that want no answer": (lambda: 200 * call(*VERSION, reply=False), 1),
    "reads of all objects": (
        lambda: b"".join(
            call("GetManagedObjects", "", [], OBJECT_MANAGER, serial=n) for n in _SERIALS
        ),
        4,
    ),
    "plans": (
        lambda: b"".join(
            call("Plan", "sa{sv}", ["all-1g.10gb", {}], serial=n) for n in _SERIALS
        ),
        4,
    ),
    "plans of 1 MiB of text": (_text, 1),
    "messages of 28 MB": (_megabytes, 1),
}  # fmt: skip


def measure(report: Report, folder: Path) -> None:
    if os.geteuid() != 0:
        print("\na flood by another user is not measured: that needs root")
        return
    node = Node.new(folder / "node", ("h100-80gb-sxm5", 8))
    with SystemBus() as bus, Daemon(node, bus.address, folder / "daemon") as daemon:
        daemon.applied("all-1g.10gb")
        _add(report, "nobody else", asyncio.run(_times(bus.address)))
        for name, (messages, connections) in _FLOODS.items():
            with _flood(bus.socket, messages(), connections):
                _add(report, name, asyncio.run(_times(bus.address)))
            wait_for(lambda: not daemon.worker_pids(), what="the worker stays")


def _add(report: Report, name: str, taken: list[float]) -> None:
    refused = taken.count(-1)
    times = [t for t in taken if t >= 0]
    note = f"of {len(times)}" + (f"; {refused} refused by the bus" if refused else "")
    for share in (0.5, 0.99):
        row = Row(f"{name}, p{100 * share:g}", percentile(times, share), "ms", note)
        report.add("latency of a property read while another user sends", row)


async def _times(address: str) -> list[float]:
    """Milliseconds of each read, one after the other; -1 where the bus had no room for the call."""
    with as_user(DAEMON):
        connection = await connect(address, timeout_s=30)
    taken: list[float] = []
    end = time.monotonic() + _SECONDS
    try:
        while len(taken) < _READS and (time.monotonic() < end or not taken):
            begun = time.perf_counter()
            try:
                await read(connection)
                taken.append(1000 * (time.perf_counter() - begun))
            except BusError:
                taken.append(-1)
    finally:
        connection.close()
    return taken


@contextmanager
def _flood(path: str, messages: bytes, connections: int) -> Iterator[None]:
    """A process of another user that sends as fast as the bus takes it, and reads what comes."""
    context = multiprocessing.get_context("fork")
    flooding = context.Event()
    process = context.Process(
        target=_send_for_ever, args=(path, messages, connections, flooding.set), daemon=True
    )
    process.start()
    try:
        assert flooding.wait(30)
        yield
    finally:
        process.kill()
        process.join()


def _send_for_ever(
    path: str, messages: bytes, connections: int, flooding: Callable[[], None]
) -> None:
    raws = [Raw(path, NOBODY) for _ in range(connections)]
    for raw in raws:
        raw.socket.settimeout(None)
        raw.send(messages)
        threading.Thread(target=_read_for_ever, args=(raw,), daemon=True).start()
    flooding()
    while True:
        for raw in raws:
            raw.send(messages)


def _read_for_ever(raw: Raw) -> None:
    with suppress(OSError):
        while raw.socket.recv(2**18):
            pass
