"""The agent that asks for a password: there while a call may need it, and gone afterwards."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from migd.cli import agent as module
from migd.cli.agent import agent
from migd.cli.arguments import parser
from tests.support.bus import nothing_left, run
from tests.unit.cli.fake import Daemon, against

__all__ = ["nothing_left"]

# It says that it is there by closing the pipe, and how it was ended.
_PROGRAM = f"""\
#!{sys.executable}
import os, pathlib, signal, sys
log = pathlib.Path(__file__).with_name("log")
def end(*_):
    log.write_text(log.read_text() + "ended\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
log.write_text(" ".join(a.split("=")[0] for a in sys.argv[1:]) + f" for {{os.getppid()}}\\n")
notify = int(sys.argv[1].partition("=")[2])
os.close(notify)
while True:
    signal.pause()
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "pkttyagent"
    path.write_text(_PROGRAM)
    path.chmod(0o755)
    monkeypatch.setattr(module, "PROGRAM", str(path))
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    return path


@pytest.mark.usefixtures("nothing_left")
def test_it_is_there_for_the_call_and_gone_then(program: Path) -> None:
    log = program.with_name("log")

    async def main() -> None:
        async with agent():
            assert log.read_text() == f"--notify-fd --fallback for {os.getpid()}\n"
        assert log.read_text().endswith("ended\n")

    run(main())


@pytest.mark.usefixtures("nothing_left", "program")
def test_also_when_the_call_is_given_up(program: Path) -> None:
    async def main() -> None:
        async with agent():
            raise KeyError

    with pytest.raises(KeyError):
        run(main())
    assert program.with_name("log").read_text().endswith("ended\n")


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 127\n", "#!/nonexistent/shell\n"])
def test_one_that_cannot_run_does_not_matter(program: Path, script: str) -> None:
    program.write_text(script)

    async def main() -> None:
        async with agent():
            pass

    run(main())


@pytest.mark.usefixtures("nothing_left")
def test_one_that_says_nothing_and_does_not_end(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text("#!/bin/sh\ntrap '' TERM\nexec sleep 1000\n")
    monkeypatch.setattr(module, "_READY_S", 0.1)
    monkeypatch.setattr(module, "_END_S", 0.1)

    async def main() -> None:
        async with asyncio.timeout(10), agent():
            pass

    run(main())


@pytest.mark.parametrize(
    ("terminal", "options", "asked"),
    [(True, [], True), (True, ["--no-ask-password"], False), (False, [], False)],
)
def test_a_password_is_asked_for_on_a_terminal(
    bus: object,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    terminal: bool,
    options: list[str],
    asked: bool,
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal)
    flags: list[bool] = []

    def setup(fake: Daemon) -> None:
        async def authorize(call: object) -> None:
            flags.append(call.interactive)  # type: ignore[attr-defined]

        fake.exporter._authorize = authorize
        fake.answers["Reload"] = ()

    assert against(bus, setup, *options, "reload")[0] == 0  # type: ignore[arg-type]
    assert flags == [asked]
    assert program.with_name("log").exists() == asked
    # Before the verb and behind it.
    assert parser().parse_args(["reload", *options]).no_ask_password == bool(options)
