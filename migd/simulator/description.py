# SPDX-License-Identifier: Apache-2.0
"""Describes a node to the library that simulates it: one record a line, fields parted by tabs."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any
from uuid import UUID

from migd.simulator.boards import Board, board
from migd.simulator.errors import SimulatorError

# NVML's architecture numbers, and chip ids as open-gpu-kernel-modules names the chips' revisions.
_ARCHITECTURES = {"Turing": 6, "Ampere": 7, "Hopper": 9, "Blackwell": 10}
_CHIPS = {"7.5": 0x164, "8.0": 0x170, "9.0": 0x180, "10.0": 0x1A2, "12.0": 0x1B2}

# Subsystem ids are made up in NVIDIA's pattern: nothing depends on them.
_SUBSYSTEM_ID = 0x100010DE

# The addresses of an eight-GPU server come first; more than eight is not a machine anybody sells.
_BUSES = (0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF, *range(0xE0, 0xF8))


def _board_line(board: Board) -> tuple[object, ...]:
    model = board.model
    major, minor = model["compute_capability"].split(".")
    return (
        "board",
        board.key,
        model["nvml_names"][0],
        "; ".join(board.left_out),
        "; ".join(board.filled),
        _ARCHITECTURES[model["architecture"]],
        major,
        minor,
        _CHIPS[model["compute_capability"]],
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
    for one in boards:
        yield _board_line(one)
        for row in one.profiles:
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
