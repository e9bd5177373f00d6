"""What migd itself wrote, and what came of it: state, journal, the answers of a worker; and
checkpoints, as mig-parted writes them."""

import json

from migd.bus import objects
from migd.bus.values import to_wire
from migd.config import checkpoint, configs, exact
from migd.config.checkpoint import as_text
from migd.config.use import targets
from migd.core import ends, job, model, steps, values
from migd.core.hooks import HookOutcome, Moment
from migd.core.job import (
    Aftermath,
    Before,
    Begun,
    Choice,
    ClientOutcome,
    Ending,
    Fate,
    Hooked,
    Hooking,
    Outcome,
    PastJob,
    Reached,
    Result,
    Returned,
    Signaling,
    Stepping,
    Stopping,
    unfinished,
)
from migd.core.model import Gpu, Process, layout
from migd.core.reboot import Owed
from migd.core.steps import sentence
from migd.core.values import plain, typed
from migd.errors import MigdError
from migd.nvml import protocol
from migd.nvml.protocol import Failure, Opened, Performed, Request, answer_line, parse_answer
from migd.service import journal, state
from migd.service.journal import Journal
from migd.service.state import VERSION, GpuState, State, StateStore
from tests.fuzz.engine import Target
from tests.fuzz.scratch import SCRATCH
from tests.support import boards

_GPU = boards.gpu(
    "a30-24gb",
    [boards.instance("a30-24gb", 1, 5, 0, (0, 0)), boards.instance("a30-24gb", 5, 14, 2)],
    processes=[Process(7, 1, 0), Process(8, None, None)],
)
_CHOICE = Choice("all-1g.6gb", "", mode_only=False, uid=1000, at=1_700_000_000_000_000)
_OUTCOME = Outcome(
    _GPU.uuid, 0, Ending.ROLLED_BACK, "org.migd1.Error.Nvml", "x", "nvmlInit", 19, "IN_USE"
)
_HOOK = HookOutcome(Moment.EXIT, "/bin/x", "ended with exit status 1", ("y",))
_PAST = PastJob(
    3, "apply", _CHOICE, 1, 2, Result.PARTIAL, "done", changed=True, wanted=True,
    outcomes=(_OUTCOME,), clients=(ClientOutcome("a.service", 0, "", Fate.MISSING, "x"),),
    after=Aftermath(("a",), ("b",)), hooks=(_HOOK,),
)  # fmt: skip


# -- the worker ------------------------------------------------------------------------------


def check_answer(data: bytes) -> None:
    """A line from the worker is an answer, or refused as nonsense (process.WorkerProcess)."""
    line = data[: protocol.LINE_LIMIT]
    try:
        number, answer = parse_answer(line)
    except (ValueError, RecursionError):
        return
    assert parse_answer(answer_line(number, answer)) == (number, answer)
    if isinstance(answer, Gpu):
        typed(model.Layout, plain(layout(answer)))


def check_request(data: bytes) -> None:
    """The other way; a worker ends where its daemon talks nonsense."""
    try:
        request = Request.parse(data)
    except (ValueError, RecursionError, TypeError):
        return
    if request.step:
        assert Request.parse(request.line()).step == request.step
        assert sentence(request.step, _GPU)


def check_checkpoint(data: bytes) -> None:
    """It is a text that can be applied, or refused as a person can read it."""
    text = refusal = ""
    try:
        text = as_text(data.decode(errors="replace"), [_GPU])
    except MigdError as refused:
        refusal = str(refused)
    if not text:
        assert refusal.isprintable(), refusal
        assert len(refusal) < 4000, refusal
        return
    (config,) = configs.load(text, "text").configs.values()
    assert targets(config, [_GPU]).keys() == {_GPU.uuid}


# -- the state -------------------------------------------------------------------------------


def check_state(data: bytes) -> None:
    """A state file is read and can be used, or it is kept beside, with a word about it."""
    folder = SCRATCH.empty()
    path = folder / "state.json"
    path.write_bytes(data)
    store = StateStore(path)
    store.load()
    if store.refused:
        assert not path.exists()
        assert path.with_name("state.json.refused").read_bytes() == data
        assert (store.gpus, store.jobs) == ({}, ())
        assert store.refused.isprintable(), store.refused
        assert len(store.refused) < 2000, len(store.refused)
    else:
        assert not data or json.loads(data)["version"] == VERSION
        _check_usable(store)
    number = store.next_id()
    to_wire("u", [number])
    store.update({"GPU-x": GpuState(_CHOICE, layout(_GPU))})
    again = StateStore(path)
    again.load()
    assert not again.refused
    assert again.gpus == store.gpus
    assert again.jobs == store.jobs
    assert again.next_id() > number


def _check_usable(store: StateStore) -> None:
    """What it holds can be shown on the bus, and made a plan of."""
    for past in store.jobs:
        to_wire("a{sv}", [objects._past(past)])
        to_wire("a{sv}", [objects.details(past)])
    for kept in store.gpus.values():
        if kept.settled:
            for instance in kept.settled.target().instances or ():
                assert instance.placement is not None
                assert instance.placement.mask >= 0


