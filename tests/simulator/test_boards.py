# SPDX-License-Identifier: Apache-2.0
"""The rule that fills the catalogue's gaps, what it leaves out, and the drivers boards need."""

import ctypes
import json
from math import ceil, floor
from pathlib import Path
from typing import Any

import pynvml
import pytest

from migd.simulator import boards, text
from migd.simulator.__main__ import main
from migd.simulator.errors import SimulatorError
from tests.simulator.conftest import MakeNode
from tests.simulator.nvml_help import INSUFFICIENT_RESOURCES, create, enabled, refused
from tests.support.node import Node

RTX = "rtx-pro-6000-blackwell-96gb"
NUMBERS = ("memory_mib", "sm", "copy_engines", "decoders", "encoders", "jpeg", "ofa")


def row(key: str, name: str) -> dict[str, Any]:
    return next(row for row in boards.board(key).profiles if row["name"] == name)


@pytest.mark.parametrize("key", boards.models())
def test_a_board_is_offered_unless_there_is_a_reason(key: str) -> None:
    assert (boards.why_not(key) is None) == (key in boards.OFFERED)


def test_reasons() -> None:
    reasons = {key: boards.why_not(key) for key in boards.models() if key not in boards.OFFERED}
    scale = "memory_mib of no profile is known, so there is nothing to scale"
    names = "nothing is known of its profiles but names"
    ids = "id of a profile is not known, and no rule gives one"
    assert reasons == {
        "a100-64gb": names,
        "h20-96gb": scale,
        "h20-141gb": scale,
        "h100-64gb": names,
        "b300-269gb": scale,
        "gb300-278gb": scale,
        "rtx-pro-5000-blackwell-48gb": ids,
        "rtx-pro-4500-blackwell-32gb": ids,
        "thor-igpu": names,
    }


@pytest.mark.parametrize("key", boards.OFFERED)
def test_what_is_known_is_not_touched_and_what_is_filled_is_listed(key: str) -> None:
    model, board = boards.models()[key], boards.board(key)
    listed = set()
    for known, used in zip(model["gpu_instance_profiles"], board.profiles, strict=True):
        missing = [name for name in NUMBERS if known[name] is None]
        if missing:
            listed.add(f"{', '.join(missing)} of {known['name']}")
        assert all(used[name] is not None for name in NUMBERS)
        given = [name for name in known if known[name] is not None and name != "compute_profiles"]
        assert [used[name] for name in given] == [known[name] for name in given]
        inner = {one["id"]: one for one in used["compute_profiles"]}
        for one in known["compute_profiles"]:
            if one["instances"] is not None and one["sm"] is not None:
                assert inner[one["id"]] == one
        unknown = [
            str(one["id"])
            for one in known["compute_profiles"]
            if one["sm"] is None and one["instances"] is not None
        ]
        if unknown:
            listed.add(f"sm of compute profile {', '.join(unknown)} in {known['name']}")
    if model.get("nvml_total_memory_mib") is None:
        listed.add("the GPU's memory")
    assert listed == set(board.filled)


@pytest.mark.parametrize("key", boards.OFFERED)
def test_names_follow_from_the_numbers(key: str) -> None:
    """go-nvlib's rule for the GB in a name holds for what is known and for what is filled."""
    board = boards.board(key)
    total = board.model["nvml_total_memory_mib"]
    for used in board.profiles:
        eighths = ceil(8 * used["memory_mib"] / total)
        gigabytes = floor(eighths / 8 * ceil(total / 1024) + 0.5)
        assert f".{gigabytes}gb" in used["name"]


@pytest.mark.parametrize("key", boards.OFFERED)
def test_the_parts_are_not_more_than_the_whole(key: str) -> None:
    board = boards.board(key)
    whole = max(board.profiles, key=lambda used: (used["slices"], used["ofa"]))
    for used in board.profiles:
        for name in NUMBERS:
            assert used[name] <= whole[name]
        # +me.all has every media engine, so there is one; the others fit as often as they may.
        for name in ("sm", *NUMBERS[2:]):
            assert used[name] * used["instances"] <= whole[name]
        for one in used["compute_profiles"]:
            assert one["sm"] * one["instances"] <= used["sm"]
            assert one["sm"] % 2 == 0


def test_the_rule_in_numbers() -> None:
    """Scaled from the H100 SXM5; B200 comes out at the 148 SM that the board has."""
    assert [row("b200-180gb", name)["sm"] for name in ("3g.90gb", "4g.90gb", "7g.180gb")] == [
        68,
        72,
        148,
    ]
    assert [row("h100-80gb-pcie", name)["sm"] for name in ("1g.10gb", "3g.40gb")] == [14, 52]
    assert row("h100-80gb-pcie", "3g.40gb")["memory_mib"] == 40448
    assert row("b200-180gb", "7g.180gb")["copy_engines"] == 16
    assert boards.board("h200-141gb").model["nvml_total_memory_mib"] == 141 * 1024


