"""Text of others in a sentence, in the log, and in what systemd is told."""

import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migd.bus.values import clean
from migd.host.log import Event, JournalHandler, Plainly, fields
from migd.host.notify import Notifier
from migd.printable import MOST, MOST_OF_ALL, printable, sentences

HOSTILE = [
    "\x1b]0;owned\x07",
    "a\rb",
    "\x9b2J",
    "\u202eevil",
    "\u2066x\u2069",
    "\udcff",
    "\0",
    "a\x85b\u2028c",
]
# Control characters of both sets, marks of direction, ends of lines, halves of pairs.
STEERS = re.compile(
    "[\0-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_steers_is_left(text: str) -> None:
    assert printable(text).isprintable()
    assert not STEERS.search(sentences(f"{text}\n{text}"))
    assert not STEERS.search(clean(text))


@given(st.text(), st.integers(10, 50))
def test_any_text(text: str, most: int) -> None:
    shown = printable(text, most)
    assert shown.isprintable()
    assert len(shown) <= most
    lines = sentences(text, most, indent="  ")
    assert len(lines) <= most
    assert all(line.isprintable() for line in lines.split("\n"))
    assert all(line.startswith("  ") for line in lines.split("\n")[1:] if lines[-3:] != "...")


def test_what_is_harmless_stays() -> None:
    assert printable("grün \U0001f600 /usr/bin/x --y=1") == "grün \U0001f600 /usr/bin/x --y=1"
    assert sentences("one\ntwo\n") == "one\ntwo"
    assert sentences("one\ntwo\n", indent="  ") == "one\n  two"


def test_lengths() -> None:
    assert printable("x" * MOST) == "x" * MOST
    assert printable("x" * (MOST + 1)) == "x" * (MOST - 3) + "..."
    assert len(printable("\x1b" * (1 << 20))) == MOST
    assert len(sentences("\x1b\n" * (1 << 20))) == MOST_OF_ALL


# -- the log -----------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "journal"))
        end.settimeout(10)
        yield end


def told(journal: socket.socket, text: str, **more: str) -> dict[str, str]:
    """The fields of the record, as journald takes the datagram apart."""
    handler = JournalHandler(journal.getsockname())
    handler.setFormatter(Plainly())
    record = logging.LogRecord("migd.x", logging.WARNING, "x.py", 1, "%s", (text,), None)
    vars(record).update(fields(Event.DRIFT, **more))
    handler.emit(record)
    handler.close()
    data, found = journal.recv(1 << 20), {}
    while data:
        line, _, data = data.partition(b"\n")
        name, same, value = line.partition(b"=")
        if not same:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[9 + size :]
        found[name.decode()] = value.decode()
    return found


def test_a_record_of_the_journal_has_its_fields_and_no_other(journal: socket.socket) -> None:
    attack = "it\nPRIORITY=0\n_PID=1\n\x1b]0;owned\x07"
    found = told(journal, attack, gpu=f"GPU\nMESSAGE=all is well\n{'x' * 10000}")
    assert found.keys() == {
        *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "CODE_FUNC", "MIGD_TOPIC"),
        *("MESSAGE_ID", "MIGD_GPU"),
    }
    assert found["MESSAGE"] == "it\n  PRIORITY=0\n  _PID=1\n  \\x1b]0;owned\\x07"
    assert found["PRIORITY"] == "4"
    assert found["MIGD_GPU"].startswith("GPU\\nMESSAGE=all is well\\n")
    assert len(found["MIGD_GPU"]) == MOST


def test_a_record_is_never_too_long_for_the_journal(
    journal: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(journal, "\x1b" * (4 << 20))
    assert 10_000 < len(found["MESSAGE"]) < 100_000
    assert capsys.readouterr().err == ""


def test_systemd_is_told_a_status_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notifier = Notifier()
        notifier.status("GPU 0\nMAINPID=1\r\nREADY=1")
        notifier._systemd.socket.close()
        assert end.recv(1 << 16) == b"STATUS=GPU 0; MAINPID=1; READY=1"
