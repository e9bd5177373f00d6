"""Signals to real processes, and to none that only has the pid of one."""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from migd.core.holders import Holder
from migd.host import signals
from migd.host.processes import describe, stat
from migd.host.signals import Target
from tests.support.bus import nothing_left, run

__all__ = ["nothing_left"]  # a fixture

pytestmark = pytest.mark.usefixtures("nothing_left")

STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); input()"
)


@contextlib.contextmanager
def process(code: str = "print(flush=True); input()") -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as told:
        assert told.stdout is not None
        told.stdout.readline()
        try:
            yield told
        finally:
            told.kill()


def described(pid: int) -> Holder:
    return describe([pid])[pid]


def test_a_process_is_ended_and_waited_for() -> None:
    async def main() -> None:
        with process() as one, Target(described(one.pid)) as target:
            assert not await target.gone(0)
            target.send(signal.SIGTERM)
            assert await target.gone(10)
            one.wait()
            target.send(signal.SIGKILL)
            assert await target.gone(0)

    run(main())


def test_a_wait_has_an_end_and_can_be_repeated() -> None:
    async def main() -> None:
        with process(STUBBORN) as one, Target(described(one.pid)) as target:
            target.send(signal.SIGTERM)
            begun = time.monotonic()
            assert not await target.gone(0.1)
            assert 0.1 <= time.monotonic() - begun < 5
            target.send(signal.SIGKILL)
            assert await target.gone(10)
            assert one.wait() == -signal.SIGKILL

    run(main())


def test_the_loop_goes_on_while_it_waits_and_a_canceled_wait_leaves_nothing() -> None:
    async def main() -> None:
        with process() as one, Target(described(one.pid)) as target:
            wait = asyncio.create_task(target.gone(60))
            await asyncio.sleep(0.01)
            wait.cancel()
            with pytest.raises(asyncio.CancelledError):
                await wait
            assert not asyncio.get_running_loop().remove_reader(target._fd)

    run(main())


def test_somebody_elses_child_is_waited_for_too() -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True); child.wait(); input()"
    )

    async def main() -> None:
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as parent:
            assert parent.stdout is not None
            with Target(described(int(parent.stdout.readline()))) as target:
                target.send(signal.SIGKILL)
                assert await target.gone(10)
            parent.kill()

    run(main())


def test_another_process_with_the_same_pid_is_left_alone() -> None:
    with process() as one:
        holder = described(one.pid)
        for other in (replace(holder, started=holder.started - 1), replace(holder, started=0)):
            with pytest.raises(ProcessLookupError):
                Target(other)
        assert one.poll() is None


def test_who_could_not_be_described_cannot_be_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if there is now one that began with the kernel's clock."""
    now = stat(os.getpid())
    assert now is not None
    monkeypatch.setattr(signals, "stat", lambda _: replace(now, started=0))
    with pytest.raises(ProcessLookupError):
        Target(Holder(os.getpid(), started=0))


def test_who_is_gone_cannot_be_a_target() -> None:
    with process() as one:
        holder = described(one.pid)
        one.kill()
        one.wait()
        with pytest.raises(ProcessLookupError):
            Target(holder)


def test_who_has_ended_and_not_been_reaped_is_gone() -> None:
    async def main() -> None:
        with process() as one:
            holder = described(one.pid)
            one.kill()
            os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
            with Target(holder) as target:
                assert await target.gone(0.1)

    run(main())


def test_who_may_not_be_signaled_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with process() as one:
        monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
        with pytest.raises(PermissionError):
            Target(described(one.pid))


def test_an_old_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match=r"Linux 5\.3"):
        Target(described(os.getpid()))
