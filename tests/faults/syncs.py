"""A daemon that stops whenever it has synced something, by strace; what happens then is a test's.

strace counts injections per thread and syncs come from several: so every sync stops the whole
process, and the test counts.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tests.support.daemon import Daemon
from tests.support.node import wait_for


class Tracer:
    """strace on a running daemon, from `with` to `with`'s end."""

    def __init__(self, daemon: Daemon, *options: str) -> None:
        self.output = daemon.folder / "trace"
        self._process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig=KILL",
                "strace",
                "-f",
                "-p",
                str(daemon.pid),
                "-o",
                str(self.output),
                *options,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr
        line = self._process.stderr.readline()
        assert "attached" in line, line

    def end(self) -> str:
        """Let the daemon go on without it; what it has seen."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            # Told to end while what it traces is being killed, it can wait for ever.
            self._process.kill()
            self._process.wait()
        assert self._process.stderr
        self._process.stderr.close()
        return self.output.read_text()


class Stops:
    """The sync points of a daemon at work, one after the other."""

    def __init__(self, daemon: Daemon, work: Future[Any]) -> None:
        self.daemon = daemon
        self.count = 0
        self._work = work
        self._stopped = False

    def next(self) -> bool:
        """Let it go on to its next sync; False when its work is over before one."""
        if self._stopped:
            os.kill(self.daemon.pid, signal.SIGCONT)
            self._stopped = False
        wait_for(lambda: self._has_stopped() or self._work.done(), what="neither stops nor ends")
        self.count += self._stopped
        return self._stopped

    def reach(self, number: int) -> bool:
        """Go on to the sync of that number; False when the work is over before it."""
        while self.count < number and self.next():
            pass
        return self.count == number

    def go_on(self) -> None:
        """Let it go on to the end of its work."""
        while self.next():
            pass

    def _has_stopped(self) -> bool:
        options = os.WSTOPPED | os.WNOHANG
        self._stopped = self._stopped or os.waitid(os.P_PID, self.daemon.pid, options) is not None
        return self._stopped


SYNCS = "fdatasync,fsync"


def _options(calls: str) -> list[str]:
    inject = f"inject={calls}:signal=SIGSTOP"
    return ["-e", f"trace={calls}", "-e", inject, "-e", "signal=none"]


@contextmanager
def stops(
    daemon: Daemon, work: Callable[[], Any], *, calls: str = "fdatasync,fsync"
) -> Iterator[tuple[Stops, Future[Any]]]:
    """Do `work` in a thread, and stop the daemon at each of its syncs. In the end it goes on."""
    tracer = Tracer(daemon, *_options(SYNCS))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        found = Stops(daemon, future)
        try:
            yield found, future
            if daemon.running:
                found.go_on()
        except BaseException:
            if daemon.running:
                daemon.kill()
            raise
        finally:
            tracer.end()


@contextmanager
def starting_stops(daemon: Daemon, work: Callable[[], Any]) -> Iterator[Stops]:
    """Start the daemon, and stop it at each of its syncs from the first on, as `stops` does."""
    daemon.prefix = ("strace", "-D", "-f", "-o", str(daemon.folder / "trace"), *_options(SYNCS))
    daemon.launch()
    daemon.prefix = ()

    def ready() -> Any:
        daemon.wait_ready()
        return work()

    with ThreadPoolExecutor(1) as pool:
        found = Stops(daemon, pool.submit(ready))
        try:
            yield found
            if daemon.running:
                found.go_on()
        except BaseException:
            daemon.kill()
            raise
