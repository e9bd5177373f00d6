"""What is on a node, and what its hardware gives, as text that is taken back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migd import names
from migd.config.configs import load
from migd.simulator.boards import NO_MIG
from tests.bus.manager import DISABLED, H100, World, changing_calls, layouts, world
from tests.support.daemon import options

A100 = "a100-40gb"
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("made"), (H100, 2), (A100, 1)) as mixed:
        yield mixed


def test_exact_text_is_taken_back_at_its_places_whatever_is_there(made: World) -> None:
    """Each GPU has what only that one has, and in between the other's."""
    made.clean()
    asked = (
        "version: v1\nmig-configs:\n  a:\n"
        "  - devices: [0]\n    mig-enabled: true\n    mig-instances:\n"
        "    - {profile: 1g.10gb, start: 0}\n"
        "    - {profile: 2g.20gb, start: 4, compute: [7]}\n"
        "    - {profile: 1g.10gb, start: 6, compute: []}\n"
        "  - devices: [1]\n    mig-enabled: true\n    mig-instances:\n"
        "    - {profile: 3g.40gb, start: 0, compute: [1c.3g.40gb, 2c.3g.40gb]}\n"
        "    - {profile: 1g.20gb, start: 6}\n"
    )
    made.put(text=asked)
    truth = {
        made.uuid(0): ("enabled", ((19, 0, 1, (0,)), (14, 4, 2, (7,)), (19, 6, 1, ()))),
        made.uuid(1): ("enabled", ((9, 0, 4, (0, 1)), (15, 6, 2, (7,)))),
        made.uuid(2): DISABLED,
    }
    assert layouts(made.node) == truth
    texts = [
        made.daemon.call("Export", "a{sv}", options({"format": f, "exact": True}))[0]
        for f in ("yaml", "json")
    ]
    for text in texts:
        made.put("all-1g.10gb", max_impact="reset")
        made.put(text=text, max_impact="reset")
        assert layouts(made.node) == truth, text
        calls = changing_calls(made.node)
        made.put(text=text)
        assert changing_calls(made.node) == calls


def test_what_is_generated_can_be_the_file(made: World) -> None:
    plans = {name: made.daemon.plan(name) for name in made.daemon.property("Configs")}
    as_yaml, as_json = (
        made.daemon.call("Generate", "a{sv}", options({"format": form}))[0]
        for form in ("yaml", "json")
    )
    assert load(as_yaml, "text") == load(as_json, "text")
    assert set(load(as_yaml, "text").configs) == set(plans)
    (made.daemon.config_dir / names.CONFIG_FILE).write_text(as_yaml)
    made.daemon.call("Reload")
    assert made.daemon.property("ConfigErrors") == []
    assert {name: made.daemon.plan(name) for name in plans} == plans


def test_nothing_is_generated_without_mig(tmp_path: Path) -> None:
    with world(tmp_path, (NO_MIG, 1)) as made:
        name, message = made.daemon.refused("Generate", "a{sv}", {})
        assert name == f"{names.ERROR}.NotSupported"
        assert "there is nothing to generate a configuration from" in message
        assert made.uuid(0) in message


def migctl(made: World, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """The real one, in the folder of the caller."""
    return subprocess.run(
        [sys.executable, "-m", "migd.cli.main", *arguments],
        env={
            **os.environ,
            "DBUS_SYSTEM_BUS_ADDRESS": made.bus.address,
            "PYTHONPATH": str(CHECKOUT),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **how,
    )


def test_text_from_a_pipe_or_a_file_is_kept_and_not_where_it_came_from(
    made: World, tmp_path: Path
) -> None:
    made.clean()
    made.put("all-balanced", max_impact="reset")
    exported = migctl(made, "--json", "export", "--exact").stdout
    truth = layouts(made.node)
    made.put("all-disabled", max_impact="reset")
    given: dict[str, dict[str, Any]] = {
        "-": {"input": exported},
        "layout.json": {"cwd": tmp_path},
    }
    for name, how in given.items():
        (tmp_path / "layout.json").write_text(exported)
        made.put("all-disabled", max_impact="reset")
        done = migctl(made, "apply", "--max-impact", "reset", "-f", name, **how)
        assert done.returncode == 0, done.stderr
        assert layouts(made.node) == truth
        (tmp_path / "layout.json").unlink(missing_ok=True)
        made.daemon.restart()
        # What is kept needs neither the file nor the folder that it was named from.
        made.daemon.call("Plan", "sa{sv}", "all-disabled", {})
        assert made.daemon.property("Match") == "yes"
        assert set(made.daemon.property("Wanted").values()) == {"(text)"}
