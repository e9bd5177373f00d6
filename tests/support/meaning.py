"""What a configuration means, and what is on a node: from the file and the simulator's catalogue.

A judge beside migd's own reading: entries, profiles and placements, and a search of its own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from migd.config.configs import Config
from migd.simulator.boards import board

State = list[dict[str, Any]]
# What is on one GPU: instances by profile; None where MIG is off.
Held = Counter[str] | None


def offered(key: str) -> dict[str, dict[str, Any]]:
    """The GPU instance profiles of a board, by name."""
    return {row["name"]: row for row in board(key).profiles}


def fits(key: str, counts: Mapping[str, int]) -> bool:
    """Whether a board without instances takes all these."""
    rows = offered(key)
    if any(number > rows[name]["instances"] for name, number in counts.items()):
        return False
    wanted = [rows[name]["placements"] for name, number in counts.items() for _ in range(number)]
    return _placed(sorted(wanted, key=len), frozenset())


def _placed(wanted: Sequence[list[dict[str, int]]], taken: frozenset[int]) -> bool:
    if not wanted:
        return True
    spots = [frozenset(range(p["start"], p["start"] + p["size"])) for p in wanted[0]]
    return any(not s & taken and _placed(wanted[1:], taken | s) for s in spots)


def meaning(config: Config, gpus: State) -> dict[int, Held] | str:
    """By index what the GPUs must hold that the config reaches, or the error that refuses it."""
    reached: dict[int, Held] = {}
    capable = [g for g in gpus if g["mode"]["current"] != "unsupported"]
    if not capable:
        return "NotSupported"
    for part in config.entries:
        filters = {f.device_id for f in part.filter}
        for gpu in capable:
            listed = part.devices == "all" or gpu["index"] in part.devices
            if listed and (not filters or int(gpu["pci_device_id"], 16) in filters):
                reached[gpu["index"]] = Counter(part.instances) if part.enabled else None
    if not reached:
        return "Config"
    asked: list[tuple[str, Mapping[str, int]]] = [
        (gpus[index]["board"], held or {}) for index, held in reached.items()
    ]
    if any(name not in offered(key) for key, held in asked for name in held):
        return "NoSuchProfile"
    return reached if all(fits(key, held) for key, held in asked) else "NoSpace"


def held(gpu: Mapping[str, Any]) -> Held:
    """What a GPU has; each of its instances must be filled as the driver fills it."""
    if gpu["mode"]["current"] != "enabled":
        assert gpu["instances"] == []
        return None
    for instance in gpu["instances"]:
        inside = offered(gpu["board"])[instance["profile"]]["compute_profiles"]
        (whole,) = (c["id"] for c in inside if c["default"])
        assert [c["profile_id"] for c in instance["compute_instances"]] == [whole]
    return Counter(i["profile"] for i in gpu["instances"])


def largest(key: str) -> str:
    """The profile that is the whole GPU."""
    return max((row["slices"], "+" not in name, name) for name, row in offered(key).items())[2]
