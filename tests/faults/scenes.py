"""The start of a job and its end: nodes with layouts, and what may be on them afterwards."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.node import Holder, Node

H100 = "h100-80gb-sxm5"
A100 = "a100-40gb"

# Profile id, start, size, and the profile ids of the compute instances.
Row = tuple[int, int, int, Sequence[int]]

_BUILD = """
import ctypes, json, sys
import pynvml as nvml

nvml.nvmlInit()
for index, rows in json.loads(sys.argv[1]).items():
    gpu = nvml.nvmlDeviceGetHandleByIndex(int(index))
    if nvml.nvmlDeviceGetMigMode(gpu)[0] == 0:
        assert nvml.nvmlDeviceSetMigMode(gpu, 1) == 0
    for profile, start, size, inside in rows:
        spot = nvml.c_nvmlGpuInstancePlacement_t(start, size)
        gi = nvml.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, profile, ctypes.byref(spot))
        for ci in inside:
            nvml.nvmlGpuInstanceCreateComputeInstance(gi, ci)
"""


class Truth(NamedTuple):
    """What is on one GPU: the mode, what it will be, and the instances by where they start.

    Of an instance: profile id, start, size, and the profile ids of its compute instances.
    """

    mode: str
    pending: str
    instances: tuple[tuple[int, int, int, tuple[int, ...]], ...]


def truth(node: Node, gpu: int) -> Truth:
    shown = node.gpus()[gpu]
    instances = (
        (
            instance["profile_id"],
            instance["placement"]["start"],
            instance["placement"]["size"],
            tuple(
                sorted(
                    ci["profile_id"] for ci in instance["compute_instances"] if not ci["destroyed"]
                )
            ),
        )
        for instance in shown["instances"]
        if not instance["destroyed"]
    )
    mode = shown["mode"]
    return Truth(mode["current"], mode["pending"], tuple(sorted(instances, key=lambda i: i[1])))


def settled_truth(layout: Mapping[str, Any]) -> Truth:
    """A settled layout, as the state file has it, told as truth() tells what is there."""
    rows = [
        (
            row["profile_id"],
            row["placement"]["start"],
            row["placement"]["size"],
            tuple(sorted(row["compute"])),
        )
        for row in layout["instances"]
    ]
    return Truth(layout["mode"], layout["mode"], tuple(sorted(rows, key=lambda row: row[1])))


def truths(node: Node) -> list[Truth]:
    return [truth(node, index) for index in range(len(node.gpus()))]


def mig_uuids(node: Node, gpu: int, start: int) -> list[str]:
    """MIG UUIDs in the GPU instance that starts there."""
    return [
        ci["uuid"]
        for instance in node.gpus()[gpu]["instances"]
        if instance["placement"]["start"] == start
        for ci in instance["compute_instances"]
    ]


def gi_at(node: Node, gpu: int, start: int) -> int:
    (found,) = (i["gi"] for i in node.gpus()[gpu]["instances"] if i["placement"]["start"] == start)
    return int(found)


def build(node: Node, layouts: Mapping[int, Sequence[Row]]) -> None:
    """Make instances, by NVML itself: profile id, start, size, and compute profile ids."""
    node.python(_BUILD, json.dumps(layouts))


@dataclass(frozen=True, eq=False)
class Scene:
    """A node with something on it, and a configuration `goal` that changes it.

    layouts: what is there before; a GPU that is not named has MIG off
    held: GPU and start of an instance that somebody uses and that stays
    profiles: of the goal, by GPU
    """

    gpus: tuple[tuple[str, int], ...]
    layouts: Mapping[int, Sequence[Row]]
    config: str
    profiles: tuple[tuple[int, ...], ...]
    held: tuple[int, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Stage:
    """A scene that is set up."""

    scene: Scene
    node: Node
    before: list[Truth]
    holder: Holder | None
    held_uuids: list[str]

    def check_holder(self) -> None:
        """The instance in use is the one it was, and whoever uses it lives."""
        if self.scene.held is None:
            return
        assert self.holder
        assert self.holder.alive()
        assert mig_uuids(self.node, *self.scene.held) == self.held_uuids
        gi = gi_at(self.node, *self.scene.held)
        holders = self.node.gpus()[self.scene.held[0]]["holders"]
        assert [(h["pid"], h["gi"]) for h in holders] == [(self.holder.pid, gi)]


@contextmanager
def staged(scene: Scene, folder: Path) -> Iterator[Stage]:
    node = Node.new(folder, *scene.gpus)
    build(node, scene.layouts)
    if scene.held is None:
        yield Stage(scene, node, truths(node), None, [])
        return
    with node.hold(scene.held[0], gi_at(node, *scene.held)) as holder:
        yield Stage(scene, node, truths(node), holder, mig_uuids(node, *scene.held))


def check_reached(scene: Scene, found: Sequence[Truth]) -> None:
    """What an undisturbed run made is what the configuration says."""
    assert [tuple(sorted(i[0] for i in gpu.instances)) for gpu in found] == list(scene.profiles)
    assert all(gpu.mode == gpu.pending for gpu in found)
    assert [gpu.mode == "enabled" for gpu in found] == [bool(p) for p in scene.profiles]


# GPU 0: one goes, one gets other compute instances, one comes, one is in use and stays.
# GPU 1: its mode is switched. Both take several steps each way.
TWO_H100 = Scene(
    ((H100, 2),),
    {0: [(14, 0, 2, (0, 0)), (19, 2, 1, (0,)), (9, 4, 4, (2,))]},
    """
version: v1
mig-configs:
  goal:
    - {devices: [0], mig-enabled: true, mig-devices: {3g.40gb: 1, 2g.20gb: 2}}
    - {devices: [1], mig-enabled: true, mig-devices: {3g.40gb: 1, 1g.20gb: 1}}
""",
    ((9, 14, 14), (9, 15)),
    held=(0, 4),
)

# The same beside a GPU that nothing happens to.
THREE_H100 = replace(
    TWO_H100,
    gpus=((H100, 3),),
    layouts={**TWO_H100.layouts, 2: [(19, 6, 1, (0,))]},
    config=TWO_H100.config + "    - {devices: [2], mig-enabled: true, mig-devices: {7g.80gb: 1}}\n",
    profiles=(*TWO_H100.profiles, (0,)),
)

# Each direction of a mode that takes a reset.
A100_ON = Scene(
    ((A100, 1),),
    {},
    """
version: v1
mig-configs:
  goal:
    - {devices: all, mig-enabled: true, mig-devices: {3g.20gb: 1, 2g.10gb: 1}}
""",
    ((9, 14),),
    options={"max_impact": "reset"},
)
A100_OFF = Scene(
    ((A100, 1),),
    {0: [(9, 4, 4, (1, 0)), (14, 0, 2, (1,)), (19, 2, 1, (0,))]},
    """
version: v1
mig-configs:
  goal:
    - {devices: all, mig-enabled: false}
""",
    ((),),
    options={"max_impact": "reset"},
)
