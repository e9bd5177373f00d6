"""Eight H100 through busctl alone: what Plan says is what Apply does, and nothing else happens."""

from collections import Counter
from collections.abc import Iterator

import pytest

from migd import names
from tests.bus.manager import (
    DISABLED,
    H100,
    World,
    changing_calls,
    document,
    entry,
    layout,
    layouts,
    mig_uuids,
    predicted,
    world,
    written,
)
from tests.support.daemon import options

LARGE, THREE, TWO, ONE, ONE_DOUBLE = 5, 9, 14, 19, 15


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("eight"), (H100, 8)) as made:
        yield made


@pytest.fixture
def eight(shared: World) -> World:
    shared.clean()
    return shared


def test_the_whole_way_through_busctl(eight: World) -> None:
    mixed = document(
        {
            "mixed": [
                ("all", {"1g.10gb": 7}),
                ("[0, 5]", {"3g.40gb": 2}),
                ("[3]", {"1c.3g.40gb": 3, "4g.40gb": 1}),
                ("[7]", None),
            ]
        }
    )
    node = eight.node
    for config in ("all-1g.10gb", "all-balanced", "mixed", "all-disabled"):
        if config == "mixed":
            eight.daemon.configure(mixed)
            assert eight.busctl("Reload") == []
        before, calls = node.gpus(), changing_calls(node)

        summary, steps = eight.busctl("Plan", "sa{sv}", config, "0")
        said, will_call = predicted(before, steps)
        assert node.gpus() == before
        assert changing_calls(node) == calls
        assert set(summary["gpus"]) == {s["gpu"] for s in steps}
        assert summary["blockers"] == []

        number, path = eight.busctl("Apply", "sa{sv}", config, "0")
        assert path == names.job_path(number)
        result, details = eight.busctl("WaitJob", "u", str(number))
        assert (result, details["changed"], details["wanted"]) == ("done", True, True)
        assert layouts(node) == said
        assert changing_calls(node) - calls == will_call
        assert sorted(o["gpu"] for o in details["gpus"]) == sorted(g["uuid"] for g in before)
        changed = {o["gpu"] for o in details["gpus"] if o["result"] == "done"}
        assert changed == set(summary["gpus"])
    assert set(layouts(node).values()) == {DISABLED}


def test_generated_configurations_are_what_their_names_say(eight: World) -> None:
    eight.put("all-1g.10gb")
    assert set(layouts(eight.node).values()) == {
        ("enabled", tuple((ONE, start, 1, (0,)) for start in range(7)))
    }
    eight.put("all-balanced")
    for _, instances in layouts(eight.node).values():
        assert Counter(i[0] for i in instances) == {ONE: 2, TWO: 1, THREE: 1}


def test_a_second_apply_does_nothing_and_writes_nothing(eight: World) -> None:
    eight.put("all-balanced")
    node, state = eight.node, eight.daemon.state_dir
    before, calls, files = node.gpus(), changing_calls(node), written(state)

    number, _ = eight.busctl("Apply", "sa{sv}", "all-balanced", "0")
    assert eight.daemon.property("Job") == "/"
    result, details = eight.busctl("WaitJob", "u", str(number))

    assert (result, details["changed"]) == ("done", False)
    assert {o["result"] for o in details["gpus"]} == {"unchanged"}
    assert changing_calls(node) == calls
    assert node.gpus() == before
    assert written(state) == files


def test_a_plan_is_applied_only_as_it_was_seen(eight: World) -> None:
    node = eight.node
    old = eight.busctl("Plan", "sa{sv}", "all-balanced", "0")[0]["digest"]
    eight.put("all-1g.10gb")
    before, calls = node.gpus(), changing_calls(node)

    name, message = eight.daemon.refused(
        "Apply", "sa{sv}", "all-balanced", options({"expect": old})
    )
    assert name == f"{names.ERROR}.Changed"
    assert old in message
    assert node.gpus() == before
    assert changing_calls(node) == calls
    assert eight.daemon.property("Job") == "/"

    summary, steps = eight.daemon.plan("all-balanced")
    assert summary["digest"] != old
    said, _ = predicted(before, steps)
    number, _ = eight.busctl(
        "Apply", "sa{sv}", "all-balanced", "1", "expect", "s", summary["digest"]
    )
    assert eight.busctl("WaitJob", "u", str(number))[0] == "done"
    assert layouts(node) == said


def test_the_same_plan_has_the_same_digest(eight: World) -> None:
    first, second = (eight.daemon.plan("all-balanced")[0]["digest"] for _ in range(2))
    assert first == second
    other = eight.daemon.plan("all-balanced", gpus=["1"])[0]["digest"]
    assert other != first


