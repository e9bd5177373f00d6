"""`make fuzz`: each of the five fuzzers for some minutes, side by side; says what it found.

A fuzzer's targets share its minutes; a target that is named has them for itself.

python -m tests.fuzz [TARGET...] [--minutes N] [--jobs N] [--seed N]
python -m tests.fuzz TARGET --again FILE     runs a kept input
"""

import argparse
import faulthandler
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz import real_bus
from tests.fuzz.engine import Coverage, Find, Fuzzer, failing
from tests.fuzz.targets import SHARING, TARGETS

FINDS = Path("fuzz-finds")


def main() -> int:
    options = _options()
    if options.again:
        return _again(options.target[0], options.again.read_bytes())
    if options.target == [real_bus.NAME]:
        return real_bus.main(options.minutes * 60, options.seed)
    if len(options.target) == 1:
        return _run(options.target[0], options.minutes * 60, options.seed)
    chosen = options.target or [real_bus.NAME, *TARGETS]
    share = {} if options.target else SHARING
    minutes = {name: options.minutes / share.get(name, 1) for name in chosen}
    print(f"{len(chosen)} targets, {sum(minutes.values()):g} minutes, {options.jobs} at a time")
    # A process for each: what one leaves behind, or dies of, must not be another's find.
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda name: _apart(name, minutes[name], options.seed), chosen))
    return 1 if any(codes) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--again", type=Path, metavar="FILE")
    options = parser.parse_args()
    if unknown := set(options.target) - {real_bus.NAME, *TARGETS}:
        parser.error(f"there is no target {', '.join(unknown)}")
    return options


def _apart(name: str, minutes: float, seed: int) -> int:
    arguments = [name, "--minutes", str(minutes), "--seed", str(seed)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        errors="replace",
    )
    ended = f"{name}: ended by itself with code {done.returncode}; seed {seed}\n"
    print(done.stdout + (ended if done.returncode not in (0, 1) else ""), end="", flush=True)
    return done.returncode


def _run(name: str, seconds: float, seed: int) -> int:
    faulthandler.enable()
    logging.getLogger().addHandler(logging.NullHandler())  # refusals are logged, by the thousand
    fuzzer = Fuzzer(TARGETS[name], seed)
    begun = time.monotonic()
    fuzzer.run(seconds=seconds)
    passed = time.monotonic() - begun
    seen = fuzzer.coverage
    print(
        f"{name:10} {fuzzer.executions:9} inputs ({fuzzer.executions / passed:.0f}/s), "
        f"{fuzzer.inputs} kept, {seen.percent:.0f} % of lines, {seen.edges} edges, "
        f"{len(fuzzer.finds)} finds; seed {seed}"
    )
    for find in fuzzer.finds.values():
        _tell(find)
    return 1 if fuzzer.finds else 0


def _tell(find: Find) -> None:
    FINDS.mkdir(exist_ok=True)
    number = 1
    while (path := FINDS / f"{find.target}-{number}").exists():
        number += 1
    path.write_bytes(find.data)
    print(f"\n{find.target}: {find.what}\n{find.trace}input: {find.data[:400]!r}")
    print(f"again: .venv/bin/python -m tests.fuzz {find.target} --again {path}\n")


def _again(name: str, data: bytes) -> int:
    target = TARGETS[name]
    failure = failing(target, data, Coverage(target.covers))
    if failure is None:
        print("it holds")
        return 0
    raise failure


if __name__ == "__main__":
    sys.exit(main())
