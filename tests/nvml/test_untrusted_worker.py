"""A worker that says and does what no worker does: whoever asked is told at once, nothing is left.

The stand-in is a program in the place of the interpreter, with the worker's own end of the socket.
"""

import asyncio
import functools
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migd.config.generate import generated
from migd.core import placement
from migd.core.model import Mode, Placement, Process
from migd.core.steps import SetMode
from migd.core.values import plain
from migd.errors import Hung, Nvml
from migd.nvml.protocol import Failure, Opened, Performed, answer_line, parse_answer
from migd.nvml.sane import MOST_GPUS, MOST_SLICES, checked
from tests.nvml.support import H100, children, nvml
from tests.nvml.test_worker import sessions, until
from tests.support import boards
from tests.support.bus import run
from tests.support.node import Node

GPU = boards.gpu(
    H100,
    [boards.instance(H100, 7, 19, 0)],
    processes=(Process(4711, 7, 0), Process(4712, None, None)),
)
OTHER = boards.gpu(H100, index=1)
ON = SetMode(Mode.ENABLED, reset=False)

PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys, time
end = socket.socket(fileno=int(sys.argv[-1]))
stream = end.makefile("rb")
GPUS = json.loads({gpus!r})
def ask():
    line = stream.readline()
    return json.loads(line) if line else os._exit(0)
def send(number, kind, value):
    end.sendall(json.dumps([number, kind, value]).encode() + b"\\n")
def answer(request, gpus=len(GPUS)):
    number, op, index = request[:3]
    if op == "open":
        send(number, "opened", {{"driver": "1", "gpus": gpus}})
    elif op == "snapshot":
        send(number, "gpu", GPUS[index])
    else:
        send(number, "performed", {{"gi": None, "mode": None, "pending": None, "activation": 0}})
def serve():
    while True:
        answer(ask())
try:
{body}
except OSError:
    pass
"""


class StandIn:
    """pids: where each that was started has written its own, and what it started its."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "worker"
        self.told = folder / "told"
        monkeypatch.setattr(sys, "executable", str(self.path))

    def does(self, body: str) -> None:
        gpus = json.dumps([plain(GPU), plain(OTHER)])
        lines = f"with open({str(self.told)!r}, 'a') as told: print(os.getpid(), file=told)\n{body}"
        body = "".join(f"    {line}\n" for line in lines.splitlines())
        self.path.write_text(PROGRAM.format(python=PYTHON, gpus=gpus, body=body))
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self.told.read_text().split()]


PYTHON = sys.executable


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(tmp_path, monkeypatch)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- what it says ------------------------------------------------------------------------------


def test_what_is_right_stays_as_it_is() -> None:
    for answer in (
        GPU,
        OTHER,
        boards.without_mig(),
        Opened("580.95.05", 8),
        Performed(7, Mode.ENABLED, Mode.DISABLED, 999),
        Failure("nvmlInit", 9, "DRIVER_NOT_LOADED", "Driver Not Loaded"),
        Failure("", -1, "STALE", "no step was named"),
    ):
        number, parsed = parse_answer(answer_line(7, answer))
        assert (number, checked(parsed)) == (7, answer)


@pytest.mark.parametrize("key", boards.boards())
def test_every_board_is_within_the_bounds(key: str) -> None:
    gpu = boards.gpu(key)
    assert checked(gpu) == gpu


Change = Callable[[dict[str, Any]], object]


def put(value: Any, *path: str | int) -> Change:
    def change(gpu: dict[str, Any]) -> None:
        at: Any = gpu
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value

    return change


def repeated(times: int, *path: str | int) -> Change:
    def change(gpu: dict[str, Any]) -> None:
        at: Any = gpu
        for step in path:
            at = at[step]
        at[:] = [{**at[0], "id": n} if "id" in at[0] else at[0] for n in range(times)]

    return change


