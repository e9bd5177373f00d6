"""The outer side of units_inside.py: a stand-in for the daemon, in a host, that can be killed."""

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.host.host import Host

_INSIDE = Path(__file__).with_name("units_inside.py")
_PYTHON = "/usr/lib/migd/bin/python3"


class Failed(Exception):
    """What was asked for raised an error of migd's; `kind` is its class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Driver:
    def __init__(self, host: Host, *, grace_s: float = 60.0) -> None:
        command = [_PYTHON, "-I", "-c", _INSIDE.read_text(), "/run/migd-test", str(grace_s)]
        self._host = host
        self._process = subprocess.Popen(
            host.machine.command(*command),
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._numbers = itertools.count()
        self._answers: dict[int, Any] = {}
        self.pid = int(self._line())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it as a daemon ends that is stopped."""
        self._process.communicate(timeout=60)

    def kill(self) -> None:
        self._host.run("kill", "-KILL", str(self.pid))
        self._process.communicate(timeout=60)

    def wait(self) -> None:
        """Until it has ended, as it does with the host."""
        self._process.communicate(timeout=60)

    def begin(self, what: str, *arguments: Any, **keywords: Any) -> int:
        """Let it do something, as "units.stop", and do not wait."""
        number = next(self._numbers)
        assert self._process.stdin
        line = json.dumps([number, *what.split("."), arguments, keywords])
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return number

    def result(self, number: int) -> Any:
        """What came of it. Raises Failed."""
        while number not in self._answers:
            found, *answer = json.loads(self._line())
            self._answers[found] = answer
        value, kind, message = self._answers.pop(number)
        if kind:
            raise Failed(kind, message)
        return value

    def do(self, what: str, *arguments: Any, **keywords: Any) -> Any:
        return self.result(self.begin(what, *arguments, **keywords))

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the driver has ended"
        return line
