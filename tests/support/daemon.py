"""The real daemon as a process: started on a simulated node and a private bus, killed, asked."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from dbus_next.signature import Variant

from migd import names
from migd.bus.connection import BUS, BUS_PATH, RemoteError, connect
from tests.support.bus import plain
from tests.support.node import Node, at_rest, wait_for

START_S = 30.0
CALL_S = 60.0


class Daemon:
    """`python -m migd` with folders of its own; the methods are for tests without an event loop.

    config: the text of config.yaml, none for ""
    prefix: a command that is given the daemon's, such as strace with -D
    package: a folder with another copy of migd, for the daemon; workers run the installed one
    """

    def __init__(
        self,
        node: Node,
        address: str,
        folder: Path,
        *,
        config: str = "",
        prefix: Sequence[str] = (),
        package: Path | None = None,
        state_dir: Path | None = None,
        runtime_dir: Path | None = None,
    ) -> None:
        self.node = node
        self.address = address
        self.folder = folder
        self.prefix = tuple(prefix)
        self.package = package
        self.config_dir = folder / "config"
        self.defaults_dir = folder / "defaults"
        self.state_dir = state_dir or folder / "state"
        self.runtime_dir = runtime_dir or folder / "run"
        self.log_path = folder / "log"
        self.config_dir.mkdir(parents=True, exist_ok=True)
        self.defaults_dir.mkdir(exist_ok=True)
        if config:
            self.configure(config)
        self._process: subprocess.Popen[bytes] | None = None

    # -- its life ------------------------------------------------------------------------

    def start(self) -> Self:
        """Start it, and return when it answers on the bus."""
        self.launch()
        self.wait_ready()
        return self

    def launch(self) -> None:
        """Start it only."""
        assert not self.running, "it runs already"
        command = [
            *self.prefix, sys.executable, "-m", "migd",
            "--config-dir", str(self.config_dir),
            "--defaults-dir", str(self.defaults_dir),
            "--state-dir", str(self.state_dir),
            "--runtime-dir", str(self.runtime_dir),
        ]  # fmt: skip
        environment = {
            **self.node.environment(),
            "DBUS_SYSTEM_BUS_ADDRESS": self.address,
            "PYTHONDONTWRITEBYTECODE": "1" if self.package else "",
        }
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=self.package or Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Return when this very process owns the name."""
        asyncio.run(self._owned(timeout_s))

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone; whoever it started may still be there."""
        assert self._process
        self._process.kill()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            # A process that is traced is gone only once its tracer has heard of it.
            os.kill(_tracer(self.pid), signal.SIGKILL)
            self._process.wait(10)

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM; the exit code."""
        assert self._process
        self._process.terminate()
        return self._process.wait(timeout_s)

    def wait_exit(self, timeout_s: float = 30.0) -> int:
        """The exit code, once it has ended by itself."""
        assert self._process
        return self._process.wait(timeout_s)

    def restart(self) -> Self:
        """Start it again after its end; one that runs is stopped first."""
        if self.running:
            self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.running:
            return
        os.kill(self.pid, signal.SIGCONT)
        if kind is not None:
            self.kill()
            return
        code = self.stop()
        assert code == 0, f"the daemon ended with {code}:\n{self.log}"

    # -- what is to be seen of it --------------------------------------------------------

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def journal(self) -> Path:
        return self.state_dir / names.JOURNAL_FILE

    @property
    def state(self) -> Path:
        return self.state_dir / names.STATE_FILE

    def configure(self, text: str) -> None:
        """Write config.yaml; the daemon reads it at its start and when told to."""
        (self.config_dir / names.CONFIG_FILE).write_text(text)

    def worker_pids(self) -> list[int]:
        """Its children that live, by pid."""
        found = set()
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                found |= {int(pid) for pid in (task / "children").read_text().split()}
            except OSError:
                continue  # the thread has ended
        return sorted(pid for pid in found if _alive(pid))

    def descriptors(self) -> list[str]:
        """What it has open when it has no worker and nothing in hand."""
        wait_for(lambda: not self.worker_pids(), what="the worker stays")
        return at_rest(self.pid)

    # -- calls ---------------------------------------------------------------------------

    def call(
        self,
        member: str,
        signature: str = "",
        *arguments: Any,
        path: str = names.ROOT,
        interface: str = names.MANAGER,
        timeout_s: float = CALL_S,
    ) -> list[Any]:
        """The values of the reply, without the types of variants. Raises RemoteError."""
        return asyncio.run(self._call(path, interface, member, signature, arguments, timeout_s))

    def refused(self, member: str, signature: str = "", *arguments: Any) -> tuple[str, str]:
        """Call what must fail; the name of the error and its text."""
        with pytest.raises(RemoteError) as error:
            self.call(member, signature, *arguments)
        return error.value.name, error.value.message

    def property(self, name: str, *, path: str = names.ROOT, interface: str = names.MANAGER) -> Any:
        (value,) = self.call("Get", "ss", interface, name, path=path, interface=f"{BUS}.Properties")
        return value

    def plan(self, config: str, **given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        summary, steps = self.call("Plan", "sa{sv}", config, options(given))
        return summary, steps

    def apply(self, config: str, **given: Any) -> tuple[int, str]:
        """Options by keyword: max_impact="reset" is max-impact. The job's id and path."""
        number, path = self.call("Apply", "sa{sv}", config, options(given))
        return number, path

    def wait(self, number: int, timeout_s: float = CALL_S) -> tuple[str, dict[str, Any]]:
        """The result and details of a job, once it has ended."""
        result, details = self.call("WaitJob", "u", number, timeout_s=timeout_s)
        return result, details

    def applied(self, config: str, **given: Any) -> tuple[str, dict[str, Any]]:
        """Apply, and wait for the end."""
        return self.wait(self.apply(config, **given)[0])

    async def _call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str,
        arguments: Sequence[Any],
        timeout_s: float,
    ) -> list[Any]:
        connection = await connect(self.address, timeout_s=10)
        try:
            reply = await connection.call(
                names.BUS_NAME, path, interface, member, signature, arguments, timeout_s=timeout_s
            )
        finally:
            connection.close()
        return [plain(value) for value in reply]

    async def _owned(self, timeout_s: float) -> None:
        connection = await connect(self.address, timeout_s=10)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    assert self.running, f"the daemon has ended:\n{self.log}"
                    try:
                        arguments = ("GetConnectionUnixProcessID", "s", [names.BUS_NAME])
                        (owner,) = await connection.call(BUS, BUS_PATH, BUS, *arguments)
                        if owner == self.pid:
                            return
                    except RemoteError:
                        pass  # nobody has the name yet
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"the daemon did not come up:\n{self.log}") from None
        finally:
            connection.close()


