"""NVIDIA's unit for CDI and nvidia-ctk: when they are waited for, and how it went in words."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import pytest

from migd import names
from migd.errors import ClientStuck
from migd.host import cdi
from migd.host.cdi import REFRESH, Cdi, Told
from migd.host.programs import Finished
from migd.host.units import UnitState

if TYPE_CHECKING:
    from pathlib import Path

    from migd.host.programs import Programs
    from migd.host.units import Units

BOOTED = UnitState(names.BOOT_UNIT, "loaded", "active")
RAN = UnitState(REFRESH, "loaded", "active", "exited", condition=True, result="success")
STUCK = ClientStuck(f"{REFRESH} did not start: why")
FAILED = Told(f"CDI may be as before: {STUCK}", failed=True)
GOES_ON = Told(f"CDI is as before for now: {STUCK}; systemd goes on", failed=True)
WRITTEN = Told(f"{REFRESH} has written CDI's specification anew")


def unit(active_state: str, result: str = "success", *, condition: bool = True) -> UnitState:
    return UnitState(REFRESH, "loaded", active_state, condition=condition, result=result)


class Hands:
    """Units: `states` are those of NVIDIA's unit, one after the other; `boot` is of migd-boot."""

    def __init__(
        self, *states: UnitState, fails: bool = False, booting: bool = False,
        boot: UnitState = BOOTED,
    ) -> None:  # fmt: skip
        self._states = list(states)
        self._fails, self._booting, self._boot = fails, booting, boot
        self.told: list[str] = []

    async def states(self, wanted: Sequence[str]) -> dict[str, UnitState]:
        (name,) = wanted
        if name == names.BOOT_UNIT:
            return {name: self._boot}
        return {name: self._states.pop(0) if len(self._states) > 1 else self._states[0]}

    async def booting(self) -> bool:
        return self._booting

    async def start(self, name: str, limit_s: float, *, again: bool = False) -> None:
        assert (name, again) == (REFRESH, True)
        self.told.append("start")
        if self._fails:
            raise STUCK

    async def queue(self, name: str, *, again: bool = False) -> None:
        assert (name, again) == (REFRESH, True)
        self.told.append("queue")
        if self._fails:
            raise STUCK


def refresh(hands: Hands, again_s: float = 10) -> Told:
    made = Cdi(cast("Units", hands), cast("Programs", None), again_s=again_s)
    return asyncio.run(made.refresh())


def test_it_is_run_and_waited_for() -> None:
    hands = Hands(RAN)
    assert refresh(hands) == WRITTEN
    assert hands.told == ["start"]


@pytest.mark.parametrize(
    "hands",
    [
        Hands(RAN, booting=True),
        Hands(RAN, boot=UnitState(names.BOOT_UNIT, "loaded", "activating")),
        Hands(RAN, boot=UnitState(names.BOOT_UNIT, "loaded", "inactive", job="/1")),
    ],
)
def test_what_waits_for_us_is_not_waited_for(hands: Hands) -> None:
    told = refresh(hands)
    assert "once the boot lets it" in told.text
    assert not told.failed
    assert hands.told == ["queue"]


def test_it_cannot_be_queued() -> None:
    told = refresh(Hands(RAN, booting=True, fails=True))
    assert told == Told(f"CDI is as before: {STUCK}", failed=True)


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ([unit("failed", "exit-code")], FAILED),
        # Its start was taken back, say: how it was before says nothing.
        ([RAN], FAILED),
        ([unit("activating", "exit-code"), unit("activating"), unit("inactive")], WRITTEN),
        ([unit("activating", "exit-code"), unit("active")], WRITTEN),
        ([unit("activating", "exit-code"), unit("failed", "exit-code")], FAILED),
        ([unit("activating", "exit-code")], GOES_ON),
    ],
)
def test_it_fails_and_may_be_tried_again(states: list[UnitState], told: Told) -> None:
    assert refresh(Hands(*states, fails=True), again_s=0.5) == told


@pytest.mark.parametrize(
    "state", [unit("inactive", condition=False), unit("inactive", "exec-condition")]
)
def test_its_conditions_do_not_hold(state: UnitState) -> None:
    told = refresh(Hands(state, fails=True))
    assert "conditions" in told.text
    assert not told.failed


class Ctk:
    def __init__(self, answer: Finished) -> None:
        self._answer = answer
        self.told: list[str] = []

    async def run(self, arguments: Sequence[str], *, limit_s: float, output_limit: int) -> Finished:
        self.told = list(arguments)
        return self._answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Finished(0, 0, "level=info\n"), Told("nvidia-ctk has written /etc/cdi/n.json")),
        (
            Finished(1, 0, "level=info\nno devices\n"),
            Told(
                "CDI may be as before in /etc/cdi/n.json: nvidia-ctk ended with exit status 1 "
                "(no devices)",
                failed=True,
            ),
        ),
    ],
)
def test_nvidia_ctk(
    tmp_path: "Path", monkeypatch: pytest.MonkeyPatch, answer: Finished, told: Told
) -> None:
    monkeypatch.setattr(cdi, "SYSTEM_PATH", str(tmp_path))
    ctk = Ctk(answer)
    made = Cdi(cast("Units", None), cast("Programs", ctk))
    missing = asyncio.run(made.generate("/etc/cdi/n.json"))
    assert missing == Told("nvidia-ctk, which is to write /etc/cdi/n.json, is not installed", True)
    assert not ctk.told
    program = tmp_path / "nvidia-ctk"
    program.touch(0o755)
    assert asyncio.run(made.generate("/etc/cdi/n.json")) == told
    assert ctk.told == [str(program), "cdi", "generate", "--output=/etc/cdi/n.json"]