WRONG: dict[str, Change] = {
    "negative start": put(-1, "profiles", 0, "placements", 0, "start"),
    "large start": put(10**9, "profiles", 0, "placements", 0, "start"),
    "no size": put(0, "profiles", 0, "placements", 0, "size"),
    "size beyond the end": put(MOST_SLICES + 1, "instances", 0, "placement", "size"),
    "huge size": put(1 << 4000, "instances", 0, "placement", "size"),
    "a fraction": put(0.5, "instances", 0, "placement", "size"),
    "not a number": put(float("nan"), "memory_mib"),
    "without end": put(float("inf"), "memory_mib"),
    "true": put(True, "index"),
    "text": put("7", "index"),
    "nothing": put(None, "uuid"),
    "a list": put([], "uuid"),
    "negative memory": put(-1, "memory_mib"),
    "too much for the bus": put(1 << 60, "memory_mib"),
    "a billion fit": put(10**9, "profiles", 0, "instances"),
    "a billion GPUs": put(10**9, "index"),
    "a negative id": put(-1, "profiles", 0, "id"),
    "an id beyond 32 bits": put(1 << 32, "instances", 0, "id"),
    "a negative pid": put(-1, "processes", 0, "pid"),
    "minor": put(-2, "minor"),
    "a UUID that leads elsewhere": put("../../x", "uuid"),
    "a UUID with an end of line": put("GPU-1\n", "uuid"),
    "no UUID": put("", "uuid"),
    "a long UUID": put("a" * 81, "uuid"),
    "a MIG UUID with more": put("MIG-1 ", "instances", 0, "compute", 0, "uuid"),
    "no address": put("0000:00:00", "pci_address"),
    "no mode": put("on", "mode"),
    "a mode of any kind": put([[]], "mode"),
    "two of one id": repeated(2, "instances", 0, "compute"),
    "too many profiles": repeated(65, "profiles"),
    "too many placements": repeated(MOST_SLICES + 1, "profiles", 0, "placements"),
    "too many instances": repeated(65, "instances"),
    "too many processes": repeated(1 << 15, "processes"),
    "one field more": put(1, "more"),
}
WRONG["two of one id"] = lambda gpu: gpu["instances"].append(gpu["instances"][0])


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_values_that_no_gpu_has(change: Change) -> None:
    value = plain(GPU)
    change(value)
    line = json.dumps([1, "gpu", value]).encode() + b"\n"
    with pytest.raises(ValueError):
        checked(parse_answer(line)[1])


@pytest.mark.parametrize(
    "line",
    [
        b'[1, "opened", {"driver": "1", "gpus": -1}]',
        b'[1, "opened", {"driver": "1", "gpus": 1000000000}]',
        b'[1, "opened", {"driver": "1", "gpus": 1e400}]',
        b'[1, "opened", {"driver": "1", "gpus": ' + b"9" * 100_000 + b"}]",
        b'[true, "opened", {"driver": "1", "gpus": 1}]',
        b'[1.0, "opened", {"driver": "1", "gpus": 1}]',
        b'[1, "performed", {"gi": -1, "mode": null, "pending": null, "activation": 0}]',
        b'[1, "performed", {"gi": 0, "mode": null, "pending": null, "activation": -5}]',
        b'[1, "failure", {"call": "a b", "code": 1, "name": "", "text": ""}]',
        b'[1, "failure", {"call": "", "code": 4294967296, "name": "", "text": ""}]',
        b'[1, "failure", {"call": "", "code": 1, "name": "x\\n", "text": ""}]',
        b'[1, "gpu", ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"]",
    ],
)
def test_answers_that_no_worker_gives(line: bytes) -> None:
    with pytest.raises(ValueError):
        checked(parse_answer(line)[1])


