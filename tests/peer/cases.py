"""What is tried with the peer and migd, and what is written down of it (`record.json`).

On each node, for each name of mig-parted's default file that it can hold, and for a few that it
cannot: from the same layout one of the two applies it, and the other is asked what it makes of it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from migd.config.configs import Config
from migd.core.values import typed
from migd.simulator.boards import NO_MIG, OFFERED, board
from tests.data import defaults
from tests.support.meaning import State, meaning, offered

RECORD = Path(__file__).parent / "record.json"
CONFIGS: Mapping[str, Config] = defaults.default_configs().configs

# Of each board one, and nodes of several: the default file has entries for both; a filter takes
# in one of them, and the others have a profile each of their own; a GPU has no MIG.
NODES: dict[str, tuple[str, ...]] = {key: (key,) for key in OFFERED} | {
    " + ".join(keys): keys
    for keys in (
        ("a100-40gb", "h100-80gb-sxm5"),
        ("h200-141gb", "a30-24gb", "rtx-pro-6000-blackwell-96gb"),
        ("h100-80gb-pcie", NO_MIG),
    )
}


class Why(StrEnum):
    """Why a node cannot hold what a name says."""

    UNKNOWN = "no GPU of the node has the profile"
    NOT_ALL = "a GPU has the profile, and another that is meant has not"
    NO_SPACE = "a GPU has the profiles, and not the room"
    NOBODY = "no GPU of the node is meant"


def why_not(node: str, name: str) -> Why | None:
    """Why the node cannot hold it; None if it can. From the catalogue alone."""
    found = meaning(CONFIGS[name], start(node))
    if not isinstance(found, str):
        return None
    if found == "NoSuchProfile":
        asked = {profile for part in CONFIGS[name].entries for profile in part.instances}
        return Why.NOT_ALL if any(asked <= offered(k).keys() for k in NODES[node]) else Why.UNKNOWN
    return {"NoSpace": Why.NO_SPACE, "Config": Why.NOBODY}[found]


def tried(node: str) -> list[str]:
    """The names that are tried there: all that it can hold, and the first for each reason."""
    reasons = {name: why_not(node, name) for name in CONFIGS}
    first = {why: name for name, why in reversed(reasons.items()) if why}
    return [name for name, why in reasons.items() if why is None or first[why] == name]


def start(node: str) -> State:
    """A node before anything is done, as its state shows the GPUs."""
    return [
        {
            "index": index,
            "board": key,
            "pci_device_id": board(key).model["pci_device_ids"][0]["id"],
            "mode": {"current": "unsupported" if key == NO_MIG else "disabled"},
            "instances": [],
        }
        for index, key in enumerate(NODES[node])
    ]


# By GPU its instances, `profile@start` and what is in each unless that fills it; None: MIG is off.
Layout = tuple[tuple[str, ...] | None, ...]


@dataclass(frozen=True)
class Made:
    """One of the two applied the name.

    done, words: whether it said that it had, and what it said if not
    layout: what was there then
    itself, other, other_mode: whether its own assert agreed, the other's, and that of the mode only

    Where the node can hold what the name says:

    export: what it wrote then
    other_export: whether the other's assert agreed to that
    other_applied: what was there when the other had applied it, from another layout
    checkpoint: what the peer wrote then; migd's is compared with it, and not recorded
    """

    done: bool
    words: str
    layout: Layout
    itself: bool
    other: bool
    other_mode: bool
    export: str = ""
    other_export: bool = False
    other_applied: Layout = ()
    checkpoint: str = ""


@dataclass(frozen=True)
class Case:
    """One name on one node."""

    peer: Made
    migd: Made


@dataclass(frozen=True)
class Record:
    """What the peer of that version did and said, by node and name."""

    version: str
    nodes: Mapping[str, Mapping[str, Case]]

    def write(self, path: Path = RECORD) -> None:
        """A line for each case, so that two records can be compared."""
        nodes = []
        for node, cases in self.nodes.items():
            rows = ",\n".join(f"{json.dumps(n)}:{_compact(asdict(c))}" for n, c in cases.items())
            nodes.append(f"{json.dumps(node)}:{{\n{rows}\n}}")
        path.write_text(
            f'{{"version":{json.dumps(self.version)},"nodes":{{\n' + ",\n".join(nodes) + "\n}}\n"
        )

    @classmethod
    def read(cls, path: Path = RECORD) -> "Record":
        found = json.loads(path.read_text())
        return cls(
            found["version"],
            {
                node: {name: typed(Case, case, f"{node}, {name}") for name, case in cases.items()}
                for node, cases in found["nodes"].items()
            },
        )


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def layout(gpus: State) -> Layout:
    return tuple(
        tuple(sorted(_instance(gpu["board"], i) for i in gpu["instances"]))
        if gpu["mode"]["current"] == "enabled"
        else None
        for gpu in gpus
    )


def _instance(board: str, instance: Mapping[str, Any]) -> str:
    inside = offered(board)[instance["profile"]]["compute_profiles"]
    default = [c["id"] for c in inside if c["default"]]
    has = sorted(c["profile_id"] for c in instance["compute_instances"])
    place = f"{instance['profile']}@{instance['placement']['start']}"
    return place if has == default else f"{place} {has}"
