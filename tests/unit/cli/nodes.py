"""Nodes as the bus shows them, without the types of variants, on three kinds of boards."""

from collections.abc import Sequence
from typing import Any

from migd import names
from migd.cli.node import Gpu, Node, node

H100, A30, RTX = "h100", "a30", "rtx"
# Name, and profiles with the memory slices they take and where they can start.
BOARDS: dict[str, tuple[str, tuple[tuple[str, int, tuple[int, ...]], ...]]] = {
    H100: (
        "NVIDIA H100 80GB HBM3",
        (
            ("1g.10gb", 1, (0, 1, 2, 3, 4, 5, 6)),
            ("1g.10gb+me", 1, (0, 1, 2, 3, 4, 5, 6)),
            ("1g.20gb", 2, (0, 2, 4, 6)),
            ("2g.20gb", 2, (0, 2, 4)),
            ("3g.40gb", 4, (0, 4)),
            ("4g.40gb", 4, (0,)),
            ("7g.80gb", 8, (0,)),
        ),
    ),
    A30: (
        "NVIDIA A30",
        (("1g.6gb", 1, (0, 1, 2, 3)), ("2g.12gb", 2, (0, 2)), ("4g.24gb", 4, (0,))),
    ),
    RTX: (
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        (("1g.24gb+me.all", 3, (0, 3, 6, 9)), ("2g.48gb", 6, (0, 6)), ("4g.96gb", 12, (0,))),
    ),
}

Objects = dict[str, dict[str, dict[str, Any]]]


def manager(**different: Any) -> dict[str, Any]:
    return {
        "Version": "0.1.0",
        "Driver": "580.95.05",
        "Configs": ["all-1g.10gb", "all-disabled", "all-enabled"],
        "Wanted": {},
        "Match": "none",
        "MatchSince": 0,
        "RebootOwed": "",
        "Job": "/",
        "ConfigErrors": [],
        "Drift": [],
        "DriftSince": 0,
        "Conflicts": [],
    } | different


def process(pid: int, command: str = "python3", user: str = "alice", **more: Any) -> dict[str, Any]:
    return {"pid": pid, "command": command, "user": user, "unit": ""} | more


def uuid(index: int = 0) -> str:
    return f"GPU-00000000-0000-4000-8000-{index:012x}"


def gpu(board: str | None, index: int = 0, **different: Any) -> Objects:
    """A GPU without instances, in MIG mode; without a board it has no MIG at all."""
    name, offered = BOARDS[board] if board else ("Tesla T4", ())
    profiles = [
        {
            "id": number,
            "name": profile,
            "slices": int(profile[0]),
            "memory": size * 10 * 2**30,
            "instances": len(starts),
            "multiprocessors": 16,
            "placements": [[start, size] for start in starts],
        }
        for number, (profile, size, starts) in enumerate(offered)
    ]
    mode = "enabled" if board else "unsupported"
    properties = {
        "Uuid": uuid(index),
        "Index": index,
        "PciAddress": f"0000:{index + 1:02x}:00.0",
        "Name": name,
        "Memory": 80 * 2**30,
        "MigMode": mode,
        "MigModePending": mode,
        "State": "ok",
        "Wanted": "",
        "Profiles": profiles,
        "Processes": [],
        "Job": "/",
    }
    return {names.gpu_path(uuid(index)): {names.GPU: properties | different}}


def instance(
    gi: int,
    profile: str,
    start: int,
    size: int,
    *,
    compute: Sequence[str] | None = None,
    processes: Sequence[dict[str, Any]] = (),
    index: int = 0,
) -> Objects:
    """A GPU instance with one compute instance that fills it, or with those named."""
    path = names.gpu_instance_path(uuid(index), gi)
    found: Objects = {
        path: {
            names.GPU_INSTANCE: {
                "Id": gi,
                "Gpu": names.gpu_path(uuid(index)),
                "Profile": profile,
                "ProfileId": 0,
                "Placement": [start, size],
                "Memory": 10 * 2**30,
            }
        }
    }
    for ci, name in enumerate([profile] if compute is None else compute):
        found[names.compute_instance_path(uuid(index), gi, ci)] = {
            names.COMPUTE_INSTANCE: {
                "Id": ci,
                "GpuInstance": path,
                "Profile": name,
                "ProfileId": 0,
                "Placement": [ci, 1],
                "Uuid": f"MIG-{index:08x}-0000-5000-8000-{gi:06x}{ci:06x}",
                "Processes": list(processes) if ci == 0 else [],
            }
        }
    return found


def job(number: int = 7, **different: Any) -> Objects:
    properties = {
        "Id": number,
        "Type": "apply",
        "Config": "all-1g.10gb",
        "Gpus": [uuid()],
        "StartedByUid": 0,
        "StartTimestamp": 1_763_900_000_000_000,
        "Phase": "journal",
        "Step": 0,
        "Steps": 8,
        "Waiting": "",
        "Cancelable": True,
    }
    return {names.job_path(number): {names.JOB: properties | different}}


def whole(*parts: Objects, **properties: Any) -> Node:
    objects: Objects = {}
    for part in parts:
        objects |= part
    return node(manager(**properties), objects)


def one(*parts: Objects) -> Gpu:
    (found,) = whole(*parts).gpus
    return found


def mixed() -> Objects:
    """A H100 with instances of three sizes, one of them in use, and two free slots."""
    return {
        **gpu(H100, Wanted="mixed"),
        **instance(9, "1g.10gb", 0, 1, processes=[process(4711), process(4712, "train")]),
        **instance(5, "2g.20gb", 2, 2),
        **instance(2, "3g.40gb", 4, 4, compute=["1c.3g.40gb", "2c.3g.40gb"]),
    }
