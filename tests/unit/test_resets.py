"""What a job makes of what nvidia-smi says, and when it asks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from migd.core.holders import Client, Holder, How, Use
from migd.core.job import Before, Begun, Choice
from migd.core.model import Gpu, Mode, layout
from migd.core.reset import Came, Told
from migd.errors import Hung, ImpactExceeded, InUse, MigdError, Nvml, ResetRequired
from migd.nvml.client import Observation
from migd.service import resets as module
from migd.service.resets import Resets
from tests.support import boards
from tests.support.bus import run

GPUS = tuple(
    boards.gpu("a100-40gb", mode=Mode.DISABLED, pending=Mode.ENABLED if n == 0 else None, index=n)
    for n in range(3)
)
DONE = Told(Came.DONE, status=0)


def peers(*gpus: Gpu) -> Told:
    return Told(Came.PEERS, "more", 255, tuple(g.pci_address for g in gpus))


class World:
    """NVML, nvidia-smi and who has GPUs, as far as a reset needs them."""

    def __init__(self, *answers: Told, gpus: Sequence[Gpu] = GPUS) -> None:
        self.gpus = tuple(gpus)
        self.answers = list(answers)
        self.commands: list[list[int]] = []
        self.clients: tuple[Client, ...] = ()
        self.troubled: dict[str, Hung | Nvml] = {}
        self.open = True

    async def observe(self) -> Observation:
        return Observation("", self.gpus, self.troubled, ())

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[Callable[[], Awaitable[Observation]]]:
        self.open = False
        yield self.observe
        self.open = True

    async def reset(self, gpus: Sequence[Gpu]) -> Told:
        assert not self.open, "a session of ours is open"
        self.commands.append([g.index for g in gpus])
        return self.answers.pop(0)

    async def look(self, gpus: Sequence[Gpu]) -> tuple[Client, ...]:
        return self.clients

    def resets(self, *, reset_peers: bool = False, job: Sequence[Gpu] = GPUS[:1]) -> Resets:
        befores = tuple(Before(g.uuid, g.index, layout(g)) for g in job)
        choice = Choice("x", "", mode_only=False, uid=0, at=0)
        begun = Begun(1, "apply", choice, 0, "boot", befores, (), reset_peers)
        anything = cast("Any", self)
        return Resets(anything, anything, anything, begun, [g.uuid for g in job])

    def ends(self, **given: Any) -> MigdError | None:
        """How the reset of the first GPU ends."""

        async def main() -> None:
            await self.resets(**given).reset(GPUS[0], Mode.ENABLED)

        try:
            run(main(), timeout_s=10)
        except MigdError as error:
            return error
        finally:
            assert not self.answers
        return None


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES_S", (0, 0))
    monkeypatch.setattr(module, "drm", lambda: None)


def test_it_is_done() -> None:
    world = World(DONE)
    assert world.ends() is None
    assert world.commands == [[0]]


def test_in_use_is_tried_once_more() -> None:
    held = Told(Came.IN_USE, "held", 255)
    world = World(held, DONE)
    assert world.ends() is None
    assert isinstance(World(held, held).ends(), InUse)


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        (Told(Came.NOT_SUPPORTED, "no", 3), ResetRequired, "`nvidia-smi -i 0 -mig 1`, reboot"),
        (Told(Came.FAILED, "odd", 9), Nvml, "nvidia-smi: odd"),
        (Told(Came.FAILED, "", 9), Nvml, "exit code 9 and said nothing"),
    ],
)
def test_what_is_tried_once(told: Told, kind: type[MigdError], words: str) -> None:
    error = World(told).ends()
    assert isinstance(error, kind)
    assert words in str(error)
    if isinstance(error, Nvml):
        assert (error.call, error.code, error.name) == ("nvidia-smi --gpu-reset", 9, "RESET_FAILED")


def test_peers_need_consent() -> None:
    world = World(peers(*GPUS[1:]))
    error = world.ends()
    assert isinstance(error, ImpactExceeded)
    assert all(str(g) in str(error) for g in GPUS)
    assert "reset-peers" in str(error)
    assert world.commands == [[0]]


def test_peers_are_reset_along() -> None:
    world = World(peers(GPUS[2]), DONE)
    assert world.ends(reset_peers=True) is None
    assert world.commands == [[0], [0, 2]]


def test_a_peer_that_nobody_knows() -> None:
    told = Told(Came.PEERS, "more", 255, ("0000:99:00.0",))
    error = World(told).ends(reset_peers=True)
    assert isinstance(error, ImpactExceeded)
    assert "nothing is known of 0000:99:00.0" in str(error)


def test_more_peers_and_more_again() -> None:
    world = World(peers(GPUS[1]), peers(GPUS[2]))
    assert isinstance(world.ends(reset_peers=True), Nvml)
    assert world.commands == [[0], [0, 1]]


def test_a_peer_in_use() -> None:
    world = World(peers(GPUS[1]))
    use = Use(GPUS[1].uuid, None, None, How.OPEN)
    world.clients = (Client(Holder(4711, command="train"), (use,)),)
    error = world.ends(reset_peers=True)
    assert isinstance(error, ImpactExceeded)
    assert "is used by pid 4711" in str(error)
    assert world.commands == [[0]]


def test_a_peer_in_trouble() -> None:
    """What is known of it is how it was."""
    world = World(peers(GPUS[1]))
    world.troubled = {GPUS[1].uuid: Hung("it does not answer")}
    error = world.ends(reset_peers=True)
    assert isinstance(error, ImpactExceeded)
    assert "it does not answer" in str(error)
    assert world.commands == [[0]]


def test_another_of_the_job_was_first() -> None:
    """It was reset along after it had asked: once is enough."""
    switched = replace(GPUS[0], mode=Mode.ENABLED)
    world = World(peers(GPUS[1]), gpus=(switched, *GPUS[1:]))
    assert world.ends(reset_peers=True) is None
    assert world.commands == [[0]]


def test_those_of_one_job_wait_for_each_other() -> None:
    world = World(peers(GPUS[1]), DONE)

    async def main() -> None:
        resets = world.resets(reset_peers=True, job=GPUS[:2])
        first = asyncio.create_task(resets.reset(GPUS[0], Mode.ENABLED))
        while world.answers == [peers(GPUS[1]), DONE]:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.commands == [[0]]
        assert not first.done()
        resets.asked(GPUS[1].uuid)
        await first

        # The other one was reset along, and asks for nothing more.
        world.gpus = GPUS
        await resets.reset(GPUS[1], Mode.ENABLED)

    run(main(), timeout_s=10)
    assert world.commands == [[0], [0, 1]]
