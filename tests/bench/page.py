"""docs/benchmarks.md, made of what `make bench` has measured.

python -m tests.bench.page bench.json >docs/benchmarks.md
"""

import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.peer_judge import Least
from tests.bench.peer_table import PEER, Line, Tool, by_section, seconds

_OVER_LEAST, _TIMES_FASTER = 1.15, 8
_WORDS = Path(__file__).with_name("page.md")


def text(document: Mapping[str, Any]) -> str:
    """The page, of a document that has the tables `peer` and `growth`."""
    machine, tables = document["machine"], document["tables"]
    lines = [line(row) for row in tables["peer"]["lines"]]
    words = _WORDS.read_text()
    for name, filling in {
        "MACHINE": _machine(machine, tables["peer"]),
        "TABLES": "\n\n".join(
            f"### {title}\n\n{_table(rows)}" for title, rows in by_section(lines)
        ),
        "BEHIND": "\n".join(_behind(lines)),
        "GROWTH": "\n\n".join(_growth(tables["growth"])),
    }.items():
        words = words.replace(f"{{{name}}}", filling)
    return words


def line(row: dict[str, Any]) -> Line:
    """A line as it was before it became JSON."""
    tools = {name: Tool(**tool) for name, tool in row["tools"].items()}
    return Line(**{**row, "least": Least(**row["least"]), "tools": tools})


def _machine(machine: Mapping[str, Any], peer: Mapping[str, Any]) -> str:
    beside = f"nvidia-mig-parted {peer['version']}" if peer["version"] else "no peer"
    return (
        f"{machine['processors']} processors ({machine['architecture']}), "
        f"Linux {machine['kernel']}, Python {machine['python']}, {beside}; "
        f"{peer['rounds']} rounds in {peer['minutes']} minutes; "
        f"load when it was over: {machine['load']:.1f}."
    )


def _behind(lines: Sequence[Line]) -> Iterator[str]:
    """Each aim that is missed, with its figure."""
    found = False
    for line in lines:
        where = f"{line.board}, one lock a {'GPU' if line.lock == 'gpu' else 'node'}: {line.case}"
        for aim in missed(line):
            found = True
            yield f"- {where}: {aim}."
    if not found:
        yield "In no row of this run."


def missed(line: Line) -> Iterator[str]:
    """The aims that a row misses, with its figures."""
    own = line.tools["migctl"]
    if line.over_least and line.over_least > _OVER_LEAST:
        extra = seconds(own.median - line.least.ms)
        yield f"{line.over_least:.2f} times the least, which is {extra} more than it"
    if own.needless or own.disturbed:
        yield f"{own.needless} instances destroyed needlessly, {own.disturbed} of them in use"
    if PEER in line.tools:
        ratio = statistics.median(line.ratios)
        if line.all_gpus and line.lock == "gpu" and ratio < _TIMES_FASTER:
            yield f"{ratio:.1f} times as fast as the peer, not {_TIMES_FASTER} times"
        elif ratio < 1:
            yield f"{1 / ratio:.2f} times as long as the peer"


def _growth(tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    for title, rows in tables.items():
        columns = list(next(iter(rows.values())))
        cells = [[str(n), *(f"{row[c]:.1f}" for c in columns)] for n, row in rows.items()]
        yield _table([[title, *columns], *cells])


def _table(rows: Iterable[Sequence[str]]) -> str:
    first, *others = rows
    ruled = [first, ["---"] * len(first), *others]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


if __name__ == "__main__":
    print(text(json.loads(Path(sys.argv[1]).read_text())), end="")
