"""Jobs that have ended: the last 64, over restarts, and ids that never come again."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from migd import names
from tests.bus.manager import H100, World, entry, layout, listening, mig_uuids, world
from tests.support.bus import run
from tests.support.daemon import no_process_left

__all__ = ["no_process_left"]  # a fixture

CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"


@pytest.fixture
def two(tmp_path: Path, no_process_left: None) -> Iterator[World]:
    with world(tmp_path, (H100, 2)) as made:
        yield made


def test_unknown_ids(two: World) -> None:
    for number in (0, 1, 77, 0xFFFFFFFF):
        name, message = two.daemon.refused("WaitJob", "u", number)
        assert name == f"{names.ERROR}.NoSuchJob"
        assert str(number) in message


def test_the_last_64_also_over_a_restart(two: World) -> None:
    daemon = two.daemon

    async def many() -> list[int]:
        async with listening(two) as caller:
            return [(await caller.apply("all-disabled"))[0] for _ in range(70)]

    two.put("all-1g.10gb")
    two.put("all-disabled")
    ids = run(many(), timeout_s=60)
    assert ids == sorted(set(ids))
    answers: dict[int, object] = {}
    for again in range(2):
        (jobs,) = daemon.call("ListJobs", "a{sv}", {})
        assert [j["id"] for j in jobs] == ids[:-65:-1]
        for number in (ids[-64], ids[-1]):
            answer = daemon.wait(number)
            assert answer[0] == "done"
            assert answers.setdefault(number, answer) == answer
        for number in (ids[0], ids[-65]):
            assert daemon.refused("WaitJob", "u", number)[0] == f"{names.ERROR}.NoSuchJob"
        if not again:
            daemon.restart()


def test_ids_never_come_again(two: World) -> None:
    daemon = two.daemon
    ids = []
    for config in ("all-1g.10gb", "all-balanced", "all-balanced", "all-disabled"):
        for end in ("stop", "kill", "kill in the middle"):
            number, _ = daemon.apply(config)
            ids.append(number)
            if end == "kill in the middle":
                daemon.kill()
            else:
                assert daemon.wait(number)[0] == "done"
                getattr(daemon, end)()
            daemon.start()
            daemon.call("ListJobs", "a{sv}", {})
    assert ids == sorted(set(ids))


def test_a_job_cut_short_is_told_of_by_the_next_daemon(two: World) -> None:
    daemon, node = two.daemon, two.node
    two.put("all-balanced")
    before = node.gpus()
    node.latency(CREATE, 100)
    number, path = daemon.apply("all-1g.10gb")
    daemon.kill()
    node.latency(profile="none")

    async def main() -> None:
        async with listening(two) as caller:
            daemon.launch()
            await caller.until(lambda: caller.signals("JobRemoved"))
            (removed,) = caller.body("JobRemoved")
            assert removed[:4] == [number, path, "apply", "interrupted"]
            assert not caller.signals("JobNew")  # that was told by the daemon before
            assert await caller.wait(number) == ("interrupted", removed[4])

    run(main(), timeout_s=60)
    assert [layout(g) for g in node.gpus()] == [layout(g) for g in before]
    assert [mig_uuids(g) for g in node.gpus()] == [mig_uuids(g) for g in before]
    assert not daemon.journal.exists()


def test_told_to_end_in_the_middle_of_a_job(two: World) -> None:
    daemon, node = two.daemon, two.node
    two.put("all-balanced")
    before = node.gpus()
    node.latency(CREATE, 100)
    ended: list[object] = []

    async def main() -> int:
        async with listening(two) as caller:
            number, _ = await caller.apply("all-1g.10gb")
            waiting = asyncio.create_task(caller.wait(number))
            await asyncio.sleep(0)
            os.kill(daemon.pid, signal.SIGTERM)
            result, details = await waiting
            ended.extend(o["result"] for o in details["gpus"])
            assert result == "canceled"
            await caller.until(lambda: caller.signals("JobRemoved"))
            assert caller.body("JobRemoved")[0][3] == "canceled"
            return number

    number = run(main(), timeout_s=60)
    assert daemon.wait_exit() == 0
    assert ended == ["rolled-back", "rolled-back"]
    assert [layout(g) for g in node.gpus()] == [layout(g) for g in before]
    assert [mig_uuids(g) for g in node.gpus()] == [mig_uuids(g) for g in before]
    assert not daemon.journal.exists()
    node.latency(profile="none")
    daemon.start()
    assert daemon.wait(number)[0] == "canceled"
    assert set(daemon.property("Wanted").values()) == {"all-balanced"}
    assert daemon.property("Match") == "yes"


def test_what_was_wanted_outlives_the_daemon(two: World) -> None:
    daemon = two.daemon
    two.put("all-balanced", gpus=["0"])
    two.put(text=entry({}), gpus=["1"])
    wanted = daemon.property("Wanted")
    assert wanted == {two.uuid(0): "all-balanced", two.uuid(1): "(text)"}
    before = two.node.gpus()
    for end in ("stop", "kill"):
        getattr(daemon, end)()
        daemon.start()
        assert daemon.property("Wanted") == wanted
        assert daemon.property("Match") == "yes"
        assert two.node.gpus() == before
