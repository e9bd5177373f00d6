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
from tests.bench.peer_table import MIGD, PEER, Line, Tool, by_section, seconds

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


def line(row: Mapping[str, Any]) -> Line:
    """A line as it was before it became JSON."""
    tools = {name: Tool(**tool) for name, tool in row["tools"].items()}
    return Line(**{**row, "least": Least(**row["least"]), "tools": tools})


def _machine(machine: Mapping[str, Any], peer: Mapping[str, Any]) -> str:
    beside = f"nvidia-mig-parted {peer['version']}" if peer["version"] else "no peer"
    busy = bool(machine["load"] > machine["processors"])
    return (
        f"{machine['processors']} processors ({machine['architecture']}), "
        f"Linux {machine['kernel']}, Python {machine['python']}, {beside}; "
        f"rounds: {peer['rounds']}, in {peer['minutes']} minutes; "
        f"load when it was over: {machine['load']:.1f}."
        + (" **The machine was busy with other things: the times are provisional.**" * busy)
    )


def _behind(lines: Sequence[Line]) -> Iterator[str]:
    """Each aim that is missed, and the rows that miss it."""
    found: dict[str, list[str]] = {}
    for row in lines:
        where = f"{row.board}, one lock a {'GPU' if row.lock == 'gpu' else 'node'}"
        for aim, figure in missed(row):
            found.setdefault(f"{aim}; {where}", []).append(f"{row.case} {figure}")
    yield from (f"- {what}: {', '.join(rows)}." for what, rows in sorted(found.items()))
    if not found:
        yield "None in this run."


def missed(row: Line) -> Iterator[tuple[str, str]]:
    """The aims that a row misses, and by what figure."""
    own = row.tools[MIGD]
    if row.over_least() > _OVER_LEAST:
        extra = seconds(own.median - row.least.ms)
        yield "Times the least", f"{row.over_least():.2f} ({extra} more)"
    if own.needless:
        yield "Instances destroyed that the target has", str(own.needless)
    if own.disturbed:
        yield "Instances in use destroyed", str(own.disturbed)
    # One that gives up halfway has no time to be compared with.
    if PEER in row.tools and row.tools[PEER].outcome == own.outcome:
        ratio = statistics.median(row.ratios)
        if row.all_gpus and row.lock == "gpu" and ratio < _TIMES_FASTER:
            yield f"Times as fast as the peer, not {_TIMES_FASTER}", f"{ratio:.1f}"
        elif ratio < 1:
            yield "Slower than the peer", f"{1 / ratio:.2f} times"


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
