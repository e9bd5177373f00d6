"""What it costs to notice that somebody has changed GPUs: one look at the driver's files."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from migd.host.driver import Places, driver
from migd.host.threads import in_thread
from tests.bench.table import Report, Row

_GPUS, _INSTANCES, _TIMES = 8, 7, 300


def measure(report: Report, folder: Path) -> None:
    """On plain files: no kernel module is there whose procfs could be measured."""
    places = _tree(folder)
    assert len(driver(places).instances) == _GPUS * _INSTANCES * 3
    section = f"noticing: {_GPUS} GPUs with {_INSTANCES} instances, every 3 s"

    async def here() -> None:
        driver(places)

    async def aside() -> None:
        await in_thread(lambda: driver(places), 10)

    for name, look in (("look at the driver's files", here), ("the same in a thread", aside)):
        wall, cpu = asyncio.run(_cost(look))
        report.add(section, Row(name, wall, "us", f"median of {_TIMES}"))
        report.add(section, Row(f"{name}, CPU time", cpu, "us", f"mean of {_TIMES}"))


async def _cost(look: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Microseconds of one look: median of wall time, mean of CPU time."""
    walls = []
    cpu = time.process_time()
    for _ in range(_TIMES):
        begun = time.perf_counter()
        await look()
        walls.append(1e6 * (time.perf_counter() - begun))
    return median(walls), 1e6 * (time.process_time() - cpu) / _TIMES


def _tree(folder: Path) -> Places:
    places = Places(folder / "driver", folder / "module", folder / "pci")
    places.module.mkdir(parents=True)
    for gpu in range(_GPUS):
        address = f"0000:{gpu + 1:02x}:00.0"
        (places.driver / "gpus" / address).mkdir(parents=True)
        (places.pci / address).mkdir(parents=True)
        for gi in range(7, 7 + _INSTANCES):
            instance = places.driver / f"capabilities/gpu{gpu}/mig/gi{gi}"
            (instance / "ci0").mkdir(parents=True)
            for path in (instance, instance / "ci0"):
                (path / "access").touch()
    (places.driver / "version").write_text("NVRM version: 580.105.08\n")
    return places
