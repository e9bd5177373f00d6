"""A signal to one process and to no other, whoever has its pid by then."""

import asyncio
import errno
import os
import signal
from types import TracebackType
from typing import Self

from migd.core.holders import Holder
from migd.host.processes import stat


class Target:
    """A process by its pidfd, which belongs to it even after its pid belongs to another.

    For one event loop; to be closed.
    """

    def __init__(self, holder: Holder) -> None:
        """Raises ProcessLookupError if it is gone, and OSError if it cannot be signaled."""
        self._gone = False
        try:
            self._fd = os.pidfd_open(holder.pid)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                reason = "the kernel has no pidfd_open, which came with Linux 5.3"
                raise OSError(errno.ENOSYS, reason) from None
            raise
        try:
            # If the process with this pid is the described one now, it was when the pidfd was made.
            now = stat(holder.pid)
            if not holder.started or now is None or now.started != holder.started:
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            # Whether it may be signaled is better known before than when it is half done.
            signal.pidfd_send_signal(self._fd, 0)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, number: int) -> None:
        """Signal it; nothing happens if it is gone. Raises PermissionError."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            self._gone = True

    async def gone(self, limit_s: float) -> bool:
        """Wait until it has ended, `limit_s` seconds at the most; one may wait at a time."""
        if self._gone:
            return True
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._fd, ended.set)
        try:
            async with asyncio.timeout(limit_s):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._fd)
        self._gone = True
        return True

    def close(self) -> None:
        """More than once does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
