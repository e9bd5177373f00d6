"""One worker process as the daemon sees it: requests in, answers out, and its end.

It is not believed: what is no answer, none that makes sense, or none to what was asked, ends it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys

from migd.core.steps import Step
from migd.nvml.protocol import LINE_LIMIT, Answer, Op, Request, parse_answer
from migd.nvml.sane import checked
from migd.nvml.words import Words
from migd.printable import printable

# What the worker may see of the daemon's environment: where the library is, nothing else.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "NVIDIA_SIMULATOR_STATE")
_END_LIMIT_S = 2.0
# How long what it said last is waited for when it is gone: whoever has its end of the socket then,
# such as a child that it left, does not belong there.
_LAST_S = 0.5
# Isolated; and where we do not write compiled modules into our own folder, it does not either.
_FLAGS = "-IB" if sys.flags.dont_write_bytecode else "-I"


class WorkerGone(Exception):
    """The worker ended before it answered; what the call did, if anything, is not known.

    The text is why it was ended, "" if it ended by itself.
    """


class WorkerProcess:
    """A running worker; made by `start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        words: Words,
    ) -> None:
        self._process = process
        self._writer = writer
        self._words = words
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        # Asked by somebody who has given up by now: their answers may still come, once each.
        self._late: set[int] = set()
        self._drained = asyncio.Event()
        self._last = 0
        self._why = ""
        self._reading = asyncio.create_task(self._read(reader))
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, inherit: int) -> "WorkerProcess":
        """Start one. inherit: a descriptor that it keeps open as long as it lives."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            our_end, their_end = socket.socketpair()
            ours.callback(our_end.close)
            theirs.callback(their_end.close)
            words, errors = os.pipe()
            ours.callback(os.close, words)
            theirs.callback(os.close, errors)
            process = await asyncio.create_subprocess_exec(
                sys.executable, _FLAGS, "-m", "migd.nvml.worker",
                str(inherit), str(their_end.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[their_end.fileno(), inherit],
                env={n: v for n in _ENVIRONMENT if (v := os.environ.get(n)) is not None},
                cwd="/",
                # What it starts ends with it. A group in our session would, once we have died,
                # be told to hang up if it is stopped.
                start_new_session=True,
            )  # fmt: skip
            ours.pop_all()
        reader, writer = await asyncio.open_connection(sock=our_end, limit=LINE_LIMIT)
        return cls(process, reader, writer, Words(words, process.pid))

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
            raise WorkerGone(self._why)
        future = self._waiting[request.id] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(request.line())
            answer: Answer = await future
            return answer
        finally:
            if self._waiting.pop(request.id, None) and future.cancelled():
                self._late.add(request.id)
            self._drained.set()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(*parse_answer(line))
        except (ValueError, RecursionError) as error:
            self.refuse(str(error))
        except OSError:
            pass  # it is gone
        finally:
            self._writer.close()
            # Also where it has only closed its end: nothing can be asked of it any more.
            self.kill()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(WorkerGone(self._why))

    def _take(self, number: int, answer: Answer) -> None:
        """Raises ValueError for an answer to nothing that was asked, or that makes no sense."""
        future = self._waiting.get(number)
        if future and not future.done():
            future.set_result(checked(answer))
        elif number in self._late:
            self._late.discard(number)
        elif not future or not future.cancelled():
            raise ValueError(f"an answer to request {printable(f'{number:x}', 40)} (hex)")

    async def _watch(self) -> None:
        """Close what belongs to it when it is gone, whoever else may have the other ends."""
        await self._process.wait()
        await asyncio.wait([self._reading], timeout=_LAST_S)
        self._writer.close()
        await self._reading
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._words.close()

    def refuse(self, why: str) -> None:
        """End it, for what it has said."""
        self._why = self._why or f"what it answered makes no sense: {printable(why)}"
        self.kill()

    def kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def end(self) -> bool:
        """Let it go. Returns whether it is gone: one that hangs in the driver cannot be ended."""
        self._writer.close()
        return await self.gone(2 * _END_LIMIT_S)

    async def gone(self, limit_s: float | None) -> bool:
        """Wait until the process has ended, `limit_s` seconds at the most."""
        done, _ = await asyncio.wait([self._watching], timeout=limit_s)
        return bool(done)
