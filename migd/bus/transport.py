"""Carries D-Bus messages over dbus-next's connection, without the faults of its transport.

dbus-next 0.2.3 does the address, the authentication, Hello and the coding of messages. What is
replaced, and why:

* writing: a full socket buffer (EAGAIN) ended the connection, and unsent messages had no bound;
* reading: one message that cannot be read ended the connection, a flood of them starved the loop,
  a huge one stopped it, and file descriptors that nobody takes stayed open: we take none at all,
  so that the bus refuses messages that carry some, and the kernel closes what would come;
* authentication: a bus that hung up was read for ever, in a busy loop;
* Hello: an error reply was taken for the unique name;
* dispatch: default answers, tracebacks to callers, and caches that grow with what peers send;
* the end: the socket stayed open.

It relies on private names of dbus-next, so it refuses to be imported where they are missing.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.aio.message_bus import MessageBus, _MessageWriter
from dbus_next.constants import BusType
from dbus_next.message import Message
from dbus_next.message_bus import BaseMessageBus
from dbus_next.signature import SignatureTree

from migd.bus.frames import Frame, Frames
from migd.bus.incoming import ERROR, Incoming
from migd.bus.writer import Writer

# Bytes of unsent messages. Above the first we stop reading, so that whoever calls faster than the
# bus takes our answers has to wait; below the second we read again. The third is reached only by
# signals of our own, when the bus has not read for a long time: the connection ends then, and
# systemd starts the daemon anew, rather than its memory growing without a bound.
PAUSE_ABOVE = 2**20
RESUME_BELOW = 2**18
MAX_UNSENT = 64 * 2**20

# A bus that takes nothing for so long will not take anything more: dbus-daemon reads no more from
# us while 127 MiB of what we sent are in its queues, and a program that does not read its answers
# can keep them there for ever. With a new connection we are heard again.
STALLED_S = 30.0

# How long we read before the loop gets its turn, and how many bytes at once.
_SLICE_S = 0.01
_CHUNK = 2**18
# What the kernel keeps of what the bus has yet to take: answers wait behind it.
_SEND_BUFFER = 2**14
_MAX_AUTH_LINE = 16 * 1024


class Transport(MessageBus):
    """One connection to a bus: gives what arrives to `deliver`, and says once that it `ended`.

    address: a bus's, None for the system's; or a socket at whose other end there is one, and
    which is closed with the connection
    drained(): all that was posted is written
    ended(error): None after close().
    """

    def __init__(
        self,
        address: str | socket.socket | None,
        deliver: Callable[[Incoming], None],
        drained: Callable[[], None],
        ended: Callable[[Exception | None], None],
    ) -> None:
        self._given = address if isinstance(address, socket.socket) else None
        # Of an address that is given it reads the form, and connects to it in _setup_socket().
        named = "unix:path=/" if self._given else address
        try:
            super().__init__(named, BusType.SYSTEM, negotiate_unix_fd=False)  # type: ignore[arg-type]
        except Exception:
            self._close_socket()
            raise
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._deliver = deliver
        self._drained = drained
        self._ended = ended
        self._frames = Frames()
        self._stalled: asyncio.TimerHandle | None = None
        self._paused = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._writer: Writer = Writer(self)

    @property
    def unsent(self) -> int:
        """Bytes that were posted and are not written yet."""
        return self._writer.unsent

    def post(self, message: Message) -> int:
        """Queue a message, and give its length.

        A message that cannot be coded raises; a dead connection takes it.
        """
        if self._disconnected:
            return 0
        if not message.serial:
            message.serial = self.next_serial()
        before = self._writer.unsent
        self._writer.schedule_write(message)
        length = self._writer.unsent - before
        self._idle.clear()
        if self._writer.unsent > MAX_UNSENT:
            self._finalize(TimeoutError(f"the bus does not read: {MAX_UNSENT} bytes are unsent"))
        elif self._writer.unsent > PAUSE_ABOVE and not self._paused:
            self._paused = True
            self._loop.remove_reader(self._fd)
        if self._stalled is None and not self._disconnected:
            self._await_progress()
        return length

    def written(self) -> None:
        if not self._writer.unsent:
            self._idle.set()
            self._drained()
        if self._paused and self._writer.unsent < RESUME_BELOW:
            self._paused = False
            self._loop.add_reader(self._fd, self._message_reader)
            self._loop.call_soon(self._dispatch)

    def _await_progress(self) -> None:
        written = self._writer.written
        self._stalled = self._loop.call_later(STALLED_S, self._look_at_progress, written)

    def _look_at_progress(self, written: int) -> None:
        self._stalled = None
        if not self._writer.unsent:
            return
        if self._writer.written == written:
            self._finalize(TimeoutError(f"the bus has taken nothing for {STALLED_S:g} s"))
        else:
            self._await_progress()

    async def flush(self) -> None:
        """Wait until all that was posted is written, or the connection has ended."""
        await self._idle.wait()

    def disconnect(self) -> None:
        self._finalize(None)

    def _message_reader(self) -> None:
        """Read what is there: until it is read, nobody knows who waits behind it."""
        end = time.monotonic() + _SLICE_S
        while not (self._paused or self._disconnected):
            try:
                data = self._sock.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._finalize(error)
                return
            if not data:
                self._finalize(EOFError("the bus closed the connection"))
                return
            self._frames.feed(data)
            self._dispatch()
            if len(data) < _CHUNK or time.monotonic() > end:
                return

    def _dispatch(self) -> None:
        while not (self._paused or self._disconnected):
            try:
                frame = self._frames.next()
            except ValueError as error:
                self._finalize(error)
                return
            if frame is None:
                return
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        arrived = Incoming(frame.data, frame.dropped)
        if not self._method_return_handlers:
            self._deliver(arrived)
            return
        hello = self._method_return_handlers.pop(arrived.reply_serial, None)
        if hello is None:
            self._deliver(arrived)
        elif (reply := arrived.read()) is None or arrived.kind == ERROR:
            hello(None, ConnectionError(f"the bus refused Hello: {reply and reply.body}"))
        else:
            hello(reply, None)

    def _setup_socket(self) -> None:
        if self._given is None:
            super()._setup_socket()  # type: ignore[no-untyped-call]
            return
        self._sock = self._given
        self._sock.settimeout(0)
        self._stream = self._sock.makefile("rwb")
        self._fd = self._sock.fileno()

    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = await self._loop.sock_recv(self._sock, 1)
            if not byte or len(line) > _MAX_AUTH_LINE:
                raise ConnectionError("the bus ended the authentication")
            line += byte
        return line[:-2].decode("ascii", "replace")

    def _finalize(self, err: Exception | None = None) -> None:
        if self._disconnected:
            return
        self._disconnected = True
        if self._stalled:
            self._stalled.cancel()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._close_socket()
        self._idle.set()
        waiting, self._method_return_handlers = self._method_return_handlers, {}
        for hello in waiting.values():
            hello(None, err or ConnectionError("the connection was closed"))
        self._ended(err)

    def _close_socket(self) -> None:
        # The file made from the socket keeps the descriptor open until it is closed as well.
        for closing in (getattr(self, "_stream", None), getattr(self, "_sock", None)):
            if closing is not None:
                with contextlib.suppress(OSError):
                    closing.close()


def _refuse_unknown_internals() -> None:
    expected: dict[Any, set[str]] = {
        _MessageWriter: {"buffer_message", "schedule_write", "write_callback"},
        _MessageWriter.__init__.__code__: {"messages", "buf", "offset", "fut", "fd"},
        _MessageWriter.schedule_write.__code__: {"buffer_message", "unique_name", "write_callback"},
        MessageBus: {"_message_reader", "_auth_readline", "_finalize", "next_serial"},
        MessageBus.connect.__code__: {"_message_reader", "_method_return_handlers", "_stream"},
        MessageBus._authenticate.__code__: {"_auth_readline"},
        BaseMessageBus.__init__.__code__: {"_setup_socket"},
        MessageBus._setup_socket.__code__: {"_sock", "_stream", "_fd"},
        Message: {"_marshall"},
        Unmarshaller: {"read_argument", "read_variant", "unmarshall"},
        Unmarshaller.__init__.__code__: {"readers", "buf", "offset"},
        SignatureTree: {"_cache"},
    }
    for thing, names in expected.items():
        missing = names - set(getattr(thing, "co_names", None) or dir(thing))
        if missing:
            raise ImportError(f"this dbus-next has no {sorted(missing)} in {thing}; 0.2.3 is known")


_refuse_unknown_internals()
