"""How each failure ends, and what a person is told: without a traceback, ever."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from migd.cli.outcome import Exit, refused
from tests.support.bus import PrivateBus
from tests.support.bus import run as run_loop
from tests.unit.cli.fake import Daemon, against, daemon, error, migctl, never, standard_error
from tests.unit.cli.nodes import job

Captured = pytest.CaptureFixture[str]

READING = [["status"], ["list"], ["show"], ["export"], ["jobs"], ["plan", "x"], ["assert", "x"]]
CHANGING = [["apply", "x"], ["cancel"], ["reload"]]


@pytest.mark.parametrize("arguments", READING + CHANGING)
def test_without_a_bus(
    arguments: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    assert run_loop(migctl(*arguments)) == Exit.NO_DAEMON
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("migctl: cannot connect to")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", READING + CHANGING)
@pytest.mark.usefixtures("bus")
def test_without_a_daemon(arguments: list[str], capsys: Captured) -> None:
    assert run_loop(migctl(*arguments)) == Exit.NO_DAEMON
    assert capsys.readouterr().err == (
        "migctl: the daemon is not running; start it with: systemctl start migd.service\n"
    )


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (standard_error("AccessDenied"), Exit.NOT_ALLOWED),
        (standard_error("InteractiveAuthorizationRequired"), Exit.NOT_ALLOWED),
        (standard_error("InvalidArgs"), Exit.WRONG_USE),
        (error("NoDriver"), Exit.UNKNOWN),
        (error("Hung"), Exit.UNKNOWN),
        (error("Busy"), Exit.FAILED),
        (error("InUse"), Exit.FAILED),
        (error("NoSuchConfig"), Exit.FAILED),
        (error("Changed"), Exit.FAILED),
        (error("Failed"), Exit.FAILED),
        (error("OfALaterVersion"), Exit.FAILED),
    ],
)
@pytest.mark.parametrize("verb", ["Plan", "Apply", "Assert"])
def test_a_refusal_is_told_as_it_is(
    bus: PrivateBus, capsys: Captured, verb: str, refusal: Any, code: Exit
) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers[verb] = refusal

    assert against(bus, setup, verb.lower(), "x")[0] == code
    assert capsys.readouterr() == ("", "migctl: do something else\n")


@pytest.mark.parametrize(
    "name",
    [
        "DBus.Error.Spawn.ExecFailed",
        "DBus.Error.NameHasNoOwner",
        "DBus.Error.ServiceUnknown",
        "systemd1.UnitMasked",
    ],
)
def test_what_the_bus_says_of_a_daemon_that_is_not_there(name: str) -> None:
    assert refused(f"org.freedesktop.{name}", "").exit_code == Exit.NO_DAEMON


def test_a_refusal_as_json_has_its_name(bus: PrivateBus, capsys: Captured) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers["Apply"] = error("Busy", "job 3 is at work")

    assert against(bus, setup, "apply", "x", "--json")[0] == Exit.FAILED
    assert json.loads(capsys.readouterr().out) == {
        "error": "org.migd1.Error.Busy",
        "message": "job 3 is at work",
    }


@pytest.mark.parametrize(
    ("member", "arguments"),
    [
        ("Export", ["status"]),
        ("Plan", ["plan", "x"]),
        ("Apply", ["apply", "x"]),
        ("Reload", ["reload"]),
    ],
)
def test_no_call_is_waited_for_without_an_end(
    bus: PrivateBus, capsys: Captured, member: str, arguments: list[str]
) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers[member] = never

    assert against(bus, setup, *arguments, "--timeout", "0.5")[0] == Exit.UNKNOWN
    captured = capsys.readouterr()
    told = f"the daemon did not answer {member} within 0.5 s"
    assert told in captured.out + captured.err


def test_a_daemon_that_dies_before_it_answers(bus: PrivateBus, capsys: Captured) -> None:
    async def main() -> int:
        async with daemon(bus.address) as fake:

            async def die(*_: Any) -> Any:
                fake.connection.close()
                return await never()

            fake.answers["Plan"] = die
            return await migctl("plan", "x")

    assert run_loop(main()) == Exit.UNKNOWN
    assert capsys.readouterr().err == "migctl: the daemon ended before it answered\n"


def test_a_bus_that_goes_away(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    with PrivateBus() as private:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", private.address)

        async def main() -> int:
            async with daemon(private.address) as fake:

                async def die(*_: Any) -> Any:
                    private.kill()
                    return await never()

                fake.answers["Plan"] = die
                return await migctl("plan", "x")

        assert run_loop(main()) == Exit.UNKNOWN
    assert capsys.readouterr().err.startswith("migctl: lost the system bus")


def start(
    bus: PrivateBus, arguments: Sequence[str], stdout: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "migd.cli.main", *arguments],
        env=os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": bus.address},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


async def outcome(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = await asyncio.to_thread(process.communicate)
    return process.returncode, out, err


def test_ctrl_c_leaves_the_job_alone(bus: PrivateBus) -> None:
    async def main() -> tuple[tuple[int, bytes, bytes], list[str]]:
        async with daemon(bus.address) as fake:
            fake.show(job())
            fake.answers |= {"Apply": (7, "/org/migd1/job/7"), "WaitJob": never}
            process = start(bus, ["apply", "x"])
            await fake.called("WaitJob")
            process.send_signal(signal.SIGINT)
            return await outcome(process), fake.members()

    (code, _, err), asked = run_loop(main())
    assert code == Exit.DETACHED
    assert err == b"migctl: job 7 goes on; to end it: migctl cancel 7\n"
    assert asked == ["Apply", "WaitJob"]


def test_a_reader_that_has_seen_enough(bus: PrivateBus) -> None:
    async def main() -> tuple[int, bytes, bytes]:
        async with daemon(bus.address) as fake:
            fake.answers["Export"] = ("x: 1\n" * 100_000,)
            reading, writing = os.pipe()
            process = start(bus, ["export"], stdout=writing)
            os.close(reading)
            os.close(writing)
            return await outcome(process)

    code, _, err = run_loop(main())
    assert (code, err) == (Exit.FAILED, b"")


def test_output_that_cannot_hold_a_character_shows_it_anyway(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")

    async def main() -> tuple[int, bytes, bytes]:
        async with daemon(bus.address) as fake:
            fake.answers["GetConfig"] = ("# grün\n",)
            return await outcome(start(bus, ["show"]))

    assert run_loop(main()) == (Exit.DONE, b"# gr\\xfcn\n", b"")
