"""A bus that goes wrong: stands between one program and its bus, and meddles with a single call.

A call is known by the service that it is for, its method, and the how-manieth of those it is.
"""

import asyncio
import contextlib
import io
import struct
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.constants import MessageType
from dbus_next.message import Message

FAIL, LATE, LOST, UNANSWERED = "fail", "late", "lost", "unanswered"
KINDS = (FAIL, LATE, LOST, UNANSWERED)
_LATE_S = 1.5


class Place(NamedTuple):
    """service: a bus name; nth: from 1."""

    service: str
    member: str
    nth: int


class Proxy:
    """Listens at `path` from start() to stop(); `upstream` is the socket of the bus.

    What becomes of a call: fail, the method is one that there is not, so the service refuses it;
    late, it comes there after a while; lost, it never does; unanswered, its answer is lost.
    """

    def __init__(self, path: Path, upstream: Path, services: frozenset[str]) -> None:
        self._path, self._upstream, self._services = path, upstream, services
        self._counts: Counter[tuple[str, str]] = Counter()
        self._fault: tuple[Place, str] | None = None
        self._unanswered: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls: list[Place] = []
        self.met = False

    def begin(self, place: Place | None = None, kind: str = "") -> None:
        """Count anew, and meddle with that call only."""
        self._fault = (place, kind) if place else None
        self._counts.clear()
        self._unanswered.clear()
        self.calls, self.met = [], False

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)))
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_unix_server(self._client, str(self._path))
        ready.set()
        await self._end.wait()
        server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        up_reader, up_writer = await asyncio.open_unix_connection(str(self._upstream))
        # Canceled only when all ends, and asyncio has no use for that.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while (line := await reader.readuntil(b"\n")) != b"BEGIN\r\n":
                up_writer.write(line)
                writer.write(await up_reader.readuntil(b"\n"))
            up_writer.write(line)
            both = [
                asyncio.create_task(self._pass(reader, up_writer, self._out)),
                asyncio.create_task(self._pass(up_reader, writer, self._back)),
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for side in both:
                    side.cancel()
                await asyncio.gather(*both, return_exceptions=True)
        for end in (writer, up_writer):
            with contextlib.suppress(OSError):
                end.close()
        self._tasks.discard(task)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        judge: Callable[[bytes, asyncio.StreamWriter], bytes],
    ) -> None:
        while True:
            head = await reader.readexactly(16)
            order = "<" if head[:1] == b"l" else ">"
            body, _, fields = struct.unpack(f"{order}III", head[4:])
            data = head + await reader.readexactly(fields + -fields % 8 + body)
            writer.write(judge(data, writer))

    def _out(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        message = _read(data)
        if message.message_type is not MessageType.METHOD_CALL:
            return data
        service = next((s for s in self._services if message.destination == s), None)
        if service is None:
            return data
        self._counts[service, message.member] += 1
        place = Place(service, message.member, self._counts[service, message.member])
        self.calls.append(place)
        if self._fault is None or self._fault[0] != place:
            return data
        self.met = True
        match self._fault[1]:
            case "fail":
                name = message.member.encode() + b"\0"
                return data.replace(name, b"X" + name[1:], 1)
            case "late":
                self._loop.call_later(_LATE_S, writer.write, data)
                return b""
            case "lost":
                return b""
            case _:
                self._unanswered.add(message.serial)
                return data

    def _back(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        if self._unanswered and (serial := _read(data).reply_serial) in self._unanswered:
            self._unanswered.discard(serial)
            return b""
        return data


def _read(data: bytes) -> Message:
    message: Message = Unmarshaller(io.BytesIO(data)).unmarshall()  # type: ignore[no-untyped-call]
    return message