def test_show_marks_what_was_filled_and_left_out(
    make_node: MakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node = make_node(("b200-180gb", 1), ("a30-24gb", 1))
    assert main(["show", str(node.path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    first, second = shown["boards"]
    assert first["board"] == "b200-180gb"
    assert first["filled"] == list(boards.board("b200-180gb").filled)
    assert first["left_out"] == list(boards.board("b200-180gb").left_out)
    assert second == {"board": "a30-24gb", "filled": [], "left_out": []}
    lines = text.describe(shown).splitlines()
    for entry in first["filled"]:
        assert f"b200-180gb, filled by rule: {entry}" in lines
    for entry in first["left_out"]:
        assert f"b200-180gb, left out, not known: {entry}" in lines


def test_every_board_in_one_node(make_node: MakeNode) -> None:
    node = make_node(*((key, 1) for key in (*boards.OFFERED, boards.NO_MIG)))
    assert [gpu["board"] for gpu in node.gpus()] == [*boards.OFFERED, boards.NO_MIG]


def test_a_driver_that_is_older_than_a_board_is_refused(h100: Node, tmp_path: Path) -> None:
    for key in boards.OFFERED:
        least = boards.min_driver(key)
        assert (least is None) == (key == "gh200-144gb")
    make = ["new", str(tmp_path / "n"), "--gpu", "b200-180gb", "--gpu", "a30-24gb", "--driver"]
    assert main([*make, "570.86.15"]) == 1
    assert main([*make, "570.133.20"]) == 0
    node = Node(tmp_path / "n")
    assert node.show()["driver"]["version"] == "570.133.20"
    for older in (node.upgrade, node.load):
        with pytest.raises(SimulatorError, match=r"b200-180gb needs driver 570\.133\.20 or later"):
            older("565.57.01")
    node.upgrade("575.57.08")
    h100.upgrade("525.85.12")


@pytest.fixture
def rtx(make_node: MakeNode, nvml: Any) -> Any:
    nvml(make_node((RTX, 1)))
    return enabled()


@pytest.mark.parametrize("whole", [65, 64])
def test_while_one_has_all_media_engines_only_those_without_any_can_be_made(
    whole: int, rtx: Any
) -> None:
    media = {one["id"]: "-me" not in one["name"] for one in boards.board(RTX).profiles}
    create(rtx, whole, 0, 3 if whole == 65 else 6)
    for profile, uses_media in media.items():
        size = 3 if profile in {14, 21, 47, 65, 67} else 6 if profile in {5, 35, 64, 66} else 12
        if size == 12:
            continue
        if uses_media:
            with refused(INSUFFICIENT_RESOURCES):
                create(rtx, profile, 6, size)
        else:
            instance = create(rtx, profile, 6, size)
            with refused(INSUFFICIENT_RESOURCES):
                create(rtx, profile, 6, size)
            destroy(instance)


def destroy(instance: Any) -> None:
    pynvml.nvmlGpuInstanceDestroy(instance)


def test_all_media_engines_are_not_to_be_had_while_one_is_in_use(rtx: Any) -> None:
    plain = create(rtx, 14, 0, 3)
    for profile, size in ((65, 3), (64, 6)):
        with refused(INSUFFICIENT_RESOURCES):
            create(rtx, profile, 6, size)
    destroy(plain)
    create(rtx, 67, 0, 3)
    create(rtx, 65, 6, 3)


def test_graphics_profiles_and_plain_ones_share_a_gpu(rtx: Any) -> None:
    made = [create(rtx, profile) for profile in (47, 14, 47, 14)]
    starts = [pynvml.nvmlGpuInstanceGetInfo(one).placement.start for one in made]
    assert starts == [0, 3, 6, 9]
    capabilities = {}
    for enumerator in (10, 0):
        info = (ctypes.c_uint * 38)(0x03000098)
        assert pynvml.nvmlLib.nvmlDeviceGetGpuInstanceProfileInfoV(rtx, enumerator, info) == 0
        capabilities[info[1]] = info[36]
    assert capabilities == {47: 2, 14: 0}
    for instance, graphics in zip(made[:2], (1, 0), strict=True):
        info = (ctypes.c_uint * 35)(0x0300008C)
        ask = pynvml.nvmlLib.nvmlGpuInstanceGetComputeInstanceProfileInfoV
        assert ask(instance, 0, 0, info) == 0
        assert info[34] == graphics
