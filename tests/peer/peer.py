"""NVIDIA's nvidia-mig-parted, run on a simulated node."""

import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.support.node import Node, wait_for

_SAID = re.compile(r'level=\w+ msg="((?:[^"\\]|\\.)*)"')
_LIMIT_S = 120


class Said(NamedTuple):
    """The exit code, what it printed, and its last words, mostly about what went wrong."""

    code: int
    printed: str
    words: str


class Peer:
    """The program and a node's view of /proc and /sys for it; as root, since the view needs it."""

    def __init__(self, program: str | Path, node: Node) -> None:
        self._program = str(program)
        self._node = node

    def __enter__(self) -> Self:
        """Hold the view open, so that each run only has to enter it: cat ends when we do."""
        self._view = subprocess.Popen(
            [
                *(sys.executable, "-m", "migd.simulator", "run", "--thin-proc"),
                *(str(self._node.path), "--", "cat"),
            ],
            stdin=subprocess.PIPE,
        )
        name = Path(f"/proc/{self._view.pid}/comm")
        wait_for(lambda: name.read_text() == "cat\n", what="the node's view is not there")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._view.communicate(timeout=_LIMIT_S)

    def run(self, *arguments: str, text: str = "") -> Said:
        """Run it; text: its standard input, which `-f -` reads."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._view.pid), "-m", "--", self._program, *arguments],
            env=self._node.environment(),
            input=text,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        words = _SAID.findall(done.stderr)
        return Said(done.returncode, done.stdout, words[-1] if words else "")


def version(program: str | Path) -> str:
    shown = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.strip()
