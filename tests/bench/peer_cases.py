"""What both tools are asked for, on each board: configurations, and from which to which."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tests.bench.peer_judge import Goal, Wanted

GPUS = 8
HELD = 3


@dataclass(frozen=True)
class Board:
    """A board, what its profiles are called, and whether a mode takes a "reset" or not."""

    key: str
    title: str
    generation: str
    small: str
    two: str
    three: str
    four: str
    double: str


BOARDS = (
    Board(
        "h100-80gb-sxm5", "8 x H100", "resetless",
        "1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "1g.20gb",
    ),
    Board(
        "a100-40gb", "8 x A100-40", "reset",
        "1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "1g.10gb",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row.

    verb: apply or assert
    holds: somebody uses the 3g instance of one GPU meanwhile
    feasible: the target can be had; if not, nothing is to be touched
    all_gpus: all eight change
    """

    name: str
    start: str
    end: str
    verb: str = "apply"
    holds: bool = False
    feasible: bool = True
    all_gpus: bool = False


CASES = (
    Case("off to sliced", "disabled", "sliced", all_gpus=True),
    Case("sliced to balanced", "sliced", "balanced", all_gpus=True),
    Case("one GPU of eight", "balanced", "one-gpu"),
    Case("MIG off on one of eight", "balanced", "one-off"),
    Case("one instance", "balanced", "one-instance"),
    Case("4g + 1g.20gb + 2 x 1g", "empty", "hard", all_gpus=True),
    Case("nothing to change: assert", "balanced", "balanced", verb="assert"),
    Case("nothing to change: apply", "balanced", "balanced"),
    Case("an impossible layout", "balanced", "impossible", feasible=False),
    Case("an unknown profile", "balanced", "unknown", feasible=False),
    Case("a GPU held, in the way", "balanced", "sliced", holds=True, feasible=False),
    Case("an instance held that stays", "balanced", "around", holds=True),
)


def goals(board: Board) -> dict[str, Goal]:
    """The configurations by name."""

    def every(wanted: Wanted, others: Mapping[int, Wanted] | None = None) -> Goal:
        return dict.fromkeys(range(GPUS), wanted) | dict(others or {})

    small, two, three = board.small, board.two, board.three
    balanced = _on({small: 2, two: 1, three: 1})
    return {
        "disabled": every(Wanted(enabled=False, instances=Counter())),
        "empty": every(_on({})),
        "sliced": every(_on({small: 7})),
        "balanced": every(balanced),
        "one-gpu": every(balanced, {0: _on({three: 2})}),
        "one-off": every(balanced, {0: Wanted(enabled=False, instances=Counter())}),
        "one-instance": every(balanced, {0: _on({small: 2, two: 2})}),
        "hard": every(_on({board.four: 1, board.double: 1, small: 2})),
        # Three halves and a quarter; and a name that another board has.
        "impossible": every(_on({three: 2, two: 1})),
        "unknown": every(_on({"1g.12gb": 7})),
        "around": every(balanced, {HELD: _on({small: 4, three: 1})}),
    }


def configurations(board: Board) -> str:
    """The same as a file for both tools: mig-parted's format."""
    lines = ["version: v1", "mig-configs:"]
    for name, goal in goals(board).items():
        lines.append(f"  {name}:")
        for wanted, gpus in _alike(goal):
            chosen = "all" if len(gpus) == GPUS else str(gpus)
            enabled = str(wanted.enabled).lower()
            counts = ", ".join(f"{p}: {n}" for p, n in wanted.instances.items())
            lines += [
                f"  - devices: {chosen}",
                f"    mig-enabled: {enabled}",
                f"    mig-devices: {{{counts}}}",
            ]
    return "\n".join(lines) + "\n"


def _on(instances: dict[str, int]) -> Wanted:
    return Wanted(enabled=True, instances=Counter(instances))


def _alike(goal: Goal) -> list[tuple[Wanted, list[int]]]:
    """The GPUs of which the same is wanted, together."""
    groups: list[tuple[Wanted, list[int]]] = []
    for index, wanted in goal.items():
        for known, gpus in groups:
            if known == wanted:
                gpus.append(index)
                break
        else:
            groups.append((wanted, [index]))
    return groups
