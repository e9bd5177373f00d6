"""Carries D-Bus messages over dbus-next's connection, without the faults of its transport.

dbus-next 0.2.3 does the address, the authentication, Hello and the coding of messages. What is
replaced, and why:

* writing: a full socket buffer (EAGAIN) ended the connection, and unsent messages had no bound;
* reading: one message that cannot be read ended the connection, a flood of them starved the loop,
  a huge one stopped it, and file descriptors that nobody takes stayed open;
* authentication: a bus that hung up was read for ever, in a busy loop;
* Hello: an error reply was taken for the unique name;
* dispatch: default answers, tracebacks to callers, and caches that grow with what peers send;
* the end: the socket stayed open.

It relies on private names of dbus-next, so it refuses to be imported where they are missing.
"""

import array
import asyncio
import contextlib
import io
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.aio.message_bus import MessageBus, _MessageWriter
from dbus_next.constants import BusType, MessageType
from dbus_next.message import Message
from dbus_next.signature import SignatureTree

from migd.bus.frames import Frame, Frames
from migd.bus.writer import Writer

log = logging.getLogger(__name__)

# Bytes of unsent messages. Above the first we stop reading, so that whoever calls faster than the
# bus takes our answers has to wait; below the second we read again. The third is reached only by
# signals of our own, when the bus has not read for a long time: the connection ends then, and
# systemd starts the daemon anew, rather than its memory growing without a bound.
PAUSE_ABOVE = 2**20
RESUME_BELOW = 2**18
MAX_UNSENT = 64 * 2**20

# Bytes read before the loop gets its turn: at most some 500 messages.
_CHUNK = 2**16
_MAX_FDS = 253  # the most that Linux passes with one message
_MAX_AUTH_LINE = 16 * 1024
_MAX_SIGNATURES = 1024


class Transport(MessageBus):
    """One connection to a bus: gives what arrives to `deliver`, and says once that it `ended`.

    deliver(message, dropped): `dropped` bytes of an oversized body were passed over.
    ended(error): None after close().
    """

    def __init__(
        self,
        address: str | None,
        deliver: Callable[[Message, int], None],
        ended: Callable[[Exception | None], None],
    ) -> None:
        try:
            super().__init__(address, BusType.SYSTEM, negotiate_unix_fd=True)  # type: ignore[arg-type]
        except Exception:
            self._close_socket()
            raise
        self._deliver = deliver
        self._ended = ended
        self._frames = Frames()
        self._paused = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._writer: Writer = Writer(self)

    def post(self, message: Message) -> None:
        """Queue a message; a message that cannot be coded raises, a dead connection takes it."""
        if self._disconnected:
            return
        if not message.serial:
            message.serial = self.next_serial()
        self._writer.schedule_write(message)
        self._idle.clear()
        if self._writer.unsent > MAX_UNSENT:
            self._finalize(TimeoutError(f"the bus does not read: {MAX_UNSENT} bytes are unsent"))
        elif self._writer.unsent > PAUSE_ABOVE and not self._paused:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def written(self) -> None:
        if not self._writer.unsent:
            self._idle.set()
        if self._paused and self._writer.unsent < RESUME_BELOW:
            self._paused = False
            self._loop.add_reader(self._fd, self._message_reader)
            self._loop.call_soon(self._dispatch)

    async def flush(self) -> None:
        """Wait until all that was posted is written, or the connection has ended."""
        await self._idle.wait()

    def disconnect(self) -> None:
        self._finalize(None)

    def _message_reader(self) -> None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(
                _CHUNK, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._finalize(error)
            return
        _close_descriptors(ancillary)
        if not data:
            self._finalize(EOFError("the bus closed the connection"))
            return
        self._frames.feed(data)
        self._dispatch()

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
        message = _parse(frame.data)
        if message is None:
            return
        hello = self._method_return_handlers.pop(message.reply_serial, None)
        if hello is None:
            self._deliver(message, frame.dropped)
        elif message.message_type is MessageType.ERROR:
            hello(None, ConnectionError(f"the bus refused Hello: {message.body}"))
        else:
            hello(message, None)

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


def _parse(data: bytes) -> Message | None:
    """Read a message; one that dbus-next cannot read is dropped, as the bus may let such pass."""
    try:
        message: Message | None = Unmarshaller(io.BytesIO(data)).unmarshall()  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - whatever a peer wrote must not end the connection
        log.debug("cannot read a message (%s), ignoring it", error)
        return None
    # Peers choose the signatures, and dbus-next remembers each of them for ever.
    if len(SignatureTree._cache) > _MAX_SIGNATURES:
        SignatureTree._cache.clear()
    return message


def _close_descriptors(ancillary: list[tuple[int, int, bytes]]) -> None:
    """Close what came with a message: no member of our interfaces takes a descriptor."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received = array.array("i")
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
            for descriptor in received:
                os.close(descriptor)


def _refuse_unknown_internals() -> None:
    expected: dict[Any, set[str]] = {
        _MessageWriter: {"buffer_message", "schedule_write", "write_callback"},
        _MessageWriter.__init__.__code__: {"messages", "buf", "offset", "unix_fds", "fut", "fd"},
        _MessageWriter.schedule_write.__code__: {"buffer_message", "unique_name", "write_callback"},
        MessageBus: {"_message_reader", "_auth_readline", "_finalize", "next_serial"},
        MessageBus.connect.__code__: {"_message_reader", "_method_return_handlers", "_stream"},
        MessageBus._authenticate.__code__: {"_auth_readline"},
        MessageBus._setup_socket.__code__: {"_sock", "_stream", "_fd"},
        Message: {"_marshall"},
        SignatureTree: {"_cache"},
    }
    for thing, names in expected.items():
        missing = names - set(getattr(thing, "co_names", None) or dir(thing))
        if missing:
            raise ImportError(f"this dbus-next has no {sorted(missing)} in {thing}; 0.2.3 is known")


_refuse_unknown_internals()