def test_one_instance_changed_leaves_all_others(eight: World) -> None:
    node = eight.node
    eight.put("all-balanced")
    before, calls = node.gpus(), changing_calls(node)

    eight.put(text=entry({"1g.10gb": 1, "1g.10gb.me": 1, "2g.20gb": 1, "3g.40gb": 1}), gpus=["3"])

    after = node.gpus()
    assert changing_calls(node) - calls == {
        "nvmlComputeInstanceDestroy": 1,
        "nvmlGpuInstanceDestroy": 1,
        "nvmlDeviceCreateGpuInstanceWithPlacement": 1,
        "nvmlGpuInstanceCreateComputeInstance": 1,
    }
    for index in (0, 1, 2, 4, 5, 6, 7):
        assert after[index] == before[index]
    kept = set(mig_uuids(before[3]).values()) & set(mig_uuids(after[3]).values())
    assert len(kept) >= 3
    large = {i["gi"]: i for i in before[3]["instances"] if i["profile_id"] != ONE}
    assert all(i in after[3]["instances"] for i in large.values())


def test_a_held_instance_that_stays_keeps_running(eight: World) -> None:
    node = eight.node
    eight.put("all-balanced")
    held = node.gpus()[2]["instances"][-1]
    assert held["profile_id"] == ONE
    with node.hold(2, held["gi"]) as holder:
        before = node.gpus()[2]
        eight.put("all-1g.10gb")
        after = node.gpus()[2]
        assert holder.alive()
        assert [h["pid"] for h in after["holders"]] == [holder.pid]
        key = (held["gi"], held["placement"]["start"])
        assert mig_uuids(after)[key] == mig_uuids(before)[key]
        assert node.layout(2) == [(ONE, start, [0]) for start in range(7)]


def test_a_held_instance_in_the_way_is_named_and_nothing_changes(eight: World) -> None:
    node, uuid = eight.node, eight.uuid(4)
    eight.put("all-balanced")
    held = next(i for i in node.gpus()[4]["instances"] if i["profile_id"] == THREE)
    with node.hold(4, held["gi"], command=("sleep", "987654")) as holder:
        before, calls, files = node.gpus(), changing_calls(node), written(eight.daemon.state_dir)

        summary, _ = eight.daemon.plan("all-1g.10gb")
        (blocker,) = summary["blockers"]
        assert blocker["kind"] == "process"
        assert (blocker["pid"], blocker["gpu"], blocker["gi"]) == (holder.pid, uuid, held["gi"])
        assert blocker["command"] == "sleep 987654"
        assert blocker["user"] == "root"

        name, message = eight.daemon.refused("Apply", "sa{sv}", "all-1g.10gb", {})
        assert name == f"{names.ERROR}.InUse"
        for part in (str(holder.pid), "sleep 987654", uuid, "GPU 4"):
            assert part in message
        assert (node.gpus(), changing_calls(node)) == (before, calls)
        assert written(eight.daemon.state_dir) == files
        assert holder.alive()

        # The other seven may go on without it.
        eight.put("all-1g.10gb", gpus=[str(i) for i in range(8) if i != 4])
        assert node.gpus()[4] == before[4]
        assert node.layout(0) == [(ONE, start, [0]) for start in range(7)]


def test_a_holder_of_the_whole_gpu_blocks_the_first_instance(eight: World) -> None:
    with eight.node.hold(1) as holder:
        before = eight.node.gpus()
        summary, _ = eight.daemon.plan("all-1g.10gb")
        assert [b["pid"] for b in summary["blockers"]] == [holder.pid]
        assert "gi" not in summary["blockers"][0]
        name, _ = eight.daemon.refused("Apply", "sa{sv}", "all-1g.10gb", {})
        assert name == f"{names.ERROR}.InUse"
        assert eight.node.gpus() == before


def test_a_hidden_holder_is_met_late_and_all_is_put_back(eight: World) -> None:
    node = eight.node
    eight.put("all-balanced")
    held = next(i for i in node.gpus()[6]["instances"] if i["profile_id"] == THREE)
    with node.hold(6, held["gi"], hidden=True) as holder:
        before = node.gpus()
        result, details = eight.daemon.applied("all-1g.10gb", gpus=["6", "7"])
        assert result == "partial"
        failed, done = details["gpus"]
        assert (failed["index"], failed["result"]) == (6, "rolled-back")
        assert (failed["code"], failed["code-name"]) == (19, "IN_USE")
        assert failed["call"].endswith("Destroy")
        assert (done["index"], done["result"]) == (7, "done")
        assert not details["wanted"]
        assert layouts(node)[eight.uuid(6)] == layout(before[6])
        assert mig_uuids(node.gpus()[6]) == mig_uuids(before[6])
        assert holder.alive()
        assert node.layout(7) == [(ONE, start, [0]) for start in range(7)]


def test_a_tight_layout_is_placed_at_the_first_attempt(eight: World) -> None:
    node = eight.node
    begun = len(node.log())
    eight.put(text=entry({"4g.40gb": 1, "1g.20gb": 1, "1g.10gb": 2}))
    creations = [c for c in node.log()[begun:] if "Create" in c.name]
    assert creations
    assert {c.result for c in creations} == {"SUCCESS"}
    for mode, instances in layouts(node).values():
        assert mode == "enabled"
        assert Counter(i[0] for i in instances) == {LARGE: 1, ONE_DOUBLE: 1, ONE: 2}
        # Compute profile 7 is the one with all 26 SMs of a 1g.20gb; 0 has 16 (go-nvml issue 146).
        assert [i[3] for i in instances if i[0] == ONE_DOUBLE] == [(7,)]
