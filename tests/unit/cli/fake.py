"""A stand-in for the daemon: the contract's real objects on a real bus, and made-up answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any

from dbus_next.signature import Variant

from migd import names
from migd.bus.connection import Connection, RemoteError, connect
from migd.bus.contract import Contract, load
from migd.bus.exporter import Call, Exporter
from migd.bus.values import variant
from migd.cli.arguments import parser
from migd.cli.main import run as run_verb
from tests.support.bus import PrivateBus
from tests.support.bus import run as run_loop
from tests.unit.cli.nodes import Objects, manager

Answer = Callable[..., Awaitable[tuple[Any, ...]]]

_KINDS = {
    **dict.fromkeys(("id", "slices", "instances", "multiprocessors", "pid", "gi", "ci"), "u"),
    **dict.fromkeys(("index", "profile-id", "uid"), "u"),
    **dict.fromkeys(("memory", "start", "end"), "t"),
    **dict.fromkeys(("changed", "wanted", "reset"), "b"),
    **dict.fromkeys(("stops", "gpus", "after"), "as"),
    **dict.fromkeys(("will-not-return", "blockers"), "aa{sv}"),
    "placements": "a(uu)",
    "placement": "(uu)",
    "code": "i",
}


def wrapped(record: Mapping[str, Any], **kinds: str) -> dict[str, Variant]:
    """A record with the types that the contract gives its keys; `kinds` are exceptions."""
    found = {}
    for key, value in record.items():
        kind = kinds.get(key) or _KINDS.get(key, "s")
        inner = [wrapped(item) for item in value] if kind == "aa{sv}" else value
        found[key] = variant(kind, inner)
    return found


class Daemon:
    """The fake. `answers` maps a method to a function of its arguments, or to an error.

    calls: what was asked, in order, options unwrapped; caller: who asked last
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.answers: dict[str, Answer | tuple[Any, ...] | Exception] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.caller = ""
        self._called = asyncio.Event()
        self._manager: dict[str, Any] = manager()
        self.exporter = Exporter(
            connection,
            names.ROOT,
            _contract(),
            lambda e: (e.name, e.message) if isinstance(e, RemoteError) else ("bug", str(e)),
            failed="bug",
            authorize=self._authorize,
        )

    async def start(self) -> None:
        contract = _contract()
        handlers = {
            i.name: {m: partial(self._handle, m) for m in i.methods}
            for i in contract.interfaces.values()
        }
        self.show({})
        await self.exporter.start(handlers)
        await self.connection.request_name(names.BUS_NAME)

    def show(self, objects: Objects, **properties: Any) -> None:
        """Show these objects, and properties of the manager other than before."""
        self._manager |= properties
        shown = {path: dict(interfaces) for path, interfaces in objects.items()}
        for interfaces in shown.values():
            for name, values in interfaces.items():
                lists = {k: [wrapped(r) for r in values[k]] for k in _LISTS & values.keys()}
                interfaces[name] = values | lists
        self.exporter.sync({names.ROOT: {names.MANAGER: self._manager}, **shown})

    def members(self) -> list[str]:
        return [member for member, _ in self.calls]

    async def called(self, member: str, times: int = 1) -> None:
        """Wait until somebody has called a method that often."""
        while self.members().count(member) < times:
            self._called.clear()
            await self._called.wait()

    async def _authorize(self, call: Call) -> None:
        pass

    async def _handle(self, member: str, call: Call, *arguments: Any) -> tuple[Any, ...]:
        self.caller = call.sender
        self.calls.append((member, tuple(_plain(a) for a in arguments)))
        self._called.set()
        answer = self.answers.get(member, RemoteError("test.NoAnswer", f"{member} is not set up"))
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, tuple) else await answer(*arguments)


_LISTS = {"Profiles", "Processes"}


def _contract() -> Contract:
    return load((files("migd.bus") / "org.migd1.xml").read_text())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item.value for key, item in value.items()}
    return value


@asynccontextmanager
async def daemon(address: str) -> AsyncIterator[Daemon]:
    """A fake daemon that owns the name; it ends without a word when left."""
    connection = await connect(address, timeout_s=10)
    made = Daemon(connection)
    try:
        await made.start()
        yield made
    finally:
        connection.close()
        await made.exporter.stop()


def error(name: str, message: str = "do something else") -> RemoteError:
    return RemoteError(f"{names.ERROR}.{name}", message)


def standard_error(name: str, message: str = "do something else") -> RemoteError:
    return RemoteError(f"{names.DBUS_ERROR}.{name}", message)


async def never(*_: Any) -> tuple[Any, ...]:
    await asyncio.Event().wait()
    raise AssertionError


async def migctl(*arguments: str) -> int:
    """Run migctl in this event loop; its exit code."""
    return await run_verb(parser().parse_args(arguments))


def against(
    bus: PrivateBus, setup: Callable[[Daemon], None], *arguments: str
) -> tuple[int, Daemon]:
    """Run migctl against a fake that was set up; the exit code, and the fake."""

    async def main() -> tuple[int, Daemon]:
        async with daemon(bus.address) as fake:
            setup(fake)
            return await migctl(*arguments), fake

    return run_loop(main())
