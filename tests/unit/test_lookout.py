"""When the node is looked at and put right; with a real daemon: tests/faults/test_drift.py."""

import asyncio
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest

from migd.config.settings import OnDrift, Settings
from migd.core.job import Choice, PastJob, Result
from migd.core.model import Gpu, Layout, layout
from migd.core.patience import QUIET_S, ROUNDS
from migd.errors import Busy, MigdError, NoDriver
from migd.host.driver import Driver
from migd.service.bring import Brought
from migd.service.drift import Drift
from migd.service.lookout import Lookout
from migd.service.view import View
from tests.support import boards
from tests.support.bus import run

H100 = "h100-80gb-sxm5"
GPU = boards.gpu(H100, [boards.instance(H100, 7, 19, 0)])
LESS = replace(GPU, instances=())
UNLOADED = Driver("", 0, (), ())


def at(number: int) -> Driver:
    """A driver that has changed so often."""
    return Driver("580", number, (), ())


class Service:
    """What a Lookout needs of one, and what it did with it."""

    def __init__(self, on_drift: OnDrift = OnDrift.REPORT) -> None:
        self.settings = Settings(on_drift=on_drift)
        self.jobs = self
        self.current: object = None
        self.settled_layouts: dict[str, Layout] = {GPU.uuid: layout(GPU)}
        self.drift = Drift(lambda: None)
        self.there = GPU
        self.error: MigdError | None = None
        self.defect: Exception | None = None
        self.looks = 0

    async def idle(self) -> None:
        await asyncio.sleep(0)

    async def look(self) -> View:
        self.looks += 1
        if self.defect:
            raise self.defect
        view = View("580", (self.there,))
        self.drift.saw(view, self.settled_layouts, str(self.error) if self.error else "")
        if self.error:
            raise self.error
        return view

    def sees(self, gpu: Gpu) -> None:
        self.there = gpu
        self.drift.saw(View("580", (gpu,)), self.settled_layouts)


Bring = Callable[[Service], list[Brought]]


class Bringer:
    """Stands in for `bring`: does what a test says, and counts."""

    def __init__(self) -> None:
        self.does: Bring = put_right
        self.times = 0

    async def __call__(
        self, service: Service, only: Collection[str], *, settle: bool
    ) -> list[Brought]:
        assert settle
        assert only == {GPU.uuid}
        self.times += 1
        return self.does(service)


def past(result: Result, message: str) -> PastJob:
    choice = Choice("x", "", mode_only=False, uid=0, at=0)
    return PastJob(
        1, "apply", choice, 0, 0, result, message, changed=True, wanted=False, outcomes=()
    )


def put_right(service: Service) -> list[Brought]:
    service.sees(GPU)
    return [Brought((GPU.uuid,), "x", job=past(Result.DONE, "done"))]


def refuse(_: Service) -> list[Brought]:
    return [Brought((GPU.uuid,), "x", "it is held by 4711")]


def fail(_: Service) -> list[Brought]:
    return [Brought((GPU.uuid,), "x", job=past(Result.FAILED, "NVML refused"))]


@pytest.fixture
def bring(monkeypatch: pytest.MonkeyPatch) -> Bringer:
    bringer = Bringer()
    monkeypatch.setattr("migd.service.lookout.bring", bringer)
    return bringer


@dataclass
class Boot:
    """What is known of this boot's put-back."""

    over: bool = False
    tried: bool = False
    running: bool = False


def lookout(service: Service, boot: Boot | None = None) -> Lookout:
    made: Any = service
    known: Any = boot or Boot(over=True)
    return Lookout(made, known, lambda: at(0))


def test_it_looks_when_the_driver_is_another_and_only_then(bring: Bringer) -> None:
    async def main() -> None:
        service = Service()
        looks = lookout(service)
        await looks.note()
        for now, (driver, expected) in enumerate(
            [(at(0), 0), (at(1), 1), (at(1), 1), (UNLOADED, 2), (UNLOADED, 2), (at(1), 3)]
        ):
            await looks.heed(driver, now)
            assert service.looks == expected
        service.there = LESS
        await looks.heed(at(2), 10)
        assert service.drift.sentences
        assert bring.times == 0  # reporting is all that is asked for

    run(main())


def test_what_cannot_be_looked_at_is_tried_again_later_and_later() -> None:
    async def main() -> None:
        service = Service()
        looks = lookout(service)
        service.error = NoDriver("the library is another version's")
        tried = []
        for now in range(3600):
            before = service.looks
            await looks.heed(at(1), now)
            tried += [now] if service.looks > before else []
        pauses = [later - earlier for earlier, later in pairwise(tried)]
        assert pauses == sorted(pauses)
        assert (pauses[0], pauses[-1]) == (3, 600)
        # Without a module there is nothing to wait for but the module.
        await looks.heed(UNLOADED, 4000)
        before = service.looks
        await looks.heed(UNLOADED, 9000)
        assert service.looks == before
        service.error = None
        await looks.heed(at(2), 9001)
        assert not service.drift.sentences
        before = service.looks
        await looks.heed(at(2), 99999)
        assert service.looks == before

    run(main())


def test_it_is_put_right_but_not_in_a_fight(bring: Bringer) -> None:
    async def main() -> None:
        service = Service(OnDrift.REAPPLY)
        looks = lookout(service)
        for number in range(20):
            service.there = LESS
            await looks.heed(at(number), 3 * number)
            assert bool(service.drift.sentences) == (number >= ROUNDS)
        assert bring.times == ROUNDS
        assert "it was put right 3 times and changed again" in service.drift.sentences[0]
        quiet = 3 * 19 + QUIET_S
        await looks.heed(at(19), quiet - 1)
        assert bring.times == ROUNDS
        await looks.heed(at(19), quiet)
        assert bring.times == ROUNDS + 1
        assert not service.drift.sentences

    run(main())


