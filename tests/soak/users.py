"""Users of a test host who call migd: a process of each inside, and what it was answered."""

import itertools
import json
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from dbus_next.signature import Variant

from migd import names
from tests.host.host import Host

_INSIDE = Path(__file__).with_name("caller.py")
_PYTHON = "/usr/lib/migd/bin/python3"
# Users with their groups. What alice may is for the rules of the host; bob and nobody may read.
USERS = {"root": "root", "alice": "alice", "bob": "bob", "nobody": "nogroup"}
CONNECTIONS = 3
# Beyond the limit that a caller has for its own calls.
ANSWER_S = 150.0


class Expect(Enum):
    """What must come of a request while nothing is wrong; ANY: either, by what goes on."""

    OK = "ok"
    REFUSED = "refused"
    ANY = "any"


@dataclass(frozen=True)
class Request:
    """One call. kind: in words, for the count; how: call, descriptors, vanish or no-reply.

    tell: whether the values of the reply are wanted
    """

    kind: str
    member: str
    signature: str = ""
    body: Sequence[Any] = ()
    interface: str = names.MANAGER
    path: str = names.ROOT
    how: str = "call"
    connection: int = 0
    interactive: bool = False
    tell: bool = False
    expect: Expect = field(default=Expect.OK)

    @property
    def answered(self) -> bool:
        """Whether migd itself answers it."""
        return self.how in ("call", "descriptors")


@dataclass(frozen=True)
class Answer:
    """error: "" for a reply, the name of a D-Bus error, "timeout" or "lost"."""

    error: str
    message: str
    body: Sequence[Any]
    seconds: float


class User:
    """heard: is given member and arguments of migd's signals, if there is one."""

    def __init__(
        self, host: Host, name: str, heard: Callable[[str, list[Any]], None] | None = None
    ) -> None:
        self.name = name
        self._heard = heard
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Answer]] = {}
        as_user = [f"--reuid={name}", f"--regid={USERS[name]}", "--init-groups"]
        self._process = subprocess.Popen(
            host.machine.command(
                "setpriv", *as_user, _PYTHON, "-IB", "-c", _INSIDE.read_text(),
                *(["listen"] if heard else []),
            ),
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self._process.stdout
        assert self._process.stdout.readline() == '"ready"\n', f"{name} cannot call"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, request: Request) -> "Future[Answer]":
        number = next(self._numbers)
        future: Future[Answer] = Future()
        self._waiting[number] = future
        document = {**asdict(request), "body": _coded(list(request.body)), "expect": ""}
        assert self._process.stdin
        self._process.stdin.write(json.dumps([number, document]) + "\n")
        self._process.stdin.flush()
        return future

    def ask(self, request: Request) -> Answer:
        """Send it, and wait for the answer."""
        return self.send(request).result(ANSWER_S)

    def end(self) -> None:
        """Wait for what is still asked, and end."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(ANSWER_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._thread.join()
            assert self._process.stdout
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            number, *told = json.loads(line)
            if number == 0 and self._heard:
                self._heard(*told)
            elif number:
                self._waiting.pop(number).set_result(Answer(*told))
        for future in self._waiting.values():
            future.set_exception(AssertionError(f"the process of {self.name} has ended"))


def _coded(value: Any) -> Any:
    """See caller.made."""
    if isinstance(value, Variant):
        return {"variant": [value.signature, _coded(value.value)]}
    if isinstance(value, Mapping):
        return {key: _coded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_coded(inner) for inner in value]
    return value
