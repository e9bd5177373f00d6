"""Runs a target on inputs that get further into it: what reaches new code is changed further.

A target is a check of one input. What it asserts must hold for every input; it raises where that
is not so, and so it does when the code behind it raises anything that its contract does not name,
takes too many steps, too long, or too much memory.
"""

import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from tests.fuzz.mutate import MOST_BYTES, Mutator, shrunk

# Lines of the code under test that one input may take, and seconds of processor time: both are
# far more than any honest input takes, and far less than somebody who waits would notice.
_STEPS, _STEPS_A_BYTE = 200_000, 400
_SECONDS = 4.0
_MEMORY_KIB = 192 << 10
_MOST_FINDS = 20


class TooMuch(BaseException):
    """An input takes too long or too much memory; nobody may catch it on the way."""


@dataclass(frozen=True)
class Target:
    """A check of one input, and what is known of the format.

    short: how many inputs a short run tries
    covers: the modules that are under test, whose lines guide and are counted
    seeds: inputs that are well-formed; words: what is written in them
    """

    name: str
    short: int
    check: Callable[[bytes], None]
    covers: tuple[ModuleType, ...]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Find:
    """An input for which a target does not hold, made as short as it gets."""

    target: str
    data: bytes
    what: str
    trace: str


Tracer = Callable[[FrameType, str, Any], Any]


class Coverage:
    """Which lines follow which, and about how often, in some modules."""

    def __init__(self, modules: Sequence[ModuleType]) -> None:
        self._files = {str(m.__file__) for m in modules}
        self._counts: dict[tuple[str, int, int], int] = {}
        self._seen: set[tuple[str, int, int, int]] = set()
        self._lines: set[tuple[str, int]] = set()
        self._all = {line for m in modules for line in _lines(m)}
        self._steps = 0
        self._limit = 0

    @contextmanager
    def watching(self, size: int) -> Iterator[None]:
        """Raises TooMuch where an input of that size takes too many steps."""
        self._counts.clear()
        self._steps, self._limit = 0, _STEPS + _STEPS_A_BYTE * size
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def grown(self) -> bool:
        """Whether what was watched last has reached something new."""
        found = {(*edge, count.bit_length()) for edge, count in self._counts.items()} - self._seen
        self._seen |= found
        self._lines |= {(file, line) for file, _, line, _ in found}
        return bool(found)

    @property
    def edges(self) -> int:
        return len(self._seen)

    @property
    def percent(self) -> float:
        """Of the lines in functions of these modules."""
        return 100 * len(self._lines & self._all) / len(self._all)

    @property
    def missed(self) -> list[str]:
        """Files and lines that no input has reached."""
        return [f"{file}:{line}" for file, line in sorted(self._all - self._lines)]

    def _call(self, frame: FrameType, _: str, __: Any) -> Tracer | None:
        file = frame.f_code.co_filename
        if file not in self._files:
            return None
        counts, before = self._counts, 0

        def line(frame: FrameType, event: str, _: Any) -> Tracer:
            nonlocal before
            if event == "line":
                edge = (file, before, frame.f_lineno)
                counts[edge] = counts.get(edge, 0) + 1
                before = frame.f_lineno
                self._steps += 1
                if self._steps > self._limit:
                    raise TooMuch(f"it takes more than {self._limit} steps")
            return line

        return line


def _lines(module: ModuleType) -> Iterator[tuple[str, int]]:
    file = str(module.__file__)
    todo = [compile(Path(file).read_bytes(), file, "exec")]
    while todo:
        code = todo.pop()
        todo += [c for c in code.co_consts if isinstance(c, CodeType)]
        # Modules and classes run when they are imported, before anybody looks.
        if code.co_flags & 0x2:
            yield from ((file, n) for _, _, n in code.co_lines() if n and n != code.co_firstlineno)


class Fuzzer:
    """seed: the same one makes the same inputs; most: bytes of one that is made"""

    def __init__(self, target: Target, seed: int = 0, most: int = MOST_BYTES) -> None:
        self.target = target
        self.coverage = Coverage(target.covers)
        self.executions = 0
        self.finds: dict[str, Find] = {}
        self._dice = random.Random(f"{target.name} {seed}")
        self._mutate = Mutator(target.words, self._dice, most)
        self._corpus: list[bytes] = []

    def run(self, *, executions: int = 0, seconds: float = 0) -> None:
        """Try seeds and then changed inputs, that many or that long."""
        end = time.monotonic() + seconds
        for seed in (*self.target.seeds, b""):
            self._try(seed, keep=True)
        while self.executions < executions or time.monotonic() < end:
            if len(self.finds) >= _MOST_FINDS:
                return
            self._try(self._mutate(self._chosen(), self._dice.choice(self._corpus)))

    @property
    def inputs(self) -> int:
        """How many are kept, because each reached something new."""
        return len(self._corpus)

    def _chosen(self) -> bytes:
        # What was found last has been tried least.
        if self._dice.randrange(3) == 0:
            return self._dice.choice(self._corpus[-50:])
        return self._dice.choice(self._corpus)

    def _try(self, data: bytes, *, keep: bool = False) -> None:
        self.executions += 1
        failure = failing(self.target, data, self.coverage)
        if failure and (what := _what(failure)) not in self.finds:
            trace = "".join(traceback.format_exception(failure)[-12:])
            small = shrunk(data, lambda less: _same(self.target, less, what, self.coverage))
            self.finds[what] = Find(self.target.name, small, what, trace)
        if self.coverage.grown() or keep:
            self._corpus.append(data)


def failing(target: Target, data: bytes, coverage: Coverage) -> BaseException | None:
    """What a target raises on this input."""
    memory = _peak_kib()
    before = signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
    try:
        with coverage.watching(len(data)):
            target.check(data)
        grown = _peak_kib() - memory
        if grown > _MEMORY_KIB:
            raise TooMuch(f"it takes {grown >> 10} MiB of memory")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return None


def _too_long(*_: object) -> None:
    raise TooMuch(f"it takes more than {_SECONDS:g} s of processor time")


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _same(target: Target, data: bytes, what: str, coverage: Coverage) -> bool:
    failure = failing(target, data, coverage)
    return failure is not None and _what(failure) == what


def _what(error: BaseException) -> str:
    """Tells finds apart: what was raised, and where."""
    if isinstance(error, TooMuch):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno}"
