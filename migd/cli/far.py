"""The system bus of another host: systemd-stdio-bridge there, at the end of an ssh.

It is how `systemctl -H` and `busctl -H` do it. ssh asks for its passwords and host keys on the
terminal by itself. Nobody is asked for an administrator's password: the agent of polkit would have
to be over there.
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator

from migd.cli.outcome import Exit, Failure

PROGRAM = "ssh"
_BRIDGE = "systemd-stdio-bridge"
# [USER@]HOST as ssh takes it, also as ssh://[USER@]HOST[:PORT]. Nothing that a shell, or what an
# ssh_config makes of %h, could take for more, and nothing that ssh takes for an option.
_HOST = re.compile(r"[A-Za-z0-9\[:][A-Za-z0-9@%:\[\]/._+-]*")

# A host that is silent so long is gone: what waits for it must end.
_ALIVE_S, _ALIVE_TIMES = 15, 3
_END_S = 5.0
_WORDS_S = 1.0
# Of its words the last count.
_LONGEST = 4096


class Far:
    """`socket`: our end of the connection to the bus of that host."""

    def __init__(self, host: str, ours: socket.socket, process: asyncio.subprocess.Process) -> None:
        self.host = host
        self.socket = ours
        self._process = process
        self._words = b""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr
        while piece := await self._process.stderr.read(_LONGEST):
            self._words = (self._words + piece)[-_LONGEST:]

    async def why(self, error: str) -> str:
        """Why the connection has failed: what ssh says, and else the error."""
        with contextlib.suppress(TimeoutError):
            # It ends with its connection, and has said why by then.
            async with asyncio.timeout(_WORDS_S):
                await asyncio.shield(self._reading)
                await self._process.wait()
        told = self._words.decode(errors="replace").strip()
        code = self._process.returncode
        return told or (error if code is None else f"{PROGRAM} ended with {code}: {error}")

    async def end(self) -> None:
        """All calls are answered by now, so that nothing is lost."""
        self.socket.close()
        try:
            async with asyncio.timeout(_END_S):
                self._signal(signal.SIGTERM)
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        # A master that ssh leaves behind has our pipe open.
        self._reading.cancel()
        await asyncio.wait([self._reading])

    def _signal(self, number: signal.Signals) -> None:
        # Its own methods wait for it, which asyncio on Python 3.11 does in a thread: one of the two
        # then finds no such child, and says so on our stderr.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


@contextlib.asynccontextmanager
async def far(host: str, *, interactive: bool) -> AsyncIterator[Far]:
    """A connection to the bus of [USER@]HOST, not used yet; whether there is one, only use tells.

    interactive: ssh may ask for a password, or whether a host is known
    """
    if not _HOST.fullmatch(host):
        raise Failure(Exit.WRONG_USE, f"{host} is not a host: say [USER@]HOST")
    command = [PROGRAM, "-xT", "-o", f"ServerAliveInterval={_ALIVE_S}"]
    command += ["-o", f"ServerAliveCountMax={_ALIVE_TIMES}"]
    command += [] if interactive else ["-o", "BatchMode=yes"]
    ours, theirs = socket.socketpair()
    try:
        process = await asyncio.create_subprocess_exec(
            *command, "--", host, _BRIDGE,
            stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        ours.close()
        raise Failure(Exit.NO_DAEMON, f"cannot run {PROGRAM}: {error.strerror}") from error
    finally:
        theirs.close()
    connected = Far(host, ours, process)
    try:
        yield connected
    finally:
        await connected.end()
