"""The folder of state and journal: full, filling up, damaged, of another version or boot."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migd.host import files
from tests.faults.recovery import (
    check_as_told,
    check_next_job,
    check_recovered,
    job_on_disk,
    undisturbed,
    wait_until_quiet,
)
from tests.faults.scenes import TWO_H100, Stage, staged, truths
from tests.faults.syncs import stops
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon, options
from tests.support.node import wait_for

SCENE = TWO_H100


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(SCENE, tmp_path / "node") as stage:
        yield stage


@pytest.fixture
def daemon(stage: Stage, tmp_path: Path, address: str) -> Daemon:
    """Not started yet."""
    return Daemon(stage.node, address, tmp_path / "migd", config=SCENE.config)


class Disk:
    """A small file system where the state is kept."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(daemon: Daemon) -> Iterator[Disk]:
    daemon.state_dir.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", str(daemon.state_dir)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield Disk(daemon.state_dir)
    subprocess.run(["umount", "-l", str(daemon.state_dir)], check=True)


def check_refused(stage: Stage, daemon: Daemon) -> None:
    """Apply is refused, nothing is changed, and reading goes on."""
    count = stage.node.mutating_calls()
    name, text = daemon.refused("Apply", "sa{sv}", "goal", {})
    assert name == "org.migd1.Error.State"
    assert "cannot be written" in text
    assert truths(stage.node) == stage.before
    assert stage.node.mutating_calls() == count
    assert daemon.plan("goal")[0]["impact"] == "gpu"
    (jobs,) = daemon.call("ListJobs", "a{sv}", {})
    assert all(job["result"] for job in jobs)


# -- no room ---------------------------------------------------------------------------------


@pytest.mark.parametrize("full_before", [True, False], ids=["at-the-start", "later"])
def test_full(full_before: bool, stage: Stage, daemon: Daemon, disk: Disk) -> None:
    if full_before:
        disk.fill()
    with daemon:
        if not full_before:
            disk.fill()
        check_refused(stage, daemon)
        assert not list(daemon.state_dir.glob("*.new"))
        disk.free()
        check_next_job(stage, daemon, undisturbed(SCENE)[0], 0)
        assert not daemon.journal.exists()


def test_read_only(stage: Stage, daemon: Daemon, disk: Disk) -> None:
    with daemon:
        folder = str(daemon.state_dir)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        check_refused(stage, daemon)
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        check_next_job(stage, daemon, undisturbed(SCENE)[0], 0)


def test_full_in_the_middle(stage: Stage, daemon: Daemon, disk: Disk) -> None:
    """Wherever it gets full, each GPU ends at the goal or as before, and the next job works."""
    goal, _ = undisturbed(SCENE)
    failed = 0
    waited = False
    with daemon:
        # What is on disk of a page that is begun can be added to: so pages end elsewhere each time.
        for length in range(0, 4096, 512):
            text = SCENE.config + "# " + "x" * length
            with stops(daemon, lambda: daemon.applied("goal", text=text)) as (syncs, work):  # noqa: B023
                assert syncs.reach(2)
                disk.fill()
            result, details = work.result()
            check_as_told(stage, goal, details["gpus"])
            assert daemon.running
            failed += result != "done"
            # What could not be kept is, once there is room.
            disk.free()
            if not waited and daemon.journal.exists():
                waited = True
                wait_for(lambda: not daemon.journal.exists(), what="nobody asked, so it stays")
            check_next_job(stage, daemon, goal, 0)
            assert not daemon.journal.exists()
            restart_at_the_beginning(stage, daemon)
    assert failed
    assert waited


def restart_at_the_beginning(stage: Stage, daemon: Daemon) -> None:
    assert daemon.applied("", text=BEFORE)[0] == "done"
    stage.before[:] = truths(stage.node)


BEFORE = """
version: v1
mig-configs:
  before:
    - {devices: [0], mig-enabled: true, mig-devices: {3g.40gb: 1, 1g.10gb: 1, 1g.20gb: 1}}
    - {devices: [1], mig-enabled: false}
"""


def test_full_and_killed(stage: Stage, daemon: Daemon, disk: Disk) -> None:
    """What a full disk cut off must not hide the next job from the next daemon."""
    goal, _ = undisturbed(SCENE)
    daemon.start()
    page = SCENE.config + "# " + "x" * 2048
    with stops(daemon, lambda: daemon.applied("goal", text=page)) as (syncs, work):
        assert syncs.reach(2)
        disk.fill()
    work.result()
    disk.free()
    restart_at_the_beginning(stage, daemon)
    with stops(daemon, lambda: daemon.applied("goal")) as (syncs, work):
        assert syncs.reach(5)
        daemon.kill()
    assert truths(stage.node) not in (stage.before, goal)
    check_recovered(stage, daemon, goal)


def test_a_record_that_does_not_fit(daemon: Daemon, disk: Disk) -> None:
    """Not even half of it stays, or the next would follow on the same line."""
    files.append(daemon.journal, b"x" * 4000)
    disk.fill()
    with pytest.raises(OSError, match="No space"):
        files.append(daemon.journal, b"y" * 200)
    assert daemon.journal.read_bytes() == b"x" * 4000


# -- damage ----------------------------------------------------------------------------------


