"""A booted tree: one systemd-nspawn from power on to power off, with nothing left behind.

nspawn is the first process of a pid namespace, which ends with the thread that started it, and
all that the kernel and nspawn keep of the machine is in a mount namespace that ends with it. So
only empty cgroups can be left by a test run that is killed; the next one removes those.
"""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.node import wait_for

REBOOT = 133  # what nspawn exits with when the machine inside reboots

_BOOT_S = 60.0
_END_S = 30.0
_NAME = "migd-test-{pid}-{number}"
_numbers = itertools.count()

# Side by side hosts need a cgroup each: nspawn puts its payload below the one that it is in.
_START = """\
set -eu
lower=$1 disk=$2 cgroups=$3
shift 3
for cgroup in $cgroups; do echo $$ >"$cgroup/cgroup.procs"; done
mount -t tmpfs -o mode=755 tmpfs /run
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$disk/upper,workdir=$disk/work" "$disk/root"
exec "$@"
"""


_UNSHARE = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL")


class BootError(AssertionError):
    """The machine did not come up; the console is in the text."""


class Machine:
    """A machine that is starting or running. disk: folder with upper, work and root."""

    def __init__(
        self, layers: Sequence[Path], disk: Path, console: Path, binds: Sequence[str]
    ) -> None:
        _sweep()
        self.console = console
        self.name = _NAME.format(pid=os.getpid(), number=next(_numbers))
        self._leader: int | None = None
        self._cgroups = [root / self.name for root in _hierarchies()]
        for cgroup in self._cgroups:
            cgroup.mkdir()
        nspawn = [
            "systemd-nspawn", "--quiet", f"--directory={disk / 'root'}", f"--machine={self.name}",
            "--register=no", "--keep-unit", "--boot", "--console=pipe", "--private-network",
            "--settings=no", "--link-journal=no", "--resolv-conf=off", "--timezone=off", *binds,
        ]  # fmt: skip
        start = [
            "sh", "-c", _START, "sh", ":".join(map(str, layers)), str(disk),
            " ".join(map(str, self._cgroups)), *nspawn,
        ]  # fmt: skip
        with console.open("ab") as output:
            self._nspawn = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *_UNSHARE, *start],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A Ctrl-C is for the test run, which ends its machines in order.
                start_new_session=True,
            )

    @property
    def leader(self) -> int:
        """The machine's first process, by our pid of it."""
        assert self._leader, "it is not up"
        return self._leader

    @property
    def running(self) -> bool:
        return self._nspawn.poll() is None

    def wait_booted(self) -> None:
        """Return when systemd and the system bus answer, and all jobs of the boot are done."""
        self._wait(self._answers, "no system bus")
        self.enter("systemctl", "is-system-running", "--wait", timeout=_BOOT_S)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _BOOT_S
        while not condition():
            if not self.running or time.monotonic() > end:
                text = self.console.read_text(errors="replace")
                raise BootError(f"{self.name}: {what}\n{text}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        self._leader = self._leader or _leader_of(self._nspawn.pid)
        root = Path(f"/proc/{self._leader}/root")
        sockets = ("run/dbus/system_bus_socket", "run/systemd/private")
        try:
            # Until it has its own root it sees ours, and the sockets there.
            return not root.samefile("/") and all((root / path).exists() for path in sockets)
        except OSError:
            return False  # it is not there yet, or has ended

    def command(self, *command: str) -> list[str]:
        """What runs a command inside, as root, in no unit and in no session of it."""
        # nsenter would fork by itself to get into the pid namespace, and stop together with its
        # child; systemd stops all processes at its end, and would wait for that child for ever.
        fork = ("sh", "-c", '"$@"; exit $?', "sh")
        enter = ("nsenter", f"--target={self.leader}", "--all", "--no-fork")
        return [*enter, "--", *fork, *command]

    def enter(self, *command: str, timeout: float) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*command), capture_output=True, text=True, check=False, timeout=timeout
        )

    def wait_off(self, timeout: float = _END_S) -> int:
        """Return nspawn's exit status once all is gone."""
        status = self._nspawn.wait(timeout)
        for cgroup in self._cgroups:
            wait_for(lambda: _remove(cgroup), what=f"{cgroup} is in use")  # noqa: B023
        return status

    def kill(self) -> None:
        """End it at once, as by a power cut. Can be called at any time, again and again."""
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self._leader or self._nspawn.pid, signal.SIGKILL)
        try:
            self.wait_off(5)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self.wait_off()


def _hierarchies() -> Iterator[Path]:
    """Where systemd keeps cgroups: cgroup2, and beside it name=systemd on hybrid machines."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            yield Path(before.split()[4])


def cgroups(pid: int | str) -> list[Path]:
    """The cgroups of all machines that a process has started."""
    pattern = _NAME.format(pid=pid, number="*")
    return [cgroup for root in _hierarchies() for cgroup in root.glob(pattern)]


def _sweep() -> None:
    """Remove the empty cgroups of test runs that were killed."""
    for cgroup in cgroups("*"):
        if not Path(f"/proc/{cgroup.name.split('-')[2]}").exists():
            _remove(cgroup)


def _remove(cgroup: Path) -> bool:
    """Remove a cgroup and those below; false as long as there is a process in one."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        with suppress(OSError):
            Path(folder).rmdir()
    return not cgroup.exists()


def _leader_of(pid: int) -> int | None:
    """The first process of the machine: our child is `unshare`, below it nspawn, and then this."""
    for nspawn in children(pid):
        for inner in children(nspawn):
            with suppress(OSError):  # it has ended: nspawn has another child before this one
                if inner_pid(inner) == 1:
                    return inner
    return None


def children(pid: int) -> list[int]:
    """None where the process has ended."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def inner_pid(pid: int) -> int:
    """The pid that a process has in its own namespace."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise AssertionError(f"{pid} has no NSpid")
