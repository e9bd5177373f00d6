"""One worker process as the daemon sees it: requests in, answers out, and its end."""

import asyncio
import contextlib
import os
import signal
import socket
import sys

from migd.core.steps import Step
from migd.nvml.protocol import LINE_LIMIT, Answer, Op, Request, parse_answer

# What the worker may see of the daemon's environment: where the library is, nothing else.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "NVIDIA_SIMULATOR_STATE")
_END_LIMIT_S = 2.0
# Isolated; and where we do not write compiled modules into our own folder, it does not either.
_FLAGS = "-IB" if sys.flags.dont_write_bytecode else "-I"


class WorkerGone(Exception):
    """The worker ended before it answered; what the call did, if anything, is not known."""


class WorkerProcess:
    """A running worker; made by `start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._drained = asyncio.Event()
        self._last = 0
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def start(cls, inherit: int) -> "WorkerProcess":
        """Start one. inherit: a descriptor that it keeps open as long as it lives."""
        ours, theirs = socket.socketpair()
        with contextlib.closing(theirs), contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            process = await asyncio.create_subprocess_exec(
                sys.executable, _FLAGS, "-m", "migd.nvml.worker", str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), inherit],
                env={n: v for n in _ENVIRONMENT if (v := os.environ.get(n)) is not None},
                cwd="/",
            )  # fmt: skip
            undo.pop_all()
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and not self._reading.done()

    async def drained(self) -> None:
        """Wait until no request is waited for any more."""
        while self._waiting:
            self._drained.clear()
            await self._drained.wait()

    async def ask(
        self, op: Op, *, index: int = 0, uuid: str = "", step: Step | None = None, retry_s: int = 0
    ) -> Answer:
        """Raises WorkerGone. Has no limit of its own: the caller bounds the wait."""
        self._last += 1
        request = Request(self._last, op, index, uuid, step, retry_s)
        if not self.alive:
            raise WorkerGone
        future = self._waiting[request.id] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(request.line())
            answer: Answer = await future
            return answer
        finally:
            self._waiting.pop(request.id, None)
            self._drained.set()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                number, answer = parse_answer(line)
                if (future := self._waiting.get(number)) and not future.done():
                    future.set_result(answer)
        except (ValueError, RecursionError, OSError):
            # Not an answer, or none: a worker that talks nonsense is as good as dead.
            self.kill()
        finally:
            self._writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(WorkerGone())

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    async def end(self) -> bool:
        """Let it go. Returns whether it is gone: one that hangs in the driver cannot be ended."""
        self._writer.close()
        gone = await self.gone(_END_LIMIT_S)
        if not gone:
            self.kill()
            gone = await self.gone(_END_LIMIT_S)
        return gone

    async def gone(self, limit_s: float | None) -> bool:
        """Wait until the process has ended, `limit_s` seconds at the most."""
        try:
            async with asyncio.timeout(limit_s):
                await self._process.wait()
        except TimeoutError:
            return False
        await self._reading
        return True
