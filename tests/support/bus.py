"""A message bus of one's own, clients of it, and a look for what a test left behind."""

import asyncio
import gc
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
from dbus_next.constants import MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from migd.bus.connection import BUS, Connection, RemoteError, connect

T = TypeVar("T")

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={directory}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  <limit name="max_incoming_bytes">1000000000</limit>
  <limit name="max_outgoing_bytes">1000000000</limit>
  <limit name="max_message_size">134217728</limit>
  <limit name="max_connections_per_user">1000</limit>
  <limit name="max_replies_per_connection">50000</limit>
  <limit name="max_match_rules_per_connection">5000</limit>
</busconfig>
"""
# Anybody may also answer what was not asked of him, which a system bus does not allow.
LAX = CONFIG.replace("</policy>", '<allow send_requested_reply="false" eavesdrop="true"/></policy>')

POLICY = Path(__file__).parents[2] / "dbus" / "org.migd1.conf"
_SYSTEM = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={directory}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Monitoring"/>
    <deny send_destination="org.freedesktop.DBus"
          send_interface="org.freedesktop.DBus.Debug.Stats"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Debug.Stats"/>
  </policy>
  <include>{policy}</include>
</busconfig>
"""


class PrivateBus:
    """A real dbus-daemon where anybody may own and call anything."""

    def __init__(self, config: str = CONFIG) -> None:
        # pytest's own directories can be too deep for the path of a socket.
        self._directory = tempfile.TemporaryDirectory(prefix="bus-")
        # Whom the bus lets in is its own affair.
        Path(self._directory.name).chmod(0o755)
        self._config = Path(self._directory.name, "bus.conf")
        self._config.write_text(config.format(directory=self._directory.name, policy=POLICY))
        self.socket = f"{self._directory.name}/bus"
        self._start()

    def _start(self) -> None:
        command = [
            "setpriv",
            "--pdeathsig=KILL",
            "dbus-daemon",
            "--nofork",
            "--nosyslog",
            "--print-address",
        ]
        self._process = subprocess.Popen(
            [*command, f"--config-file={self._config}"], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "dbus-daemon did not start"

    def pause(self) -> None:
        """Stop the daemon until resume(): it reads and writes nothing meanwhile."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Kill it, and start one at the same place that knows nothing of those before."""
        self._end()
        self._start()

    def close(self) -> None:
        self._end()
        self._directory.cleanup()

    def _end(self) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SystemBus(PrivateBus):
    """A dbus-daemon with the rules of a system bus (those of dbus's own system.conf) and ours.

    Its limits are those of a system bus, too, and every user may connect.
    """

    def __init__(self) -> None:
        super().__init__(_SYSTEM)


@pytest.fixture
def bus() -> Iterator[PrivateBus]:
    with PrivateBus() as private:
        yield private


class Client:
    """A program on the bus that calls, and keeps the signals it is sent."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.signals: list[Message] = []
        self._arrived = asyncio.Event()
        connection.add_handler(self._keep)

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *body: Any,
    ) -> list[Any]:
        """Call a method; the values of the reply come without the types of variants."""
        reply = await self.connection.call(destination, path, interface, member, signature, body)
        return [plain(value) for value in reply]

    async def refused(self, *arguments: Any) -> tuple[str, str]:
        """Call a method that must fail; the name and the text of the error."""
        with pytest.raises(RemoteError) as error:
            await self.call(*arguments)
        return error.value.name, error.value.message

    async def ping(self, destination: str) -> None:
        """Return when all that the destination sent before has arrived here."""
        with suppress(RemoteError):
            await self.call(destination, "/", f"{BUS}.Peer", "Ping")

    async def wait_for_signals(self, count: int) -> list[Message]:
        while len(self.signals) < count:
            self._arrived.clear()
            await self._arrived.wait()
        return self.signals

    def _keep(self, message: Message) -> bool:
        if message.message_type is MessageType.SIGNAL and message.sender != BUS:
            self.signals.append(message)
            self._arrived.set()
        return False


@asynccontextmanager
async def client(bus: PrivateBus, *rules: str) -> AsyncIterator[Client]:
    """Connect a client; each match rule brings it signals."""
    connection = await connect(bus.address, timeout_s=10)
    try:
        for rule in rules:
            await connection.match(rule)
        yield Client(connection)
    finally:
        connection.close()


def plain(value: Any) -> Any:
    """Strip the types off variants, at any depth."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def run(main: Coroutine[Any, Any, T], *, timeout_s: float = 15) -> T:
    """Run a test in an event loop of its own; it must end in time and leave no task behind."""

    async def bounded() -> T:
        async with asyncio.timeout(timeout_s):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
        return result

    return asyncio.run(bounded())


def descriptors() -> set[tuple[str, str]]:
    """All open file descriptors of this process, with what they are open on."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add((entry.name, str(entry.readlink())))
        except FileNotFoundError:
            continue  # the one that read the directory
    return found


def children() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended
            found.update((task / "children").read_text().split())
    return found


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a file descriptor or a child process behind."""
    gc.collect()
    before = descriptors(), children()
    yield
    gc.collect()
    assert (descriptors() - before[0], children() - before[1]) == (set(), set())
