"""The real daemon under many callers, rude callers, and without its bus."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from dbus_next.constants import MessageFlag
from dbus_next.message import Message

from migd import names
from migd.bus.values import to_wire
from tests.bus.manager import (
    H100,
    PROPERTIES,
    Listener,
    World,
    layout,
    listening,
    mig_uuids,
    world,
)
from tests.support.bus import PrivateBus, run
from tests.support.daemon import Daemon, no_process_left, options
from tests.support.node import Node, wait_for

__all__ = ["no_process_left"]  # a fixture

CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("load"), (H100, 4)) as made:
        yield made


@pytest.fixture
def four(shared: World) -> World:
    shared.clean()
    return shared


def test_forty_clients_get_their_own_answers(four: World) -> None:
    finished = [four.daemon.apply("all-disabled", gpus=[str(n % 4)])[0] for n in range(8)]
    uuids = [four.uuid(n) for n in range(4)]
    four.put("all-1g.10gb", gpus=["0"])

    async def client_of(caller: Listener, number: int) -> Counter[str]:
        dice = random.Random(number)
        done: Counter[str] = Counter()
        for turn in range(12):
            kind = dice.choice(["index", "plan", "wait", "config", "gpu", "unknown"])
            done[kind] += 1
            gpu = (number + turn) % 4
            if kind == "index":
                path = names.gpu_path(uuids[gpu])
                assert await caller.get("Index", path, names.GPU) == gpu
            elif kind == "plan":
                summary, steps = await caller.call(
                    "Plan", "sa{sv}", "all-balanced", options({"gpus": [str(gpu)]})
                )
                assert summary["gpus"] == [uuids[gpu]]
                assert {s["index"] for s in steps} == {gpu}
            elif kind == "wait":
                which = dice.randrange(len(finished))
                _, details = await caller.wait(finished[which])
                assert [o["index"] for o in details["gpus"]] == [which % 4]
            elif kind == "config":
                name = dice.choice(["all-disabled", "all-balanced", "all-3g.40gb"])
                (text,) = await caller.call("GetConfig", "s", name)
                assert f"\n  {name}:\n" in text
            elif kind == "gpu":
                (path,) = await caller.call("GetGpu", "s", str(gpu))
                assert path == names.gpu_path(uuids[gpu])
            else:
                error, message = await caller.refused("WaitJob", "u", 900_000 + number)
                assert error == f"{names.ERROR}.NoSuchJob"
                assert str(900_000 + number) in message
        return done

    async def main() -> Counter[str]:
        async with AsyncExitStack() as stack:
            callers = [await stack.enter_async_context(listening(four)) for _ in range(40)]
            done = await asyncio.gather(*(client_of(c, n) for n, c in enumerate(callers)))
            return sum(done, Counter())

    done = run(main(), timeout_s=120)
    assert done.total() == 40 * 12
    assert len(done) == 6


def test_a_thousand_reads_and_two_hundred_plans(four: World) -> None:
    async def main() -> None:
        async with listening(four) as reader, listening(four) as planner:
            reads = [asyncio.create_task(reader.get("Version")) for _ in range(1000)]
            plans = [
                asyncio.create_task(planner.call("Plan", "sa{sv}", "all-1g.10gb", {}))
                for _ in range(200)
            ]
            assert len(set(await asyncio.gather(*reads))) == 1
            # Who only reads does not wait for those who have the node observed.
            assert not all(p.done() for p in plans)
            answers = await asyncio.gather(*plans)
            assert len({summary["digest"] for summary, _ in answers}) == 1
            assert all(steps == answers[0][1] for _, steps in answers)

    run(main(), timeout_s=120)


def test_a_flood_from_one_who_never_reads(four: World) -> None:
    async def main() -> None:
        async with listening(four) as good:
            reader, writer = await asyncio.open_unix_connection(four.bus.socket)
            try:
                await hello(reader, writer)
                for serial in range(2, 5002):
                    message = (
                        Message.new_signal(
                            names.ROOT, "org.example1.Noise", "Made", "s", ["x" * 50]
                        )
                        if serial % 2
                        else Message(
                            path=names.ROOT,
                            interface="org.freedesktop.DBus.ObjectManager",
                            member="GetManagedObjects",
                        )
                    )
                    message.destination = names.BUS_NAME
                    message.serial = serial
                    writer.write(message._marshall())  # type: ignore[no-untyped-call]
                pauses: list[float] = []
                while len(pauses) < 50:
                    begun = asyncio.get_running_loop().time()
                    assert await good.get("Version")
                    pauses.append(asyncio.get_running_loop().time() - begun)
                assert sorted(pauses)[25] < 5
                number, _ = await good.apply("all-balanced")
                assert (await good.wait(number))[0] == "done"
            finally:
                writer.close()

    run(main(), timeout_s=120)
    assert four.daemon.call("ListJobs", "a{sv}", {})


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Become a client of the bus by hand, one that will not read any more."""
    writer.write(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    assert (await reader.readline()).startswith(b"OK")
    message = Message(
        destination="org.freedesktop.DBus",
        path="/org/freedesktop/DBus",
        interface="org.freedesktop.DBus",
        member="Hello",
    )
    message.serial = 1
    writer.write(b"BEGIN\r\n" + message._marshall())  # type: ignore[no-untyped-call]
    await reader.read(1)


def test_calls_that_want_no_reply(four: World) -> None:
    async def main() -> None:
        async with listening(four) as caller:
            for _ in range(200):
                caller.client.connection.send(
                    Message(
                        destination=names.BUS_NAME,
                        path=names.ROOT,
                        interface=PROPERTIES,
                        member="Get",
                        signature="ss",
                        body=to_wire("ss", [names.MANAGER, "Version"]),
                        flags=MessageFlag.NO_REPLY_EXPECTED,
                    )
                )
            assert await caller.get("Version")

    run(main())


def test_no_descriptor_is_left_over(four: World) -> None:
    async def requests(count: int) -> None:
        async with listening(four) as caller:
            for number in range(count):
                match number % 8:
                    case 0 | 1:
                        await caller.get("Configs")
                    case 2:
                        await caller.call("Plan", "sa{sv}", "all-1g.10gb", {})
                    case 3:
                        await caller.refused("Plan", "sa{sv}", "nope", {})
                    case 4:
                        job, _ = await caller.apply(
                            f"all-{('balanced', 'disabled')[number % 16 > 7]}"
                        )
                        await caller.wait(job)
                    case 5:
                        await caller.call("Export", "a{sv}", {})
                    case 6:
                        await caller.call("Reload")
                    case _:
                        await caller.objects()

    run(requests(16), timeout_s=60)
    before = four.daemon.descriptors()
    run(requests(200), timeout_s=120)
    assert len(four.daemon.descriptors()) <= len(before)


# -- the end of the bus ------------------------------------------------------------------------


@pytest.mark.usefixtures("no_process_left")
@pytest.mark.parametrize("working", [False, True])
def test_the_bus_dies(tmp_path: Path, *, working: bool) -> None:
    node = Node.new(tmp_path / "node", (H100, 2))
    bus = PrivateBus()
    try:
        daemon = Daemon(node, bus.address, tmp_path).start()
        made = World(node, bus, daemon)
        made.put("all-balanced")
        before = node.gpus()
        number = 0
        if working:
            node.latency(CREATE, 100)
            number, _ = daemon.apply("all-1g.10gb")
        worker = daemon.worker_pids()
        assert worker
        bus.kill()
        assert daemon.wait_exit() != 0
        wait_for(lambda: not node.show()["sessions"], what="the worker stays")
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in worker))
        assert "migd ends" in daemon.log
    finally:
        bus.close()
    node.latency(profile="none")
    with PrivateBus() as new, Daemon(node, new.address, tmp_path) as again:
        if working:
            result, _ = again.wait(number)
            assert result in ("done", "canceled", "interrupted")
        layouts_now = [layout(g) for g in node.gpus()]
        full = [("enabled", tuple((19, start, 1, (0,)) for start in range(7)))] * 2
        # Never between: all new, or all as before with the same UUIDs.
        if layouts_now != full:
            assert layouts_now == [layout(g) for g in before]
            assert [mig_uuids(g) for g in node.gpus()] == [mig_uuids(g) for g in before]
        World(node, new, again).put("all-1g.10gb")
        assert [layout(g) for g in node.gpus()] == full


@pytest.mark.usefixtures("no_process_left")
def test_no_bus_at_the_start(tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", (H100, 1))
    daemon = Daemon(node, f"unix:path={tmp_path}/none", tmp_path)
    daemon.launch()
    assert daemon.wait_exit() == 1
    assert "cannot connect" in daemon.log
    assert "Traceback" not in daemon.log


@pytest.mark.usefixtures("no_process_left")
def test_a_second_daemon_on_one_bus(tmp_path: Path) -> None:
    with world(tmp_path / "first", (H100, 1)) as made:
        second = Daemon(made.node, made.bus.address, tmp_path / "second")
        second.launch()
        assert second.wait_exit() == 1
        assert "is owned by another program" in second.log
        assert "Traceback" not in second.log
        made.put("all-1g.10gb")
