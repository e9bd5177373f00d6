# SPDX-License-Identifier: Apache-2.0
"""The boards that can be simulated: rows of the catalogue, with the gaps in them filled by rule.

The one rule for a number that nobody has published: it is that of the same profile of
`REFERENCE`, scaled. The scale comes from the largest profile for which both boards' numbers are
known; an SM count is rounded to an even one (an SM has a twin), memory down to the 64 MiB of the
catalogue, engines to the nearest. A compute profile has the SM of the GPU instance profile of its
width. A whole GPU's memory is the GB in the name of its largest profile. Nothing else is filled:
a compute profile whose count is unknown is left out, and a board of which no profile tells the
scale is not offered. Each filled number is listed in `Board.filled`, and `show` prints it.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from migd.simulator.errors import SimulatorError

OFFERED = (
    "a30-24gb",
    "a100-40gb",
    "a100-80gb",
    "h100-80gb-sxm5",
    "h100-80gb-pcie",
    "h100-nvl-94gb",
    "h100-96gb",
    "gh200-144gb",
    "h200-141gb",
    "b200-180gb",
    "gb200-186gb",
    "rtx-pro-6000-blackwell-96gb",
)
REFERENCE = "h100-80gb-sxm5"
NO_MIG = "t4-16gb"

_CATALOGUE = Path(__file__).parent / "boards.yaml"
_MEMORY_STEP_MIB = 64
_SCALED = ("memory_mib", "sm", "copy_engines", "decoders", "encoders", "jpeg", "ofa")
_GIVEN = ("id", "enum_value", "slices", "instances", "placements")

# Not in the catalogue, which is of MIG boards: a card without, for nodes that mix both.
_WITHOUT_MIG = {
    "key": NO_MIG,
    "nvml_names": ["Tesla T4"],
    "pci_device_ids": [{"id": "0x1EB810DE"}],
    "architecture": "Turing",
    "compute_capability": "7.5",
    "nvml_total_memory_mib": 15360,
    "memory_slices": 0,
    "compute_slices": 0,
    "max_gpu_instances": 0,
    "mig_mode": {"enable_needs_gpu_reset": False, "mode_survives_reboot": False},
    "gpu_instance_profiles": [],
}


@dataclass(frozen=True)
class Board:
    """One model, each number in it known or filled, and what was done to make it so."""

    key: str
    model: dict[str, Any]
    profiles: tuple[dict[str, Any], ...]
    filled: tuple[str, ...]
    left_out: tuple[str, ...]


@cache
def models() -> dict[str, dict[str, Any]]:
    """The catalogue as it is, by key."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    catalogue = yaml.load(_CATALOGUE.read_text(), Loader=loader)  # noqa: S506 - a safe loader
    return {model["key"]: model for model in catalogue["models"]}


def _scale(rows: list[dict[str, Any]], number: str) -> tuple[int, int] | None:
    """What both boards know of one number, in the profile with the most slices."""
    reference = {row["enum_value"]: row for row in models()[REFERENCE]["gpu_instance_profiles"]}
    both = [
        (row["slices"], row["placements"][0]["size"], row[number], reference[enum][number])
        for row in rows
        if row[number] is not None and (enum := row["enum_value"]) in reference
    ]
    return max(both)[2:] if both else None


def why_not(key: str) -> str | None:
    """Why a board of the catalogue is not offered; None where it can be."""
    rows = models()[key].get("gpu_instance_profiles")
    if not rows:
        return "nothing is known of its profiles but names"
    for number in _GIVEN:
        if any(row.get(number) is None for row in rows):
            return f"{number} of a profile is not known, and no rule gives one"
    for number in _SCALED:
        if any(row[number] is None for row in rows) and _scale(rows, number) is None:
            return f"{number} of no profile is known, so there is nothing to scale"
    return None


def _rounded(number: str, value: int, here: int, there: int) -> int:
    if number == "memory_mib":
        return value * here // (there * _MEMORY_STEP_MIB) * _MEMORY_STEP_MIB
    step = 2 if number == "sm" else 1
    # A number that is 0 on both boards, such as encoders, has no scale.
    return round(value * here / there / step) * step if there else value


def _fill(rows: list[dict[str, Any]], filled: list[str]) -> list[dict[str, Any]]:
    reference = {row["enum_value"]: row for row in models()[REFERENCE]["gpu_instance_profiles"]}
    scales = {number: _scale(rows, number) for number in _SCALED}
    done = []
    for row in rows:
        missing = [number for number in _SCALED if row[number] is None]
        values = {}
        for number in missing:
            scale = scales[number]
            assert scale is not None, "why_not() comes first"
            values[number] = _rounded(number, reference[row["enum_value"]][number], *scale)
        if missing:
            filled.append(f"{', '.join(missing)} of {row['name']}")
        done.append({**row, **values})
    return done


def _sm_of(inner: dict[str, Any], row: dict[str, Any], rows: list[dict[str, Any]]) -> int:
    if inner["slices"] == row["slices"] and inner["default"]:
        return int(row["sm"])
    double = inner["enum"].endswith("1_SLICE_REV1")
    size = sorted(
        (other["placements"][0]["size"], other["sm"])
        for other in rows
        if other["slices"] == inner["slices"]
    )
    return int(size[-1 if double else 0][1])


def _compute(
    row: dict[str, Any], rows: list[dict[str, Any]], filled: list[str], left_out: list[str]
) -> list[dict[str, Any]]:
    kept, missing = [], []
    for inner in row["compute_profiles"]:
        if inner["instances"] is None:
            left_out.append(f"compute profile {inner['name']} id {inner['id']} in {row['name']}")
            continue
        if inner["sm"] is None:
            missing.append(str(inner["id"]))
        sm = inner["sm"] if inner["sm"] is not None else _sm_of(inner, row, rows)
        kept.append({**inner, "sm": sm})
    if missing:
        filled.append(f"sm of compute profile {', '.join(missing)} in {row['name']}")
    return kept


@cache
def board(key: str) -> Board:
    """Raises SimulatorError where the board is not offered."""
    if key == NO_MIG:
        return Board(key, _WITHOUT_MIG, (), (), ())
    if key not in OFFERED:
        reason = f": {why_not(key)}" if key in models() else ""
        offered = ", ".join((*OFFERED, NO_MIG))
        raise SimulatorError(f"{key!r} is not offered{reason}; there are {offered}")
    model = dict(models()[key])
    filled: list[str] = []
    left_out: list[str] = []
    rows = _fill(model["gpu_instance_profiles"], filled)
    if model.get("nvml_total_memory_mib") is None:
        whole = max(rows, key=lambda row: (row["slices"], row["memory_mib"]))
        gigabytes = int(whole["name"].split(".")[1].split("gb")[0])
        model["nvml_total_memory_mib"] = gigabytes * 1024
        filled.append("the GPU's memory")
    profiles = tuple(
        {**row, "compute_profiles": _compute(row, rows, filled, left_out)} for row in rows
    )
    return Board(key, model, profiles, tuple(filled), tuple(left_out))


def min_driver(key: str) -> str | None:
    """The first driver that knows the board, where a document says so."""
    first = str(board(key).model.get("min_driver") or "").split(" ")[0]
    return first if first.replace(".", "").isdigit() else None
