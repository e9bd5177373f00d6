"""Where programs of NVIDIA's world run: in view of a simulated node's modules and PCI devices.

    python -m tests.bench.peer_stage NODE

Reads commands, each a list as one line of JSON, and answers [seconds, exit code, errors]. It is
one process for all of them, so that neither Python's start nor the view is in a command's time.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from migd.simulator import environment, view

LIMIT_S = 300


class Stage:
    """A stage as seen from outside; needs root."""

    def __init__(self, node: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(node)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str) -> tuple[float, int, str]:
        """Milliseconds from its start to its end, the exit code, and what it said of errors."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(command), file=self._process.stdin, flush=True)
        seconds, code, errors = json.loads(self._process.stdout.readline())
        return 1000 * seconds, code, errors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    node = Path(sys.argv[1])
    view.enter(node, thin_proc=True)
    variables = environment.of(node)
    for line in sys.stdin:
        command = json.loads(line)
        begun = time.perf_counter()
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        seconds = time.perf_counter() - begun
        print(json.dumps([seconds, done.returncode, done.stderr]), flush=True)


if __name__ == "__main__":
    main()