@contextmanager
def untouched(stage: Stage) -> Iterator[None]:
    found, count = truths(stage.node), stage.node.mutating_calls()
    yield
    assert truths(stage.node) == found
    assert stage.node.mutating_calls() == count
    stage.check_holder()


def newer(text: str) -> str:
    return json.dumps({**json.loads(text), "version": 2})


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[: len(text) // 2], id="truncated"),
        pytest.param(lambda _: "", id="empty"),
        pytest.param(lambda _: "\0" * 300, id="zeros"),
        pytest.param(lambda _: "[" * 100_000, id="deep"),
        pytest.param(lambda _: '{"version": 1, "gpus": 7}', id="of-another-shape"),
        pytest.param(newer, id="newer"),
    ],
)
def test_state(damage: Callable[[str], str], stage: Stage, daemon: Daemon) -> None:
    with daemon:
        daemon.applied("goal")
    kept = damage(daemon.state.read_text())
    daemon.state.write_text(kept)
    with untouched(stage), daemon:
        assert daemon.state.with_name("state.json.refused").read_text() == kept
        assert "cannot be used" in daemon.log
        assert daemon.property("Wanted") == {}
        daemon.plan("goal")
    with daemon:
        assert daemon.applied("all-enabled", gpus=["1"])[0] == "done"


def cut_short(stage: Stage, daemon: Daemon) -> int:
    """A job whose daemon was killed in the middle; its id."""
    daemon.start()
    with stops(daemon, lambda: daemon.applied("goal")) as (syncs, _):
        assert syncs.reach(7)
        daemon.kill()
    assert truths(stage.node) not in (stage.before, undisturbed(SCENE)[0])
    return job_on_disk(daemon)[0]


@pytest.mark.parametrize("torn", [b'["stepp', b"\0\0\0\0", b'["unknown", {}]\n', b"\xff\n"])
def test_journal_ends_torn(torn: bytes, stage: Stage, daemon: Daemon) -> None:
    cut_short(stage, daemon)
    with daemon.journal.open("ab") as file:
        file.write(torn)
    check_recovered(stage, daemon, undisturbed(SCENE)[0])


def test_journal_of_another_boot(stage: Stage, daemon: Daemon) -> None:
    job = cut_short(stage, daemon)
    first, *rest = daemon.journal.read_text().splitlines(keepends=True)
    kind, begun = json.loads(first)
    begun["boot"] = "11111111-2222-3333-4444-555555555555"
    daemon.journal.write_text(json.dumps([kind, begun]) + "\n" + "".join(rest))
    with daemon:
        with untouched(stage):
            result, details = daemon.wait(job)
        assert result == "interrupted"
        assert "rebooted" in json.dumps(details)
        assert not daemon.journal.exists()
        check_next_job(stage, daemon, undisturbed(SCENE)[0], job)


def test_state_is_lost_and_the_journal_is_not(stage: Stage, daemon: Daemon) -> None:
    job = cut_short(stage, daemon)
    goal, _ = undisturbed(SCENE)
    daemon.state.unlink()
    with daemon:
        result, details = daemon.wait(job)
        assert result == "interrupted"
        check_as_told(stage, goal, details["gpus"])
        check_next_job(stage, daemon, goal, job)


@pytest.mark.parametrize("garbage", [b"", b"garbage\n", b"\0" * 5000, b"[" * 100_000], ids=len)
def test_journal_is_garbage(garbage: bytes, stage: Stage, daemon: Daemon) -> None:
    """No GPU is touched for it, and it does not hide what comes after it."""
    daemon.state_dir.mkdir()
    daemon.journal.write_bytes(garbage)
    with untouched(stage), daemon:
        daemon.plan("goal")
    cut_short(stage, daemon)
    check_recovered(stage, daemon, undisturbed(SCENE)[0])


# -- two of them -----------------------------------------------------------------------------


def test_another_migd(stage: Stage, daemon: Daemon, tmp_path: Path, address: str) -> None:
    """On a bus of its own, and with a state of its own, but for the same GPUs."""
    goal, _ = undisturbed(SCENE)
    with PrivateBus() as bus, daemon:
        second = Daemon(
            stage.node, bus.address, tmp_path / "other",
            config=SCENE.config, runtime_dir=daemon.runtime_dir,
        )  # fmt: skip
        with stops(daemon, lambda: daemon.applied("goal")) as (syncs, work):
            assert syncs.reach(7)
            (worker,) = daemon.worker_pids()
            wait_until_quiet(stage.node)
            with untouched(stage), second:
                for member, given in (("Plan", {}), ("Apply", {"max_impact": "reset"})):
                    name, text = second.refused(member, "sa{sv}", "all-disabled", options(given))
                    assert name == "org.migd1.Error.Hung"
                    assert "another migd" in text
                assert second.worker_pids() == []
            os.kill(worker, 0)
        assert work.result()[0] == "done"
        assert truths(stage.node) == goal
        # Killed, but for its worker: which goes on to hold the lock.
        (worker,) = daemon.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        daemon.kill()
        with second:
            assert second.refused("Plan", "sa{sv}", "goal", {})[0] == "org.migd1.Error.Hung"
            os.kill(worker, signal.SIGCONT)
            wait_for(lambda: not Path(f"/proc/{worker}").exists(), what="the worker stays")
            assert second.plan("goal")[0]["impact"] == "none"
