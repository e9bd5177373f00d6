"""Real processes that name themselves, their files and their groups to harm who looks at them."""

import ctypes
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migd.host import held
from migd.host.cgroups import Owner, parse
from migd.host.held import held as held_by
from migd.host.nodes import Nodes, Places
from migd.host.processes import describe
from migd.host.scan import scan
from tests.support.node import wait_for
from tests.unit.test_scan import STRANGER, holder, places, process

__all__ = ["places"]  # a fixture

OTHER = 4711
THERE = "print('there', flush=True); import sys; sys.stdin.read()"
PR_SET_NAME = 15


@contextmanager
def forked(prepare: Callable[[], object]) -> Iterator[int]:
    """A process of this program that has done it."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prepare()
            os.write(told, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    try:
        assert os.read(ready, 1) == b"x"
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")
@pytest.mark.parametrize("name", [b"Uid:\t0\t0\t0\t0", b"\nUid:\t0\t0\t0\t0", b"a)\nUid:\t0"])
def test_a_name_cannot_pass_for_another_user(name: bytes) -> None:
    def prepare() -> None:
        os.setresuid(OTHER, OTHER, OTHER)
        ctypes.CDLL(None).prctl(PR_SET_NAME, name, 0, 0, 0)

    with forked(prepare) as pid:
        assert Path(f"/proc/{pid}/comm").read_bytes().startswith(name[:15])
        found = describe([pid])[pid]
        assert (found.uid, found.user) == (OTHER, str(OTHER))


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        (b"\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        (b"a\nb\rc", "a\\nb\\rc"),
        (b"\xff\xfe", "\\udcff\\udcfe"),
        ("\u202egnp.exe\x9b2J".encode(), "\\u202egnp.exe\\x9b2J"),
        ("\u2028grün".encode(), "\\u2028grün"),
    ],
)
def test_a_command_line_is_one_harmless_line(argument: bytes, shown: str) -> None:
    with process(sys.executable, "-c", THERE, argument) as pid:
        command = describe([pid])[pid].command
        assert command.endswith(f" {shown}")
        assert command.isprintable()


def test_a_command_line_of_a_mebibyte_is_cut() -> None:
    with process(sys.executable, "-c", THERE, *["\x1b" * 100_000] * 10) as pid:
        assert len(Path(f"/proc/{pid}/cmdline").read_bytes()) > 1_000_000
        command = describe([pid])[pid].command
        assert (len(command), command[-3:]) == (200, "...")


def test_no_more_is_read_of_a_command_line_than_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be made to be gigabytes, by prctl(PR_SET_MM_MAP)."""
    sizes: dict[str, int] = {}

    class Counted(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size
            sizes[str(self.name)] = size
            return super().read(size)

    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Counted(path))
    pid = os.getpid()
    assert describe([pid])[pid].uid == os.getuid()
    assert 0 < sizes[f"/proc/{pid}/cmdline"] < 5000


@pytest.mark.parametrize("name", ["x\rnvidia", "x\r1-2 r--p 0 0 0 /dev/nvidia0", "x\n/dev/nvidia0"])
def test_the_name_of_a_mapped_file_cannot_pass_for_a_line(
    places: Places, tmp_path: Path, name: str
) -> None:
    """Neither is it taken for a node, nor does looking fail, which would blind us for all."""
    folder = tmp_path / "x\r1-2 r--p 0 0 0 " / "dev"
    folder.mkdir(parents=True)
    for path in (tmp_path / name.replace("/", "_"), folder / "nvidia0"):
        path.write_bytes(b"x" * 4096)
        with holder("mapped", path) as pid:
            assert b"nvidia" in Path(f"/proc/{pid}/maps").read_bytes()
            assert held_by(pid, Nodes(places)) == frozenset()
            assert pid not in [f.holder.pid for f in scan((), places, STRANGER)]


def test_a_mapping_is_found_wherever_the_pieces_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "nvidia0"
    path.write_bytes(b"x" * 4096)
    with holder("mapped", path) as pid:
        for size in (1, 2, 3, 7, 64, 1000, 4095):
            monkeypatch.setattr(held, "_PIECE", size)
            lines = list(held._lines(f"/proc/{pid}/maps"))
            assert [line.split(None, 5)[5] for line in lines] == [os.fsencode(path)]


@pytest.mark.parametrize("end", "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r")
def test_a_group_cannot_pass_for_a_line_of_another_group(end: str) -> None:
    """Who may make groups, as every user's own manager does, names them with all but "/", "\\n"."""
    path = f"/user.slice/user@7.service/x{end}1:name=systemd:/system.slice/nvidia-dcgm.service"
    assert parse(f"0::{path}\n") == Owner(user_unit="nvidia-dcgm.service")


def test_a_process_that_ends_while_it_is_looked_at() -> None:
    with forked(lambda: None) as pid:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z", what="it ends")
        assert describe([pid])[pid].pid == pid
