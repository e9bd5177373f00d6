"""What is on a node, and what its hardware gives, as text that is taken back."""

import json
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
from tests.bus.manager import (
    DISABLED,
    H100,
    Layout,
    World,
    changing_calls,
    document,
    layouts,
    world,
)
from tests.data import mig_parted
from tests.support.daemon import options

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("made"), (H100, 2)) as of:
        yield of


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
    }
    assert layouts(made.node) == truth
    texts = [
        made.daemon.call("Export", "a{sv}", options({"format": f, "exact": True}))[0]
        for f in ("yaml", "json")
    ]
    for text in texts:
        made.put("all-1g.10gb")
        made.put(text=text)
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
    made.put("all-balanced")
    exported = migctl(made, "--json", "export", "--exact").stdout
    truth = layouts(made.node)
    how_given: dict[str, dict[str, Any]] = {
        "-": {"input": exported},
        "layout.json": {"cwd": tmp_path},
    }
    for name, how in how_given.items():
        (tmp_path / "layout.json").write_text(exported)
        made.put("all-disabled")
        done = migctl(made, "apply", "-f", name, **how)
        assert done.returncode == 0, done.stderr
        assert layouts(made.node) == truth
        (tmp_path / "layout.json").unlink()
    # What is kept needs neither the file nor the folder that it was named from.
    made.daemon.restart()
    made.daemon.call("Plan", "sa{sv}", "all-disabled", {})
    assert made.daemon.property("Match") == "yes"
    assert set(made.daemon.property("Wanted").values()) == {"(text)"}


def checkpoint_of(made: World) -> str:
    """The one that mig-parted recorded, for this node: that had other UUIDs."""
    text = mig_parted.CHECKPOINT
    devices = json.loads(text)["MigState"]["Devices"]
    for device, gpu in zip(devices, made.node.gpus(), strict=True):
        text = text.replace(device["UUID"], gpu["uuid"])
    return text


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The node that mig-parted's checkpoint was recorded on."""
    with world(tmp_path_factory.mktemp("many"), *mig_parted.BOARDS) as made:
        yield made


RECORDED: tuple[Layout, ...] = (
    ("enabled", ((5, 0, 4, (3,)), (14, 4, 2, (0, 0)), (19, 6, 1, (0,)))),
    DISABLED,
    ("enabled", ((14, 0, 2, (1,)), (20, 2, 1, (0,)), (9, 4, 4, (0, 0)))),
    DISABLED,
    ("enabled", ((66, 0, 6, (1,)), (47, 6, 3, (0,)), (47, 9, 3, (0,)))),
)


def test_what_mig_parted_kept_is_restored_and_written_as_it_wrote_it(
    many: World, tmp_path: Path
) -> None:
    many.clean()
    text = checkpoint_of(many)
    path = tmp_path / "checkpoint.json"
    path.write_text(text)
    shown = migctl(many, "restore", "--plan", "--max-impact=reset", str(path))
    assert shown.returncode == 0, shown.stderr
    assert "create 2g.48gb-me at 0:6" in shown.stdout
    assert set(layouts(many.node).values()) == {DISABLED}

    done = migctl(many, "restore", "--max-impact", "reset", str(path))
    assert done.returncode == 0, done.stderr
    assert tuple(layouts(many.node).values()) == RECORDED
    assert migctl(many, "checkpoint").stdout == f"{text}\n"

    # It is what is wanted, as text; and there is nothing left to do for it.
    assert set(many.daemon.property("Wanted").values()) == {"(text)"}
    assert many.daemon.property("Match") == "yes"
    given = options({"checkpoint": text})
    assert many.daemon.call("Assert", "sa{sv}", "", given) == [True, []]
    calls = changing_calls(many.node)
    done = migctl(many, "restore", "-", input=text)
    assert (done.returncode, "nothing was to do" in done.stdout) == (0, True)
    assert changing_calls(many.node) == calls

    # A boot puts it back at its places.
    many.node.reboot()
    many.daemon.restart()
    many.daemon.call("PutBack", "a{sv}", {})
    assert tuple(layouts(many.node).values()) == RECORDED


def test_only_what_differs_is_changed_and_only_where_it_is_meant(many: World) -> None:
    """What is in use and stays is not touched, and neither is a GPU that is not meant."""
    many.clean()
    text = checkpoint_of(many)
    many.put(text=document({"a": [("[0]", {"4g.40gb": 1}), ("[2]", {})]}), max_impact="reset")
    (kept,) = many.node.gpus()[0]["instances"]
    assert kept["placement"]["start"] == 0
    with many.node.hold(0, kept["gi"]):
        given = options({"gpus": ["0", "1"], "max-impact": "instances"})
        number, _ = many.daemon.call("Restore", "sa{sv}", text, given)
        result, details = many.daemon.wait(number)
        assert result == "done", details
    assert tuple(layouts(many.node).values())[:3] == (*RECORDED[:2], ("enabled", ()))
    assert kept in many.node.gpus()[0]["instances"]
    name, message = many.daemon.refused(
        "Restore", "sa{sv}", text, options({"gpus": ["2"], "expect": "of another"})
    )
    assert name == f"{names.ERROR}.Changed", message


def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_touched(many: World) -> None:
    before, calls = layouts(many.node), changing_calls(many.node)
    text = checkpoint_of(many)
    for odd, given, name in (
        (text.replace(many.uuid(1), many.uuid(1)[:-4] + "0000"), {}, "NoSuchGpu"),
        (text.replace('"ProfileID":14', '"ProfileID":17'), {}, "NoSuchProfile"),
        (text.replace('"v1"', '"v2"'), {}, "Config"),
        ("", {}, "Config"),
        (text, {"gpus": ["7"]}, "NoSuchGpu"),
    ):
        for member, arguments in (
            ("Restore", (odd, options(given))),
            ("Plan", ("", options({**given, "checkpoint": odd}))),
        ):
            error, message = many.daemon.refused(member, "sa{sv}", *arguments)
            assert error == f"{names.ERROR}.{name}", message
    for config, more in (("", {"text": "x"}), ("all-enabled", {})):
        asked = options({"checkpoint": text, **more})
        error, _ = many.daemon.refused("Plan", "sa{sv}", config, asked)
        assert error == f"{names.DBUS_ERROR}.InvalidArgs"
    for member in ("Apply", "Stage"):
        error, _ = many.daemon.refused(member, "sa{sv}", "", options({"checkpoint": text}))
        assert error == f"{names.DBUS_ERROR}.InvalidArgs"
    assert (layouts(many.node), changing_calls(many.node)) == (before, calls)


def test_a_gpu_that_cannot_be_looked_at_is_not_left_out(many: World) -> None:
    many.node.fault("nvmlDeviceGetMigMode", returns="UNKNOWN", gpu=3)
    try:
        error, _ = many.daemon.refused("Checkpoint", "a{sv}", {})
        assert error == f"{names.ERROR}.Nvml"
    finally:
        many.node.clear_faults()


def test_where_a_checkpoint_is_written(many: World, tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    (tmp_path / "link").symlink_to(there)
    for name in ("there.json", "link"):
        done = migctl(many, "checkpoint", name, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(there.read_text())["Version"] == "v1"
        there.write_text("old")
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    for name, part in (
        ("pipe", "is not a regular file"),
        ("nowhere/there.json", "there is no folder"),
    ):
        done = migctl(many, "checkpoint", name, cwd=tmp_path)
        assert (done.returncode, part in done.stderr) == (2, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe", "there.json"]
    assert (tmp_path / "pipe").is_fifo()
