"""What a tool did to a node, from its true state before and after. Pure.

An instance is the same one only if its serial number is: one that was destroyed and made again at
the same place has the same id, placement and MIG UUID, and whoever used it has lost it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SWITCH = "nvmlDeviceSetMigMode"
_DESTROY = ("nvmlGpuInstanceDestroy", "nvmlComputeInstanceDestroy")
_CREATE = ("nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance")

State = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Wanted:
    """Of one GPU: whether MIG is on, and how many of which profile."""

    enabled: bool
    instances: Counter[str]


# By index; a GPU that is not named is to stay as it is.
Goal = Mapping[int, Wanted]


@dataclass(frozen=True)
class Least:
    """What no tool can do without: mutating calls, and their time as modelled."""

    calls: int
    ms: float


@dataclass(frozen=True)
class Deed:
    """What was done.

    calls: mutating NVML calls, those that failed included
    destroyed: instances of before that are gone
    needless: how many of them the target has, too
    disturbed: how many of them somebody used
    reached: the target is there
    untouched: everything is as before
    succeeded: what the tool said of itself
    """

    calls: int
    destroyed: int
    needless: int
    disturbed: int
    reached: bool
    untouched: bool
    succeeded: bool

    @property
    def outcome(self) -> str:
        if self.reached:
            return "done" if self.succeeded else "done, but says it failed"
        told = "says why" if not self.succeeded else "says success"
        return f"{'nothing touched' if self.untouched else 'neither old nor new'}, {told}"


def layout(gpu: Mapping[str, Any]) -> Counter[str]:
    """The instances of a GPU by the names of their compute instances."""
    return Counter(
        "+".join(sorted(inner["profile"] for inner in instance["compute_instances"]))
        or f"{instance['profile']}, empty"
        for instance in gpu["instances"]
    )


def least(
    before: State, goal: Goal, charged: Mapping[str, Any], *, lock: str, generation: str
) -> Least:
    """The least that any tool could need from `before` to `goal`: a bound that none can beat.

    Of each GPU: a switch if its mode differs; two calls, GPU instance and compute instance, for
    each instance that there are too many of, and for each that there are too few of, counted by
    profile. Wherever they lie, so many must go and come. Each call takes what the simulator
    charges for it (`charged`: the latencies that it shows; `generation`: "reset" or "resetless",
    which tells the boards apart), one after the other on one GPU. With a lock a GPU (`lock` is
    "gpu") the GPU that takes longest decides; with one lock for the node ("node") it is the sum of
    all. Nothing else is in it: no look at the node, no start of a program, no answer to anybody,
    nothing written down.
    """
    spent, calls = [], 0
    for gpu in before:
        if (wanted := goal.get(gpu["index"])) is None:
            continue
        has = layout(gpu)
        gone, come = (has - wanted.instances).total(), (wanted.instances - has).total()
        switches = int((gpu["mode"]["current"] == "enabled") is not wanted.enabled)
        calls += 2 * gone + 2 * come + switches
        spent.append(
            gone * sum(_cost(call, generation, charged) for call in _DESTROY)
            + come * sum(_cost(call, generation, charged) for call in _CREATE)
            + switches * _cost(_SWITCH, generation, charged)
        )
    return Least(calls, max(spent, default=0.0) if lock == "gpu" else sum(spent))


def judged(
    before: State,
    after: State,
    goal: Goal,
    *,
    calls: int,
    succeeded: bool,
    held: Iterable[int] = (),
    feasible: bool = True,
) -> Deed:
    """What came of it. held: serial numbers of instances in use; feasible: `goal` can be had."""
    there = {i["serial"] for gpu in after for i in gpu["instances"]}
    gone = {i["serial"] for gpu in before for i in gpu["instances"]} - there
    return Deed(
        calls=calls,
        destroyed=len(gone),
        needless=sum(_needless(gpu, gone, goal) for gpu in before),
        disturbed=len(gone & set(held)),
        reached=feasible and all(_is_there(gpu, goal) for gpu in after),
        untouched=[_seen(gpu) for gpu in before] == [_seen(gpu) for gpu in after],
        succeeded=succeeded,
    )


def _needless(gpu: Mapping[str, Any], gone: set[int], goal: Goal) -> int:
    """How many of the GPU's instances are gone although there is room for them in the target."""
    wanted = goal.get(gpu["index"])
    kept = {**gpu, "instances": [i for i in gpu["instances"] if i["serial"] not in gone]}
    if wanted is None:
        return len(gpu["instances"]) - len(kept["instances"])
    return ((layout(gpu) & wanted.instances) - layout(kept)).total()


def _is_there(gpu: Mapping[str, Any], goal: Goal) -> bool:
    wanted = goal.get(gpu["index"])
    if wanted is None:
        return True
    enabled = gpu["mode"]["current"] == gpu["mode"]["pending"] == "enabled"
    return enabled is wanted.enabled and layout(gpu) == wanted.instances


def _seen(gpu: Mapping[str, Any]) -> tuple[object, ...]:
    return gpu["mode"], sorted(i["serial"] for i in gpu["instances"])


def _cost(call: str, generation: str, charged: Mapping[str, Any]) -> float:
    row = charged.get(call) or charged.get(f"{call}@{generation}") or {"ms": 0}
    return float(row["ms"])
