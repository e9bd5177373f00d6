# SPDX-License-Identifier: Apache-2.0
"""The true state as a text for people."""

from collections.abc import Iterator
from typing import Any


def _instance(gi: dict[str, Any]) -> Iterator[str]:
    place = gi["placement"]
    ending = " (destroyed, still visible)" if gi["destroyed"] else ""
    yield (
        f"    GPU instance {gi['gi']}: {gi['profile']} (id {gi['profile_id']}) "
        f"at {place['start']}:{place['size']}{ending}"
    )
    for inner in gi["compute_instances"]:
        yield f"      compute instance {inner['ci']}: {inner['profile']} {inner['uuid']}"


def _gpu(gpu: dict[str, Any]) -> Iterator[str]:
    mode = gpu["mode"]
    pending = "" if mode["current"] == mode["pending"] else f", pending {mode['pending']}"
    yield f"  {gpu['index']}: {gpu['name']} {gpu['pci']} {gpu['uuid']}"
    yield f"    MIG {mode['current']}{pending}, minor {gpu['minor']}"
    for gi in gpu["instances"]:
        yield from _instance(gi)
    for holder in gpu["holders"]:
        where = "the GPU" if holder["gi"] is None else f"GPU instance {holder['gi']}"
        hidden = ", hidden" if holder["hidden"] else ""
        yield f"    held by {holder['pid']}: {where}{hidden}"
    if gpu["surprises"]:
        yield f"    surprises: {', '.join(gpu['surprises'])}"


def describe(shown: dict[str, Any]) -> str:
    driver = shown["driver"]
    loaded = "loaded" if driver["loaded"] else "not loaded"
    lines = [
        f"driver {driver['version']} {loaded}, boot {shown['boot']}, lock {shown['lock']}",
        f"sessions: {', '.join(map(str, shown['sessions'])) or 'none'}",
        "GPUs:",
    ]
    for gpu in shown["gpus"]:
        lines += _gpu(gpu)
    for board in shown["boards"]:
        for what, kind in (("filled", "filled by rule"), ("left_out", "left out, not known")):
            lines += [f"{board['board']}, {kind}: {entry}" for entry in board[what]]
    if shown["calls"]:
        lines.append("calls:")
        lines += [f"  {count:8} {name}" for name, count in sorted(shown["calls"].items())]
    lines.append(f"modelled: {shown['modelled']['total_ms']:.3f} ms, one call after the other")
    return "\n".join(lines)
