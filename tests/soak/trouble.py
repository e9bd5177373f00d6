"""What goes wrong while requests come in: switched on for one round, and off at its end."""

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from signal import SIGCONT, SIGKILL, SIGSTOP

from tests.soak.stage import BALLAST, FLAKY, Stage
from tests.support.node import MUTATING

_READING = (
    "nvmlDeviceGetGpuInstances",
    "nvmlDeviceGetGpuInstanceById",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetMigMode",
    "nvmlGpuInstanceGetInfo",
    "nvmlGpuInstanceGetComputeInstances",
)
_CODES = ("IN_USE", "INSUFFICIENT_RESOURCES", "UNKNOWN", "GPU_IS_LOST", "TIMEOUT", "NO_PERMISSION")
# With these a GPU cannot always go back; the others refuse, or pass by themselves.
_SURPRISES: dict[str, bool | int] = {
    "pending-sticks": True, "gi-busy-after-ci-destroy": 12, "passthrough": True,
    "passthrough-asks-reset": True, "sys-admin-needed": True, "destroyed-stay-visible": 3,
    "no-own-reset": True, "stale-mig-handles": True, "minor-changes-after-reset": True,
}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """Something to be done in the middle; at: seconds after the round has begun."""

    at: float
    act: Callable[[], object]


@dataclass
class Round:
    """What is wrong in one round.

    dies: migd is ended, by whatever; killed: without a word; flaky: a unit does not start
    """

    told: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    dies: bool = False
    killed: bool = False
    flaky: bool = False

    @property
    def calm(self) -> bool:
        return not self.told


