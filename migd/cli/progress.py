"""How far a job is: one sentence, and a line that is written over or written anew."""

from typing import Any, TextIO

from migd.cli.node import Properties
from migd.cli.terminal import Terminal

_START_OF_LINE = "\r\x1b[K"


def job_line(job: Properties) -> str:
    """`job 12 (apply all-1g.10gb): change, 3 of 8 steps done: stop foo.service`."""
    what = " ".join(filter(None, (job.get("Type", ""), job.get("Config", ""))))
    return f"job {job.get('Id', '?')}" + (f" ({what})" if what else "") + f": {phase(job)}"


def phase(job: Properties) -> str:
    """`change, 3 of 8 steps done: create 1g.10gb at 0:1`."""
    step, steps = job.get("Step", 0), job.get("Steps", 0)
    words = job.get("Phase") or "starting"
    words += f", {step} of {steps} steps done" if steps else ""
    waiting = job.get("Waiting")
    return words + (f": {waiting}" if waiting else "")


class Progress:
    """Shows how a job gets on: on a terminal in one line, elsewhere a line for each news."""

    def __init__(self, stream: TextIO, out: Terminal) -> None:
        self._stream = stream
        self._out = out
        self._job: dict[str, Any] = {}
        self._shown = ""

    def update(self, changed: Properties) -> None:
        self._job |= changed
        line = self._out.fit(self._out.safe(job_line(self._job)), before=1)
        if line == self._shown:
            return
        self._stream.write(f"{_START_OF_LINE}{line}" if self._out.live else f"{line}\n")
        self._stream.flush()
        self._shown = line

    def say(self, sentence: str) -> None:
        """Write a sentence that stays, on a line of its own."""
        self.clear()
        self._stream.write(f"{sentence}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Make room for what comes after."""
        if self._shown and self._out.live:
            self._stream.write(_START_OF_LINE)
            self._stream.flush()
        self._shown = ""