def test_texts_of_the_library_are_made_plain() -> None:
    """A driver may call a GPU what it likes: that is no reason not to work with it."""
    value = plain(GPU)
    value["name"] = "NVIDIA \x1b[2J" + "x" * 1000
    value["profiles"][0]["name"] = "1g\n5gb"
    gpu = checked(parse_answer(json.dumps([1, "gpu", value]).encode())[1])
    assert gpu.name.startswith("NVIDIA \\x1b[2Jx")  # type: ignore[union-attr]
    assert len(gpu.name) == 200  # type: ignore[union-attr]
    assert gpu.profiles[0].name == "1g\\n5gb"  # type: ignore[union-attr]
    failure = checked(Failure("nvmlInit", 1, "X", "\x1b" * 10_000))
    assert isinstance(failure, Failure)
    assert failure.text.isprintable()
    assert len(failure.text) == 1000


def test_within_the_bounds_planning_takes_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most profiles, each of them more often than it fits, in any of very many ways."""
    spots = [Placement(start, 2) for start in range(MOST_SLICES - 1)]
    value = plain(boards.gpu(H100))
    value["profiles"] = [
        {
            **value["profiles"][0],
            "id": n,
            "name": f"{n + 1}g.5gb",
            "instances": 64,
            "placements": plain(spots),
            "engines": dict.fromkeys(value["profiles"][0]["engines"], 0),
        }
        for n in range(16)
    ]
    gpu = checked(parse_answer(json.dumps([1, "gpu", value]).encode())[1])
    tried = 0

    def counted(search: Callable[..., object]) -> Callable[..., object]:
        remembering = functools.cache(search)

        def look(*arguments: int) -> object:
            nonlocal tried
            tried += 1
            assert tried < 10_000
            return remembering(*arguments)

        return look

    monkeypatch.setattr(placement, "cache", counted)
    configs = generated([gpu]).configs  # type: ignore[list-item]
    assert len(configs) > 15
    assert tried


# -- what it does ------------------------------------------------------------------------------

OPENED = "send(r, 'opened', {'driver': '', 'gpus': 2})"
# The answer is there in full, and yet it is not what was asked for.
LIES = {
    "of another GPU": ("answer(ask()); r = ask(); send(r[0], 'gpu', GPUS[1 - r[2]])", "not what"),
    "of another kind": ("answer(ask()); r = ask(); answer([r[0], 'perform'] + r[2:])", "not what"),
    "to nothing": ("r = ask(); send(99, 'opened', {'driver': '', 'gpus': 0})", "request 63 "),
    "to zero": ("r = ask(); send(0, 'opened', {'driver': '', 'gpus': 0})", "request 0 "),
    "twice": ("r = ask()[0]\nfor n in 1, 2: " + OPENED, "request 1 |not what"),
    "for ever": ("r = ask()[0]\nwhile True: " + OPENED, "request 1 |not what"),
    "a billion GPUs": ("answer(ask(), 10**9)", f"is not 0 to {MOST_GPUS}"),
    "a huge number": ("r = ask(); send(1 << 3000, 'opened', {'driver': '', 'gpus': 0})", "hex"),
    "an endless line": ("ask()\nwhile True: end.sendall(b'[' * 65536)", "exceed the limit"),
    "a long line": ("r = ask(); end.sendall(b' ' * (2 << 20) + b'\\n')", "exceed the limit"),
    "deep": ("ask(); end.sendall(b'[' * 500000 + b'\\n')", "makes no sense"),
    "not a number": ("send(ask()[0], 'opened', {'driver': '', 'gpus': float('nan')})", "nan"),
}


@pytest.mark.parametrize(("body", "why"), LIES.values(), ids=LIES.keys())
def test_lies(worker: StandIn, lock: Path, body: str, why: str) -> None:
    worker.does(f"{body}\nwhile True: signal.pause()")

    async def main() -> None:
        async with nvml(lock) as client:
            with pytest.raises(Nvml) as error:
                await client.observe()
            assert error.value.name == "WORKER_GONE"
            assert "was ended during" in str(error.value)
            assert re.search(why, str(error.value))
            assert len(str(error.value)) < 2000
            await until(lambda: not any(map(is_there, worker.pids)))

    run(main(), timeout_s=20)


def test_two_gpus_with_one_uuid(worker: StandIn, lock: Path) -> None:
    worker.does("GPUS[1]['uuid'] = GPUS[0]['uuid']; serve()")

    async def main() -> None:
        async with nvml(lock) as client:
            with pytest.raises(Nvml, match="two GPUs have one UUID"):
                await client.observe()

    run(main())


def test_answers_in_another_order(worker: StandIn, lock: Path) -> None:
    """GPUs are asked side by side, and whichever is ready answers first."""
    worker.does("answer(ask()); a, b = ask(), ask(); answer(b); answer(a); serve()")

    async def main() -> None:
        async with nvml(lock) as client:
            assert (await client.observe()).gpus == (GPU, OTHER)

    run(main())


def test_an_answer_that_comes_late(worker: StandIn, lock: Path) -> None:
    """It is for nobody, and no lie; but only once."""
    worker.does(
        "answer(ask()); a, b = ask(), ask(); answer(b)\n"
        "c = ask(); answer(a); answer(c)\n"
        "d = ask(); answer(a); answer(d); serve()"
    )

    async def main() -> None:
        async with nvml(lock) as client:
            look = asyncio.create_task(client.observe())
            await until(lambda: 1 in client._seen)
            look.cancel()
            await asyncio.wait([look])
            assert await client.perform(OTHER, ON) == Performed()
            with pytest.raises(Nvml, match="request 2 "):
                await client.perform(OTHER, ON)
            assert len(worker.pids) == 1

    run(main())


def test_what_it_says_unasked(worker: StandIn, lock: Path) -> None:
    worker.does("answer(ask()); answer(ask()); answer(ask())\nwhile True: send(3, 'gpu', GPUS[0])")

    async def main() -> None:
        async with nvml(lock) as client:
            await client.observe()
            await until(lambda: not is_there(worker.pids[0]))
            assert (await client.observe()).gpus == (GPU, OTHER)

    run(main())


@pytest.mark.parametrize("how", ["SHUT_WR", "SHUT_RD", "SHUT_RDWR"])
def test_one_end_is_closed(worker: StandIn, lock: Path, how: str) -> None:
    worker.does(f"r = ask(); end.shutdown(socket.{how})\nwhile True: signal.pause()")

    async def main() -> None:
        async with nvml(lock, open_s=1) as client:
            # Where only its reading end is closed, that shows when something is sent to it.
            with pytest.raises((Nvml, Hung)):
                await client.observe()
            await until(lambda: not is_there(worker.pids[0]))

    run(main())


def test_one_end_is_closed_while_it_is_idle(worker: StandIn, lock: Path) -> None:
    worker.does(
        "answer(ask()); answer(ask()); answer(ask()); end.shutdown(socket.SHUT_WR)\n"
        "while True: signal.pause()"
    )

    async def main() -> None:
        async with nvml(lock) as client:
            await client.observe()
            await until(lambda: not is_there(worker.pids[0]))

    run(main())


CHILD = """
r = ask()
if os.fork() == 0:
    {apart}
    with open({told!r}, "a") as told: print(os.getpid(), file=told)
    while True: signal.pause()