class Trouble:
    """For one stage. span: how long a round lasts, in seconds."""

    def __init__(self, stage: Stage, chance: random.Random, span: float) -> None:
        self._stage = stage
        self._chance = chance
        self._span = span
        self._node = stage.node
        self._frozen: list[int] = []
        self._undo: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self.count: Counter[str] = Counter()

    def begin(self, *, deaths: bool) -> Round:
        """Draw what goes wrong now; half of the time it is nothing.

        deaths: whether migd may be ended
        """
        made = Round()
        kinds = dict(_KINDS)
        if deaths:
            kinds |= _DEATHS
        many = self._chance.choices((0, 1, 2), (45, 40, 15))[0]
        for name in self._chance.sample(list(kinds), many):
            made.told.append(name)
            self.count[name] += 1
            kinds[name](self, made)
        return made

    def end(self) -> None:
        """All is well again."""
        self._node.clear_faults()
        while self._undo:
            self._undo.pop()()

    # -- the driver ----------------------------------------------------------------------

    def _gpu(self) -> int:
        return self._chance.randrange(len(self._node.gpus()))

    def _error(self, made: Round) -> None:
        call = self._chance.choice((*MUTATING, *_READING))
        code = self._chance.choice(_CODES)
        self._node.fault(call, returns=code, nth=self._chance.randint(1, 5), gpu=self._gpu())

    def _no_effect(self, made: Round) -> None:
        call = self._chance.choice(MUTATING)
        self._node.fault(call, no_effect=True, nth=self._chance.randint(1, 3), gpu=self._gpu())

    def _hangs(self, made: Round) -> None:
        call = self._chance.choice((*MUTATING, *_READING))
        self._node.fault(call, hang=True, nth=self._chance.randint(1, 5), gpu=self._gpu())

    def _dies_in_call(self, made: Round) -> None:
        call = self._chance.choice((*MUTATING, *_READING))
        after = self._chance.random() < 0.5
        nth = self._chance.randint(1, 5)
        self._node.fault(call, die=not after, die_after=after, nth=nth)

    def _odd(self, made: Round) -> None:
        name, gpu = self._chance.choice(list(_SURPRISES)), self._gpu()
        value = _SURPRISES[name]
        self._node.surprise(name, value, gpu=gpu)
        off = False if isinstance(value, bool) else 0
        self._undo.append(lambda: self._node.surprise(name, off, gpu=gpu))

    # -- processes -----------------------------------------------------------------------

    def _soon(self) -> float:
        return self._chance.uniform(0, self._span)

    def _worker_killed(self, made: Round) -> None:
        made.events.append(Event(self._soon(), lambda: self._signal_workers(SIGKILL)))

    def _worker_stopped(self, made: Round) -> None:
        """It neither answers nor ends; migd has to see to it by itself."""
        made.events.append(Event(self._soon(), lambda: self._signal_workers(SIGSTOP)))

    def _signal_workers(self, number: int) -> None:
        for pid in self._stage.workers(self._stage.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                if number == SIGSTOP:
                    self._undo.append(lambda pid=pid: _continue(pid))  # type: ignore[misc]

    def _migd_stopped(self, made: Round) -> None:
        """For a moment, as on a host that swaps."""
        begin = self._soon()
        frozen: list[int] = []

        def freeze() -> None:
            pid = self._stage.outer(self._stage.pid)
            os.kill(pid, SIGSTOP)
            frozen.append(pid)

        def thaw() -> None:
            while frozen:
                _continue(frozen.pop())

        made.events += [Event(begin, freeze), Event(begin + self._chance.uniform(0.2, 2), thaw)]
        self._undo.append(thaw)

    def _other_service(self, made: Round, unit: str) -> None:
        """Restarted, or silent for a while."""
        at = self._soon()
        host = self._stage.host
        if self._chance.random() < 0.5:
            made.events.append(
                Event(at, lambda: host.systemctl("try-restart", "--no-block", unit, check=False))
            )
            return

        def send(number: str) -> None:
            host.systemctl("kill", f"--signal={number}", unit, check=False)

        made.events += [
            Event(at, lambda: send("STOP")),
            Event(at + self._chance.uniform(0.5, 3), lambda: send("CONT")),
        ]
        self._undo.append(lambda: send("CONT"))

    def _polkit(self, made: Round) -> None:
        self._other_service(made, "polkit.service")

    def _logind(self, made: Round) -> None:
        self._other_service(made, "systemd-logind.service")

    # -- the host ------------------------------------------------------------------------

    def _disk_full(self, made: Round) -> None:
        at = self._chance.choice((0.0, self._soon()))
        made.events.append(Event(at, self._fill))
        self._undo.append(lambda: self._stage.remove(BALLAST))

    def _fill(self) -> None:
        with self._stage.path(BALLAST).open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def _client_fails(self, made: Round) -> None:
        made.flaky = True
        self._stage.write(FLAKY, "")
        self._undo.append(lambda: self._stage.remove(FLAKY))

    def _poked(self, made: Round) -> None:
        made.events += [Event(self._soon(), self._stage.poke) for _ in range(3)]

    # -- migd ----------------------------------------------------------------------------

    def _death(self, made: Round, act: Callable[[], object]) -> None:
        made.dies = True

        def die() -> None:
            # Deaths in a row are ours, and no sign that it cannot run.
            self._stage.host.systemctl("reset-failed", "migd.service", check=False)
            act()

        made.events.append(Event(self._soon(), die))

    def _killed(self, made: Round) -> None:
        made.killed = True
        systemctl = self._stage.host.systemctl
        # systemd would kill its worker along: that comes, too, but not each time.
        whom = self._chance.choice(("main", "all"))
        self._death(
            made,
            lambda: systemctl(
                "kill", "--signal=KILL", f"--kill-whom={whom}", "migd.service", check=False
            ),
        )

    def _restarted(self, made: Round) -> None:
        systemctl = self._stage.host.systemctl
        self._death(made, lambda: systemctl("restart", "--no-block", "migd.service"))

    def _stopped(self, made: Round) -> None:
        systemctl = self._stage.host.systemctl

        def stop_and_start() -> None:
            systemctl("stop", "migd.service", timeout=120)
            systemctl("start", "--no-block", "migd.service")

        self._death(made, stop_and_start)


def _continue(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, SIGCONT)


_KINDS: dict[str, Callable[[Trouble, Round], None]] = {
    "NVML error": Trouble._error,
    "NVML without effect": Trouble._no_effect,
    "NVML hangs": Trouble._hangs,
    "worker dies in a call": Trouble._dies_in_call,
    "odd driver": Trouble._odd,
    "worker killed": Trouble._worker_killed,
    "worker stopped": Trouble._worker_stopped,
    "migd stopped for a moment": Trouble._migd_stopped,
    "polkit away": Trouble._polkit,
    "logind away": Trouble._logind,
    "disk full": Trouble._disk_full,
    "client does not start": Trouble._client_fails,
    "socket poked": Trouble._poked,
}
_DEATHS: dict[str, Callable[[Trouble, Round], None]] = {
    "migd killed": Trouble._killed,
    "migd restarted": Trouble._restarted,
    "migd stopped and started": Trouble._stopped,
}