# -- the journal -----------------------------------------------------------------------------

_BEGUN = Begun(3, "apply", _CHOICE, 1, "boot", (Before(_GPU.uuid, 0, layout(_GPU)),), ())
_RECORDS = (
    _BEGUN, Stopping("a.service", ("b.socket",), 100, 120), Signaling(7, 8, "a.scope", "x"),
    Stepping(_GPU.uuid, "create 1g.6gb"), Reached(_GPU.uuid, layout(_GPU)), Returned(_OUTCOME),
    Hooking(Moment.EXIT, 0, "/bin/x"), Hooked(0, _HOOK),
)  # fmt: skip


def check_journal(data: bytes) -> None:
    """What is read is what begins well, up to the first damage, and no more."""
    folder = SCRATCH.empty()
    path = folder / "journal"
    path.write_bytes(data)
    records = Journal(path).read()
    lines = data.split(b"\n")
    assert len(records) <= len(lines)
    for record, line in zip(records, lines, strict=False):
        kind, value = json.loads(line)
        assert type(record) is journal._KINDS[kind]
        assert json.loads(journal._line(record)) == [kind, value | plain(record)]
    left = unfinished(records)
    assert (left is None) == (not any(isinstance(r, Begun) for r in records))
    if left:
        to_wire("u", [left.begun.id])
        ends.past_job(left.begun, 5, list(left.returned.values()), Result.INTERRUPTED)


_STATE = State(
    VERSION,
    1001,
    {_GPU.uuid: GpuState(_CHOICE, layout(_GPU), Owed(_CHOICE, "boot"))},
    (_PAST, _PAST),
)
_LINES = tuple(journal._line(record) for record in _RECORDS)
_ANSWERS: tuple[protocol.Answer, ...] = (
    Opened("580.65.06", 8), _GPU, Performed(3),
    Performed(None, model.Mode.ENABLED, model.Mode.ENABLED),
    Failure("nvmlInit", 19, "IN_USE", "in use"),
)  # fmt: skip
_STEPS: tuple[steps.Step, ...] = (
    steps.SetMode(model.Mode.ENABLED, reset=True),
    steps.DestroyInstance(1, 9, model.Placement(0, 4)), steps.DestroyCompute(1, 0),
    steps.CreateInstance(9, model.Placement(4, 4), (0, 0)), steps.CreateCompute(1, None),
)  # fmt: skip
_NAMES = (
    "version", "id", "next_id", "jobs", "gpus", "clients", "after", "owed", "wanted", "settled",
    "start", "size", "uid", "outcomes", "index", "pid", "mode", "code",
)  # fmt: skip
_WORDS = (
    b"{", b"}", b"[", b"]", b"[[", b'{"', b'": ', b", ", b"null", b"true", b"1.0", b"-0", b"1e5",
    b"Infinity", b"-1", b"4294967296", b"9223372036854775808", b'"enabled"', b'"done"',
    b'"version": 2', b"\\n",
    *(f'"{name}": '.encode() for name in _NAMES),
)  # fmt: skip
_KEYS = (
    "Version", "MigState", "Devices", "UUID", "MigMode", "GpuInstances", "ProfileID", "Placement",
    "Start", "Size", "ComputeInstances", "EngProfileID", "version",
)  # fmt: skip
_EMPTY = checkpoint.checkpoint([boards.gpu("a30-24gb", mode=model.Mode.DISABLED)])

TARGETS = (
    Target(
        "answer",
        4000,
        check_answer,
        (protocol, values),
        tuple(answer_line(n, answer) for n, answer in enumerate(_ANSWERS)),
        (*_WORDS, b'"opened"', b'"gpu"', b'"failure"', b'"performed"'),
    ),
    Target(
        "request",
        4000,
        check_request,
        (protocol, values, steps),
        tuple(
            Request(n, protocol.Op.PERFORM, 0, _GPU.uuid, s).line() for n, s in enumerate(_STEPS)
        ),
        (*_WORDS, b'"open"', b'"snapshot"', b'"action": ', b'"create-instance"'),
    ),
    Target(
        "checkpoint",
        1500,
        check_checkpoint,
        (checkpoint, configs, exact),
        (checkpoint.checkpoint([_GPU]).encode(), _EMPTY.encode()),
        (*_WORDS, *(f'"{name}":'.encode() for name in _KEYS), b'"v1"', _GPU.uuid.encode()),
    ),
    Target(
        "state",
        400,
        check_state,
        (state, values, job),
        (json.dumps(plain(_STATE)).encode(),),
        _WORDS,
    ),
    Target(
        "journal",
        1500,
        check_journal,
        (journal, values, job, ends),
        (b"".join(_LINES), b"".join(_LINES[:2]), _LINES[0], _LINES[0] + _LINES[4]),
        (*_WORDS, *(f'["{kind}", '.encode() for kind in journal._KINDS), *_LINES),
    ),
)
