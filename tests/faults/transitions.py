"""The main transitions: a node, what its GPUs have before, and what is asked of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults.asking import Want, profiles
from tests.faults.scenes import A100, H100
from tests.support.node import Node

A30 = "a30-24gb"

# Of one GPU: instances by the name of their profile, None for MIG off.
Instances = Mapping[str, int] | None


@dataclass(frozen=True, eq=False)
class Transition:
    """What is asked of a node is the configuration `goal`; `before` makes it what it was.

    before, goal: by index; a GPU that the goal does not name is not asked for
    held: GPU and profile of an instance in use that both have
    loose: a GPU, for as long as it has MIG off or by an instance of that profile, that a process
        uses which may be ended
    boot: the goal is what a reboot has lost, and PutBack is asked for it
    """

    name: str
    gpus: Sequence[tuple[str, int]]
    before: Mapping[int, Instances]
    goal: Mapping[int, Instances]
    held: tuple[int, str] | None = None
    loose: tuple[int, str] | None = None
    boot: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """config.yaml."""
        lines = ["version: v1", "mig-configs:"]
        for name, layouts in (("before", self.before), ("goal", self.goal)):
            if not layouts:
                continue
            lines.append(f"  {name}:")
            for gpu, instances in layouts.items():
                shown = ", ".join(f'"{n}": {c}' for n, c in (instances or {}).items())
                enabled = str(instances is not None).lower()
                lines.append(
                    f"  - {{devices: [{gpu}], mig-enabled: {enabled}, mig-devices: {{{shown}}}}}"
                )
        return "\n".join(lines) + "\n"

    def wants(self, node: Node) -> dict[int, Want]:
        """The goal, by index."""
        boards = [gpu["board"] for gpu in node.gpus()]
        return {
            gpu: Want(
                instances is not None,
                Counter(
                    {profiles(boards[gpu])[n].id: count for n, count in (instances or {}).items()}
                ),
            )
            for gpu, instances in self.goal.items()
        }


ALL = {
    t.name: t
    for t in (
        Transition(
            "slice", [(H100, 1)], {0: None}, {0: {"3g.40gb": 1, "2g.20gb": 1, "1g.10gb": 1}}
        ),
        Transition(
            "balance",
            [(H100, 1)],
            {0: {"1g.10gb": 3, "2g.20gb": 2}},
            {0: {"3g.40gb": 1, "2g.20gb": 1, "1g.10gb": 2}},
        ),
        Transition(
            "one-gpu",
            [(H100, 3)],
            {0: {"7g.80gb": 1}, 1: {"3g.40gb": 2}, 2: None},
            {1: {"4g.40gb": 1, "1g.10gb": 2}},
        ),
        Transition(
            "one-instance",
            [(H100, 1)],
            {0: {"3g.40gb": 1, "2g.20gb": 1}},
            {0: {"3g.40gb": 1, "2g.20gb": 1, "1g.10gb": 1}},
        ),
        Transition("off", [(H100, 1)], {0: {"3g.40gb": 1, "1g.10gb": 2}}, {0: None}),
        Transition(
            "a100-on", [(A100, 1)], {0: None}, {0: {"3g.20gb": 1, "2g.10gb": 1}},
            options={"max_impact": "reset"},
        ),
        Transition(
            "a100-off", [(A100, 1)], {0: {"3g.20gb": 1, "1g.5gb": 2}}, {0: None},
            options={"max_impact": "reset"},
        ),
        Transition(
            "put-back", [(H100, 1), (A100, 1)], {},
            {0: {"3g.40gb": 1, "2g.20gb": 1}, 1: {"3g.20gb": 1, "1g.5gb": 1}}, boot=True,
        ),
        Transition(
            "mixed", [(H100, 1), (A100, 1), (A30, 1)],
            {0: {"7g.80gb": 1}, 1: {"2g.10gb": 2}, 2: None},
            {0: {"4g.40gb": 1, "3g.40gb": 1}, 1: {"3g.20gb": 2}, 2: {"2g.12gb": 1, "1g.6gb": 2}},
            options={"max_impact": "reset"},
        ),
        Transition(
            "held", [(H100, 2)],
            {0: {"3g.40gb": 1, "1g.20gb": 1, "1g.10gb": 1}, 1: None},
            {0: {"3g.40gb": 1, "2g.20gb": 2}, 1: {"3g.40gb": 1, "1g.20gb": 1}},
            held=(0, "3g.40gb"),
        ),
        Transition(
            "client", [(H100, 1)], {0: {"3g.40gb": 2}}, {0: {"3g.40gb": 1, "2g.20gb": 1}},
            loose=(0, "3g.40gb"), options={"terminate": True},
        ),
    )
}  # fmt: skip
