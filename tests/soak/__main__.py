"""`make soak`: an hour of random requests and faults; `make idle`: ten minutes of nothing."""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.table import Report
from tests.host import available, image, layer
from tests.host.host import Host
from tests.soak import idle, stage
from tests.soak.run import Soak
from tests.soak.samples import Sample, table, trends
from tests.support.node import Node

_SPAN_S = 2.5
_CROWD = (4, 12)
_SAMPLE_S = 60.0
# So much of the time migd is killed and restarted, too; then one lives to the end, and is measured
# after as much again, in which what is loaded once is loaded.
_DEATHS, _WARM = 0.25, 0.2
_MOST_BROKEN = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, help="default: 60, and 10 with --idle")
    parser.add_argument("--seed", type=int, help="of what is asked and of what goes wrong")
    parser.add_argument("--release", choices=image.RELEASES, default=image.RELEASES[0])
    parser.add_argument("--idle", action="store_true", help="leave migd alone instead")
    given = parser.parse_args()
    if reason := available.incapable() or available.missing():
        print(f"not possible here: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="migd-soak-") as name:
        folder = Path(name)
        if given.idle:
            idle.idle(Report(), folder, given.minutes or 10)
            return 0
        seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
        minutes = given.minutes or float(os.environ.get("SOAK_MINUTES") or 60)
        return 0 if soak(folder, given.release, seed, minutes) else 1


def soak(folder: Path, release: str, seed: int, minutes: float) -> bool:
    base = image.base(release)
    layers = [layer.project(folder / "project", [base]), layer.driver(folder / "driver"), base]
    node = Node.new(folder / "node", *stage.GPUS, seed=seed)
    host = Host(layers, node, folder / "host")
    stage.prepare(host)
    with host:
        stage.people(host)
        with Soak(host, seed, span=_SPAN_S, crowd=_CROWD) as it:
            print(f"{minutes:g} minutes on {release}, --seed {seed}", flush=True)
            samples = _rounds(it, minutes)
            print(f"\n{it.told()}", flush=True)
    return _verdict(it, samples)


def _rounds(it: Soak, minutes: float) -> list[Sample]:
    begun = time.monotonic()
    every = min(_SAMPLE_S, minutes * 60 / 20)
    samples: list[Sample] = []
    next_, cold = begun + every, True
    while (now := time.monotonic()) < begun + 60 * minutes and len(it.broken) < _MOST_BROKEN:
        share = (now - begun) / (60 * minutes)
        if cold and share >= _DEATHS:
            it.measured()
            cold = False
        if not it.round(deaths=share < _DEATHS):
            print(f"\nBROKEN: {it.broken[-1]}", flush=True)
        if now >= next_ and not _DEATHS <= share < _DEATHS + _WARM:
            next_ = now + every
            samples.append(it.sample())
            values = samples[-1].values
            print(
                f"{(now - begun) / 60:5.1f} min: {it.rounds} rounds, {it.asked.total()} requests, "
                f"RSS {values['memory (RSS)']:.0f} KiB, {values['descriptors']:.0f} descriptors",
                flush=True,
            )
    it.weather.clear()
    it.oracle.settle()
    return [*samples, it.sample()]


def _verdict(it: Soak, samples: list[Sample]) -> bool:
    found = trends(samples)
    print(f"\n{table(found)}")
    for bug in it.sampler.bugs:
        print(f"\nmigd has met a bug of its own:\n{bug}")
    grows = [trend.metric.name for trend in found if not trend.holds]
    print(
        f"\n{len(it.broken)} broken promises, {len(it.sampler.bugs)} bugs in the log, "
        f"grows: {', '.join(grows) or 'nothing'}"
    )
    return not (it.broken or it.sampler.bugs or grows)


if __name__ == "__main__":
    sys.exit(main())
