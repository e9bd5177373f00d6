"""`make bench`: a table on the terminal, and the same as JSON."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.bench import (
    clients,
    flooded,
    latency,
    noticing,
    packages,
    planning,
    process,
    scanning,
    transitions,
)
from tests.bench.table import Report


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE")
    arguments = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="migd-bench-") as folder:
        for name, measure in (
            ("packages", packages.measure),
            ("process", process.measure),
            ("latency", latency.measure),
            ("flooded", flooded.measure),
            ("transitions", transitions.measure),
            ("clients", clients.measure),
            ("noticing", noticing.measure),
        ):
            where = Path(folder, name)
            where.mkdir()
            measure(report, where)
        if os.geteuid() == 0:
            scanning.measure(report, Path(folder, "scanning"))
        else:
            print("\nthe scan is not measured: its stand-in for a GPU's node needs root")
    planning.measure(report)
    report.write(arguments.json)
    print(f"\nwritten to {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
