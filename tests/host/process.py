"""A process in a test host that goes on while the test does something else."""

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.host.machine import children, inner_pid
from tests.support.node import wait_for


class Process:
    """Started by Host.spawn; `pid` is the one that the host sees."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        self._output = output
        with output.open("wb") as file:
            self._outer = subprocess.Popen(
                command, env={}, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self._inner: list[int] = []
        wait_for(self._is_there, what=f"{command} has no process")
        self.pid = inner_pid(self._inner[0]) if self._inner else 0

    def _is_there(self) -> bool:
        """Only a child of what was started is in the other pid namespace."""
        self._inner = children(self._outer.pid)
        return bool(self._inner) or not self.alive()

    @property
    def program(self) -> str:
        """What it runs, "" if it has ended."""
        with suppress(OSError):
            return str(Path(f"/proc/{self._inner[0]}/exe").readlink())
        return ""

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def alive(self) -> bool:
        return self._outer.poll() is None

    def wait(self, timeout: float = 60.0) -> int:
        """The exit code, once it has ended; 128 and the signal where one has ended it."""
        return self._outer.wait(timeout)
