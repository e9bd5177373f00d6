"""A test host: what tests do to it, and what they see of it."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from migd import names
from tests.host import layer
from tests.host.calls import Calls
from tests.host.machine import REBOOT, Machine
from tests.host.process import Process
from tests.support.node import Node, wait_for

_RUN_S = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Done = subprocess.CompletedProcess[str]


class Failed(AssertionError):
    """A command in a host that ended with another exit code than 0."""


class Host(Calls):
    """A host with a disk of its own; it is booted by `start` or as a context manager.

    layers: read-only trees, the topmost first
    node: the simulated GPUs, none for a host without a driver
    folder: new, for the disk and the console
    """

    def __init__(self, layers: Sequence[Path], node: Node | None, folder: Path) -> None:
        self.node = node
        self.layers = tuple(layers)
        self.disk = folder / "upper"
        self.console = folder / "console"
        self._folder = folder
        self._machine: Machine | None = None
        self._booted = 0
        self._processes: list[Process] = []
        for name in ("upper", "work", "root"):
            (folder / name).mkdir(parents=True)
        layer.add_devices(self.disk, node.gpus() if node else [])

    # -- its life ------------------------------------------------------------------------

    def start(self) -> Self:
        """Power on, and return when the boot is over; units that failed are no error."""
        assert not self.running, "it runs already"
        if self.node and self._booted:
            self.node.reboot()
        self._booted += 1
        binds = [f"--bind-ro={layer.CHECKOUT / 'migd'}:{layer.SIMULATOR / 'migd'}"]
        if self.node:
            binds.append(f"--bind={self.node.path}:{layer.NODE}")
        self._machine = Machine(self.layers, self._folder, self.console, binds)
        self._machine.wait_booted()
        return self

    @property
    def running(self) -> bool:
        return self._machine is not None and self._machine.running

    @property
    def machine(self) -> Machine:
        assert self._machine, "it was never started"
        return self._machine

    def wait_off(self, timeout: float = _RUN_S) -> str:
        """Wait until it is off by itself: "reboot" or "poweroff"; start() boots it again."""
        return "reboot" if self.machine.wait_off(timeout) == REBOOT else "poweroff"

    def poweroff(self) -> None:
        self.run("systemctl", "poweroff", check=False)
        assert self.wait_off() == "poweroff"

    def reboot(self) -> None:
        """Reboot in order, disk kept; return when it is up again."""
        self.run("systemctl", "reboot", check=False)
        assert self.wait_off() == "reboot"
        self.start()

    def crash(self) -> None:
        """Cut the power. What was written stays written, synced or not: the kernel lives on."""
        self.machine.kill()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Power off at once, and forget the disk. Can be called again and again."""
        if self._machine:
            self._machine.kill()
        for process in self._processes:
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def report(self) -> str:
        """What a person wants to read after a failure."""
        console = self.console.read_text(errors="replace") if self.console.exists() else ""
        return f"--- console\n{console}\n--- journal of migd\n{self.journal('migd.service')}"

    # -- commands inside -----------------------------------------------------------------

    def run(
        self,
        *command: str,
        user: str | None = None,
        check: bool = True,
        text: str | None = None,
        timeout: float = _RUN_S,
    ) -> Done:
        """Run a command as root or a user, in no unit and no session. Raises Failed."""
        done = subprocess.run(
            self.machine.command(*_as(user, command)),
            env={},
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise Failed(f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def run_unit(
        self, *command: str, user: str = "root", properties: Sequence[str] = (), **given: Any
    ) -> Done:
        """Run a command as a transient service: with a cgroup and a unit, without a session."""
        start = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--uid={user}"]
        return self.run(*start, *(f"--property={line}" for line in properties), *command, **given)

    def session(self, user: str, *command: str, **given: Any) -> Done:
        """Run a command in a session of logind of its own."""
        properties = ("PAMName=login", "Type=exec")
        return self.run_unit(*command, user=user, properties=properties, **given)

    def spawn(self, *command: str, user: str | None = None) -> Process:
        """Start a command that goes on; it ends with the host at the latest."""
        output = self._folder / f"output{len(self._processes)}"
        process = Process(self.machine.command(*_as(user, command)), output)
        self._processes.append(process)
        return process

    def hold(
        self,
        gpu: int,
        gi: int | None = None,
        *,
        hidden: bool = False,
        user: str | None = None,
        command: Sequence[str] = ("sleep", "infinity"),
    ) -> Process:
        """Start a process that holds a GPU, or one of its instances; return when it does."""
        assert self.node
        node = self.node
        arguments = ["--gpu", str(gpu)]
        arguments += [] if gi is None else ["--gi", str(gi)]
        arguments += ["--hidden"] if hidden else []
        holder = self.spawn(
            "simulator", "hold", str(layer.NODE), *arguments, "--", *command, user=user
        )

        def holds() -> bool:
            if not holder.alive():
                raise AssertionError(f"the holder ended with {holder.wait()}: {holder.output}")
            # It holds first and becomes the command then.
            listed = any(row["pid"] == holder.pid for row in node.gpus()[gpu]["holders"])
            return listed and "python" not in Path(holder.program).name

        wait_for(holds, what="the holder is not there")
        return holder

    # -- files ---------------------------------------------------------------------------

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file with the folders above it; also before the first boot and when it is off."""
        if self.running:
            script = 'mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1"'
            self.run("sh", "-c", script, "sh", path, f"{mode:o}", text=text)
            return
        file = self.disk / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str:
        """The text of a file; when it is off, only of one that it has written itself."""
        if self.running:
            return self.run("cat", path).stdout
        return (self.disk / path.lstrip("/")).read_text()

    # -- systemd -------------------------------------------------------------------------

    def systemctl(self, *arguments: str, **given: Any) -> str:
        return self.run("systemctl", *arguments, **given).stdout.strip()

    def active(self, unit: str) -> bool:
        return self.systemctl("is-active", unit, check=False) == "active"

    def properties(self, unit: str, *wanted: str) -> dict[str, str]:
        lines = self.systemctl("show", unit, *(f"--property={name}" for name in wanted))
        pairs = (line.partition("=") for line in lines.splitlines())
        return {name: value for name, _, value in pairs}

    def journal(self, unit: str | None = None, *arguments: str) -> str:
        """Messages of all boots, of one unit or all; also when it is off."""
        command = ["journalctl", "--quiet", "--no-pager", "--output=short-monotonic", *arguments]
        command += [] if unit is None else [f"--unit={unit}"]
        if self.running:
            return self.run(*command, check=False).stdout
        command.append(f"--directory={self.disk / 'var/log/journal'}")
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def entries(self, unit: str) -> list[dict[str, Any]]:
        """The same as values, with all fields."""
        lines = self.journal(unit, "--output=json").splitlines()
        return [json.loads(line) for line in lines]

    def boot_id(self) -> str:
        return self.read(names.BOOT_ID_FILE).strip()

    # -- the bus, as root: see Calls ------------------------------------------------------

    @property
    def address(self) -> str:
        return f"unix:path=/proc/{self.machine.leader}/root/run/dbus/system_bus_socket"

    def wait_for(
        self, condition: Callable[[], object], *, timeout: float = 20.0, what: str = ""
    ) -> None:
        """Wait for a condition of the host; nothing is waited for once it is off."""

        def met() -> object:
            assert self.running, f"it is off{': ' if what else ''}{what}"
            return condition()

        wait_for(met, timeout=timeout, what=what)


def _as(user: str | None, command: Sequence[str]) -> list[str]:
    """A command with an environment that owes nothing to that of the tests."""
    home = f"/home/{user}" if user else "/root"
    clean = ["env", "-i", f"PATH={_PATH}", f"HOME={home}", f"USER={user or 'root'}", "LANG=C.UTF-8"]
    drop = [f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
    return ["setpriv", *drop, *clean, *command] if user else [*clean, *command]
