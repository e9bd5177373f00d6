"""Writes queued messages to the socket of a bus connection, as much as it takes at a time."""

from typing import TYPE_CHECKING

from dbus_next.aio.message_bus import _MessageWriter
from dbus_next.message import Message

from migd.bus.frames import MAX_MESSAGE

if TYPE_CHECKING:
    import asyncio

    from migd.bus.transport import Transport

# What a message in the queue costs beside its bytes, so that many small ones count as well.
_OVERHEAD = 256


class Writer(_MessageWriter):
    """Waits while the socket buffer is full, and knows how much is unsent."""

    def __init__(self, transport: "Transport") -> None:
        super().__init__(transport)  # type: ignore[no-untyped-call]
        self.unsent = 0
        self.written = 0
        self.buf: memoryview | None = None

    def buffer_message(self, msg: Message, future: "asyncio.Future[None] | None" = None) -> None:
        data = msg._marshall()  # type: ignore[no-untyped-call]
        if len(data) > MAX_MESSAGE:
            raise ValueError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE} can be sent")
        self.messages.put_nowait((data, future))
        self.unsent += len(data) + _OVERHEAD

    def write_callback(self) -> None:
        try:
            while (buf := self._current()) is not None:
                self._write(buf)
            self.loop.remove_writer(self.fd)
        except (BlockingIOError, InterruptedError):
            pass  # still registered: called again when the socket takes more
        except OSError as error:
            self.bus._finalize(error)
            return
        self.bus.written()

    def _current(self) -> memoryview | None:
        if self.buf is None and not self.messages.empty():
            data, self.fut = self.messages.get_nowait()
            self.buf, self.offset = memoryview(data), 0
        return self.buf

    def _write(self, buf: memoryview) -> None:
        sent = self.sock.send(buf[self.offset :])
        self.offset += sent
        self.written += sent
        if self.offset == len(buf):
            self.unsent -= len(buf) + _OVERHEAD
            self.buf = None
