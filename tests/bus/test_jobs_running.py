"""A job while it runs: what is told of it, in which order, and how it is canceled."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from migd import names
from migd.bus.connection import BUS
from migd.core.job import Phase
from tests.bus.manager import (
    H100,
    OBJECT_MANAGER,
    World,
    changing_calls,
    document,
    entry,
    layout,
    layouts,
    listening,
    mig_uuids,
    world,
)
from tests.support.bus import run
from tests.support.daemon import options

CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
# GPU 0 needs one new instance, the others five: so it is finished long before them.
UNEVEN = document(
    {
        "uneven": [
            ("all", {"1g.10gb": 7}),
            ("[0]", {"1g.10gb": 1, "1g.10gb.me": 1, "2g.20gb": 1, "3g.40gb": 1}),
        ]
    }
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("four"), (H100, 4)) as made:
        yield made


@pytest.fixture
def four(shared: World) -> World:
    """All GPUs balanced, and a configuration that is quick for GPU 0 and slow for the others."""
    shared.clean()
    shared.daemon.configure(UNEVEN)
    shared.daemon.call("Reload")
    shared.put("all-balanced")
    return shared


def reached(made: World, count: int) -> bool:
    """Whether so many GPUs are finished: it is in the journal then."""
    journal = made.daemon.journal
    return journal.exists() and journal.read_bytes().count(b'["reached"') >= count


def test_one_job_at_a_time(four: World) -> None:
    async def main() -> None:
        async with listening(four) as caller:
            four.node.latency(CREATE, 100)
            number, path = await caller.apply("uneven")
            calls = sum(changing_calls(four.node).values())
            for config in ("all-disabled", "uneven", "nope"):
                name, message = await caller.refused("Apply", "sa{sv}", config, {})
                assert name == f"{names.ERROR}.Busy"
                assert path in message
            assert calls <= sum(changing_calls(four.node).values())
            # Who only asks is answered meanwhile.
            assert (await caller.call("Plan", "sa{sv}", "all-disabled", {}))[1]
            assert await caller.get("Job") == path
            jobs: list[dict[str, Any]]
            (jobs,) = await caller.call("ListJobs", "a{sv}", {})
            assert (jobs[0]["id"], jobs[0]["result"], jobs[0]["end"]) == (number, "", 0)
            assert (jobs[0]["type"], jobs[0]["config"]) == ("apply", "uneven")
            assert [j["id"] for j in jobs] == sorted((j["id"] for j in jobs), reverse=True)
            assert all(j["result"] for j in jobs[1:])
            assert (await caller.wait(number))[0] == "done"
            assert await caller.get("Job") == "/"
            (jobs,) = await caller.call("ListJobs", "a{sv}", {})
            assert (jobs[0]["id"], jobs[0]["result"]) == (number, "done")
            assert jobs[0]["uid"] == os.getuid()
            assert 0 < jobs[0]["start"] <= jobs[0]["end"]
            assert jobs[0]["message"]

    run(main(), timeout_s=60)


def test_what_is_told_of_a_job(four: World) -> None:
    four.put("all-disabled")

    async def main() -> None:
        async with listening(four) as caller:
            four.node.latency("nvmlDeviceSetMigMode", 200)
            four.node.latency(CREATE, 80)
            _, steps = await caller.call("Plan", "sa{sv}", "uneven", {})
            number, path = await caller.apply("uneven")
            there = (await caller.objects())[path][names.JOB]
            assert (there["Id"], there["Type"], there["Config"]) == (number, "apply", "uneven")
            uuids = [g["uuid"] for g in four.node.gpus()]
            assert there["Gpus"] == uuids
            assert there["StartedByUid"] == os.getuid()
            assert there["Steps"] == len(steps)
            assert there["Cancelable"] is True
            at_work = [await caller.get("Job", names.gpu_path(u), names.GPU) for u in uuids]
            assert at_work == [path] * 4
            assert (await caller.wait(number))[0] == "done"
            await caller.client.ping(names.BUS_NAME)
            told = [
                m.body[1]
                for m in caller.signals("PropertiesChanged")
                if m.path == path and m.body[0] == names.JOB
            ]
            phases = [t["Phase"].value for t in told if "Phase" in t]
            ranks = [Phase(p).rank for p in ("journal", *phases)]
            assert ranks == sorted(ranks)
            assert {"mode", "change"} <= set(phases)
            done = [t["Step"].value for t in told if "Step" in t]
            assert done == sorted(done)
            assert done[-1] == len(steps)
            waited = [t["Waiting"].value for t in told if "Waiting" in t]
            assert any("switch MIG mode to enabled" in w for w in waited)
            assert any("create 1g.10gb" in w for w in waited)
            assert path not in await caller.objects()
            of_the_job = [
                (m.member, m.serial)
                for m in caller.signals()
                if m.interface == OBJECT_MANAGER and m.body[0] == path
            ]
            assert [member for member, _ in of_the_job] == ["InterfacesAdded", "InterfacesRemoved"]
            for uuid in uuids:
                assert await caller.get("Job", names.gpu_path(uuid), names.GPU) == "/"

    run(main(), timeout_s=60)


def test_the_order_of_signals_and_replies(four: World) -> None:
    async def main() -> None:
        async with listening(four) as caller:
            four.node.latency(CREATE, 30)
            applied = await caller.exchange("Apply", "sa{sv}", "uneven", {})
            number, path = applied.body
            waited = await caller.exchange("WaitJob", "u", number)
            await caller.client.ping(names.BUS_NAME)

            (new,) = caller.signals("JobNew")
            (removed,) = caller.signals("JobRemoved")
            assert new.body == [number, path, "apply"]
            assert removed.body[:4] == [number, path, "apply", "done"]
            assert removed.body[4] == waited.body[1]
            instances = [
                m for m in caller.signals() if m.interface == OBJECT_MANAGER and "/gi/" in m.body[0]
            ]
            job = {
                m.member: m.serial
                for m in caller.signals()
                if m.interface == OBJECT_MANAGER and m.body[0] == path
            }
            assert {m.member for m in instances} == {"InterfacesAdded", "InterfacesRemoved"}
            assert job["InterfacesAdded"] < new.serial < applied.serial
            assert applied.serial < min(m.serial for m in instances)
            assert max(m.serial for m in instances) < removed.serial
            assert removed.serial < job["InterfacesRemoved"] < waited.serial

    run(main(), timeout_s=60)


def test_a_job_with_nothing_to_do_is_told_too(four: World) -> None:
    async def main() -> None:
        async with listening(four) as caller:
            applied = await caller.exchange("Apply", "sa{sv}", "all-balanced", {})
            (new,) = caller.signals("JobNew")
            (removed,) = caller.signals("JobRemoved")
            assert new.serial < removed.serial < applied.serial
            number, path = applied.body
            assert removed.body[:4] == [number, path, "apply", "done"]
            assert removed.body[4]["changed"].value is False

    run(main())


def test_cancel_in_the_middle(four: World) -> None:
    node = four.node
    held = node.gpus()[1]["instances"][0]
    assert held["profile"] == "3g.40gb"

    async def main() -> None:
        async with listening(four) as caller:
            node.latency(CREATE, 100)
            before = node.gpus()
            number, path = await caller.apply("uneven")
            await caller.until(lambda: reached(four, 1))
            await caller.call("Cancel", path=path, interface=names.JOB)
            # Taken note of already, and not to be asked for twice.
            assert await caller.get("Cancelable", path, names.JOB) is False
            name, message = await caller.refused("Cancel", path=path, interface=names.JOB)
            assert name == f"{names.ERROR}.NotCancelable"
            assert str(number) in message

            result, details = await caller.wait(number)
            assert result == "canceled"
            assert [o["result"] for o in details["gpus"]] == ["done", *["rolled-back"] * 3]
            assert {o.get("error") for o in details["gpus"]} == {None, f"{names.ERROR}.Canceled"}
            assert not details["wanted"]
            after = node.gpus()
            assert layout(after[0]) != layout(before[0])
            for index in (1, 2, 3):
                assert layout(after[index]) == layout(before[index])
                assert mig_uuids(after[index]) == mig_uuids(before[index])
            assert caller.body("JobRemoved")[0][3] == "canceled"
            for which in (path, names.job_path(number + 1000)):
                name, _ = await caller.refused("Cancel", path=which, interface=names.JOB)
                assert name == f"{BUS}.Error.UnknownObject"

    run(main(), timeout_s=60)
    # What was wanted before still is; GPU 0 has what was settled on it.
    assert set(four.daemon.property("Wanted").values()) == {"all-balanced"}
    four.node.latency(profile="none")
    four.put("uneven")


def test_cancel_with_a_held_instance(four: World) -> None:
    node = four.node
    held = next(i for i in node.gpus()[1]["instances"] if i["profile"] == "1g.10gb")
    with node.hold(1, held["gi"]) as holder:

        async def main() -> None:
            async with listening(four) as caller:
                node.latency(CREATE, 100)
                before = node.gpus()
                number, path = await caller.apply("all-1g.10gb")
                begun = changing_calls(node)[CREATE]
                await caller.until(lambda: changing_calls(node)[CREATE] > begun + 3)
                await caller.call("Cancel", path=path, interface=names.JOB)
                assert (await caller.wait(number))[0] == "canceled"
                after = node.gpus()
                assert [layout(g) for g in after] == [layout(g) for g in before]
                assert [mig_uuids(g) for g in after] == [mig_uuids(g) for g in before]
                assert [h["pid"] for h in after[1]["holders"]] == [holder.pid]

        run(main(), timeout_s=60)


def test_a_caller_that_leaves_does_not_end_its_job(four: World) -> None:
    async def main() -> int:
        async with listening(four) as caller:
            four.node.latency(CREATE, 50)
            async with listening(four) as leaves:
                message = leaves.call("Apply", "sa{sv}", "all-1g.10gb", options({}))
                number: int = (await message)[0]
            assert (await caller.wait(number))[0] == "done"
            return number

    run(main(), timeout_s=60)
    assert all(len(g["instances"]) == 7 for g in four.node.gpus())


def test_many_wait_for_one_job(four: World) -> None:
    async def main() -> None:
        async with listening(four) as one, listening(four) as other:
            four.node.latency(CREATE, 50)
            number, _ = await one.apply("all-1g.10gb")
            answers = await asyncio.gather(
                *(who.wait(number) for who in (one, other) for _ in range(10))
            )
            assert all(a == answers[0] for a in answers)
            assert answers[0][0] == "done"
            assert answers[0] == await one.wait(number)

    run(main(), timeout_s=60)


def test_one_gpu_fails_and_the_others_go_on(four: World) -> None:
    node = four.node
    before = node.gpus()
    node.fault(CREATE, returns="UNKNOWN", nth=3, gpu=2)
    result, details = four.daemon.applied("all-1g.10gb")
    assert result == "partial"
    outcome = details["gpus"][2]
    assert outcome["result"] == "rolled-back"
    assert (outcome["call"], outcome["code"], outcome["code-name"]) == (CREATE, 999, "UNKNOWN")
    assert outcome["error"] == f"{names.ERROR}.Nvml"
    assert CREATE in outcome["message"]
    assert [o["result"] for o in details["gpus"]] == ["done", "done", "rolled-back", "done"]
    assert layouts(node)[four.uuid(2)] == layout(before[2])
    assert mig_uuids(node.gpus()[2]) == mig_uuids(before[2])
    assert all(len(node.gpus()[i]["instances"]) == 7 for i in (0, 1, 3))


def test_all_gpus_fail(four: World) -> None:
    before = four.node.gpus()
    for gpu in range(4):
        four.node.fault(CREATE, returns="INSUFFICIENT_RESOURCES", nth=2, gpu=gpu)
    result, details = four.daemon.applied("all-1g.10gb")
    assert result == "failed"
    assert {o["result"] for o in details["gpus"]} == {"rolled-back"}
    assert [layout(g) for g in four.node.gpus()] == [layout(g) for g in before]
    assert [mig_uuids(g) for g in four.node.gpus()] == [mig_uuids(g) for g in before]


def test_success_without_effect_is_found_out(four: World) -> None:
    four.put(text=entry({"1g.10gb": 2}), gpus=["3"])
    before = four.node.gpus()
    four.node.fault("nvmlGpuInstanceDestroy", no_effect=True, nth=1, gpu=3)
    result, details = four.daemon.applied("", text=entry({"1g.10gb": 1}), gpus=["3"])
    assert result == "failed"
    (outcome,) = details["gpus"]
    assert outcome["result"] == "rolled-back"
    assert (outcome["call"], outcome["code-name"]) == ("nvmlGpuInstanceDestroy", "NO_EFFECT")
    assert "destroy GPU instance" in outcome["message"]
    assert layout(four.node.gpus()[3]) == layout(before[3])


def test_a_mode_without_effect_is_found_out(four: World) -> None:
    four.put("all-disabled", gpus=["3"])
    before = four.node.gpus()
    four.node.fault("nvmlDeviceSetMigMode", no_effect=True, nth=1, gpu=3)
    result, details = four.daemon.applied("all-balanced", gpus=["3"])
    assert result == "failed"
    (outcome,) = details["gpus"]
    assert (outcome["result"], outcome["code-name"]) == ("rolled-back", "NO_EFFECT")
    assert four.node.gpus() == before