while len(open({told!r}).read().split()) < 2: time.sleep(0.001)
os._exit(1)
"""


@pytest.mark.parametrize("apart", ["pass", "os.setsid()"])
def test_a_child_that_keeps_its_end(worker: StandIn, lock: Path, apart: str) -> None:
    """Who is gone does not answer, whoever else has its socket; and what it started goes along,
    unless it has made itself a session of its own.
    """
    worker.does(CHILD.format(apart=apart, told=str(worker.told)))
    before = descriptors()

    async def main() -> None:
        async with nvml(lock, open_s=600) as client:
            with pytest.raises(Nvml) as error:
                await client.observe()
            assert error.value.name == "WORKER_GONE"
            if apart == "pass":
                await until(lambda: not is_there(worker.pids[1]))

    try:
        run(main())
        assert descriptors() == before
    finally:
        for pid in filter(is_there, worker.pids):
            os.kill(pid, 9)


def test_one_that_never_reads(worker: StandIn, lock: Path) -> None:
    worker.does("while True: signal.pause()")

    async def main() -> None:
        async with nvml(lock, open_s=0.3) as client:
            with pytest.raises(Hung):
                await client.observe()
            await until(lambda: not is_there(worker.pids[0]))

    run(main())


# -- what is left ------------------------------------------------------------------------------


def test_its_error_output_is_logged_so_far(
    worker: StandIn, lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on, whether it has a reader or not; the log does not fill."""
    worker.does(
        "os.write(2, b'first\\n' + b'\\xff\\x1b' * 100 + b'\\n'); answer(ask())\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_IGN)\n"
        "try:\n"
        "    while True: os.write(2, b'y' * 500 + b'\\n')\n"
        "except BrokenPipeError: pass\n"
        "serve()"
    )

    async def main() -> None:
        async with nvml(lock) as client:
            assert (await client.observe()).gpus == (GPU, OTHER)

    run(main())
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f"NVML worker {worker.pids[0]}: first"
    assert 10 < len(said) < 50
    assert sum(map(len, said)) < 32 << 10


