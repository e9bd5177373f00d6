"""The objects on the bus are the node, after each change and by every signal between."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from migd import names
from migd.bus.connection import BUS
from tests.bus.manager import (
    H100,
    Objects,
    World,
    entry,
    known,
    listening,
    replayed,
    true_objects,
    world,
)
from tests.support import boards
from tests.support.bus import run
from tests.support.node import Node, wait_for

A30 = "a30-24gb"
# Destroys instance argv[2] of GPU argv[1], and creates profile argv[3] at slice argv[4] instead.
REPLACE = """
import sys, ctypes, pynvml as n
gpu, gi, profile, start, size = map(int, sys.argv[1:])
n.nvmlInit()
device = n.nvmlDeviceGetHandleByIndex(gpu)
old = n.nvmlDeviceGetGpuInstanceById(device, gi)
n.nvmlComputeInstanceDestroy(n.nvmlGpuInstanceGetComputeInstanceById(old, 0))
n.nvmlGpuInstanceDestroy(old)
place = n.c_nvmlGpuInstancePlacement_t(start, size)
new = n.nvmlDeviceCreateGpuInstanceWithPlacement(device, profile, ctypes.byref(place))
n.nvmlGpuInstanceCreateComputeInstance(new, 0)
print(n.nvmlGpuInstanceGetInfo(new).id)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("objects"), (H100, 2)) as made:
        yield made


@pytest.fixture
def two(shared: World) -> World:
    shared.clean()
    return shared


def shows(shown: Objects, node: Node) -> None:
    truth = true_objects(node)
    assert known(shown, truth) == truth


STATES = (
    "all-1g.10gb",
    "all-balanced",
    entry({"4g.40gb": 1, "1g.20gb": 1, "1g.10gb": 2}),
    entry({"1c.3g.40gb": 3, "4g.40gb": 1}),
    entry({"1c.3g.40gb": 1, "2c.3g.40gb": 1, "3g.40gb": 1}),
    entry({"1g.10gb.me": 1}),
    entry({"1g.10gb": 1}),
    entry({"7g.80gb": 1}, devices="[1]"),
    entry({}),
    "all-1g.10gb",
    "all-disabled",
)


def test_objects_after_each_change_and_by_signals(two: World) -> None:
    async def main() -> None:
        async with listening(two) as caller:
            start = await caller.objects()
            shows(start, two.node)
            for state in STATES:
                named = "\n" not in state
                given = {} if named else {"text": state}
                number, _ = await caller.apply(state if named else "", **given)
                assert (await caller.wait(number))[0] == "done"
                now = await caller.objects()
                shows(now, two.node)
                assert replayed(start, caller.signals()) == now
            # Observed again, nothing is different: no signal.
            count = len(caller.signals())
            await caller.call("Plan", "sa{sv}", "all-1g.10gb", {})
            await caller.client.ping(names.BUS_NAME)
            assert len(caller.signals()) == count

    run(main(), timeout_s=60)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"1g.10gb": 1}, {"1g.10gb.me": 1}),  # another profile, the same GI id
        ({"3g.40gb": 1}, {"4g.40gb": 1}),  # another profile and placement
        ({"7g.80gb": 1}, {"3g.40gb": 1}),
        ({"1c.3g.40gb": 3}, {"3g.40gb": 1}),  # CI 0 with another profile
    ],
)
def test_an_id_that_comes_again_within_a_job(
    two: World, first: dict[str, int], then: dict[str, int]
) -> None:
    async def main() -> None:
        async with listening(two) as caller:
            start = await caller.objects()
            for instances in (first, then, first):
                number, _ = await caller.apply("", text=entry(instances))
                assert (await caller.wait(number))[0] == "done"
                now = await caller.objects()
                shows(now, two.node)
                assert replayed(start, caller.signals()) == now
                assert await caller.get("Job") == "/"
            assert len(caller.signals("JobRemoved")) == 3

    run(main(), timeout_s=60)


