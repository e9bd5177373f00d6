"""What was measured of migd and the peer: figures of each row, for a terminal and for the page."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tests.bench.peer_judge import Deed, Least

MIGD, CALL, PEER = "migctl", "call", "peer"
_COUNTS = ("calls", "destroyed", "needless", "disturbed")


@dataclass(frozen=True)
class Tool:
    """One tool on one row: milliseconds of each round, and what it did, at its worst."""

    ms: list[float]
    calls: int
    destroyed: int
    needless: int
    disturbed: int
    outcome: str

    @classmethod
    def of(cls, runs: Sequence[tuple[float, Deed]]) -> Self:
        deeds = [deed for _, deed in runs]
        outcomes = sorted({deed.outcome for deed in deeds})
        worst = {name: max(getattr(d, name) for d in deeds) for name in _COUNTS}
        return cls([ms for ms, _ in runs], outcome="; or ".join(outcomes), **worst)

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


@dataclass(frozen=True)
class Line:
    """One row under one lock: the least that any tool needs, and what each took."""

    board: str
    lock: str
    case: str
    least: Least
    tools: Mapping[str, Tool]
    all_gpus: bool

    def over_least(self, tool: str = MIGD) -> float:
        """How many times the least it took; nothing where the least is nothing."""
        return self.tools[tool].median / self.least.ms if self.least.ms else 0

    @property
    def ratios(self) -> list[float]:
        """How many times as long as migctl the peer took, of each round."""
        pairs = zip(self.tools[PEER].ms, self.tools[MIGD].ms, strict=True)
        return [peer / migd for peer, migd in pairs]


def show(lines: Sequence[Line]) -> None:
    """On the terminal."""
    for title, rows in by_section(lines):
        print(f"\n{title}", flush=True)
        for row in rows:
            print(
                "  "
                + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, _WIDTHS, strict=True))
            )


_WIDTHS = (28, 8, 21, 12, 21, 23, 18, 17, 9, 8, 6, 0)
HEADINGS = (
    "change", "least", "migctl", "x least", "call alone", "peer", "peer / migctl",
    "calls", "destroyed", "needless", "busy", "outcome",
)  # fmt: skip


def by_section(lines: Sequence[Line]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Title and rows of cells, with their headings first."""
    for board in dict.fromkeys(line.board for line in lines):
        for lock in ("gpu", "node"):
            rows = [cells(line) for line in lines if (line.board, line.lock) == (board, lock)]
            title = f"{board}, one lock a {'GPU' if lock == 'gpu' else 'node'} (times modelled)"
            if rows:
                yield title, [HEADINGS, *rows]


def cells(line: Line) -> tuple[str, ...]:
    """A row as text; what both have is `migd / peer`."""
    both = [line.tools[name] for name in (MIGD, PEER) if name in line.tools]

    def counts(name: str) -> str:
        return " / ".join(str(getattr(tool, name)) for tool in both)

    peer = line.tools.get(PEER)
    return (
        line.case,
        seconds(line.least.ms) if line.least.ms else "-",
        _times(line.tools[MIGD]),
        f"{line.over_least():.2f} / {line.over_least(CALL):.2f}" if line.least.ms else "-",
        _times(line.tools[CALL]),
        _times(peer) if peer else "-",
        _spread(line.ratios) if peer else "-",
        f"{counts('calls')} ({line.least.calls})",
        counts("destroyed"),
        counts("needless"),
        counts("disturbed"),
        " / ".join(dict.fromkeys(tool.outcome for tool in both)),
    )


def seconds(ms: float) -> str:
    return f"{ms / 1000:.2f} s"


def _times(tool: Tool) -> str:
    low, high = min(tool.ms) / 1000, max(tool.ms) / 1000
    return f"{seconds(tool.median)} ({low:.2f}-{high:.2f})"


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})"
