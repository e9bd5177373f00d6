"""Runs in a test host as one of its users: calls migd on several connections, as it is told.

Each line is a request in JSON, with the fields of users.Request, and is answered, when there is an
answer, by [number, error, message, body, seconds]. The first line is "listen" or ""; who listens
tells of migd's signals by [0, member, arguments]. Requests are worked on side by side.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from migd.bus.connection import CallTimeout, Connection, ConnectionLost, RemoteError, connect

SERVICE, MANAGER = "org.migd1", "org.migd1.Manager"
LIMIT_S = 120.0


class Caller:
    def __init__(self) -> None:
        self._connections: dict[int, Connection] = {}
        self._opening = asyncio.Lock()

    async def work(self, number: int, request: dict[str, Any]) -> None:
        begun = time.monotonic()
        error, message, body = "", "", []
        try:
            body = await self._ask(request)
        except RemoteError as failed:
            error, message = failed.name, failed.message
        except CallTimeout as failed:
            error, message = "timeout", str(failed)
        except ConnectionLost as failed:
            error, message = "lost", str(failed)
        except Exception as failed:
            error, message = "not sent", repr(failed)
        taken = round(time.monotonic() - begun, 3)
        shown = plain(body) if request["tell"] else []
        print(json.dumps([number, error, message, shown, taken]), flush=True)

    async def _ask(self, request: dict[str, Any]) -> list[Any]:
        message = Message(
            destination=SERVICE,
            path=request["path"],
            interface=request["interface"],
            member=request["member"],
            signature=request["signature"],
            body=[made(value) for value in request["body"]],
        )
        if request["interactive"]:
            message.flags |= MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
        how = request["how"]
        if how == "vanish":
            connection = await connect(None, timeout_s=30)
            message.serial = 77
            connection.send(message)
            await connection.flush()
            connection.close()
            return []
        connection = await self._connection(request["connection"])
        if how == "no-reply":
            message.flags |= MessageFlag.NO_REPLY_EXPECTED
            connection.send(message)
            await connection.flush()
            return []
        if how != "descriptors":
            return (await connection.exchange(message, timeout_s=LIMIT_S)).body
        ends = os.pipe()
        try:
            message.unix_fds = list(ends)
            return (await connection.exchange(message, timeout_s=LIMIT_S)).body
        finally:
            for end in ends:
                os.close(end)

    async def _connection(self, number: int) -> Connection:
        async with self._opening:
            if number not in self._connections:
                self._connections[number] = await connect(None, timeout_s=30)
            return self._connections[number]

    async def listen(self) -> None:
        connection = await self._connection(0)

        def hear(message: Message) -> bool:
            if message.message_type is MessageType.SIGNAL and message.interface == MANAGER:
                print(json.dumps([0, message.member, plain(message.body)]), flush=True)
            return False

        connection.add_handler(hear)
        await connection.match(f"type='signal',sender='{SERVICE}',interface='{MANAGER}'")


def made(value: Any) -> Any:
    """Of {"variant": [signature, value]}, {"repeat": [text, times]}, or what it is already."""
    if isinstance(value, dict):
        if set(value) == {"variant"}:
            signature, inner = value["variant"]
            return Variant(signature, made(inner))
        if set(value) == {"repeat"}:
            text, times = value["repeat"]
            return text * times
        return {key: made(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [made(inner) for inner in value]
    return value


def plain(value: Any) -> Any:
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value.hex() if isinstance(value, bytes) else value


async def main() -> None:
    caller = Caller()
    if sys.argv[1:] == ["listen"]:
        await caller.listen()
    print(json.dumps("ready"), flush=True)
    async with asyncio.TaskGroup() as tasks:
        while line := await asyncio.to_thread(sys.stdin.readline):
            tasks.create_task(caller.work(*json.loads(line)))


asyncio.run(main())
