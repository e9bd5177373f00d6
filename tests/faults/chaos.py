"""What can happen to a node while requests come in: surprises, faults, holders, at random."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from migd.simulator.errors import SimulatorError
from tests.support.node import MUTATING, Node

# A driver that does this is slower or odd, and every request must still end well.
_ODD = (
    "placement-114-sm",
    "placement-lowest-first",
    "minor-changes-after-reset",
    "stale-mig-handles",
    "pending-survives-reboot",
)
_IDS = ("gi-ids-by-placement", "gi-ids-by-placement-flipped")
# So many times, then no more: fewer than migd tries.
_MOMENTARY = {"destroyed-stay-visible": 3, "gi-busy-after-ci-destroy": 4}
# One request sees this and then it is over; that GPU may be as before, and no more.
_REFUSING = ("passthrough", "passthrough-asks-reset", "sys-admin-needed")
# With these a GPU cannot always go back.
_STUCK: dict[str, bool | int] = {"pending-sticks": True, "gi-busy-after-ci-destroy": 12}

_FAULTY = (
    *MUTATING,
    "nvmlDeviceGetGpuInstances",
    "nvmlDeviceGetGpuInstanceById",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetMigMode",
    "nvmlGpuInstanceGetInfo",
    "nvmlGpuInstanceGetComputeInstances",
    "nvmlGpuInstanceGetComputeInstanceById",
)
_CODES = ("IN_USE", "INSUFFICIENT_RESOURCES", "UNKNOWN", "GPU_IS_LOST", "TIMEOUT", "NO_PERMISSION")


@dataclass
class Hold:
    """Somebody who uses a GPU, or one of its instances, and what that instance is."""

    gpu: int
    gi: int | None
    hidden: bool
    descriptor: int
    instance: dict[str, Any] | None

    def end(self) -> None:
        os.close(self.descriptor)


@dataclass
class Trouble:
    """What is switched on for one request.

    gpus: where a request can fail; stuck: where it cannot always be undone either
    during: done once so many calls have changed something
    """

    told: list[str] = field(default_factory=list)
    gpus: set[int] = field(default_factory=set)
    stuck: set[int] = field(default_factory=set)
    during: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    cancel: bool = False

    @property
    def calm(self) -> bool:
        return not self.gpus and not self.cancel


class Chaos:
    """Happens to one node."""

    def __init__(self, node: Node, chance: random.Random) -> None:
        self._node = node
        self._chance = chance
        offered = node.simulated.surprises()
        self._odd = [name for name in _ODD if name in offered]
        self._ids = [name for name in _IDS if name in offered]
        self._refusing = [name for name in _REFUSING if name in offered]
        self._indices = range(len(node.gpus()))
        self._on: set[tuple[int, str]] = set()
        self._momentary: dict[tuple[int, str], int] = {}
        self.visible: list[Hold] = []
        self.hidden: list[Hold] = []

    @property
    def held(self) -> list[Hold]:
        """Those on an instance, which must outlive every request."""
        return [h for h in (*self.visible, *self.hidden) if h.instance]

    def stir(self) -> Trouble:
        """What is there for the next request; `calm_down` ends what is for one only."""
        self._change_oddities()
        self._change_holders()
        trouble = Trouble()
        if self._chance.random() < 0.55:
            kinds = (self._refuse, self._stick, self._hide, self._arrive, self._fault, self._cancel)
            for kind in self._chance.sample(kinds, self._chance.choice([1, 1, 1, 2])):
                kind(trouble)
        return trouble

    def calm_down(self) -> None:
        self._node.clear_faults()
        for hold in self.hidden:
            hold.end()
        self.hidden.clear()
        for gpu in self._indices:
            for name in (*self._refusing, *_STUCK):
                self._node.surprise(name, self._momentary.get((gpu, name), 0), gpu=gpu)

    def leave(self, gpu: int | None = None) -> None:
        """Those that are to be seen go, from one GPU or from all."""
        for hold in [h for h in self.visible if gpu in (None, h.gpu)]:
            hold.end()
            self.visible.remove(hold)

    def end(self) -> None:
        self.calm_down()
        self.leave()

    # -- for longer ----------------------------------------------------------------------

    def _change_oddities(self) -> None:
        gpus = self._node.gpus()
        for gpu in self._indices:
            for name in self._odd:
                if self._chance.random() < 0.1:
                    self._switch(gpu, name)
            # A board does not change its ids while it has instances.
            if self._ids and not gpus[gpu]["instances"] and self._chance.random() < 0.5:
                for name in self._ids:
                    self._node.surprise(name, False, gpu=gpu)
                if self._chance.random() < 0.7:
                    self._node.surprise(self._chance.choice(self._ids), gpu=gpu)
            for name, most in _MOMENTARY.items():
                if self._chance.random() < 0.15:
                    times = self._chance.choice([0, 0, self._chance.randint(1, most)])
                    self._momentary[gpu, name] = times
                    self._node.surprise(name, times, gpu=gpu)

    def _switch(self, gpu: int, name: str) -> None:
        self._on ^= {(gpu, name)}
        self._node.surprise(name, (gpu, name) in self._on, gpu=gpu)

    def _change_holders(self) -> None:
        for hold in list(self.visible):
            if hold.gi is None or self._chance.random() < 0.4:
                hold.end()
                self.visible.remove(hold)
        if self._chance.random() < 0.2 and len(self.visible) < 3:
            self._hold(self._chance.choice(self._indices), hidden=False)

    def _hold(self, gpu: int, *, hidden: bool) -> None:
        """Somebody comes; while a job is at work the instance can be gone before he is there."""
        usable: list[int | None] = list(self._filled(gpu))
        gi = self._chance.choice([*usable, None] if hidden or not usable else usable)
        try:
            descriptor = self._node.simulated.hold(gpu, gi, hidden=hidden)
        except SimulatorError:
            return
        instance = None if gi is None else self._filled(gpu).get(gi)
        hold = Hold(gpu, gi, hidden, descriptor, instance)
        (self.hidden if hidden else self.visible).append(hold)

    def _filled(self, gpu: int) -> dict[int, dict[str, Any]]:
        """Instances that can be worked in, by id."""
        return {
            i["gi"]: i
            for i in self._node.gpus()[gpu]["instances"]
            if not i["destroyed"]
            and any(c["ci"] == 0 and not c["destroyed"] for c in i["compute_instances"])
        }

    # -- for one request -----------------------------------------------------------------

    def _refuse(self, trouble: Trouble) -> None:
        gpu, name = self._chance.choice(self._indices), self._chance.choice(self._refusing)
        self._node.surprise(name, gpu=gpu)
        trouble.told.append(f"{name} on GPU {gpu}")
        trouble.gpus.add(gpu)

    def _stick(self, trouble: Trouble) -> None:
        gpu, name = self._chance.choice(self._indices), self._chance.choice(list(_STUCK))
        self._node.surprise(name, _STUCK[name], gpu=gpu)
        trouble.told.append(f"{name} on GPU {gpu}")
        trouble.gpus.add(gpu)
        trouble.stuck.add(gpu)

    def _hide(self, trouble: Trouble) -> None:
        """Somebody whom NVML does not list, there before, who may go in the middle."""
        gpu = self._chance.choice(self._indices)
        self._hold(gpu, hidden=True)
        hold = self.hidden[-1]  # no job is at work yet
        trouble.told.append(f"hidden holder of GPU {gpu}, instance {hold.gi}")
        trouble.gpus.add(gpu)
        trouble.stuck.add(gpu)
        if self._chance.random() < 0.5:

            def leave() -> None:
                self.hidden.remove(hold)
                hold.end()

            self._later(trouble, "it goes", leave)

    def _arrive(self, trouble: Trouble) -> None:
        """Somebody who comes in the middle, to whatever is there then."""
        gpu = self._chance.choice(self._indices)
        trouble.gpus.add(gpu)
        trouble.stuck.add(gpu)
        self._later(trouble, f"a holder of GPU {gpu} comes", lambda: self._hold(gpu, hidden=True))

    def _fault(self, trouble: Trouble) -> None:
        call, nth = self._chance.choice(_FAULTY), self._chance.randint(1, 6)
        kind = self._chance.choice(["return", "return", "no-effect", "die", "die-after"])
        if kind == "no-effect" and call not in MUTATING:
            kind = "return"
        code = self._chance.choice(_CODES)
        gpu = self._chance.choice([None, *self._indices])
        self._node.simulated.fault(call, kind, code=code, nth=nth, gpu=gpu)
        trouble.told.append(f"{kind} {code} at call {nth} of {call} on GPU {gpu}")
        # A worker that dies takes along what others have under way.
        alone = gpu is not None and kind in ("return", "no-effect")
        trouble.gpus |= {gpu} if alone and gpu is not None else set(self._indices)

    def _cancel(self, trouble: Trouble) -> None:
        trouble.cancel = True
        self._later(trouble, "canceled", lambda: None)

    def _later(self, trouble: Trouble, what: str, act: Callable[[], None]) -> None:
        calls = self._chance.randint(0, 10)
        trouble.told.append(f"{what} after {calls} calls")
        trouble.during.append((calls, act))
