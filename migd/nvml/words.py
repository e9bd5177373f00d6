"""What a worker writes to its error output: into the log, so much and no more."""

import asyncio
import logging
import os

log = logging.getLogger(__name__)

# A traceback, and some more.
_MOST_BYTES = 16 << 10
_LINE = 1000


class Words:
    """Logs what comes out of a pipe, line by line, and closes it once that is enough."""

    def __init__(self, pipe: int, pid: int) -> None:
        """pipe: the end to be read, ours to close; pid: of the worker."""
        self._pipe = pipe
        self._pid = pid
        self._rest = b""
        self._left = _MOST_BYTES
        os.set_blocking(pipe, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pipe, self._read)

    def close(self) -> None:
        """Log what is there yet; for when the worker is gone."""
        while self._pipe >= 0 and self._read():
            pass
        self._end()

    def _read(self) -> bool:
        """Whether there was something."""
        try:
            data = os.read(self._pipe, min(4096, self._left))
        except BlockingIOError:
            return False
        self._left -= len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._log(line)
        if not data or not self._left or len(self._rest) > _LINE:
            self._end()
        return bool(data)

    def _end(self) -> None:
        if self._pipe < 0:
            return
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)
        self._pipe = -1
        self._log(self._rest[:_LINE])

    def _log(self, line: bytes) -> None:
        if line.strip():
            log.warning("NVML worker %d: %s", self._pid, line.decode(errors="replace"))
