"""Hears migd's signals while a test does something else."""

import asyncio
import threading
from types import TracebackType
from typing import Any, NamedTuple, Self

from dbus_next.constants import MessageType
from dbus_next.message import Message

from migd import names
from migd.bus.connection import BUS, BUS_PATH, RemoteError, connect
from tests.support.bus import plain
from tests.support.node import wait_for


class Heard(NamedTuple):
    member: str
    body: list[Any]
    pid: int


class Ear:
    """Listens to JobNew and JobRemoved from `with` to its end; each with the pid of its sender."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),))
        self.heard: list[Heard] = []

    def removed(self, job: int) -> Heard:
        """The one JobRemoved of that job, once it has come."""
        wait_for(lambda: self._removed(job), what=f"no JobRemoved of {job} among {self.heard}")
        (found,) = self._removed(job)
        return found

    def _removed(self, job: int) -> list[Heard]:
        return [h for h in self.heard if h.member == "JobRemoved" and h.body[0] == job]

    async def _main(self) -> None:
        self._end = asyncio.Event()
        messages: asyncio.Queue[Message] = asyncio.Queue()
        connection = await connect(self._address, timeout_s=10)

        def keep(message: Message) -> bool:
            if message.message_type is MessageType.SIGNAL and message.interface == names.MANAGER:
                messages.put_nowait(message)
            return False

        async def tell() -> None:
            while True:
                message = await messages.get()
                arguments = ("GetConnectionUnixProcessID", "s", [message.sender])
                try:
                    (pid,) = await connection.call(BUS, BUS_PATH, BUS, *arguments)
                except RemoteError:
                    pid = 0  # it was killed just after
                self.heard.append(Heard(message.member, [plain(v) for v in message.body], pid))

        connection.add_handler(keep)
        await connection.match(f"type='signal',interface='{names.MANAGER}'")
        telling = asyncio.create_task(tell())
        self._ready.set()
        await self._end.wait()
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        connection.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()