def test_a_line_without_end_on_its_error_output(
    worker: StandIn, lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker.does(
        "signal.signal(signal.SIGPIPE, signal.SIG_IGN)\n"
        "try:\n"
        "    while True: os.write(2, b'y' * 500)\n"
        "except BrokenPipeError: pass\n"
        "serve()"
    )

    async def main() -> None:
        async with nvml(lock) as client:
            await client.observe()

    run(main())
    (said,) = [record.getMessage() for record in caplog.records]
    assert len(said) < 1100


def test_its_last_words_are_logged(
    worker: StandIn, lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker.does("ask(); os.write(2, b'Traceback\\nno such thing'); os._exit(1)")

    async def main() -> None:
        async with nvml(lock) as client:
            with pytest.raises(Nvml):
                await client.observe()

    run(main())
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
        "Traceback",
        "no such thing",
    ]


def test_nothing_grows(worker: StandIn, lock: Path) -> None:
    """No descriptor, task or process is left of workers that were ended for what they said."""
    worker.does("ask(); send(7, 'opened', {'driver': '', 'gpus': 0})\nwhile True: signal.pause()")
    before = children()

    async def main() -> None:
        async with nvml(lock) as client:
            counts = []
            for _ in range(12):
                with pytest.raises(Nvml):
                    await client.observe()
                await until(lambda: children() <= before)
                await until(lambda: len(asyncio.all_tasks()) == 1)
                counts.append(descriptors())
            assert counts[-1] <= counts[1]

    run(main(), timeout_s=60)


def test_what_the_library_starts_inherits_nothing(node: Node, lock: Path) -> None:
    """Neither the lock, which would seem held for as long, nor the socket."""

    async def main() -> None:
        async with nvml(lock) as client:
            await client.observe()
            (pid,) = sessions(node)
            kept = []
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                flags = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().split("flags:")[1]
                if not int(flags.split()[0], 8) & os.O_CLOEXEC:
                    kept.append(entry.name)
            assert sorted(kept) == ["0", "1", "2"]

    run(main())


def test_a_bug_of_the_worker_ends_it(
    worker: StandIn, lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread that is gone would leave its GPU without an answer until the limit."""
    worker.path.write_text(
        f"#!{PYTHON} -I\n"
        "import sys\n"
        "from migd.nvml import worker\n"
        "def bug(): raise RuntimeError('a bug')\n"
        "worker.initialize = bug\n"
        "sys.argv[1:] = sys.argv[-2:]\n"
        "worker.main()\n"
    )
    worker.path.chmod(0o755)

    async def main() -> None:
        async with nvml(lock, open_s=600) as client:
            with pytest.raises(Nvml) as error:
                await client.observe()
            assert error.value.name == "WORKER_GONE"

    run(main())
    assert caplog.records[-1].getMessage().endswith(": RuntimeError: a bug")
