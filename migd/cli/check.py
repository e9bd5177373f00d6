"""`migctl check`: judges files by their form. The only verb that reads what the daemon reads."""

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from migd.cli import text
from migd.cli.outcome import Exit
from migd.cli.terminal import Style, Terminal
from migd.config.check import MOST_BYTES, Judged, Kind, judged, lacking, unreadable


def check(arguments: Namespace, out: Terminal) -> Exit:
    """Say what is wrong with each file; whether all are good."""
    kind = Kind(arguments.kind) if arguments.kind else None
    files = [_judged(file, kind) for file in arguments.files]
    if arguments.config is not None:
        files = lacking(files, arguments.config)
    if arguments.json:
        print(text.as_json({"files": [_plain(file) for file in files]}))
    else:
        print("\n".join(_lines(files, out)))
    return Exit.FAILED if any(file.faults for file in files) else Exit.DONE


def _judged(file: str, kind: Kind | None) -> Judged:
    try:
        if file == "-":
            data, file = sys.stdin.buffer.read(MOST_BYTES + 1), "stdin"
        else:
            with Path(file).open("rb") as stream:
                data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        return unreadable(file, error.strerror or str(error))
    return judged(data, file, kind)


def _lines(files: Sequence[Judged], out: Terminal) -> Iterator[str]:
    for file in files:
        for fault in file.faults:
            yield out.paint(Style.BAD, out.sentence(str(fault)))
        if not file.faults:
            count = f", {text.count(len(file.configs), 'config')}" if file.configs else ""
            yield f"{out.safe(file.source)}: good ({file.kind}{count})"
            yield from (f"  {out.sentence(note)}" for note in file.notes)


def _plain(file: Judged) -> dict[str, Any]:
    return {
        "file": file.source,
        "kind": file.kind or "",
        "good": not file.faults,
        "configs": sorted(file.configs),
        "notes": list(file.notes),
        "faults": [
            {
                "line": fault.position.line,
                "column": fault.position.column,
                "key": fault.path,
                "message": fault.sentence,
            }
            for fault in file.faults
        ],
    }
