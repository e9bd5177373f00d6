# SPDX-License-Identifier: Apache-2.0
"""Reads the catalogue of boards and describes a node to the library that simulates it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import yaml

from migd.simulator.errors import SimulatorError

OFFERED = ("h100-80gb-sxm5", "a100-40gb", "a30-24gb")

_CATALOGUE = Path(__file__).parent / "boards.yaml"

# NVML's architecture numbers, and chip ids as open-gpu-kernel-modules names the chips' revisions.
_ARCHITECTURES = {"Ampere": (7, 0x170), "Hopper": (9, 0x180), "Blackwell": (10, 0x1A2)}

# Subsystem ids are made up in NVIDIA's pattern: nothing depends on them.
_SUBSYSTEM_ID = 0x100010DE

# The addresses of an eight-GPU server come first; more than eight is not a machine anybody sells.
_BUSES = (0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF, *range(0xE0, 0xF8))


@dataclass(frozen=True)
class Board:
    """One model of the catalogue, without the rows in which a number is not known."""

    key: str
    model: dict[str, Any]
    profiles: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...]


def _known(row: dict[str, Any]) -> bool:
    return all(value is not None for value in row.values())


def _profile(row: dict[str, Any], left_out: list[str]) -> dict[str, Any] | None:
    if not _known(row):
        left_out.append(str(row["name"]))
        return None
    compute = []
    for inner in row["compute_profiles"]:
        if _known(inner):
            compute.append(inner)
        else:
            left_out.append(f"compute profile {inner['name']} id {inner['id']} in {row['name']}")
    return {**row, "compute_profiles": compute}


@cache
def _models() -> dict[str, dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    catalogue = yaml.load(_CATALOGUE.read_text(), Loader=loader)  # noqa: S506 - a safe loader
    return {model["key"]: model for model in catalogue["models"]}


def board(key: str) -> Board:
    """Raises SimulatorError where the board is not offered."""
    if key not in OFFERED:
        raise SimulatorError(f"{key!r} is not offered; there are {', '.join(OFFERED)}")
    model = _models()[key]
    left_out: list[str] = []
    rows = (_profile(row, left_out) for row in model["gpu_instance_profiles"])
    return Board(key, model, tuple(row for row in rows if row is not None), tuple(left_out))


def _board_line(board: Board) -> tuple[object, ...]:
    model = board.model
    architecture, chip = _ARCHITECTURES[model["architecture"]]
    major, minor = model["compute_capability"].split(".")
    return (
        "board",
        board.key,
        model["nvml_names"][0],
        "; ".join(board.left_out),
        architecture,
        major,
        minor,
        chip,
        model["pci_device_ids"][0]["id"],
        _SUBSYSTEM_ID,
        model["memory_slices"],
        model["compute_slices"],
        model["max_gpu_instances"],
        int(model["mig_mode"]["enable_needs_gpu_reset"]),
        int(model["mig_mode"]["mode_survives_reboot"]),
        model["nvml_total_memory_mib"],
    )


def _profile_line(row: dict[str, Any]) -> tuple[object, ...]:
    return (
        "profile",
        row["name"],
        row["id"],
        row["enum_value"],
        row["slices"],
        row["instances"],
        row["memory_mib"],
        row["sm"],
        row["copy_engines"],
        row["decoders"],
        row["encoders"],
        row["jpeg"],
        row["ofa"],
        int(row["p2p"]),
        int("+gfx" in row["name"]),
        " ".join(f"{place['start']}:{place['size']}" for place in row["placements"]),
    )


def _lines(boards: Sequence[Board], gpus: Sequence[int], seed: int | None) -> Iterator[object]:
    for board in boards:
        yield _board_line(board)
        for row in board.profiles:
            yield _profile_line(row)
            for inner in row["compute_profiles"]:
                keys = ("name", "id", "slices", "instances", "sm")
                yield ("compute", *(inner[key] for key in keys), int(inner["default"]))
    random = Random(seed)  # noqa: S311 - names for simulated cards
    for number, index in enumerate(gpus):
        uuid = UUID(int=random.getrandbits(128), version=4)
        yield ("gpu", index, f"GPU-{uuid}", _BUSES[number], random.getrandbits(63))


def describe(wanted: Sequence[tuple[str, int]], seed: int | None) -> str:
    """The text that the library makes a node from: boards with their profiles, then the GPUs.

    Raises:
        SimulatorError: a board is not offered, or there are too few or too many GPUs.

    """
    keys = list(dict.fromkeys(key for key, _ in wanted))
    boards = [board(key) for key in keys]
    gpus = [keys.index(key) for key, count in wanted for _ in range(count)]
    if any(count < 1 for _, count in wanted) or not 1 <= len(gpus) <= len(_BUSES):
        raise SimulatorError(f"a node has 1 to {len(_BUSES)} GPUs, and 1 or more of each board")
    lines = _lines(boards, gpus, seed)
    return "\n".join("\t".join(map(str, fields)) for fields in lines)  # type: ignore[call-overload]
