"""What nvidia-smi says of a reset, and what stands in the way of one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from migd.core.holders import Client, Holder, How, Use
from migd.core.model import Gpu, Mode, Target
from migd.core.plan import plan
from migd.core.reset import Came, Drm, Told, addresses, blocked_by_drm, told, unfit_peers
from migd.errors import Hung, NotSupported
from migd.host.nodes import Places
from migd.host.programs import Finished, Programs
from migd.host.reset import Smi, drm
from tests.support import boards
from tests.support.bus import run

A100 = boards.gpu("a100-40gb", mode=Mode.DISABLED)
H100 = boards.gpu("h100-80gb-sxm5", mode=Mode.DISABLED, index=1)
OURS = "0000:1a:00.0"
IN_USE = """
The following GPUs could not be reset:
  GPU 00000000:1A:00.0: In use by another client

1 device is currently being used by one or more other processes (e.g., Fabric Manager, CUDA \
application, graphics application such as an X server, or a monitoring application such as another \
instance of nvidia-smi). Please first kill all processes using this device and all compute \
applications running in the system.
"""
OLDER = """\
Unable to reset GPU 00000000:1A:00.0 because it's being used by some other process (e.g. CUDA \
application). Please first kill all processes using this GPU.
Some GPUs could not be reset.
"""
NOT_SUPPORTED = "The following GPUs could not be reset:\n  GPU 00000000:1A:00.0: Not Supported\n"


@pytest.mark.parametrize(
    ("status", "output", "came"),
    [
        (0, "GPU 00000000:1A:00.0 was successfully reset.\nAll done.\n", Came.DONE),
        (255, IN_USE, Came.IN_USE),
        (255, OLDER, Came.IN_USE),
        (3, "Resetting GPU 00000000:1A:00.0 is not supported.\n", Came.NOT_SUPPORTED),
        (255, NOT_SUPPORTED, Came.NOT_SUPPORTED),
        (3, "", Came.NOT_SUPPORTED),
        (1, "GPU Reset couldn't run because GPU 00000000:1A:00.0 is the primary GPU.", Came.FAILED),
        (None, "", Came.FAILED),
        # The exit code counts: words alone make no success.
        (1, "GPU 00000000:1A:00.0 was successfully reset.\n", Came.FAILED),
    ],
)
def test_what_it_says(status: int | None, output: str, came: Came) -> None:
    found = told([OURS], status, output)
    assert found.came is came
    assert found.status == (-1 if status is None else status)
    assert found.peers == ()


def test_whoever_is_named_unasked_is_a_peer() -> None:
    text = "GPU 00000000:1A:00.0 needs 00000000:1B:00.0 and 00010000:FF:1F.7, 00000000:1B:00.0 too."
    found = told([OURS], 255, text)
    assert found.came is Came.PEERS
    assert found.peers == ("0000:1b:00.0", "10000:ff:1f.7")
    # Those who were asked for are none.
    assert told([OURS, *found.peers], 255, text).came is Came.FAILED


def test_words_are_one_line_for_a_terminal() -> None:
    words = told([OURS], 255, "a\x1b[31m\n\n b\x00c\t" + "d" * 1000).words
    assert words.startswith("a\\x1b[31m b\\x00c d")
    assert words.isprintable()
    assert len(words) < 310


def test_addresses() -> None:
    assert addresses("0000:1A:00.0, 00000000:1b:00.0; 12:34:56.7, 0000:1A:00.8") == [
        "0000:1a:00.0",
        "0000:1b:00.0",
    ]


# -- the program -------------------------------------------------------------------------------


class FakePrograms:
    """Runs nothing, and ends as it is told."""

    def __init__(self, *ends: Finished) -> None:
        self.ends = list(ends)
        self.runs: list[tuple[Sequence[str], float]] = []

    async def run(self, arguments: Sequence[str], *, limit_s: float, **_: object) -> Finished:
        self.runs.append((arguments, limit_s))
        return self.ends.pop(0)


def smi_of(folder: Path, programs: FakePrograms) -> Smi:
    return Smi(cast("Any", programs), 20, path=f"/nowhere:{folder}")


def test_the_command(tmp_path: Path) -> None:
    done = Finished(0, 0, "GPU 00000000:01:00.0 was successfully reset.\nAll done.\n")
    late = Finished(None, 15, "Resetting", in_time=False)
    programs = FakePrograms(done, done, late)
    smi = smi_of(tmp_path, programs)
    with pytest.raises(NotSupported, match=f"there is no nvidia-smi in /nowhere:{tmp_path}"):
        run(smi.reset([A100]))
    program = tmp_path / "nvidia-smi"
    program.touch(mode=0o755)
    assert run(smi.reset([A100])) == Told(Came.DONE, " ".join(done.output.split()), 0)
    smi.limit_s = 30
    assert run(smi.reset([A100, H100])).came is Came.DONE
    told = run(smi.reset([A100]))
    assert told.came is Came.FAILED
    assert told.words == "it did not end within 30 s and was ended"
    one = [str(program), "--gpu-reset", "-i", A100.uuid]
    both = [*one[:3], f"{A100.uuid},{H100.uuid}"]
    assert programs.runs == [(one, 20), (both, 45), (one, 30)]


def test_a_command_that_is_not_roots(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.touch(mode=0o755)
    program.chmod(0o777)
    smi = Smi(Programs(cast("Any", None), tmp_path), path=str(tmp_path))
    with pytest.raises(NotSupported, match=f"{program} is not run: {program} can be written by"):
        run(smi.reset([A100]))


class FakeManager:
    """Has a program that runs, for so many questions; None: for good."""

    def __init__(self, times: int | None) -> None:
        self.times = times

    async def call(self, member: str, signature: str, arguments: Sequence[Any]) -> list[Any]:
        assert (member, signature) == ("ListUnitsByPatterns", "asas")
        assert arguments[1] == ["migd-run-*.service"]
        if self.times is not None:
            self.times -= 1
        return [[] if self.times == 0 else [["migd-run-7-1.service"]]]


def test_what_a_dead_daemon_runs_is_waited_for(tmp_path: Path) -> None:
    left = tmp_path / "migd-run-7-1.service.out"
    left.touch()
    (tmp_path / "worker.lock").touch()
    with pytest.raises(Hung, match=r"migd-run-7-1\.service, which an earlier migd began"):
        run(Programs(cast("Any", FakeManager(None)), tmp_path).settled(0.01))
    assert left.exists()
    run(Programs(cast("Any", FakeManager(2)), tmp_path).settled(20))
    assert [p.name for p in tmp_path.iterdir()] == ["worker.lock"]


# -- nvidia_drm --------------------------------------------------------------------------------

ON = Target(Mode.ENABLED, ())


@pytest.mark.parametrize(
    ("module", "holds"),
    [
        (Drm(0, (), None), False),
        (Drm(0, (), False), False),
        (Drm(0, (), True), True),
        (Drm(1, (), None), True),
        (Drm(1, ("some_module",), False), True),
    ],
)
def test_when_drm_holds(module: Drm, holds: bool) -> None:
    made = plan([A100, H100], {A100.uuid: ON, H100.uuid: ON}, {})
    blocked = blocked_by_drm(made, module)
    assert bool(blocked) is holds
    for one in blocked:
        assert one.gpus == (A100.uuid,)
        assert str(A100) in one.message
        assert str(H100) not in one.message
        assert "rmmod nvidia_drm" in one.message


def test_drm_is_no_matter_without_a_reset() -> None:
    holding = Drm(3, (), True)
    assert blocked_by_drm(plan([H100], {H100.uuid: ON}, {}), holding) == ()
    assert blocked_by_drm(plan([A100], {A100.uuid: Target(Mode.DISABLED, ())}, {}), holding) == ()
    assert blocked_by_drm(plan([A100], {A100.uuid: ON}, {}), None) == ()


def test_drm_as_the_kernel_shows_it(tmp_path: Path) -> None:
    places = Places(sys=tmp_path)
    assert drm(places) is None
    module = tmp_path / "module" / "nvidia_drm"
    module.mkdir(parents=True)
    (module / "refcnt").write_text("0\n")
    assert drm(places) == Drm(0, (), None)
    (module / "parameters").mkdir()
    (module / "parameters" / "modeset").write_text("N\n")
    assert drm(places) == Drm(0, (), False)
    (module / "parameters" / "modeset").write_text("Y\n")
    (module / "refcnt").write_text("2\n")
    (module / "holders" / "b").mkdir(parents=True)
    (module / "holders" / "a").mkdir()
    found = drm(places)
    assert found == Drm(2, ("a", "b"), True)
    assert str(found) == "the module nvidia_drm is loaded and used by a, b"


# -- peers -------------------------------------------------------------------------------------


def user(gpu: Gpu, unit: str = "") -> Client:
    return Client(Holder(4711, command="train", unit=unit), (Use(gpu.uuid, None, None, How.OPEN),))


def test_peers_lose_nothing() -> None:
    assert unfit_peers([A100], [user(H100)], ()) == []
    assert unfit_peers([A100], [user(A100, "nvidia-fabricmanager.service")], ()) == []
    (used,) = unfit_peers([A100, H100], [user(A100)], ())
    assert str(A100) in used
    assert "pid 4711" in used
    busy = boards.gpu("a100-40gb", [boards.instance("a100-40gb", 1, 9, 4)])
    (has,) = unfit_peers([busy], [], [busy.uuid])
    assert "has MIG instances" in has


def test_a_pending_mode_of_a_peer_is_not_ours_to_switch() -> None:
    waiting = replace(A100, pending=Mode.ENABLED)
    (found,) = unfit_peers([waiting], [], ())
    assert "enabled is pending" in found
    assert unfit_peers([waiting], [], [waiting.uuid]) == []
