"""Nodes of several boards: generated configurations, entries per GPU, boards that need a reset."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from migd import names
from tests.bus.manager import (
    DISABLED,
    H100,
    World,
    changing_calls,
    document,
    layouts,
    predicted,
    world,
)
from tests.support import boards
from tests.support.daemon import options
from tests.support.node import Node, wait_for

A100, A30 = "a100-40gb", "a30-24gb"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("mixed"), (H100, 1), (A100, 1), (A30, 1)) as made:
        yield made


@pytest.fixture
def mixed(shared: World) -> World:
    shared.clean()
    return shared


def index_of(node: Node, board: str) -> int:
    return next(int(g["index"]) for g in node.gpus() if g["board"] == board)


def test_each_board_has_its_profiles_among_the_configurations(mixed: World) -> None:
    configs = set(mixed.daemon.property("Configs"))
    assert {"all-disabled", "all-enabled", "all-balanced"} <= configs
    for board in (H100, A100, A30):
        expected = {f"all-{p.name.replace('+', '.')}" for p in boards.profiles(board)}
        assert {n for n in expected if "me" not in n} <= configs


def test_a_generated_configuration_reaches_the_boards_that_offer_it(mixed: World) -> None:
    node = mixed.node
    reached = {
        "all-1g.10gb": {H100, A100},  # the A100's is its 1g with double memory
        "all-1g.5gb": {A100},
        "all-1g.6gb": {A30},
        "all-3g.40gb": {H100},
    }
    for config, expected in reached.items():
        before = node.gpus()
        summary, steps = mixed.daemon.plan(config, max_impact="reset")
        said, _ = predicted(before, steps)
        assert {g["board"] for g in before if g["uuid"] in summary["gpus"]} == expected
        mixed.put(config, max_impact="reset")
        assert layouts(node) == said
        for gpu in node.gpus():
            if gpu["board"] in expected:
                offer = config.removeprefix("all-")
                assert {i["profile"] for i in gpu["instances"]} == {offer}
        mixed.clean()


def test_balanced_is_what_each_board_can(mixed: World) -> None:
    mixed.put("all-balanced", max_impact="reset")
    profiles = {
        g["board"]: Counter(i["profile"] for i in g["instances"]) for g in mixed.node.gpus()
    }
    assert profiles == {
        H100: {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1},
        A100: {"1g.5gb": 2, "2g.10gb": 1, "3g.20gb": 1},
        A30: {"1g.6gb": 2, "2g.12gb": 1},
    }


def test_a_file_with_an_entry_per_gpu(mixed: World) -> None:
    node = mixed.node
    h100, a100, a30 = (index_of(node, b) for b in (H100, A100, A30))
    file = document(
        {
            "each": [
                (f"[{h100}]", {"4g.40gb": 1, "3g.40gb": 1}),
                (f"[{node.gpus()[a100]['uuid']}]", {"7g.40gb": 1}),
                (f'["{node.gpus()[a30]["pci"][4:]}"]', None),
            ],
            "wrong": [("all", {"4g.24gb": 1})],
        }
    )
    mixed.daemon.configure(file)
    mixed.daemon.call("Reload")
    assert {"each", "wrong"} <= set(mixed.daemon.property("Configs"))
    mixed.put("each", max_impact="reset")
    found = {
        g["board"]: (g["mode"]["current"], sorted(i["profile"] for i in g["instances"]))
        for g in node.gpus()
    }
    assert found == {
        H100: ("enabled", ["3g.40gb", "4g.40gb"]),
        A100: ("enabled", ["7g.40gb"]),
        A30: ("disabled", []),
    }
    # A fault of one config does not refuse the file, only the config.
    before = node.gpus()
    name, message = mixed.daemon.refused("Apply", "sa{sv}", "wrong", {})
    assert name == f"{names.ERROR}.NoSuchProfile"
    assert "4g.24gb" in message
    assert "config.yaml:" in message
    assert node.gpus() == before


def test_a_reset_must_be_allowed(mixed: World) -> None:
    node = mixed.node
    a100 = str(index_of(node, A100))
    summary, steps = mixed.daemon.plan("all-1g.5gb")
    assert summary["impact"] == "reset"
    assert [b["kind"] for b in summary["blockers"]] == ["impact"]
    assert [s["reset"] for s in steps if s["action"] == "set-mode"] == [True]
    before, calls = node.gpus(), changing_calls(node)
    name, message = mixed.daemon.refused("Apply", "sa{sv}", "all-1g.5gb", {})
    assert name == f"{names.ERROR}.ImpactExceeded"
    assert "max-impact=reset" in message
    assert (node.gpus(), changing_calls(node)) == (before, calls)
    mixed.put("all-1g.5gb", max_impact="reset")
    # Once it is on, instances need no reset.
    assert mixed.daemon.plan("all-2g.10gb", gpus=[a100])[0]["impact"] == "instances"


def test_a_mode_that_stays_pending_is_taken_back(mixed: World) -> None:
    """Somebody who has only opened NVML keeps an A100 from its reset."""
    node = mixed.node
    a100 = index_of(node, A100)
    # A session of another program, which the driver does not list as a process.
    script = "import pynvml, sys; pynvml.nvmlInit(); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=node.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        before = layouts(node)
        result, details = mixed.daemon.applied("all-1g.5gb", gpus=[str(a100)], max_impact="reset")
        assert result == "failed"
        (outcome,) = details["gpus"]
        assert outcome["error"] == f"{names.ERROR}.InUse"
        assert "held" in outcome["message"]
        assert outcome["result"] == "rolled-back"
        gpu = node.gpus()[a100]
        assert gpu["mode"] == {"current": "disabled", "pending": "disabled"}
        assert layouts(node) == before
        assert mixed.daemon.property("RebootOwed") == ""
        other.communicate()
    mixed.put("all-1g.5gb", gpus=[str(a100)], max_impact="reset")
    assert len(node.gpus()[a100]["instances"]) == 7


@pytest.mark.parametrize("held", [True, False])
def test_without_a_reset(mixed: World, *, held: bool) -> None:
    """The mode of a GPU in use stays pending; the driver resets an idle one by itself."""
    node = mixed.node
    a100 = index_of(node, A100)
    asked = {"gpus": [str(a100)], "no_reset": True}
    with node.hold(a100) if held else nullcontext() as holder:
        result, details = mixed.daemon.applied("all-1g.5gb", **asked)
        assert result == "done"
        gpu = node.gpus()[a100]
        (outcome,) = details["gpus"]
        if holder:
            assert holder.alive()
            assert gpu["mode"] == {"current": "disabled", "pending": "enabled"}
            assert "enabled is pending" in outcome["message"]
            wait_for(lambda: mixed.daemon.property("RebootOwed"), what="RebootOwed")
            # It is done, as far as it can be; and wanted, once it can.
            assert mixed.daemon.call("Assert", "sa{sv}", "all-1g.5gb", options(asked))[0]
            assert mixed.daemon.property("Wanted")[gpu["uuid"]] == "all-1g.5gb"
            assert mixed.daemon.property("Match") == "no"
    if held:
        mixed.put("all-1g.5gb", gpus=[str(a100)], max_impact="reset")
    gpu = node.gpus()[a100]
    assert gpu["mode"] == {"current": "enabled", "pending": "enabled"}
    assert len(gpu["instances"]) == 7


def test_no_reset_goes_with_no_option_that_allows_more(mixed: World) -> None:
    for other in ("allow-reboot", "reset-peers"):
        given = options({"no_reset": True, other: True})
        name, message = mixed.daemon.refused("Apply", "sa{sv}", "all-1g.5gb", given)
        assert name == "org.freedesktop.DBus.Error.InvalidArgs"
        assert other in message


def test_reboot_owed_while_a_mode_is_pending(mixed: World) -> None:
    node = mixed.node
    a100 = index_of(node, A100)
    node.surprise("passthrough-asks-reset", gpu=a100)
    try:
        result, details = mixed.daemon.applied("all-1g.5gb", gpus=[str(a100)], max_impact="reset")
        assert (result, details["gpus"][0]["error"]) == ("failed", f"{names.ERROR}.ResetRequired")
        assert node.gpus()[a100]["mode"] == {"current": "disabled", "pending": "disabled"}
        # Somebody else leaves one pending.
        node.python(
            "import pynvml as n, sys\n"
            "n.nvmlInit()\n"
            "n.nvmlDeviceSetMigMode(n.nvmlDeviceGetHandleByIndex(int(sys.argv[1])), 1)\n",
            str(a100),
        )
        assert node.gpus()[a100]["mode"] == {"current": "disabled", "pending": "enabled"}
        mixed.daemon.plan("all-disabled", max_impact="reset")
        wait_for(lambda: mixed.daemon.property("RebootOwed"), what="RebootOwed")
        owed = mixed.daemon.property("RebootOwed")
        assert node.gpus()[a100]["uuid"] in owed
        assert "enabled is pending" in owed
        path = names.gpu_path(node.gpus()[a100]["uuid"])
        modes = [
            mixed.daemon.property(p, path=path, interface=names.GPU)
            for p in ("MigMode", "MigModePending")
        ]
        assert modes == ["disabled", "enabled"]
        # To ask for what is there takes the pending change back, without a reset.
        mixed.put("all-disabled", max_impact="instances")
        assert node.gpus()[a100]["mode"] == {"current": "disabled", "pending": "disabled"}
        assert mixed.daemon.property("RebootOwed") == ""
    finally:
        node.surprise("passthrough-asks-reset", False, gpu=a100)


def test_boards_without_a_reset_go_on_beside_one_that_fails(mixed: World) -> None:
    node = mixed.node
    a100 = index_of(node, A100)
    with node.hold(a100, hidden=True):
        result, details = mixed.daemon.applied("all-balanced", max_impact="reset")
        assert result == "partial"
        by_index = {o["index"]: o["result"] for o in details["gpus"]}
        assert by_index.pop(a100) == "rolled-back"
        assert set(by_index.values()) == {"done"}
        assert layouts(node)[mixed.uuid(a100)] == DISABLED


def test_options_of_apply_narrow_to_one_board(mixed: World) -> None:
    name, message = mixed.daemon.refused(
        "Plan", "sa{sv}", "all-1g.6gb", options({"gpus": [str(index_of(mixed.node, H100))]})
    )
    assert name == f"{names.ERROR}.Config"
    assert "NVIDIA H100" in message
