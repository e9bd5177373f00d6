"""Device nodes of MIG instances: which are missing, and an nvidia-modprobe that is not kind."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from migd.core.holders import capability
from migd.core.model import Mode
from migd.core.nodes import capability_files, device_minor, empty
from migd.host import capabilities
from migd.host.capabilities import Capabilities, Made, look
from migd.host.nodes import Places
from migd.host.programs import Finished
from tests.support import boards

if TYPE_CHECKING:
    from migd.host.programs import Programs

H100, A100 = "h100-80gb-sxm5", "a100-40gb"
# 3g.40gb with one compute instance, and one that is divided in three.
TWO = boards.gpu(
    H100, [boards.instance(H100, 1, 9, 0), boards.instance(H100, 2, 9, 4, (0, 0, 0))], index=1
)
OK = Finished(0, 0, "")
REFUSED = Finished(1, 0, "one\nERROR: no such thing\n\n")


def test_files_of_instances() -> None:
    other = boards.gpu(A100, [boards.instance(A100, 7, 19, 0, ())])
    assert capability_files([other, TWO, boards.without_mig(2)]) == (
        "gpu0/mig/gi7/access",
        "gpu1/mig/gi1/access",
        "gpu1/mig/gi1/ci0/access",
        "gpu1/mig/gi2/access",
        "gpu1/mig/gi2/ci0/access",
        "gpu1/mig/gi2/ci1/access",
        "gpu1/mig/gi2/ci2/access",
    )
    # It is the device minor that counts, which a reset can change.
    assert capability_files([replace(other, minor=4)]) == ("gpu4/mig/gi7/access",)
    assert capability_files([replace(other, minor=-1)]) == ()


def test_what_a_file_says() -> None:
    text = "DeviceFileMinor: 147\nDeviceFileMode: 292\nDeviceFileModify: 1\n"
    assert device_minor(text) == 147
    assert capability(147) == (1, 1, None)
    for odd in ("", "DeviceFileMode: 292\n", "DeviceFileMinor: x\n", "DeviceFileMinor:\n", "x"):
        assert device_minor(odd) is None


def test_gpus_in_mig_mode_without_devices() -> None:
    bare = boards.gpu(H100, index=2)
    undivided = boards.gpu(H100, [boards.instance(H100, 1, 9, 0, ())], index=3)
    off = boards.gpu(H100, mode=Mode.DISABLED, index=4)
    assert empty([TWO, bare, undivided, off, boards.without_mig(5)]) == (bare, undivided)


# -- a host of files ------------------------------------------------------------------------


class Host:
    """Files of the driver, and nodes that are links to /dev/null: character devices, 1:3."""

    def __init__(self, folder: Path) -> None:
        self.places = Places(
            folder / "dev", folder, folder / "devices", folder, folder / "capabilities"
        )
        (folder / "dev/nvidia-caps").mkdir(parents=True)
        self.places.devices.write_text("Character devices:\n  1 mem\n\nBlock devices:\n")
        self.minors: dict[str, int] = {}

    def show(self, *names: str) -> None:
        for name in names:
            self.minors[name] = len(self.minors) + 3
            file = self.places.capabilities / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"DeviceFileMinor: {self.minors[name]}\nDeviceFileMode: 292\n")

    def node(self, name: str) -> Path:
        return self.places.dev / f"nvidia-caps/nvidia-cap{self.minors[name]}"

    def mknod(self, name: str) -> None:
        self.node(name).symlink_to("/dev/null")

    def made(self) -> set[str]:
        return {name for name in self.minors if self.node(name).exists()}


class Modprobe:
    """In place of programs: as nvidia-modprobe does, it ends at the first that it cannot make."""

    def __init__(
        self,
        host: Host,
        refuses: Callable[[str], bool] = lambda _: False,
        answer: Finished | None = None,
        *,
        idle: bool = False,
    ) -> None:
        """answer: it makes nothing and ends so; idle: it makes nothing and says that all is well"""
        self._host = host
        self._refuses = refuses
        self._answer = OK if idle else answer
        self.runs: list[list[str]] = []

    async def run(self, arguments: Sequence[str], *, limit_s: float) -> Finished:
        assert 0 < limit_s <= 10
        assert Path(arguments[0]).name == "nvidia-modprobe"
        assert set(arguments[1::2]) == {"-f"}
        folder = self._host.places.capabilities
        names = [str(Path(a).relative_to(folder)) for a in arguments[2::2]]
        self.runs.append(names)
        if self._answer:
            return self._answer
        for name in names:
            if self._refuses(name):
                return REFUSED
            self._host.mknod(name)
        return OK


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    program = tmp_path / "bin/nvidia-modprobe"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setattr(capabilities, "SYSTEM_PATH", str(program.parent))
    return Host(tmp_path)


def make(host: Host, programs: Modprobe, names: Sequence[str], **limits: float) -> Made:
    async def work() -> Made:
        nodes = Capabilities(cast("Programs", programs), host.places, **limits)
        return await asyncio.wait_for(nodes.make(names, lambda _: None), 20)

    return asyncio.run(work())


NAMES = [f"gpu0/mig/gi{gi}/{tail}" for gi in range(3) for tail in ("access", "ci0/access")]


def test_all_in_one_go_and_once(host: Host) -> None:
    host.show(*NAMES)
    host.mknod(NAMES[2])
    programs = Modprobe(host)
    assert make(host, programs, NAMES) == Made(5, "")
    assert programs.runs == [[n for n in NAMES if n != NAMES[2]]]
    assert host.made() == set(NAMES)
    assert make(host, programs, NAMES) == Made(0, "")
    assert len(programs.runs) == 1


def test_it_takes_only_so_many(host: Host) -> None:
    names = [f"gpu{gpu}/mig/gi{gi}/access" for gpu in range(20) for gi in range(15)]
    host.show(*names)
    programs = Modprobe(host)
    assert make(host, programs, names) == Made(300, "")
    assert [len(run) for run in programs.runs] == [256, 44]


def test_one_that_cannot_be_made_hinders_no_other(host: Host) -> None:
    host.show(*NAMES)
    programs = Modprobe(host, lambda name: name == NAMES[1])
    made = make(host, programs, NAMES)
    assert host.made() == {*NAMES} - {NAMES[1]}
    assert made.made == 5
    assert f"missing (1 of 6, the first is {host.node(NAMES[1])})" in made.failed
    assert "nvidia-modprobe ended with exit status 1 (ERROR: no such thing)" in made.failed
    assert f"`nvidia-modprobe -f {host.places.capabilities / NAMES[1]}`" in made.failed
    assert len(programs.runs) == 2


def test_where_none_can_be_made_it_is_given_up_soon(host: Host) -> None:
    names = [f"gpu0/mig/gi{gi}/access" for gi in range(15)]
    host.show(*names)
    programs = Modprobe(host, lambda _: True)
    made = make(host, programs, names)
    assert made.made == 0
    assert "15 of 15" in made.failed
    assert len(programs.runs) == 5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Finished(None, 15, "", in_time=False), "did not end in time"),
        (Finished(None, 11, ""), "was ended by signal 11"),
        (Finished(203, 0, ""), "ended with exit status 203"),
    ],
)
def test_how_it_ended_is_told(host: Host, answer: Finished, words: str) -> None:
    host.show(*NAMES)
    programs = Modprobe(host, answer=answer)
    made = make(host, programs, NAMES)
    assert (made.made, host.made()) == (0, set())
    assert f"nvidia-modprobe {words}" in made.failed
    assert len(programs.runs) == (1 if not answer.in_time else 5)


def test_it_is_not_installed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "SYSTEM_PATH", "/nowhere")
    host.show(*NAMES)
    programs = Modprobe(host)
    made = make(host, programs, NAMES)
    assert "nvidia-modprobe is not installed" in made.failed
    assert not programs.runs
    host.mknod(NAMES[0])
    assert make(host, programs, NAMES[:1]) == Made(0, "")


def late(host: Host, programs: Modprobe, names: Sequence[str], *events: Any) -> Made:
    """As make, with something that happens each time that it says what it waits for."""
    left = list(events)

    async def work() -> Made:
        nodes = Capabilities(cast("Programs", programs), host.places)

        def waits(what: str) -> None:
            if "appear" in what and left:
                left.pop(0)()

        return await asyncio.wait_for(nodes.make(names, waits), 20)

    made = asyncio.run(work())
    assert not left
    return made


def test_files_and_nodes_that_come_late(host: Host) -> None:
    host.show(NAMES[0])
    programs = Modprobe(host)
    made = late(host, programs, NAMES[:2], lambda: None, lambda: host.show(NAMES[1]))
    assert made == Made(2, "")
    assert programs.runs == [NAMES[:1], NAMES[1:2]]
    # Where others make the nodes, as udev does: nvidia-modprobe leaves them alone then.
    host.show(NAMES[2])
    idle = Modprobe(host, idle=True)
    assert late(host, idle, NAMES[:3], lambda: host.mknod(NAMES[2])) == Made(1, "")
    assert idle.runs == [[NAMES[2]]]


def test_what_never_comes_is_named(host: Host) -> None:
    host.show(NAMES[0])
    made = make(host, Modprobe(host, idle=True), NAMES[:3], limit_s=0.2)
    assert made.made == 0
    assert "1 of 3" in made.failed
    assert "has run, and yet they are not there" in made.failed
    assert f"does not show {host.places.capabilities / NAMES[1]} and 1 others" in made.failed


def test_a_driver_that_shows_no_capabilities(host: Host) -> None:
    programs = Modprobe(host)
    assert make(host, programs, NAMES) == Made(0, "")
    assert not programs.runs


def test_a_node_of_the_driver_that_was_there_before(host: Host) -> None:
    host.show(NAMES[0])
    host.mknod(NAMES[0])
    assert not look(NAMES[:1], host.places).missing
    devices = "Character devices:\n  {} nvidia-caps\n\nBlock devices:\n"
    host.places.devices.write_text(devices.format(1))
    assert not look(NAMES[:1], host.places).missing
    host.places.devices.write_text(devices.format(511))
    (missing,) = look(NAMES[:1], host.places).missing
    assert missing.node == host.node(NAMES[0])
    host.places.devices.write_text("")
    host.node(NAMES[0]).unlink()
    host.node(NAMES[0]).touch()
    assert look(NAMES[:1], host.places).missing


@pytest.mark.parametrize(
    "text", ["DeviceFileMinor: " + "9" * 5000, "DeviceFileMinor: -1", "\udcff"]
)
def test_a_minor_that_is_none(text: str) -> None:
    assert device_minor(text) is None
