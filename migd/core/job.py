"""The life of a job as values: its phases, how it ends, and what is written down of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from migd.core.asked import BY_ITSELF, Asked
from migd.core.hooks import HookOutcome, Moment
from migd.core.model import Layout
from migd.core.values import I32, LATER, U32, U64


class Phase(StrEnum):
    """What a job goes through, in this order; a phase with nothing to do is passed at once."""

    AUTHORIZE = "authorize"
    OBSERVE = "observe"
    PLAN = "plan"
    JOURNAL = "journal"
    HOLD = "hold"
    STOP = "stop"
    MODE = "mode"
    CHANGE = "change"
    VERIFY = "verify"
    SETTLE = "settle"
    NODES = "nodes"
    RELEASE = "release"
    RESTART = "restart"
    HOOKS = "hooks"

    @property
    def rank(self) -> int:
        return list(Phase).index(self)


class Result(StrEnum):
    DONE = "done"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELED = "canceled"
    INTERRUPTED = "interrupted"


class Ending(StrEnum):
    """How it ended for one GPU. FAILED is neither new nor as before: `Outcome.left` tells."""

    DONE = "done"
    UNCHANGED = "unchanged"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """What came of one GPU.

    error: D-Bus name of what went wrong; call, code, code_name: the NVML call, if one failed
    left: what is on the GPU, or what is to be done, where it is not as before
    """

    gpu: str
    index: U32
    ending: Ending
    error: str = ""
    message: str = ""
    call: str = ""
    code: I32 = 0
    code_name: str = ""
    left: str = ""


class Fate(StrEnum):
    """What came of a client.

    MISSING: it was stopped and did not come back. SURVIVED: it was to end, and did not.
    """

    RETURNED = "returned"
    MISSING = "missing"
    ENDED = "ended"
    SURVIVED = "survived"


@dataclass(frozen=True)
class ClientOutcome:
    """What came of one client: a unit, or a process that was ended for good.

    pid: 0 for a unit; what: the process in words, "" for a unit
    """

    unit: str
    pid: U32
    what: str
    fate: Fate
    message: str = ""

    @property
    def missing(self) -> bool:
        return self.fate is Fate.MISSING


@dataclass(frozen=True)
class Aftermath:
    """What followed the change: device nodes, CDI; as sentences. It never undoes a layout."""

    done: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def told(self) -> tuple[str, ...]:
        return (*self.done, *self.failed)


NOTHING_AFTER = Aftermath()


# What is shown for the name of a configuration that was given as text.
TEXT = "(text)"


@dataclass(frozen=True)
class Choice:
    """What somebody asked for: the name of a configuration, or the text itself.

    mode_only: only its MIG mode; uid: who asked; at: microseconds since the epoch
    """

    config: str
    text: str
    mode_only: bool
    uid: U32
    at: U64

    @property
    def label(self) -> str:
        return TEXT if self.text else self.config

    def same(self, other: "Choice | None") -> bool:
        """Whether both ask for the same, whoever asked when."""
        mine = (self.config, self.text, self.mode_only)
        return other is not None and mine == (other.config, other.text, other.mode_only)


@dataclass(frozen=True)
class PastJob:
    """A job that has ended, as it is told and kept. Times are microseconds since the epoch.

    about: as in Begun
    """

    id: U32
    type: str
    choice: Choice
    started: U64
    ended: U64
    result: Result
    message: str
    changed: bool
    wanted: bool
    outcomes: tuple[Outcome, ...]
    clients: tuple[ClientOutcome, ...] = field(default=(), metadata={LATER: True})
    after: Aftermath = field(default=NOTHING_AFTER, metadata={LATER: True})
    about: str = field(default="", metadata={LATER: True})
    hooks: tuple[HookOutcome, ...] = field(default=(), metadata={LATER: True})

    @property
    def label(self) -> str:
        return self.about or self.choice.label


def result_of(
    outcomes: Iterable[Outcome],
    clients: Iterable[ClientOutcome] = (),
    after: Aftermath = NOTHING_AFTER,
    hooks: Iterable[HookOutcome] = (),
    *,
    canceled: bool,
) -> Result:
    """The result of a job from those of its GPUs, of the clients that it stopped, and of the rest.

    A client that did not come back makes a success partial, and so does what failed after the
    change, hooks too: done means that all is well.
    """
    endings = {o.ending for o in outcomes}
    if not endings & {Ending.ROLLED_BACK, Ending.FAILED}:
        missing = after.failed or any(c.missing for c in clients) or any(h.failure for h in hooks)
        return Result.PARTIAL if missing else Result.DONE
    if canceled:
        return Result.CANCELED
    return Result.PARTIAL if Ending.DONE in endings else Result.FAILED


# -- the journal -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Before:
    """A GPU that a job is about, as it is before."""

    gpu: str
    index: U32
    layout: Layout


@dataclass(frozen=True)
class Begun:
    """First record: the job, on which boot, and what it starts from.

    gpus: those that it changes; unchanged: those that have what is asked for already
    reset_peers: whether GPUs may be reset along that the driver resets only together
    asked: who wanted it
    about: what it is shown as where its text was made by migd: a profile, or a mode
    """

    id: U32
    type: str
    choice: Choice
    started: U64
    boot: str
    gpus: tuple[Before, ...]
    unchanged: tuple[Before, ...]
    reset_peers: bool = field(default=False, metadata={LATER: True})
    asked: Asked = field(default=BY_ITSELF, metadata={LATER: True})
    about: str = field(default="", metadata={LATER: True})

    @property
    def label(self) -> str:
        return self.about or self.choice.label


@dataclass(frozen=True)
class Stepping:
    """Written before each step, on the way there and on the way back."""

    gpu: str
    does: str


@dataclass(frozen=True)
class Reached:
    """The GPU has what was asked for; this is where it is settled."""

    gpu: str
    layout: Layout


@dataclass(frozen=True)
class Returned:
    """The GPU could not, and this is how it ended."""

    outcome: Outcome


@dataclass(frozen=True)
class Stopping:
    """Written before a unit is stopped: it is to be started again, with those that stop along.

    stop_s, start_s: how long it may take, in seconds
    """

    unit: str
    along: tuple[str, ...]
    stop_s: U32
    start_s: U32


@dataclass(frozen=True)
class Signaling:
    """Written before a process is ended for good; started: as in core.holders; what: in words.

    pid and started are 0 for a unit that stops along and cannot be started again.
    """

    pid: U32
    started: U64
    unit: str
    what: str


@dataclass(frozen=True)
class Hooking:
    """Written before a hook is run; number: which of its moment, from 0."""

    moment: Moment
    number: U32
    command: str


@dataclass(frozen=True)
class Hooked:
    """What came of the hook that was run last."""

    number: U32
    outcome: HookOutcome


Record = Begun | Stopping | Signaling | Stepping | Reached | Returned | Hooking | Hooked


@dataclass(frozen=True)
class Unfinished:
    """What a journal says of a job that was cut short.

    stepped: GPUs may have been changed; hooked: hooks that have ended; cut: the one that had not
    """

    begun: Begun
    reached: dict[str, Layout]
    returned: dict[str, Outcome]
    stopped: tuple[Stopping, ...]
    signaled: tuple[Signaling, ...]
    stepped: bool = False
    hooked: tuple[Hooked, ...] = ()
    cut: Hooking | None = None

    @property
    def open(self) -> tuple[Before, ...]:
        """The GPUs of which it is not known whether they are new or as before."""
        return tuple(
            b for b in self.begun.gpus if b.gpu not in self.reached and b.gpu not in self.returned
        )


def unfinished(records: Iterable[Record]) -> Unfinished | None:
    """The job that the records tell of, or None if there was none."""
    begun: Begun | None = None
    told: list[Record] = []
    for record in records:
        if isinstance(record, Begun):
            begun, told = record, []
        else:
            told.append(record)
    if begun is None:
        return None
    return Unfinished(
        begun,
        {r.gpu: r.layout for r in told if isinstance(r, Reached)},
        {r.outcome.gpu: r.outcome for r in told if isinstance(r, Returned)},
        tuple(r for r in told if isinstance(r, Stopping)),
        tuple(r for r in told if isinstance(r, Signaling)),
        any(isinstance(r, Stepping) for r in told),
        tuple(r for r in told if isinstance(r, Hooked)),
        _cut(told),
    )


def _cut(told: Iterable[Record]) -> Hooking | None:
    last: Hooking | None = None
    for record in told:
        if isinstance(record, Hooking | Hooked):
            last = record if isinstance(record, Hooking) else None
    return last
