"""The log: records with fields and message ids to systemd's journal, lines to stderr elsewhere.

In code: log.info("job %d: ...", job, extra=fields(Event.JOB_ENDED, job=job)). The names of the
fields and the ids are an interface: who looks for an id must find it in later versions, too.
"""

import contextlib
import logging
import os
import socket
import sys
from enum import StrEnum

from migd.printable import printable, sentences

_SOCKET = "/run/systemd/journal/socket"
_FIELDS = "journal_fields"
# syslog(3)
_LONGEST = 30_000
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


class Event(StrEnum):
    """Message ids (sd-id128(3)) of what an administrator may want to find."""

    JOB_STARTED = "7f30fa69523a4518b37d3ffb8e73c250"
    JOB_ENDED = "74f3c4cbcb4946fb87c14bbf4e6f0619"
    PUT_BACK = "6efa7e3a6c5847a492aafa4030d4066f"
    NOT_PUT_BACK = "40d94e50c6d24b809607c34d683b68fa"
    CONFLICT = "00b4fa0b7c6c411ab7ac04a3176d478e"
    REBOOT = "0a7494333deb484db2f60cfbf46046c9"
    DRIFT = "2cf7512fd93140eba3aff6f4a346051a"
    DRIFT_OVER = "6a7c4039bca6444b9c785b7de9662f18"
    REQUEST = "2b761fab54d14a05bd03d7b18907ed52"
    REFUSED = "4b7890f81cfc445eac43574a5cfd99fd"


def fields(event: Event, **more: object) -> dict[str, dict[str, str]]:
    """The `extra` of a record: its message id, and fields MIGD_JOB for job= and so on.

    text=, a configuration, is the only one that may be many lines.
    """
    told = {
        f"MIGD_{name.upper()}": sentences(str(value)) if name == "text" else printable(str(value))
        for name, value in more.items()
    }
    return {_FIELDS: {"MESSAGE_ID": event.value, **told}}


def start() -> None:
    """Log from now on, from this process; INFO and above."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if _stderr_is_the_journal():
        with contextlib.suppress(OSError):
            handler = JournalHandler(_SOCKET)
    handler.setFormatter(Plainly())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class Plainly(logging.Formatter):
    """The message, with the traceback of a bug: no longer than a record may be, and harmless."""

    def format(self, record: logging.LogRecord) -> str:
        return sentences(super().format(record), _LONGEST, indent="  ")


class JournalHandler(logging.Handler):
    """Speaks systemd's native protocol, which has fields; what cannot be sent is a line."""

    def __init__(self, path: str) -> None:
        """path: of journald's socket. Raises OSError where nobody listens."""
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(path)
            # A journal that does not read must not stop us.
            self._socket.setblocking(False)  # noqa: FBT003
        except OSError:
            self._socket.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        try:
            self._socket.send(_datagram(text, record))
        except OSError:
            sys.stderr.write(text + "\n")

    def close(self) -> None:
        self._socket.close()
        super().close()


def _datagram(text: str, record: logging.LogRecord) -> bytes:
    values = {
        "MESSAGE": text,
        "PRIORITY": str(next(number for level, number in _PRIORITIES if record.levelno >= level)),
        "SYSLOG_IDENTIFIER": "migd",
        "CODE_FUNC": record.funcName or "",
        "MIGD_TOPIC": record.name,
        **getattr(record, _FIELDS, {}),
    }
    return b"".join(_field(name, value.encode(errors="replace")) for name, value in values.items())


def _field(name: str, value: bytes) -> bytes:
    """https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: with its length where a line would not do."""
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


def _stderr_is_the_journal() -> bool:
    """Whether systemd has connected stderr with it: systemd.exec(5), $JOURNAL_STREAM."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
