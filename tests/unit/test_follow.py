"""When changed files are applied; what is applied is for tests/bus/test_settings.py."""

import asyncio
from typing import Any

import pytest

from migd.config.settings import OnChange, Settings
from migd.core.clients import Clearing, Rules
from migd.core.job import Choice
from migd.core.listed import Listed
from migd.core.plan import Plan
from migd.errors import Busy, ConfigRefused, NoDriver
from migd.service.follow import Follower
from migd.service.planning import Planned
from migd.service.view import View
from tests.support.bus import run

APPLY = Settings(on_change=OnChange.APPLY)
NO_RULES = Rules(Listed(), terminate=False, forbidden=str, stop_s=0, start_s=0, grace_s=0)


class Service:
    """What a Follower needs of one, and what it did with it."""

    def __init__(self, settings: Settings = APPLY) -> None:
        self.settings = settings
        self.jobs = self
        self.match = "no"
        self.view = View()
        self.wanted: dict[str, Choice] = {}
        self.errors: list[Exception] = []
        self.done: list[str] = []
        self.told: tuple[str, ...] | list[str] = ()
        self.at_work = asyncio.Event()
        self.at_work.set()

    def reload(self) -> None:
        self.done.append("reload")
        if isinstance(next(iter(self.errors), None), ConfigRefused):
            raise self.errors.pop(0)

    async def idle(self) -> None:
        await self.at_work.wait()

    async def look(self) -> View:
        self.done.append("look")
        if self.errors:
            raise self.errors.pop(0)
        return self.view

    async def plan(self, request: Any) -> Planned:
        choice = Choice("x", "", mode_only=False, uid=0, at=0)
        return Planned(choice, Plan(()), Clearing(), [], NO_RULES)

    def could_not(self, errors: list[str]) -> None:
        self.told = errors


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def followed(service: Any) -> Follower:
    follower = Follower(service)
    follower.begin()
    return follower


def test_not_before_a_job_that_was_cut_short_is_taken_up() -> None:
    async def main() -> None:
        service: Any = Service()
        follower = Follower(service)
        follower.changed()
        await settle()
        assert service.done == ["reload"]
        follower.begin()
        await settle()
        assert service.done == ["reload", "look"]

    run(main())


def test_reporting_does_not_look() -> None:
    async def main() -> None:
        service: Any = Service(Settings())
        followed(service).changed()
        await settle()
        assert service.done == ["reload"]

    run(main())


def test_changes_while_a_job_runs_are_followed_once_after_it() -> None:
    async def main() -> None:
        service: Any = Service()
        service.at_work.clear()
        follower = followed(service)
        for _ in range(5):
            follower.changed()
            await settle()
        assert "look" not in service.done
        service.at_work.set()
        await settle()
        assert service.done.count("look") == 1
        follower.changed()
        await settle()
        assert service.done.count("look") == 2

    run(main())


def test_a_file_that_is_set_to_report_meanwhile_is_heeded() -> None:
    async def main() -> None:
        service: Any = Service()
        service.at_work.clear()
        follower = followed(service)
        follower.changed()
        await settle()
        service.settings = Settings()
        follower.changed()
        service.at_work.set()
        await settle()
        assert "look" not in service.done

    run(main())


def test_who_is_faster_comes_first_but_not_for_ever() -> None:
    async def main() -> None:
        service: Any = Service()
        service.errors = [Busy("job 3 is at work")] * 3
        follower = followed(service)
        follower.changed()
        await settle()
        assert service.done.count("look") >= 1
        assert service.told == ["job 3 is at work"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("migd.service.follow._TRIES", 3)
        run(main())


def test_a_refused_file_applies_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        service: Any = Service()
        service.errors = [ConfigRefused("m:1:1: is wrong")]
        followed(service).changed()
        await settle()
        assert service.done == ["reload"]

    run(main())
    assert "m:1:1: is wrong" in caplog.text


def test_without_a_driver(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        service: Any = Service()
        service.errors = [NoDriver("no driver")]
        followed(service).changed()
        await settle()
        assert service.told == ["no driver"]

    run(main())
    assert caplog.text.count("no driver") == 1


def test_the_end_while_it_waits() -> None:
    async def main() -> None:
        service: Any = Service()
        service.at_work.clear()
        follower = followed(service)
        follower.changed()
        await settle()
        await follower.stop()

    run(main())
