"""The promises of a job, and whether they were kept: judged by the simulator, files and processes.

Nothing here asks migd whether all is well; what it said is only compared with what is.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from migd import names
from tests.faults.asking import Want, reached
from tests.faults.ear import Heard
from tests.faults.scenes import Truth, settled_truth, truths
from tests.support.daemon import Daemon, processes_about
from tests.support.node import MUTATING, Call, Holder, Node

Instance = Mapping[str, Any]


@dataclass(frozen=True)
class Held:
    """An instance in use that must not notice anything."""

    gpu: int
    holder: Holder
    instance: Any


@dataclass
class Promise:
    """What a job began with.

    wants: by index of the GPU; only these were asked for
    wanted: what the state said of each GPU, by UUID
    last: the id of the last job before
    may_fail: GPUs that may end as neither, and why that cannot be helped; it must then be told
    lied: GPUs of which the driver says all the time, and without a sign, what is not so: that is
        believed, so what they have is not judged; instances in use are
    forgotten: what the state had is lost, perhaps also that there was a job
    unkept: there may have been no room to write down how it ended; the journal stays for that
    """

    before: list[Truth]
    wants: Mapping[int, Want]
    wanted: Mapping[str, Any]
    config: str
    held: Sequence[Held] = ()
    last: int = 0
    may_fail: Mapping[int, str] = field(default_factory=dict)
    lied: frozenset[int] = frozenset()
    unkept: bool = False
    forgotten: bool = False


@dataclass(frozen=True)
class Answer:
    """What came of it; refusal: name and text of the error, when there is no job."""

    job: int = 0
    result: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    refusal: tuple[str, str] = ("", "")
    cut: bool = False


class Broken(AssertionError):
    """Promises that were not kept, one a line."""


def check(
    promise: Promise,
    answer: Answer,
    node: Node,
    daemon: Daemon,
    calls: Iterable[Call],
    heard: Sequence[Heard],
) -> None:
    """Raises Broken.

    calls: those made meanwhile, in order; heard: signals since, all of them
    """
    found = truths(node)
    broken = [
        *_gpus(promise, answer, node, found),
        *_others_untouched(promise, calls),
        *_holders(promise.held, node),
        *(_words(promise, answer) if answer.job else _refusal(answer, promise, found, calls)),
        *(() if promise.unkept else _kept(promise, answer, node, daemon, found)),
        *_signals(promise, answer, heard),
        *left(daemon, journal=promise.unkept),
    ]
    if broken:
        told = json.dumps({"result": answer.result, **answer.details}, default=str)
        lines = "\n".join(broken)
        raise Broken(f"{lines}\nbefore {promise.before}\nnow    {found}\ntold   {told}")


# -- GPUs ------------------------------------------------------------------------------------


def _gpus(promise: Promise, answer: Answer, node: Node, found: Sequence[Truth]) -> Iterable[str]:
    told = {o["gpu"]: o for o in answer.details.get("gpus", ())}
    for gpu, now in zip(node.gpus(), found, strict=True):
        if gpu["index"] not in promise.lied:
            yield from _gpu(promise, told.get(gpu["uuid"]), gpu, now)


def _gpu(
    promise: Promise, outcome: Mapping[str, Any] | None, gpu: Mapping[str, Any], now: Truth
) -> Iterable[str]:
    index, before = gpu["index"], promise.before[gpu["index"]]
    want = promise.wants.get(index)
    there = want is not None and reached(gpu["board"], now, want, before)
    if outcome is None:
        if now != before and not (there and promise.forgotten):
            yield f"GPU {index}: nothing was told of it, and it is not as before"
        return
    match outcome["result"]:
        case "done" if not there:
            yield f"GPU {index}: done, and it is not what was wanted"
        case "unchanged" if now != before or not there:
            yield f"GPU {index}: unchanged, and it is not as before or not what was wanted"
        case "rolled-back" if now != before:
            yield f"GPU {index}: rolled back, and it is not as before"
        case "rolled-back" if not (outcome["error"] and outcome["message"]):
            yield f"GPU {index}: rolled back, and why is not told"
        case "failed":
            yield from _failed(promise, index, outcome, gpu, now)
            return
    yield from _between(index, now, before)


def _between(index: int, now: Truth, before: Truth) -> Iterable[str]:
    if now != before and (now.mode != now.pending or not all(i[3] for i in now.instances)):
        yield f"GPU {index} is in between: {now}"


def _failed(
    promise: Promise, index: int, outcome: Mapping[str, Any], gpu: Mapping[str, Any], now: Truth
) -> Iterable[str]:
    """It is neither, which needs an excuse, and must be told as it is."""
    if index not in promise.may_fail:
        yield f"GPU {index}: failed, and nothing kept it from going back"
    left_over = outcome.get("left", "")
    if not left_over:
        yield f"GPU {index}: failed, and what is left is not told"
    if not left_over.startswith("not as before: MIG mode "):
        return  # it could not be read, which is what is told
    told = left_over.removeprefix("not as before: MIG mode ")
    has = [
        f"{i['profile']} at {i['placement']['start']}:{i['placement']['size']}"
        for i in gpu["instances"]
        if not i["destroyed"]
    ]
    if not told.startswith(now.mode) or any(h not in told for h in has):
        yield f"GPU {index}: told is {left_over!r}, and it has {now.mode}, {has}"


def _others_untouched(promise: Promise, calls: Iterable[Call]) -> Iterable[str]:
    for call in calls:
        if call.name in MUTATING and call.gpu is not None and call.gpu not in promise.wants:
            yield f"GPU {call.gpu} was not asked for, and there was {call.name}"


def identity(node: Node, gpu: int, start: int) -> Any:
    """All that whoever uses an instance could notice."""
    for i in node.gpus()[gpu]["instances"]:
        if i["placement"]["start"] == start and not i["destroyed"]:
            inside = [(c["ci"], c["profile_id"], c["uuid"]) for c in i["compute_instances"]]
            return i["gi"], i["profile_id"], i["placement"], inside
    return None


def _holders(held: Iterable[Held], node: Node) -> Iterable[str]:
    for hold in held:
        if identity(node, hold.gpu, hold.instance[2]["start"]) != hold.instance:
            yield f"the instance in use on GPU {hold.gpu} is not what it was"
        if not hold.holder.alive():
            yield f"whoever used the instance on GPU {hold.gpu} was ended"


# -- words -----------------------------------------------------------------------------------


def _words(promise: Promise, answer: Answer) -> Iterable[str]:
    endings = {o["result"] for o in answer.details["gpus"]}
    well = endings <= {"done", "unchanged"}
    if well:
        clients = {c["result"] for c in answer.details.get("clients", ())}
        expected = {"partial"} if "missing" in clients else {"done"}
        # What failed after the change undoes nothing, and is told.
        expected |= {"partial"} if answer.details.get("after") else set()
    else:
        expected = {"partial"} if "done" in endings else {"failed"}
        expected |= {"canceled"} if answer.cut else set()
    expected |= {"interrupted"} if answer.cut else set()
    if answer.result not in expected:
        yield f"the job is {answer.result!r}, and its GPUs are {sorted(endings)}"
    if bool(answer.details["wanted"]) != well:
        yield f"wanted is told as {answer.details['wanted']}, and GPUs are {sorted(endings)}"
    if not answer.details["message"]:
        yield "the job ended without a word"


def _refusal(
    answer: Answer, promise: Promise, found: Sequence[Truth], calls: Iterable[Call]
) -> Iterable[str]:
    name, text = answer.refusal
    if not name:
        # It was cut off before there was a job.
        text = "-"
    elif not name.startswith(f"{names.ERROR}.") or name == f"{names.ERROR}.Failed":
        yield f"refused with {name}: {text}"
    if not text:
        yield f"refused with {name}, and why is not told"
    if promise.forgotten:
        return
    if list(found) != promise.before:
        yield "refused, and GPUs are not as before"
    changing = [c.name for c in calls if c.name in MUTATING]
    if changing:
        yield f"refused, and there was {changing}"


# -- what is kept and what is left -----------------------------------------------------------


def kept(daemon: Daemon) -> dict[str, Any]:
    """Of each GPU, by UUID, what the state file has."""
    if not daemon.state.exists():
        return {}
    gpus: dict[str, Any] = json.loads(daemon.state.read_text())["gpus"]
    return gpus


def wanted(daemon: Daemon) -> dict[str, Any]:
    return {uuid: state["wanted"] for uuid, state in kept(daemon).items()}


def _kept(
    promise: Promise, answer: Answer, node: Node, daemon: Daemon, found: Sequence[Truth]
) -> Iterable[str]:
    state = kept(daemon)
    told = {o["gpu"]: o["result"] for o in answer.details.get("gpus", ())}
    well = answer.job and set(told.values()) <= {"done", "unchanged"}
    for gpu, now in zip(node.gpus(), found, strict=True):
        uuid = gpu["uuid"]
        mine = state.get(uuid, {})
        if gpu["index"] in promise.lied:
            continue
        if told.get(uuid) in ("done", "unchanged") and _settled(mine) != now:
            yield f"GPU {gpu['index']}: settled is {_settled(mine)}, and it has {now}"
        asked = mine.get("wanted")
        if well and uuid in told and promise.config:
            if not asked or asked["config"] != promise.config:
                yield f"GPU {gpu['index']}: done, and wanted is {asked}"
        elif asked != promise.wanted.get(uuid):
            yield f"GPU {gpu['index']}: wanted was {promise.wanted.get(uuid)}, and is {asked}"


def _settled(state: Mapping[str, Any]) -> Truth | None:
    layout = state.get("settled")
    return settled_truth(layout) if layout else None


def _signals(promise: Promise, answer: Answer, heard: Sequence[Heard]) -> Iterable[str]:
    new = [h.body[0] for h in heard if h.member == "JobNew"]
    removed = [h.body[0] for h in heard if h.member == "JobRemoved"]
    expected = [answer.job] if answer.job else []
    if promise.forgotten and not answer.job:
        return
    # Who is killed before he could tell tells nobody that there is a job; its end comes anyway.
    # Its end was on disk when it was killed, and nobody told of it: WaitJob tells.
    untold = answer.cut and answer.result != "interrupted" and not removed
    if (removed != expected and not untold) or not (new == expected or (answer.cut and not new)):
        yield f"JobNew of {new} and JobRemoved of {removed}, and the job is {answer.job}"
    ends = [h.body[3:5] for h in heard if h.member == "JobRemoved"]
    if ends and answer.job and ends[-1] != [answer.result, answer.details]:
        yield f"JobRemoved tells {ends[-1]}"


_FILES = {names.STATE_FILE}
_RUNTIME = {"worker.lock", names.PUT_BACK_FILE}


def left(daemon: Daemon, *, journal: bool = False) -> Iterable[str]:
    """Files, workers and processes that should not be there between jobs."""
    files = _FILES | {names.JOURNAL_FILE} if journal else _FILES
    for folder, known in ((daemon.state_dir, files), (daemon.runtime_dir, _RUNTIME)):
        there = {p.name for p in folder.iterdir()} if folder.exists() else set()
        if over := there - known:
            yield f"left in {folder.name}: {sorted(over)}"
    if not daemon.running:
        yield "the daemon has ended"
    elif len(workers := daemon.worker_pids()) > 1:
        yield f"workers are left: {workers}"


def descriptors(pid: int) -> dict[str, int]:
    """How many descriptors a process has, by what they are open on."""
    counts: dict[str, int] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            what = str(entry.readlink()).partition(":[")[0]
        except OSError:
            continue
        counts[what] = counts.get(what, 0) + 1
    return counts


def strangers(folder: Path, known: Iterable[int]) -> dict[int, str]:
    """Processes that have the folder in their command or environment, and are not known."""
    mine = {*known, os.getpid()}
    return {p: c for p, c in processes_about(folder).items() if p not in mine}