def test_a_refusal_is_told_and_tried_again(
    bring: Bringer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        service = Service(OnDrift.REAPPLY)
        looks = lookout(service)
        bring.does = refuse
        service.there = LESS
        for now in range(0, 60, 3):
            await looks.heed(at(1), now)
        assert bring.times == 1
        assert service.drift.sentences[0].endswith("; it is left so: it is held by 4711")
        for now in range(60, 3600, 3):
            await looks.heed(at(1), now)
        assert 2 < bring.times < 10
        assert sum("is not put right" in m for m in caplog.messages) == 1
        bring.does = put_right
        await looks.heed(at(1), 5000)
        assert not service.drift.sentences

    run(main())


def test_who_wants_reports_only_is_told_no_reasons(bring: Bringer) -> None:
    async def main() -> None:
        service = Service(OnDrift.REAPPLY)
        looks = lookout(service)
        bring.does = refuse
        service.there = LESS
        await looks.heed(at(1), 0)
        assert "left so" in service.drift.sentences[0]
        service.settings = Settings()
        await looks.heed(at(1), 3)
        assert "left so" not in service.drift.sentences[0]
        await looks.heed(at(1), 999)
        assert bring.times == 1

    run(main())


@pytest.mark.parametrize("why", ["over", "tried", "late"])
def test_not_before_this_boots_layout_is_back(why: str, bring: Bringer) -> None:
    async def main() -> None:
        service, boot = Service(OnDrift.REAPPLY), Boot()
        looks = lookout(service, boot)
        service.there = LESS
        await looks.heed(at(1), 0)
        boot.running = True
        await looks.heed(at(2), 100)
        assert (service.looks, service.drift.sentences, bring.times) == (2, (), 0)
        limit = service.settings.limits["boot"]
        boot.over, boot.tried = why == "over", why == "tried"
        boot.running = False
        await looks.heed(at(2), limit + 1 if why == "late" else 101)
        assert bring.times == 1

    run(main())


def test_not_while_the_put_back_is_done_again(bring: Bringer) -> None:
    async def main() -> None:
        service, boot = Service(OnDrift.REAPPLY), Boot(tried=True, running=True)
        looks = lookout(service, boot)
        service.drift.begin()
        service.there = LESS
        await looks.heed(at(1), 0)
        assert service.drift.sentences
        assert bring.times == 0

    run(main())


def test_jobs_that_fail_are_few(bring: Bringer) -> None:
    async def main() -> None:
        service = Service(OnDrift.REAPPLY)
        looks = lookout(service)
        bring.does = fail
        service.there = LESS
        for now in range(0, 86400, 60):
            await looks.heed(at(now), now)
        assert bring.times == ROUNDS
        assert service.drift.sentences[0].endswith("; it is left so: NVML refused")
        # Somebody puts it right; what comes then is another matter.
        service.there = GPU
        await looks.heed(at(1), 90000)
        service.there = LESS
        bring.does = put_right
        await looks.heed(at(2), 90003)
        assert bring.times == ROUNDS + 1

    run(main())


def test_what_nobody_wants_is_not_put_right(bring: Bringer) -> None:
    async def main() -> None:
        service = Service(OnDrift.REAPPLY)
        looks = lookout(service)
        bring.does = lambda _: []
        service.there = LESS
        await looks.heed(at(1), 0)
        assert service.drift.sentences[0].endswith("; it is left so: nothing is wanted of it")

    run(main())


def test_another_job_comes_first(bring: Bringer) -> None:
    async def main() -> None:
        def busy(_: Service) -> list[Brought]:
            raise Busy("job 3 is at work")

        service = Service(OnDrift.REAPPLY)
        looks = lookout(service)
        bring.does = busy
        service.there = LESS
        await looks.heed(at(1), 0)
        assert "left so" not in service.drift.sentences[0]
        bring.does = put_right
        await looks.heed(at(1), 3)
        assert not service.drift.sentences

    run(main())


def test_it_waits_for_jobs_and_outlives_defects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migd.service.lookout._PAUSE_S", 0.001)

    async def main() -> None:
        service = Service()
        looks = lookout(service)
        reads = 0

        def read() -> Driver:
            nonlocal reads
            reads += 1
            return at(reads)

        looks._read = read
        service.current = "a job"
        looks.begin()
        while reads < 3:
            await asyncio.sleep(0.001)
        assert service.looks == 0
        service.current, service.defect = None, RuntimeError("a defect")
        while service.looks < 3:
            await asyncio.sleep(0.001)
        await looks.stop()

    run(main())


def test_a_look_that_hangs_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migd.service.lookout._PAUSE_S", 0.001)
    monkeypatch.setattr("migd.service.lookout._READ_S", 0.001)

    class Counting(Service):
        turns = 0

        async def idle(self) -> None:
            self.turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        service = Counting()
        looks = lookout(service)
        goes_on = threading.Event()
        reads = 0

        def read() -> Driver:
            nonlocal reads
            reads += 1
            goes_on.wait()
            return at(reads)

        looks._read = read
        looks.begin()
        while service.turns < 20:
            await asyncio.sleep(0.001)
        assert reads == 1
        goes_on.set()
        while reads < 3:
            await asyncio.sleep(0.001)
        await looks.stop()

    run(main())
