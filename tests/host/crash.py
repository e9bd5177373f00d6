"""Clients on a host whose migd is killed: where it stands, who runs, and what must hold then."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import TYPE_CHECKING, Any

from migd import names
from tests.faults.scenes import Truth, truths
from tests.host import layer
from tests.host.conftest import Boot
from tests.host.host import Host
from tests.host.machine import inner_pid
from tests.support.node import MUTATING, Node, wait_for

if TYPE_CHECKING:
    from tests.host.process import Process

ETC = "/etc/systemd/system"
STARTS = "/root/starts"
LOOSE = ("sleep", "86400")
_STRACE_S = 10.0

CONFIG = """\
version: v1
mig-configs:
  plain:
    - {devices: all, mig-enabled: false}
  split:
    - {devices: [0], mig-enabled: true, mig-devices: {2g.20gb: 1, 1g.20gb: 1}}
    - {devices: [1], mig-enabled: true, mig-devices: {3g.40gb: 1}}
"""
LISTED = """\
version: v1
systemd-services: [c-second.service, c-idle.service, c-off.service, c-holder.service]
processes:
  - {executable: sleep, command-line: "sleep 86400"}
"""
# Each start leaves its name, so that one too many or too early is seen.
COUNTED = f"ExecStartPre=/bin/sh -c 'echo %n >>{STARTS}'\n"
SLEEP = "ExecStart=/bin/sleep infinity\n"
HOLDER = f"Type=exec\nExecStart=/usr/bin/simulator hold {layer.NODE} --gpu 0 -- sleep infinity\n"
_INSTALL = "[Install]\nWantedBy=multi-user.target\n"
UNITS = {
    "c-holder": f"[Service]\n{COUNTED}{HOLDER}Restart=always\nRestartSec=0\n{_INSTALL}",
    "c-along": "[Unit]\nRequires=c-holder.service\nAfter=c-holder.service\n"
    f"[Service]\n{COUNTED}{SLEEP}Restart=always\n{_INSTALL}",
    "c-second": f"[Service]\n{COUNTED}{SLEEP}{_INSTALL}",
    "c-idle": f"[Service]\n{COUNTED}{SLEEP}{_INSTALL}",
    "c-off": f"[Service]\n{COUNTED}{SLEEP}{_INSTALL}",
}
RUNNING = ("c-holder.service", "c-along.service", "c-second.service")
_ENABLED = (*RUNNING, "c-idle.service")


def prepared(
    units: Mapping[str, str], listed: str, settings: str = "", config: str = CONFIG
) -> Callable[[Host], None]:
    """Files of a host, to be written before it is booted; units by name without the kind."""

    def prepare(host: Host) -> None:
        host.write("/etc/migd/config.yaml", config)
        host.write("/etc/migd/clients.yaml", listed)
        if settings:
            host.write("/etc/migd/migd.yaml", settings)
        for name, text in units.items():
            host.write(f"{ETC}/{name}.service", text)

    return prepare


def boot_clients(boot: Boot, release: str, folder: Path) -> Host:
    """Two H100 and all of UNITS, of which RUNNING run."""
    node = Node.new(folder / "node", ("h100-80gb-sxm5", 2))
    host = boot(release, node, prepare=prepared(UNITS, LISTED))
    host.systemctl("enable", "--quiet", *_ENABLED)
    host.systemctl("start", *RUNNING)
    return host


def active(host: Host) -> set[str]:
    lines = host.systemctl("list-units", "--plain", "--no-legend", "--state=active", "c-*")
    return {line.split()[0] for line in lines.splitlines()}


def enabled(host: Host) -> list[str]:
    return host.systemctl("is-enabled", *(f"{u}.service" for u in UNITS), check=False).split()


def starts(host: Host) -> list[str]:
    """The names of all units that were started, in this order."""
    return host.run("cat", STARTS, check=False).stdout.split()


def started_at(host: Host, unit: str) -> int:
    """When its main process was started last: CLOCK_MONOTONIC in nanoseconds."""
    name = "ExecMainStartTimestampMonotonic"
    return int(host.properties(unit, name)[name]) * 1000


def last_change(node: Node) -> int:
    """When the last call that changed something was made: CLOCK_MONOTONIC in nanoseconds."""
    return max((c.begun for c in node.log() if c.name in MUTATING), default=0)


def check_clean(host: Host) -> None:
    """Nothing of a job is left: no failed unit, no job, no unit or file of ours."""
    # A job that has nothing to do with clients can be there for a moment.
    host.wait_for(lambda: not host.systemctl("list-jobs", "--no-legend"), what="jobs are queued")
    assert not host.systemctl("list-units", "--failed", "--no-legend")
    assert not host.systemctl("list-units", "--all", "--plain", "--no-legend", "migd-[hr]*")
    left = host.run("ls", "/run/migd", "/run/systemd/transient", check=False).stdout.split()
    left = [n for n in left if not n.startswith(("/run", "session-"))]
    assert {*left} <= {"worker.lock", names.PUT_BACK_FILE}, left
    assert "journal" not in host.run("ls", names.STATE_DIR).stdout.split()


def migd_pid(host: Host) -> int:
    return int(host.properties("migd.service", "MainPID")["MainPID"])


def outer_pid(host: Host, pid: int) -> int:
    """The pid by which we know a process of the host."""
    space = Path(f"/proc/{host.machine.leader}/ns/pid").readlink()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and (folder / "ns/pid").readlink() == space:
                number = int(folder.name)
                if inner_pid(number) == pid:
                    return number
    raise AssertionError(f"no process {pid}")


class Syncs:
    """migd of a host, stopped at each of its syncs by strace from outside."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.inner = migd_pid(host)
        self.pid = outer_pid(host, self.inner)
        self.count = 0
        self._killed = False
        self._output = folder / f"trace-{self.pid}"
        calls = "fdatasync,fsync"
        self._strace = subprocess.Popen(
            ["strace", "-f", "-p", str(self.pid), "-o", str(self._output),
             "-e", f"trace={calls}", "-e", f"inject={calls}:signal=SIGSTOP", "-e", "signal=STOP"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._strace.stderr
        assert "attached" in self._strace.stderr.readline()

    def reach(self, number: int, work: "Future[Any]") -> bool:
        """Let it go on to that sync; False when the work is over before."""
        while True:
            wait_for(lambda: self._stops() > self.count or work.done(), timeout=60)
            if self._stops() == self.count:
                return False
            self.count += 1
            if self.count == number:
                return True
            self.go_on()

    def go_on(self) -> None:
        os.kill(self.pid, SIGCONT)

    def _stops(self) -> int:
        return self._output.read_text().count("--- SIGSTOP {")

    def kill(self) -> None:
        os.kill(self.pid, SIGKILL)
        self._killed = True

    def end(self) -> None:
        # Told to end while what it traces is being killed, it can wait for ever; else it ends then.
        if not self._killed:
            self._strace.terminate()
        try:
            self._strace.wait(_STRACE_S)
        except subprocess.TimeoutExpired:
            self._strace.kill()
            self._strace.wait()
        assert self._strace.stderr
        self._strace.stderr.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, SIGCONT)


@contextmanager
def working(work: Callable[[], Any]) -> Iterator["Future[Any]"]:
    """Do it in a thread meanwhile; what it raises is in the future."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield future
        future.exception()


class Round:
    """One job that is disturbed: as it was before, and what must hold after."""

    def __init__(self, host: Host, *, loose: bool = True) -> None:
        assert host.node
        self.host = host
        self.node = host.node
        # Kills in a row are ours, and no sign that it cannot run.
        host.systemctl("reset-failed", "migd.service", check=False)
        self.loose: Process | None = host.hold(0, command=LOOSE) if loose else None
        self.before = truths(host.node)
        self.active = active(host)
        self.enabled = enabled(host)
        self.starts = len(starts(host))
        self.pid = migd_pid(host)
        (jobs,) = host.call("ListJobs", "a{sv}", {})
        self.last = max((job["id"] for job in jobs), default=0)

    def journaled(self) -> list[str]:
        path = self.host.disk / names.STATE_DIR.lstrip("/") / names.JOURNAL_FILE
        return path.read_text().splitlines() if path.exists() else []

    def job_on_disk(self) -> tuple[int, str]:
        """The job that runs by what is on disk, and how it ended, "" if that is not there.

        0: there is none yet.
        """
        state = self.host.disk / names.STATE_DIR.lstrip("/") / names.STATE_FILE
        ended = {job["id"]: job["result"] for job in json.loads(state.read_text())["jobs"]}
        if journal := self.journaled():
            number = json.loads(journal[0])[1]["id"]
            return number, ended.get(number, "")
        last = max(ended, default=0)
        return (last, ended[last]) if last > self.last else (0, "")

    def back(self) -> None:
        """Wait until systemd has brought migd back."""
        self.host.wait_for(
            lambda: migd_pid(self.host) not in (0, self.pid) and self.host.active("migd.service"),
            what="migd does not come back",
        )

    def check(self, goal: Sequence[Truth], outcomes: Sequence[Mapping[str, Any]]) -> None:
        """All is as before, or as wanted and as it was told; clients run as before."""
        found = truths(self.node)
        for outcome, before, wanted, now in zip(outcomes, self.before, goal, found, strict=True):
            expected = {"done": wanted, "rolled-back": before, "unchanged": before}
            assert now == expected[outcome["result"]], outcome
        self.check_clients()

    def check_clients(self) -> None:
        """Those that ran run, each started once at the most, and none while GPUs changed."""
        self.host.wait_for(
            lambda: active(self.host) == self.active,
            what=f"{self.active} ran, and now {active(self.host)}",
        )
        assert enabled(self.host) == self.enabled
        check_clean(self.host)
        again = starts(self.host)[self.starts :]
        assert len(again) == len(set(again)), again
        changed = last_change(self.node)
        for unit in again:
            assert started_at(self.host, unit) > changed, f"{unit} ran while GPUs changed"

    def end(self) -> None:
        """Without the loose process, whether it was ended or not."""
        if self.loose:
            if self.loose.alive():
                self.host.run("kill", str(self.loose.pid), check=False)
            self.loose.wait()
