"""What follows a change, in its order, and what becomes of it where something fails.

Stand-ins for systemd, nvidia-modprobe and the container tools; for real it is tried in tests/host.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, cast

import pytest

from migd.core.job import Aftermath, Ending, Outcome, Phase, Result, result_of
from migd.core.model import Gpu
from migd.errors import MigdError, NoDriver, NoSystemd
from migd.host.capabilities import Made
from migd.host.cdi import Told
from migd.service import after
from migd.service.after import After
from tests.support import boards

if TYPE_CHECKING:
    from migd.host.capabilities import Capabilities
    from migd.host.cdi import Cdi
    from migd.host.units import Units

H100 = "h100-80gb-sxm5"
FULL = boards.gpu(H100, [boards.instance(H100, 1, 9, 0)])
BARE = boards.gpu(H100, index=1)
SILENT = NoSystemd("systemd does not answer")


class Job:
    def __init__(self) -> None:
        self.hurrying = asyncio.Event()
        self.told: list[tuple[Phase | None, str]] = []

    def common(self, phase: Phase | None, waits: str = "") -> None:
        self.told.append((phase, waits))


class Hands:
    """Units, capabilities and CDI in one; what they were told, and what of it raises or lasts."""

    def __init__(self, *, there: bool = True, system: str = "running", unit: bool = True) -> None:
        self.there, self.system, self.unit = there, system, unit
        self.made = Made(2, "")
        self.cdi = Told("CDI is written")
        self.fails: dict[str, Exception] = {}
        self.slow: dict[str, float] = {}
        self.told: list[str] = []

    async def _tell(self, what: str) -> None:
        self.told.append(what)
        if what in self.slow:
            await asyncio.sleep(self.slow[what])
        if what in self.fails:
            raise self.fails[what]

    async def available(self) -> bool:
        if "available" in self.fails:
            raise self.fails["available"]
        return self.there

    async def system_state(self) -> str:
        return self.system

    async def make(self, names: Sequence[str], waits: Callable[[str], None]) -> Made:
        waits("nvidia-modprobe")
        await self._tell(f"make {' '.join(names)}")
        return self.made

    async def refreshes(self) -> bool:
        return self.unit

    async def refresh(self) -> Told:
        await self._tell("refresh")
        return self.cdi

    async def generate(self, output: str) -> Told:
        await self._tell(f"generate {output}")
        return self.cdi


NODES = "make gpu0/mig/gi1/access gpu0/mig/gi1/ci0/access"


async def run(
    hands: Hands,
    gpus: Sequence[Gpu] | MigdError = (FULL,),
    output: str = "",
    while_it_runs: Callable[[Job], Awaitable[None]] | None = None,
) -> Aftermath:
    job = Job()
    units, nodes, cdi = cast("Units", hands), cast("Capabilities", hands), cast("Cdi", hands)

    async def look() -> Sequence[Gpu]:
        if isinstance(gpus, MigdError):
            raise gpus
        return gpus

    work = asyncio.create_task(After(units, nodes, cdi, lambda: output).run(job, look))
    if while_it_runs:
        await while_it_runs(job)
    found = await asyncio.wait_for(work, 20)
    assert {phase for phase, _ in job.told} == {Phase.NODES}
    return found


def test_nodes_and_then_cdi() -> None:
    hands = Hands()
    found = asyncio.run(run(hands, output="/etc/cdi/nvidia.yaml"))
    assert hands.told == [NODES, "refresh"]  # the unit goes before the setting
    assert found == Aftermath(("device nodes of MIG instances made: 2", "CDI is written"))
    hands = Hands(unit=False)
    asyncio.run(run(hands, output="/etc/cdi/nvidia.yaml"))
    assert hands.told == [NODES, "generate /etc/cdi/nvidia.yaml"]
    hands = Hands(unit=False)
    hands.made = Made(0, "")
    assert asyncio.run(run(hands)) == Aftermath()
    assert hands.told == [NODES]


def test_not_while_a_gpu_is_empty() -> None:
    hands = Hands()
    found = asyncio.run(run(hands, (FULL, BARE)))
    assert hands.told == [NODES]
    assert not found.failed
    assert found.done[-1].startswith("CDI is as before: GPU 1 has MIG mode enabled and no instance")
    hands = Hands(unit=False)
    assert (
        len(asyncio.run(run(hands, (FULL, BARE))).told) == 1
    )  # who has no CDI hears nothing of it


def test_what_fails_is_told_and_hinders_nothing() -> None:
    hands = Hands()
    hands.made = Made(1, "nodes are missing")
    hands.cdi = Told("CDI may be as before", failed=True)
    found = asyncio.run(run(hands))
    assert found.failed == ("nodes are missing", "CDI may be as before")
    assert hands.told == [NODES, "refresh"]
    hands.fails = {NODES: SILENT, "refresh": ValueError("a defect")}
    found = asyncio.run(run(hands))
    assert found.failed == (
        "device nodes: systemd does not answer",
        "CDI: a defect in migd; the log has more",
    )
    found = asyncio.run(run(Hands(), NoDriver("no driver")))
    assert found == Aftermath((), ("device nodes and CDI: no driver",))


def test_where_systemd_is_not_there_or_goes() -> None:
    for hands in (Hands(there=False), Hands(system="stopping")):
        assert asyncio.run(run(hands)) == Aftermath()
        assert not hands.told
    hands = Hands()
    hands.fails["available"] = SILENT
    assert asyncio.run(run(hands)).failed == ("device nodes and CDI: systemd does not answer",)


def test_migd_is_stopped_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hurry(job: Job) -> None:
        while (Phase.NODES, "nvidia-modprobe") not in job.told:
            await asyncio.sleep(0)
        job.hurrying.set()

    monkeypatch.setattr(after, "_HURRY_S", 0.05)
    hands = Hands()
    hands.slow[NODES] = 3600
    found = asyncio.run(run(hands, while_it_runs=hurry))
    assert found.failed == ("migd was stopped while it waited for nvidia-modprobe",)
    # What is over within the moment that is left is done.
    monkeypatch.setattr(after, "_HURRY_S", 10)
    hands = Hands()
    hands.slow[NODES] = 0.05
    found = asyncio.run(run(hands, while_it_runs=hurry))
    assert hands.told == [NODES, "refresh"]
    assert not found.failed


def test_done_means_that_all_is_well() -> None:
    done = [Outcome("GPU-1", 0, Ending.DONE)]
    back = [Outcome("GPU-1", 0, Ending.ROLLED_BACK)]
    trouble = Aftermath(("CDI is written",), ("nodes are missing",))
    assert trouble.told == ("CDI is written", "nodes are missing")
    assert result_of(done, (), Aftermath(("CDI is written",)), canceled=False) is Result.DONE
    assert result_of(done, (), trouble, canceled=False) is Result.PARTIAL
    assert result_of(back, (), trouble, canceled=False) is Result.FAILED
    assert result_of(back, (), trouble, canceled=True) is Result.CANCELED
