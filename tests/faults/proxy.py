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
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.constants import MessageType
from dbus_next.message import Message

FAIL, LATE, LOST, UNANSWERED, SILENT = "fail", "late", "lost", "unanswered", "silent"
KINDS = (FAIL, LATE, LOST, UNANSWERED)
BUS = "org.freedesktop.DBus"
_LATE_S = 1.5


class Place(NamedTuple):
    """service: a bus name; nth: from 1."""

    service: str
    member: str
    nth: int


class Proxy:
    """Listens at `path` from start() to stop(); `upstream` is the socket of the bus.

    What becomes of a call: fail, the method is one that there is not, so the service refuses it;
    late, it comes there after a while; lost, it never does; unanswered, its answer is lost; silent,
    so are those of all later calls of that service.
    services: well-known names, also where they are called by the unique one, as the bus has told it
    """

    def __init__(self, path: Path, upstream: Path, services: frozenset[str]) -> None:
        self._path, self._upstream, self._services = path, upstream, services
        self._counts: Counter[tuple[str, str]] = Counter()
        self._fault: tuple[Place, str] | None = None
        # A call is known by its connection and serial.
        self._unanswered: set[tuple[object, int]] = set()
        self._silent = ""
        # Whose owner was asked for, and what was answered.
        self._asked: dict[tuple[object, int], str] = {}
        self._owners: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls: list[Place] = []
        self.met = False

    def begin(self, place: Place | None = None, kind: str = "") -> None:
        """Count anew, and meddle with that call only."""
        self._fault = (place, kind) if place else None
        self._counts.clear()
        self._unanswered.clear()
        self._silent = ""
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
                asyncio.create_task(self._pass(reader, up_writer, partial(self._out, task))),
                asyncio.create_task(self._pass(up_reader, writer, partial(self._back, task))),
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
        judge: Callable[[asyncio.StreamWriter, bytes], bytes],
    ) -> None:
        while True:
            head = await reader.readexactly(16)
            order = "<" if head[:1] == b"l" else ">"
            body, _, fields = struct.unpack(f"{order}III", head[4:])
            data = head + await reader.readexactly(fields + -fields % 8 + body)
            writer.write(judge(writer, data))

    def _out(self, link: object, writer: asyncio.StreamWriter, data: bytes) -> bytes:
        message = _read(data)
        if message.message_type is not MessageType.METHOD_CALL:
            return data
        if message.destination == BUS and message.member == "GetNameOwner":
            self._asked[link, message.serial] = message.body[0]
        service = self._owners.get(message.destination, message.destination)
        if service not in self._services:
            return data
        self._counts[service, message.member] += 1
        place = Place(service, message.member, self._counts[service, message.member])
        self.calls.append(place)
        if service == self._silent:
            self._unanswered.add((link, message.serial))
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
            case kind:
                self._silent = service if kind == SILENT else ""
                self._unanswered.add((link, message.serial))
                return data

    def _back(self, link: object, _: asyncio.StreamWriter, data: bytes) -> bytes:
        if not self._unanswered and not self._asked:
            return data
        message = _read(data)
        call = link, message.reply_serial
        name = self._asked.pop(call, "")
        if name and message.message_type is MessageType.METHOD_RETURN:
            self._owners[message.body[0]] = name
        if call in self._unanswered:
            self._unanswered.discard(call)
            return b""
        return data


def _read(data: bytes) -> Message:
    message: Message = Unmarshaller(io.BytesIO(data)).unmarshall()  # type: ignore[no-untyped-call]
    return message
