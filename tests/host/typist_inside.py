"""Runs in a test host, as a user: runs a command on a terminal, and types there.

usage: typist_inside.py WORDS COMMAND...

WORDS: what is typed where a password is asked for, each time; "^C" for Ctrl-C; "-" for nothing.
Prints what was to be seen, and ends as the command does.
"""

import os
import pty
import select
import sys
import termios
import time

_LIMIT_S = 60.0
_ECHO_LIMIT_S = 5.0
_ASKED = b"assword:"


def main(words: str, command: list[str]) -> int:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    typed, seen, end = 0, b"", time.monotonic() + _LIMIT_S
    while time.monotonic() < end:
        readable, _, _ = select.select([terminal], [], [], 1)
        if not readable:
            continue
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break  # nobody has it open any more
        seen += data
        sys.stdout.write(data.decode(errors="replace"))
        sys.stdout.flush()
        if seen.count(_ASKED) > typed:
            typed += 1
            if words != "-":
                silent(terminal)
                os.write(terminal, b"\x03" if words == "^C" else words.encode() + b"\n")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def silent(terminal: int) -> None:
    """Wait until what is typed is not shown; what comes before that is thrown away."""
    end = time.monotonic() + _ECHO_LIMIT_S
    while termios.tcgetattr(terminal)[3] & termios.ECHO and time.monotonic() < end:
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
