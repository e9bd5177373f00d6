"""How long the planner thinks: every board's hardest layouts, from the fullest present ones."""

import random
import time
from pathlib import Path

from migd.core.model import Gpu, GpuInstance, Mode, Target, Wanted
from migd.core.plan import plan_gpu
from migd.errors import NoSpace
from tests.bench.table import Report, Row, percentile
from tests.support import boards

_CASES = 400


def measure(report: Report, _folder: Path) -> None:
    for key in boards.boards():
        choice = random.Random(key)
        empty = boards.gpu(key)
        taken = []
        refused = []
        for _ in range(_CASES):
            present = boards.gpu(key, _filling(key, empty, choice))
            wanted = [Wanted(p) for p in _multiset(empty, choice)]
            begun = time.perf_counter()
            try:
                plan_gpu(present, Target(Mode.ENABLED, tuple(wanted)))
                taken.append(1000 * (time.perf_counter() - begun))
            except NoSpace:
                refused.append(1000 * (time.perf_counter() - begun))
        slowest = max(taken), max(refused, default=0.0)
        note = f"median {percentile(taken, 0.5):.2f}; a refusal at most {slowest[1]:.2f}"
        report.add("planning one full GPU anew, the slowest", Row(key, slowest[0], "ms", note))


def _multiset(gpu: Gpu, choice: random.Random) -> list[int]:
    """Profiles that fill most of the compute slices, so that many do not fit."""
    slices = max(p.slices for p in gpu.profiles)
    ids = []
    while slices > 0:
        profile = choice.choice([p for p in gpu.profiles if p.slices <= slices])
        ids.append(profile.id)
        slices -= profile.slices
    return ids


def _filling(key: str, gpu: Gpu, choice: random.Random) -> list[GpuInstance]:
    """A random layout that leaves no room for another instance."""
    taken = 0
    spots = [(p, s) for p in gpu.profiles for s in p.placements]
    choice.shuffle(spots)
    instances = []
    for number, (profile, spot) in enumerate(spots):
        if not taken & spot.mask:
            taken |= spot.mask
            instances.append(boards.instance(key, number, profile.id, spot.start))
    return instances