def options(given: Mapping[str, Any]) -> dict[str, Variant]:
    """Options for Plan, Apply and Assert; a Variant is taken as it is."""
    return {name.replace("_", "-"): _variant(value) for name, value in given.items()}


def _variant(value: Any) -> Variant:
    if isinstance(value, Variant):
        return value
    if isinstance(value, bool):
        return Variant("b", value)
    if isinstance(value, str):
        return Variant("s", value)
    return Variant("as", list(value))


def _alive(pid: int) -> bool:
    """Whether it is there, and not as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _tracer(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("TracerPid:") and int(line.split()[1]):
            return int(line.split()[1])
    raise AssertionError(f"{pid} was killed and is still there, and nobody traces it")


def processes_about(folder: Path) -> dict[int, str]:
    """Processes, not this one, that have the folder in their command line or environment."""
    needle = os.fsencode(folder)
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            if needle in command or needle in (entry / "environ").read_bytes():
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended
    return found


@pytest.fixture
def no_process_left(tmp_path: Path) -> Iterator[None]:
    """Fail a test that leaves a daemon, a worker or a holder behind; they are ended then.

    Known by the test's own folder, which must hold the node or the daemon's folders.
    """
    yield
    try:
        wait_for(lambda: not processes_about(tmp_path), timeout=10)
    except AssertionError:
        left = processes_about(tmp_path)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"left running: {left}") from None
