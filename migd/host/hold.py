"""The program of the hold: runs as long as units must not start, and always ends well by itself.

A unit of systemd runs it (see holding.py), as a file: it must not import anything of migd. It
reads a FIFO that the daemon keeps open for writing, and ends with exit code 0

* when told to: a byte "r", or SIGTERM;
* when nobody has had the FIFO open for writing for the grace: a killed daemon's successor has that
  long to take over. If none does, nobody else will start what was stopped, so it has systemd do it;
* when something it does not understand happens: what is held is better started than lost.

All other bytes are only taken out of the FIFO, which tells the writer that somebody reads it.
"""

import os
import select
import signal
import sys

RELEASE = b"r"
HELLO = b"h"


def main() -> int:
    # Its path, and seconds. A job waits for this to begin, half of which argparse would take.
    _, fifo, grace, *units = sys.argv
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        released = wait(fifo, float(grace))
    except OSError as error:
        print(f"the hold ends: {error}", file=sys.stderr)
        released = False
    if not released:
        print("the daemon did not come back; starting what it stopped", file=sys.stderr)
        try:
            start(units)
        except OSError as error:
            print(f"it cannot be started: {error}", file=sys.stderr)
    return 0


def start(units: list[str]) -> None:
    """Have these units started, one after the other, once this one has ended. Raises OSError."""
    # A start that lasts does not keep the others down.
    each = 'for unit do timeout 120 systemctl start -- "$unit"; done'
    command = [
        "systemd-run", "--no-block", "--collect", "--quiet", "--description=clients of migd",
        "/bin/sh", "-c", each, "sh", *units,
    ]  # fmt: skip
    pid = os.posix_spawnp(command[0], command, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    os.waitpid(pid, 0)


def wait(fifo: str, grace_s: float) -> bool:
    """Return when the hold is over: True if somebody said so, False if nobody is there to.

    Raises OSError, which means that it is over, too.
    """
    reader = _open(fifo)
    writer = False
    try:
        while True:
            events = _poll(reader, None if writer else grace_s)
            if events == select.POLLHUP:
                # The last writer has gone, which poll() would say of this descriptor for ever. The
                # next one is opened first, so that a new writer always finds a reader.
                reader, old = _open(fifo), reader
                os.close(old)
                writer = False
                continue
            try:
                data = os.read(reader, 4096)
            except BlockingIOError:
                writer = True
                continue
            if not data:
                return False
            if RELEASE in data:
                return True
            writer = True
    finally:
        os.close(reader)


def _open(fifo: str) -> int:
    return os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _poll(reader: int, limit_s: float | None) -> int:
    """Wait for bytes, or for the end of the last writer; 0 when neither comes in time."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    found = poll.poll(None if limit_s is None else limit_s * 1000)
    return found[0][1] if found else 0


if __name__ == "__main__":
    sys.exit(main())
