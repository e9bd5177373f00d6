"""mig-parted's files do here what they say, and what mig-parted does wrong is not done.

The judge of what a name means is `meaning()`: entries, profiles and placements from the files and
the simulator's catalogue, and a search of its own.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from migd import names
from migd.config.configs import Config, load
from migd.simulator.boards import NO_MIG, OFFERED
from tests.bus.manager import (
    H100,
    World,
    changing_calls,
    document,
    entry,
    layout,
    layouts,
    mig_uuids,
    world,
)
from tests.data import defaults
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon, options
from tests.support.meaning import fits, held, meaning, offered
from tests.support.node import MUTATING, Call, Node

A100 = "a100-40gb"
DATA = Path(defaults.__file__).parent
RESET = {"max_impact": "reset"}


# -- the same for all nodes ------------------------------------------------------------------


def differences(of: World, config: str = "", **given: Any) -> list[str]:
    matches, found = of.daemon.call("Assert", "sa{sv}", config, options(given))
    assert matches == (found == [])
    return list(found)


def check_nothing_left(of: World, config: str = "", **given: Any) -> None:
    """It is there: Assert says so, and one more Apply touches nothing."""
    assert differences(of, config, **given) == []
    check_unchanged(of, config, **given)


def check_unchanged(of: World, config: str = "", **given: Any) -> None:
    before, calls = of.node.gpus(), changing_calls(of.node)
    result, details = of.daemon.applied(config, max_impact="none", **given)
    assert (result, details["changed"]) == ("done", False)
    assert (of.node.gpus(), changing_calls(of.node)) == (before, calls)


def check_refused(of: World, error: str, config: str = "", **given: Any) -> str:
    """Apply refuses it and nothing has changed; the message."""
    before, calls = of.node.gpus(), changing_calls(of.node)
    name, message = of.daemon.refused("Apply", "sa{sv}", config, options({**RESET, **given}))
    assert name == f"{names.ERROR}.{error}", message
    assert (of.node.gpus(), changing_calls(of.node)) == (before, calls)
    return message


def check(of: World, config: Config) -> str:
    """Apply it, and judge the node; "done", or the error that refused it."""
    before = of.node.gpus()
    expected = meaning(config, before)
    if isinstance(expected, str):
        message = check_refused(of, expected, config.name)
        assert config.name in message or any(p in message for p in config.entries[-1].instances)
        return expected
    of.put(config.name, **RESET)
    after = of.node.gpus()
    assert {i: held(after[i]) for i in expected} == expected
    assert [g for g in after if g["index"] not in expected] == [
        g for g in before if g["index"] not in expected
    ]
    check_nothing_left(of, config.name)
    (exported,) = of.daemon.call("Export", "a{sv}", {})
    check_unchanged(of, text=exported)
    return "done"


def check_all(of: World, text: str) -> dict[str, str]:
    """Each configuration of a file, one after the other; how each ended."""
    configs = load(text, "config.yaml").configs
    of.daemon.configure(text)
    of.daemon.call("Reload")
    assert of.daemon.property("ConfigErrors") == []
    assert set(configs) <= set(of.daemon.property("Configs"))
    return {name: check(of, config) for name, config in configs.items()}


# -- mig-parted's files ----------------------------------------------------------------------


@pytest.mark.parametrize("key", OFFERED)
def test_the_default_file_on_each_board(key: str, tmp_path: Path) -> None:
    """Each of its names applies, or is refused for what the board cannot have."""
    plain = sorted(
        (r["slices"], -r["instances"], n) for n, r in offered(key).items() if "+" not in n
    )
    small, large = plain[0][2], plain[-1][2]
    too_many = next(n for n in count(1) if not fits(key, {small: n}))
    entries = {"too-many": {small: too_many}, "too-large": {small: 1, large: 1}}
    more = document({name: [("all", instances)] for name, instances in entries.items()})
    text = defaults.yaml_text() + more.partition("mig-configs:\n")[2]
    with world(tmp_path, (key, 1)) as of:
        # So that a refusal has something to spoil.
        of.put(text=entry({large: 1}), **RESET)
        ends = check_all(of, text)
    assert len(ends) == 81 + 2
    assert (ends["too-many"], ends["too-large"]) == ("NoSpace", "NoSpace")
    assert set(ends.values()) == {"done", "NoSuchProfile", "NoSpace", "Config"}
    of_board = {f"all-{name.replace('+', '.')}" for name in offered(key)} & set(ends)
    done = {name for name, end in ends.items() if end == "done"}
    assert done >= {*of_board, "all-disabled", "all-enabled"}


def test_the_default_file_without_mig(tmp_path: Path) -> None:
    with world(tmp_path, (NO_MIG, 2)) as of:
        ends = check_all(of, defaults.yaml_text())
        assert set(ends.values()) == {"NotSupported"}


def test_the_example(tmp_path: Path) -> None:
    with world(tmp_path, (A100, 8)) as of:
        ends = check_all(of, (DATA / "example.yaml").read_text())
        assert ends["custom-config"] == "done"
        assert [held(g) for g in of.node.gpus()] == [
            *4 * [None],
            {"1g.5gb": 7},
            {"2g.10gb": 3},
            {"3g.20gb": 2},
            {"1g.5gb": 2, "2g.10gb": 1, "3g.20gb": 1},
        ]
    assert set(ends.values()) == {"done"}


def test_the_example_for_a_workstation(tmp_path: Path) -> None:
    """A GPU without MIG is among them, and the file has an entry for it."""
    with world(tmp_path, ("a100-80gb", 3), (NO_MIG, 1), ("a100-80gb", 1)) as of:
        ends = check_all(of, (DATA / "example-dgx-station.yaml").read_text())
    assert len(ends) == 9
    assert set(ends.values()) == {"done"}


# -- all boards in one node ------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    keys = [(key, 1) for key in (*OFFERED, NO_MIG)]
    with world(tmp_path_factory.mktemp("mixed"), *keys) as made:
        yield made


def test_the_default_file_on_all_boards_at_once(mixed: World) -> None:
    mixed.put("all-balanced", **RESET)
    ends = check_all(mixed, defaults.yaml_text())
    done = {name for name, end in ends.items() if end == "done"}
    # What has no filter reaches boards that do not offer it.
    assert done == {"all-disabled", "all-enabled", "all-balanced", "all-1g.10gb", "all-1g.35gb"}
    assert set(ends.values()) == {"done", "NoSuchProfile"}


def test_generated_configurations_on_all_boards_at_once(mixed: World) -> None:
    (mixed.daemon.config_dir / names.CONFIG_FILE).unlink(missing_ok=True)
    mixed.daemon.call("Reload")
    gpus = mixed.node.gpus()
    (text,) = mixed.daemon.call("GetConfig", "s", "")
    made = load(text, "generated").configs
    assert set(made) == {"all-disabled", "all-enabled", "all-balanced"} | {
        f"all-{name.replace('+', '.')}" for key in OFFERED for name in offered(key)
    }
    for key in OFFERED:
        (index,) = (g["index"] for g in gpus if g["board"] == key)
        for name in offered(key):
            most = next(n for n in count(1) if not fits(key, {name: n + 1}))
            reached = meaning(made[f"all-{name.replace('+', '.')}"], gpus)
            assert isinstance(reached, dict)
            assert reached[index] == {name: most}
    by_default = load(defaults.yaml_text(), "default").configs["all-balanced"]
    balanced, its = meaning(made["all-balanced"], gpus), meaning(by_default, gpus)
    assert isinstance(balanced, dict)
    assert isinstance(its, dict)
    assert its.items() <= balanced.items()
    assert len(balanced) == len(OFFERED)
    # As names of the daemon's own, and as a file.
    assert {check(mixed, config) for config in made.values()} == {"done"}
    mixed.put("all-disabled", **RESET)
    mixed.put("all-balanced", text=text, **RESET)
    assert {g["index"]: held(g) for g in mixed.node.gpus() if g["board"] != NO_MIG} == balanced


# -- what mig-parted does wrong --------------------------------------------------------------

SEVEN = {"1g.5gb": 7}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("node"), (A100, 3), (H100, 1), (NO_MIG, 1)) as made:
        yield made


@pytest.fixture
def node(shared: World) -> World:
    """GPUs 1 and 2 (A100) and 3 (H100) have instances, 0 (A100) has MIG off, 4 has none."""
    shared.node.clear_faults()
    shared.put("all-disabled", **RESET)
    a100s, h100 = {"3g.20gb": 1, "2g.10gb": 1, "1g.5gb": 2}, {"3g.40gb": 2}
    shared.put(text=document({"start": [("[1, 2]", a100s), ("[3]", h100)]}), **RESET)
    return shared


def changes(of: World, since: int) -> list[Call]:
    return [call for call in of.node.log()[since:] if call.name in MUTATING]


@pytest.mark.parametrize(
    ("devices", "instances"),
    [
        ("[1]", {"2g.20gb": 3}),  # GPU 3 would have it
        ("[1]", {"1g.5gb": 2, "9g.99gb": 1}),
        ("all", {"9g.99gb": 1}),
        ("all", SEVEN),  # GPU 3 would not
        ("[1, 2]", {"1g.5gb": 1, "1g.5gb+gfx": 1}),
    ],
)
def test_an_unknown_profile_wipes_nothing(
    node: World, devices: str, instances: dict[str, int]
) -> None:
    message = check_refused(node, "NoSuchProfile", text=entry(instances, devices))
    index = 3 if instances == SEVEN else 0 if devices == "all" else 1
    assert node.uuid(index) in message
    assert " (x7)" in message


@pytest.mark.parametrize("mode_only", [False, True])
def test_the_mode_of_one_gpu_leaves_the_others(node: World, mode_only: bool) -> None:
    """Also where the others are named with the mode that they have."""
    before, since = node.node.gpus(), len(node.node.log())
    a100s = dict(held(before[1]) or {})
    h100 = dict(held(before[3]) or {})
    text = document({"mode": [("[0, 1, 2]", a100s), ("[3]", h100)]})
    for wanted in ("enabled", "disabled"):
        node.put(text=text, mode_only=mode_only, **RESET)
        after = node.node.gpus()
        assert after[0]["mode"]["current"] == wanted
        assert held(after[0]) == (None if wanted == "disabled" else {} if mode_only else a100s)
        assert after[1:] == before[1:]
        text = entry(None, "[0]")
    done = changes(node, since)
    assert {call.gpu for call in done} == {0}
    assert sum(call.name == "nvmlDeviceSetMigMode" for call in done) == 2


def _entries(*lines: str) -> str:
    return "version: v1\nmig-configs:\n  it:\n" + "".join(f"  - {{{line}}}\n" for line in lines)


_SEVEN = 'mig-enabled: true, mig-devices: {"1g.5gb": 7}'
_FILTER = 'device-filter: "0x20B010DE"'


@pytest.mark.parametrize(
    ("text", "reached"),
    [
        (_entries(f"devices: [1], {_SEVEN}"), {1}),
        (_entries(f"devices: all, {_FILTER}, {_SEVEN}"), {0, 1, 2}),
        (_entries(f"devices: [2, 3], {_FILTER}, {_SEVEN}"), {2}),
        (_entries("devices: all, mig-enabled: true, mig-devices: {}"), {0, 1, 2, 3}),
        (_entries("devices: [2, 3, 4], mig-enabled: false"), {2, 3}),
        (_entries("devices: [0, 1], mig-enabled: false", f"devices: [1, 2], {_SEVEN}"), {0, 1, 2}),
        (_entries("devices: [1], mig-enabled: false", f"devices: [1], {_SEVEN}"), {1}),
    ],
    ids=["partial", "filtered", "both", "beside-no-mig", "off", "overlapping", "twice"],
)
def test_assert_is_about_what_the_config_names(node: World, text: str, reached: set[int]) -> None:
    config = load(text, "text").configs["it"]
    expected = meaning(config, node.node.gpus())
    assert isinstance(expected, dict)
    assert set(expected) == reached

    def wrong() -> set[int]:
        return {
            g["index"]
            for g in node.node.gpus()
            if g["index"] in expected and held(g) != expected[g["index"]]
        }

    def told() -> set[int]:
        said = differences(node, text=text)
        found = {g["index"] for g in node.node.gpus() if any(g["uuid"] in line for line in said)}
        assert len(said) == len(found)
        return found

    assert wrong()
    assert told() == wrong()
    node.put(text=text, **RESET)
    assert wrong() == set()
    check_nothing_left(node, text=text)
    others = [g["index"] for g in node.node.gpus()[:4] if g["index"] not in reached]
    if others:
        node.put(text=entry({"1g.10gb": 2}, str(others)), **RESET)
        check_nothing_left(node, text=text)
    one = max(reached)
    node.put(text=entry({"1g.10gb": 2}, f"[{one}]"), **RESET)
    assert told() == wrong() == {one}


@pytest.mark.parametrize(
    ("canonical", "spelt"),
    [
        ({"1g.5gb": 7}, '"1c.1g.5gb": 7'),
        ({"1g.5gb": 7}, '"01g.05gb": 7'),
        ({"1g.5gb": 7}, '"1g.5gb": 7, "2g.10gb": 0'),
        ({"1g.5gb": 7}, '"1g.5gb": 7.0'),
        ({"1g.5gb": 7}, '"1g.5gb": 3, "1c.1g.5gb": 4'),
        ({"3g.20gb": 2}, '"3c.3g.20gb": 1, "03g.20gb": 1'),
        ({"1g.5gb+me": 1, "4g.20gb": 1}, '"1c.1g.5gb+me": 1, "4c.4g.20gb": 1'),
        ({"1c.3g.20gb": 3}, '"01c.3g.20gb": 3'),
    ],
)
def test_a_profile_is_the_same_in_any_spelling(
    node: World, canonical: dict[str, int], spelt: str
) -> None:
    spelling = _entries(f"devices: [1], mig-enabled: true, mig-devices: {{{spelt}}}")
    plain = entry(canonical, "[1]")
    for first, second in ((spelling, plain), (plain, spelling)):
        node.put(text=entry({}, "[1]"), **RESET)
        node.put(text=first, **RESET)
        check_nothing_left(node, text=first)
        check_nothing_left(node, text=second)


@pytest.mark.parametrize("nth", [1, 4, 7])
@pytest.mark.parametrize(
    "call", ["nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance"]
)
def test_a_failure_is_undone(node: World, call: str, nth: int) -> None:
    node.put(text=entry({"7g.40gb": 1}, "[1]"))
    before = layouts(node.node)
    uuids = [mig_uuids(g) for g in node.node.gpus()]
    node.node.fault(call, nth=nth, returns="INSUFFICIENT_RESOURCES", gpu=1)
    result, details = node.daemon.applied("", text=entry(SEVEN, "[1]"))
    (outcome,) = details["gpus"]
    assert (result, outcome["result"]) == ("failed", "rolled-back")
    assert (outcome["call"], outcome["code-name"]) == (call, "INSUFFICIENT_RESOURCES")
    assert layouts(node.node) == before
    assert [mig_uuids(g) for g in node.node.gpus()] == uuids
    node.node.clear_faults()
    node.put(text=entry(SEVEN, "[1]"))
    assert held(node.node.gpus()[1]) == SEVEN


def test_one_instance_less_is_one_destroyed(node: World) -> None:
    node.put(text=entry(SEVEN, "[1]"))
    before, since = mig_uuids(node.node.gpus()[1]), len(node.node.log())
    node.put(text=entry({"1g.5gb": 6}, "[1]"))
    after = mig_uuids(node.node.gpus()[1])
    assert len(after) == 6
    assert after.items() <= before.items()
    assert Counter(call.name for call in changes(node, since)) == {
        "nvmlComputeInstanceDestroy": 1,
        "nvmlGpuInstanceDestroy": 1,
    }


def test_a_difference_is_told(node: World) -> None:
    node.put(text=entry({"1g.5gb": 6}, "[1]"))
    (line,) = differences(node, text=entry(SEVEN, "[1]"))
    gpu = node.node.gpus()[1]
    assert line == f"GPU 1 ({gpu['name']}, {gpu['uuid']}): 1 x 1g.5gb is missing"


def test_a_mode_that_cannot_change_is_told_with_the_reason(node: World) -> None:
    """NVML says it as the activation status of a call that succeeds."""
    before = layout(node.node.gpus()[0])
    with node.node.hold(0, hidden=True):
        result, details = node.daemon.applied("", text=entry(SEVEN, "[0]"), **RESET)
        (outcome,) = details["gpus"]
        assert (result, outcome["result"]) == ("failed", "rolled-back")
        assert outcome["error"] == f"{names.ERROR}.InUse"
        assert "held" in outcome["message"]
        assert layout(node.node.gpus()[0]) == before


def test_no_driver_is_told(tmp_path: Path) -> None:
    without = Node.new(tmp_path / "node", (A100, 1))
    without.unload()
    with PrivateBus() as bus, Daemon(without, bus.address, tmp_path) as daemon:
        for method in ("Assert", "Apply", "Plan"):
            name, message = daemon.refused(method, "sa{sv}", "", options({"text": entry(SEVEN)}))
            assert name == f"{names.ERROR}.NoDriver"
            assert "driver" in message
