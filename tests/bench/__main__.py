"""`make bench`: a table on the terminal, and the same as JSON."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.bench import (
    clients,
    flooded,
    growth,
    latency,
    noticing,
    packages,
    page,
    peer,
    planning,
    process,
    scanning,
)
from tests.bench.table import Report

_ALL = (packages, process, latency, flooded, clients, noticing, scanning, planning)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE")
    parser.add_argument("--peer", type=Path, metavar="FILE", help="an nvidia-mig-parted")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="beside the peer")
    parser.add_argument(
        "--minutes",
        type=float,
        default=60,
        metavar="N",
        help="a round that would end later is not begun",
    )
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the page, and measure no more than it has",
    )
    arguments = parser.parse_args()
    if arguments.peer and os.geteuid() != 0:
        parser.error("beside a peer it needs root, who can show it simulated modules and devices")
    report = Report()
    with tempfile.TemporaryDirectory(prefix="migd-bench-") as name:
        folder = Path(name)
        for module in () if arguments.markdown else _ALL:
            module.measure(report, _made(folder, module.__name__))
        growth.measure(report, _made(folder, "growth"))
        peer.measure(
            report,
            _made(folder, "peer"),
            arguments.peer and arguments.peer.resolve(strict=True),
            rounds=arguments.rounds,
            minutes=arguments.minutes,
        )
    document = report.document()
    arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\nwritten to {arguments.json}")
    if arguments.markdown:
        # As a reader of the file would make it.
        arguments.markdown.write_text(page.text(json.loads(arguments.json.read_text())))
        print(f"written to {arguments.markdown}")
    return 0


def _made(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir()
    return made


if __name__ == "__main__":
    sys.exit(main())
