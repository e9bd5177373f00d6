"""mig-parted's files do here what they say.

The judge of what a name means is `meaning()`: entries, profiles and placements from the files and
the simulator's catalogue, and a search of its own.
"""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from migd import names
from migd.config.configs import Config, load
from migd.simulator.boards import NO_MIG, OFFERED
from tests.bus.manager import (
    World,
    check_nothing_left,
    check_refused,
    check_unchanged,
    document,
    entry,
    world,
)
from tests.data import defaults
from tests.support.meaning import fits, held, meaning, offered

A100 = "a100-40gb"
DATA = Path(defaults.__file__).parent
RESET = {"max_impact": "reset"}


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