def test_an_id_that_comes_again_by_another_program(two: World) -> None:
    two.put(text=entry({"1g.10gb": 1}))
    (old,) = two.node.gpus()[0]["instances"]

    async def main() -> None:
        async with listening(two) as caller:
            start = await caller.objects()
            other = 0 if old["placement"]["start"] else 6
            for profile, place in ((20, other), (19, other), (20, old["placement"]["start"])):
                (there,) = two.node.gpus()[0]["instances"]
                two.node.python(REPLACE, "0", str(there["gi"]), str(profile), str(place), "1")
                (now,) = two.node.gpus()[0]["instances"]
                assert now["gi"] == old["gi"], "the simulator gave another id: no test"
                await caller.call("Plan", "sa{sv}", "all-disabled", {})
                shown = await caller.objects()
                shows(shown, two.node)
                assert replayed(start, caller.signals()) == shown
                path = names.gpu_instance_path(two.uuid(0), now["gi"])
                told = [
                    m.member
                    for m in caller.signals()
                    if m.member.startswith("Interfaces") and m.body[0] == path
                ]
                assert told[-2:] == ["InterfacesRemoved", "InterfacesAdded"]

    run(main(), timeout_s=60)
    two.put("all-disabled")


def test_processes_on_gpus_and_instances(two: World) -> None:
    two.put("all-balanced", gpus=["1"])
    gi = two.node.gpus()[1]["instances"][0]["gi"]
    gpu, uuid = names.gpu_path(two.uuid(1)), two.uuid(1)
    command = ("sleep", "456789")
    with two.node.hold(1, gi, command=command) as holder, two.node.hold(1, gi, hidden=True):

        async def main() -> None:
            async with listening(two) as caller:
                await caller.call("Plan", "sa{sv}", "all-disabled", {})
                process = {"pid": holder.pid, "command": "sleep 456789", "user": "root"}
                (found,) = await caller.get("Processes", gpu, names.GPU)
                assert found == {**process, "unit": found["unit"], "gi": gi, "ci": 0}
                path = names.compute_instance_path(uuid, gi, 0)
                (again,) = await caller.get("Processes", path, names.COMPUTE_INSTANCE)
                assert again == found
                others = [
                    values[names.COMPUTE_INSTANCE]["Processes"]
                    for p, values in (await caller.objects()).items()
                    if names.COMPUTE_INSTANCE in values and p != path
                ]
                assert others == [[]] * 3

        run(main())


def test_a_gpu_tells_its_profiles(two: World) -> None:
    expected = [
        {
            "id": p.id,
            "name": p.name,
            "slices": p.slices,
            "memory": p.memory_mib << 20,
            "instances": p.instances,
            "multiprocessors": p.multiprocessors,
            "placements": [[s.start, s.size] for s in p.placements],
        }
        for p in boards.profiles(H100)
    ]
    for config in ("all-disabled", "all-1g.10gb"):
        two.put(config)
        for index in range(2):
            path = names.gpu_path(two.uuid(index))
            found = two.daemon.property("Profiles", path=path, interface=names.GPU)
            assert sorted(found, key=_id) == sorted(expected, key=_id)


def _id(profile: dict[str, object]) -> int:
    assert isinstance(profile["id"], int)
    return profile["id"]


def test_get_gpu_by_each_of_its_names(two: World) -> None:
    for gpu in two.node.gpus():
        path = names.gpu_path(gpu["uuid"])
        for name in (str(gpu["index"]), gpu["uuid"], gpu["pci"], gpu["pci"][4:].lower()):
            assert two.daemon.call("GetGpu", "s", name) == [path]
        assert two.daemon.property("Uuid", path=path, interface=names.GPU) == gpu["uuid"]
        assert two.daemon.property("Memory", path=path, interface=names.GPU) > 0
        assert two.daemon.property("State", path=path, interface=names.GPU) == "ok"


