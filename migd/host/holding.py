"""The hold: what keeps stopped units down, however they would come back, while a job runs.

One transient unit, ordered before exactly these units, whose start job lasts as long as the hold:
systemd queues every start of theirs behind it, be it by Restart=, Upholds=, a timer, a socket, the
bus, or by hand, and does what is queued when the hold ends. Nothing is written, no files are read
again, and sockets and timers stay as they are. Tried on systemd 252 and 257: it also holds units
that are not loaded yet or whose files come later, from whatever folder, and it survives
daemon-reload and daemon-reexec. (Masking does not hold units in /etc, a drop-in with a condition
breaks their sockets: host.md.)

Its program (hold.py) ends by itself when no daemon has taken it over for the grace, and has systemd
start the units then: clients never stay stopped because migd is gone for good.
"""

import array
import asyncio
import contextlib
import fcntl
import logging
import os
import select
import stat
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

from migd.errors import ClientStuck, MigdError
from migd.host import hold
from migd.host.bus import Refused
from migd.host.manager import Job, Manager
from migd.host.programs import SHUT, Setting, common, microseconds

log = logging.getLogger(__name__)

UNIT = "migd-hold.service"
_PROGRAM = str(Path(hold.__file__).resolve())
_FOREVER = 2**64 - 1
_LOOK_S = 0.01
# How long the program may take to begin and to read a byte, and the unit to end.
_BEGIN_S = 20.0
_READ_S = 5.0
_END_S = 5.0
_STOP_S = 2.0


