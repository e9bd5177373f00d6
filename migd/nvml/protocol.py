"""What the daemon and its worker say to each other: one JSON object a line, over a socketpair."""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from migd.core.model import Gpu, Mode
from migd.core.steps import Step, as_plain, from_plain
from migd.core.values import I32, plain, typed

# The largest answer is a snapshot: a GPU with all its profiles takes some 8 KiB.
LINE_LIMIT = 1 << 20


class Op(StrEnum):
    OPEN = "open"
    SNAPSHOT = "snapshot"
    PERFORM = "perform"


@dataclass(frozen=True)
class Request:
    """One thing to do.

    index: NVML's index of the GPU; requests for one GPU run in order, GPUs side by side
    uuid: what must be at that index, for PERFORM; "" if anything may
    retry_s: how long an IN_USE is tried again, in seconds
    """

    id: int
    op: Op
    index: int = 0
    uuid: str = ""
    step: Step | None = None
    retry_s: int = 0

    def line(self) -> bytes:
        step = as_plain(self.step) if self.step else None
        fields = (self.id, self.op.value, self.index, self.uuid, step, self.retry_s)
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> "Request":
        number, op, index, uuid, step, retry_s = json.loads(line)
        return cls(number, Op(op), index, uuid, from_plain(step) if step else None, retry_s)


@dataclass(frozen=True)
class Opened:
    """Answer to OPEN: the driver's version and how many GPUs it has."""

    driver: str
    gpus: int


@dataclass(frozen=True)
class Performed:
    """Answer to PERFORM.

    gi: the GPU instance created, if one was
    mode, pending, activation: after SetMode, what the driver says of the mode, and NVML's
        activation status, which is 0 or an NVML return code
    """

    gi: int | None = None
    mode: Mode | None = None
    pending: Mode | None = None
    activation: int = 0


@dataclass(frozen=True)
class Failure:
    """Answer to a request whose NVML call failed; `name` without the NVML_ERROR_ in front."""

    call: str
    code: I32
    name: str
    text: str


Answer = Opened | Gpu | Performed | Failure
_KINDS: dict[str, type[Any]] = {
    "opened": Opened,
    "gpu": Gpu,
    "performed": Performed,
    "failure": Failure,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def answer_line(number: int, answer: Answer) -> bytes:
    return json.dumps([number, _NAMES[type(answer)], plain(answer)]).encode() + b"\n"


def parse_answer(line: bytes) -> tuple[int, Answer]:
    """Raises ValueError or RecursionError when the line is no answer: it came from elsewhere.

    What it says is of the right form, and may be wrong in any other way (nvml.sane).
    """
    value = json.loads(line)
    if not (isinstance(value, list) and len(value) == 3):
        raise ValueError("not an answer")
    number = typed(int, value[0], "number")
    if not isinstance(value[1], str) or value[1] not in _KINDS:
        raise ValueError("an unknown kind of answer")
    answer: Answer = typed(_KINDS[value[1]], value[2], value[1])
    return number, answer
