"""The process that holds NVML: `python -I -m migd.nvml.worker LOCK SOCKET`, by descriptors.

An open NVML session blocks a reset and pins the kernel module, and a call that hangs in the
driver cannot be cancelled: so there is a process for it, which ends when its socket does.
"""

import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import BinaryIO

from migd.nvml.calls import CallFailed, Stale
from migd.nvml.changing import perform
from migd.nvml.privileges import give_up
from migd.nvml.protocol import Answer, Failure, Op, Request, answer_line
from migd.nvml.reading import Reader, count_gpus, initialize

_STALE = -1
_NO_SENSE = -2


class Worker:
    """Answers requests: those for one GPU in order on its own thread, GPUs side by side."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._sending = threading.Lock()
        self._reader = Reader()
        self._initializing = threading.Lock()
        self._initialized = False
        self._lanes: dict[int, queue.SimpleQueue[Request]] = {}

    def take(self, request: Request) -> None:
        lane = -1 if request.op is Op.OPEN else request.index
        if lane not in self._lanes:
            self._lanes[lane] = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(self._lanes[lane],), daemon=True).start()
        self._lanes[lane].put(request)

    def _serve(self, requests: "queue.SimpleQueue[Request]") -> None:
        while True:
            request = requests.get()
            line = answer_line(request.id, self._answer(request))
            with self._sending:
                self._send(line)

    def _answer(self, request: Request) -> Answer:
        try:
            self._initialize()
            if request.op is Op.OPEN:
                return count_gpus()
            if request.op is Op.SNAPSHOT:
                return self._reader.snapshot(request.index)
            if request.step is None:
                raise Stale("no step was named")
            return perform(self._reader, request.index, request.uuid, request.step, request.retry_s)
        except CallFailed as error:
            return error.failure
        except Stale as error:
            return Failure("", _STALE, "STALE", str(error))
        except Exception:  # noqa: BLE001 - a thread that ends never answers
            # What the driver says can be anything, also what no code of ours can work with.
            traceback.print_exc()
            text = "the driver's answers make no sense to migd; the log has the details"
            return Failure("", _NO_SENSE, "NO_SENSE", text)

    def _initialize(self) -> None:
        with self._initializing:
            if not self._initialized:
                initialize()
                self._initialized = True


def serve(stream: BinaryIO, send: Callable[[bytes], None]) -> None:
    """Take requests until the daemon closes its end or dies."""
    worker = Worker(send)
    for line in stream:
        worker.take(Request.parse(line))


def _end(args: threading.ExceptHookArgs) -> None:
    """A thread that dies of a bug would leave its GPU without an answer: say so, and end."""
    threading.__excepthook__(args)
    os._exit(1)


def main() -> None:
    # Ctrl-C at a daemon's terminal reaches the whole process group; the daemon decides for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    give_up()
    threading.excepthook = _end
    # What the library starts, such as nvidia-modprobe, inherits neither.
    for descriptor in map(int, sys.argv[1:3]):
        os.set_inheritable(descriptor, False)  # noqa: FBT003
    end = socket.socket(fileno=int(sys.argv[2]))
    try:
        serve(end.makefile("rb"), end.sendall)
    finally:
        # Not sys.exit: a thread that hangs in the driver would be waited for.
        os._exit(0)


if __name__ == "__main__":
    main()