class Hold:
    """There is at most one on a host. It needs a folder that outlives a restart of the daemon."""

    def __init__(self, manager: Manager, runtime_dir: Path, *, grace_s: float = 60.0) -> None:
        """grace_s: how long a hold stays in force without a daemon, in seconds."""
        self._manager = manager
        self._fifo = runtime_dir.resolve() / "hold"
        self._grace_s = grace_s
        self._writer: int | None = None

    async def take(self, units: Sequence[str]) -> None:
        """Keep these units from being started until release(); those that run are not touched.

        units: in the order in which they will be stopped

        A hold that is there already is released first. Returns when it is in force. Raises
        ClientStuck if it cannot be, and NoSystemd.
        """
        await self.release()
        try:
            os.mkfifo(self._fifo, 0o600)
        except OSError as error:
            raise ClientStuck(f"{self._fifo} cannot be made: {error.strerror}") from error
        command = [sys.executable, "-IS", _PROGRAM, str(self._fifo), f"{self._grace_s:g}"]
        # The last that was stopped is the first to come back, if nobody else sees to that.
        command += reversed(units)
        settings = [
            *common(f"migd keeps {', '.join(units)} down", command),
            ("DefaultDependencies", ("b", False)),
            # From now on their starts wait for the end of this unit's start.
            ("Before", ("as", [*units, "shutdown.target"])),
            # What is queued is dropped when the system stops, and this must not delay it.
            ("Conflicts", ("as", ["shutdown.target"])),
            ("TimeoutStartUSec", ("t", _FOREVER)),
            ("TimeoutStopUSec", ("t", microseconds(_STOP_S))),
            *SHUT,
            # It reads a FIFO, and speaks to systemd if nobody else will. No mount namespace: that
            # would take longer than all else until it begins.
            ("CapabilityBoundingSet", ("t", 0)),
            ("MemoryDenyWriteExecute", ("b", True)),
            ("RestrictAddressFamilies", ("(bas)", [True, ["AF_UNIX"]])),
            ("SystemCallFilter", ("(bas)", [True, ["@system-service"]])),
            ("OOMScoreAdjust", ("i", -900)),
        ]
        try:
            await self._begin(settings)
        except BaseException:
            # Also where systemd did not answer in time: it may have done it.
            with contextlib.suppress(MigdError):
                await self.release()
            raise

    async def adopt(self) -> bool:
        """Take over the hold of a daemon that was killed; False if there is none to be kept.

        Raises NoSystemd.
        """
        if self._writer is None and not (self._open() and await self._greet()):
            self._close()
            return False
        return bool(await self.units())

    async def release(self) -> None:
        """Let the units start; returns when the hold is gone. There may have been none.

        Raises ClientStuck if it does not end, and NoSystemd; its FIFO stays then, so that it ends
        by itself a grace after us, and starts the units.
        """
        job = await self._manager.job_of(UNIT)
        if job:
            told = self._write(hold.RELEASE)
            if not told or await self._manager.wait(job, _END_S) is None:
                self._manager.forget(job)
                await self._stop()
        self._close()
        try:
            self._fifo.unlink(missing_ok=True)
        except OSError as error:
            raise ClientStuck(f"{self._fifo} cannot be removed: {error.strerror}") from error
        await self._gone()

    async def units(self) -> tuple[str, ...]:
        """What is held now, by whatever daemon. Raises NoSystemd."""
        try:
            (path,) = await self._manager.call("GetUnit", "s", [UNIT])
            seen = await self._manager.properties(path, "Unit")
        except Refused:
            return ()
        if seen["ActiveState"] != "activating":
            return ()
        return tuple(n for n in seen["Before"] if n != "shutdown.target")

    # -- its unit ------------------------------------------------------------------------

    async def _begin(self, settings: Sequence[Setting]) -> None:
        try:
            job = await self._manager.enqueue(
                "StartTransientUnit", "ssa(sv)a(sa(sv))", [UNIT, "fail", settings, []]
            )
        except Refused as error:
            raise ClientStuck(f"{UNIT} cannot be started: {error.message}") from error
        try:
            await self._read(job)
        finally:
            self._manager.forget(job)

    async def _read(self, job: Job) -> None:
        """Wait until the program reads; from then on it is there as long as we are."""
        try:
            async with asyncio.timeout(_BEGIN_S):
                while not self._open():
                    if job.result.done():
                        raise ClientStuck(f"{UNIT} ended at once: {job.result.result()}")
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            # systemd does not begin it while one of the units is just being stopped.
            raise ClientStuck(
                f"{UNIT} did not begin within {_BEGIN_S:g} s; `systemctl list-jobs` shows what is "
                "in its way"
            ) from None
        self._write(hold.HELLO)

    async def _stop(self) -> None:
        log.warning("%s does not end by itself; stopping it", UNIT)
        try:
            job = await self._manager.enqueue("StopUnit", "ss", [UNIT, "replace"])
        except Refused:
            return  # it is gone
        if await self._manager.wait(job, _END_S) is None:
            raise ClientStuck(f"{UNIT} does not stop; units that were to start wait for it")

    async def _gone(self) -> None:
        """Wait until systemd has forgotten it: two of one name there cannot be."""
        with contextlib.suppress(TimeoutError, Refused):
            async with asyncio.timeout(_END_S):
                while True:
                    await self._manager.call("GetUnit", "s", [UNIT])
                    await asyncio.sleep(_LOOK_S)

    # -- its FIFO ------------------------------------------------------------------------

    def _open(self) -> bool:
        """Open it for writing, which is possible only while somebody reads."""
        try:
            writer = os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        if not stat.S_ISFIFO(os.fstat(writer).st_mode):
            os.close(writer)
            return False
        self._writer = writer
        return True

    def _close(self) -> None:
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None

    def _write(self, byte: bytes) -> bool:
        if self._writer is None and not self._open():
            return False
        assert self._writer is not None
        try:
            return os.write(self._writer, byte) == 1
        except OSError:
            return False

    async def _greet(self) -> bool:
        """Whether the program has read what we write: it could be just about to end."""
        if not self._write(hold.HELLO):
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_S):
                while self._has_reader():
                    if not self._unread():
                        return True
                    await asyncio.sleep(_LOOK_S)
        return False

    def _has_reader(self) -> bool:
        assert self._writer is not None
        poll = select.poll()
        poll.register(self._writer, 0)
        return not poll.poll(0)  # POLLERR: nobody reads

    def _unread(self) -> int:
        assert self._writer is not None
        count = array.array("i", [0])
        fcntl.ioctl(self._writer, termios.FIONREAD, count)
        return count[0]
