"""`make faults`: everything that can fail, at every place where it can, and what came of it."""

import argparse
import os
import re
import sys
import time
from collections import Counter
from concurrent.futures import Executor

from tests.faults import matrix, running
from tests.faults.running import FAMILIES


def main() -> int:
    options = _parser().parse_args()
    options.family = options.family or list(FAMILIES)
    if options.case:
        ran = running.one(options.case)
        print(ran.broken or f"all promises kept, in {ran.seconds:.1f} s")
        return bool(ran.broken)
    begun = time.monotonic()
    notes: list[str] = []
    with running.workers(options.jobs) as pool:
        cases = [
            case
            for name, family in FAMILIES.items()
            if name in options.family
            for case in family.cases(pool, notes, options.transition)
        ]
        cases = [case for case in cases if re.search(options.match, str(case))]
        if options.sample:
            cases = matrix.sample(cases, options.seed, lambda case: case.stratum, options.sample)
        if options.list:
            print(*cases, sep="\n")
            return 0
        sizes = Counter(str(case).partition(":")[0] for case in cases)
        print(*notes, sep="\n")
        print(f"{len(cases)} cases ({', '.join(f'{n} {k}' for k, n in sizes.items())})", flush=True)
        broken = _run(pool, cases, begun)
    took = time.monotonic() - begun
    print(f"{len(cases)} cases in {took / 60:.1f} min with {options.jobs} jobs: {broken} broken")
    return bool(broken)


def _run(pool: Executor, cases: list[object], begun: float) -> int:
    broken = 0
    told = time.monotonic()
    for count, ran in enumerate(running.run(pool, cases), 1):
        if ran.broken:
            broken += 1
            print(f"\nBROKEN {ran.case}\n{ran.broken}")
            print(f"again: .venv/bin/python -m tests.faults --case '{ran.case}'", flush=True)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{count} of {len(cases)} in {told - begun:.0f} s, {broken} broken", flush=True)
    return broken


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only these")
    parser.add_argument("--transition", default="", help="only this one")
    parser.add_argument("--match", default="", metavar="REGEX", help="only cases named so")
    parser.add_argument("--sample", type=int, metavar="N", help="N of each kind instead of all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--list", action="store_true", help="print the cases, and do nothing")
    parser.add_argument("--case", metavar="NAME", help="this one, as a failure names it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.set_defaults(family=None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