def test_match_and_wanted(two: World) -> None:
    daemon = two.daemon
    assert daemon.property("Match") == "yes"
    two.put("all-1g.10gb", gpus=["0"])
    two.put("all-balanced", gpus=["1"])
    assert daemon.property("Wanted") == {two.uuid(0): "all-1g.10gb", two.uuid(1): "all-balanced"}
    assert daemon.property("Match") == "yes"
    since = daemon.property("MatchSince")

    # Somebody takes one instance away.
    (gi,) = (i["gi"] for i in two.node.gpus()[0]["instances"] if i["placement"]["start"] == 6)
    two.node.python(REPLACE, "0", str(gi), "20", "6", "1")
    daemon.plan("all-disabled")
    assert daemon.property("Match") == "no"
    assert daemon.property("MatchSince") > since
    since = daemon.property("MatchSince")
    daemon.plan("all-disabled")
    assert daemon.property("MatchSince") == since
    two.put("all-1g.10gb", gpus=["0"])
    assert daemon.property("Match") == "yes"
    assert daemon.property("MatchSince") > since

    # What is wanted changes its meaning with the file.
    daemon.configure(
        "version: v1\nmig-configs: {all-balanced: [{devices: all, mig-enabled: false, "
        "mig-devices: {}}]}\n"
    )
    daemon.call("Reload")
    assert daemon.property("Match") == "no"
    assert daemon.plan("all-balanced", gpus=["1"])[1]
    path = names.gpu_path(two.uuid(1))
    assert daemon.property("Wanted", path=path, interface=names.GPU) == "all-balanced"


def test_match_before_anything_was_wanted(tmp_path_factory: pytest.TempPathFactory) -> None:
    with world(tmp_path_factory.mktemp("none"), (A30, 1)) as made:
        assert made.daemon.property("Match") == "none"
        assert made.daemon.property("Wanted") == {}
        assert made.daemon.property("Job") == "/"
        assert made.daemon.property("RebootOwed") == ""
        assert made.daemon.property("Driver") == made.node.show()["driver"]["version"]


def test_a_broken_file_leaves_the_old_one_in_force(two: World) -> None:
    daemon = two.daemon
    entries = "[{devices: all, mig-enabled: true, mig-devices: {%s}}]"
    mine = f"version: v1\nmig-configs:\n  mine: {entries}\n"
    daemon.configure(mine % '"1g.10gb": 2')
    daemon.call("Reload")
    assert "mine" in daemon.property("Configs")
    assert daemon.property("ConfigErrors") == []
    plan = daemon.plan("mine")
    path = daemon.config_dir / names.CONFIG_FILE

    async def main() -> None:
        async with listening(two) as caller:
            for broken, where in (
                (mine % '"1g.10gb": x', f"{path}:3:"),
                ("version: v1\nmig-configs:\n  mine: [\n", f"{path}:"),
                ("version: v1\nmig-configs: {}\nother: 1\n", f"{path}:3:"),
            ):
                daemon.configure(broken)
                name, message = await caller.refused("Reload")
                assert name == f"{names.ERROR}.Config"
                assert where in message
                errors = await caller.get("ConfigErrors")
                assert errors == message.splitlines()
                assert "mine" in await caller.get("Configs")
                summary, steps = await caller.call("Plan", "sa{sv}", "mine", {})
                assert (summary, steps) == plan
            path.unlink()
            await caller.call("Reload")
            assert await caller.get("ConfigErrors") == []
            assert "mine" not in await caller.get("Configs")
            await caller.client.ping(names.BUS_NAME)
            told = [
                m.body[1]["ConfigErrors"].value
                for m in caller.signals("PropertiesChanged")
                if m.path == names.ROOT and "ConfigErrors" in m.body[1]
            ]
            assert told[-1] == []
            assert all(told[:-1])

    run(main())
    two.daemon.configure(mine % '"1g.10gb": x')
    two.daemon.restart()
    assert two.daemon.property("ConfigErrors")
    assert "mine" not in two.daemon.property("Configs")
    assert "all-disabled" in two.daemon.property("Configs")


def test_objects_that_are_not_there(two: World) -> None:
    uuid = two.uuid(0)

    async def main() -> None:
        async with listening(two) as caller:
            for path in (
                names.gpu_path("GPU-00000000-0000-4000-8000-000000000000"),
                names.gpu_instance_path(uuid, 3),
                names.job_path(1),
                "/org/migd1/else",
            ):
                name, _ = await caller.refused(
                    "GetAll", "s", names.GPU, path=path, interface=f"{BUS}.Properties"
                )
                assert name == f"{BUS}.Error.UnknownObject"

    run(main())


def test_the_session_ends_by_itself(two: World) -> None:
    two.daemon.plan("all-1g.10gb")
    wait_for(lambda: not two.daemon.worker_pids(), what="the worker stays")
    wait_for(lambda: not two.node.show()["sessions"], what="the session stays")
    assert "libnvidia-ml" not in Path(f"/proc/{two.daemon.pid}/maps").read_text()
    two.node.unload()
    two.node.load()
