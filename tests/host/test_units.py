"""Units and the hold against the real systemd; it is the judge, never what migd says."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migd.host import hold
from migd.host.holding import UNIT
from tests.host.conftest import Layers
from tests.host.host import Host
from tests.host.image import RELEASES
from tests.host.units_driver import Driver, Failed
from tests.support.node import wait_for

ETC, RUN, USR = "/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"
ONESHOT = "[Service]\nType=oneshot\nExecStart=/bin/true\n"
SLEEP = "[Service]\nExecStart=/bin/sleep infinity\n"

once = pytest.mark.parametrize("host", ["bookworm"], indirect=True)


@pytest.fixture(scope="module", params=RELEASES)
def host(
    request: pytest.FixtureRequest, layers: Layers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("units") / "host"
    with Host(layers[request.param], None, folder) as booted:
        yield booted


@pytest.fixture
def driver(host: Host) -> Iterator[Driver]:
    with Driver(host) as running:
        yield running
    left = host.systemctl("list-units", "--all", "--plain", "--no-legend", "migd-[hr]*")
    assert not left
    assert not host.systemctl("list-jobs", "--no-legend")
    assert not host.run("ls", "/run/migd-test").stdout


def install(host: Host, units: dict[str, str], folder: str = ETC) -> None:
    for name, text in units.items():
        host.write(f"{folder}/{name}", text)
    host.systemctl("daemon-reload")


def state(host: Host, unit: str) -> str:
    return host.properties(unit, "ActiveState")["ActiveState"]


def active(host: Host) -> set[str]:
    lines = host.systemctl("list-units", "--plain", "--no-legend", "--state=active,activating")
    return {line.split()[0] for line in lines.splitlines()}


def queued(host: Host) -> set[str]:
    """Units whose start waits."""
    lines = [line.split() for line in host.systemctl("list-jobs", "--no-legend").splitlines()]
    return {unit for _, unit, kind, how in lines if (kind, how) == ("start", "waiting")}


# -- seen ------------------------------------------------------------------------------------


def test_states(host: Host, driver: Driver) -> None:
    install(host, {"s-a.service": SLEEP + "KillMode=process\n[Install]\nAlias=s-alias.service\n"})
    host.systemctl("enable", "--now", "s-a.service")
    host.run("systemd-run", "--unit=s-loose", "sleep", "infinity")
    names = ["s-alias.service", "s-loose.service", "no.service", "no unit", "x@.service", "-.slice"]
    seen = driver.do("units.states", [*names, "init.scope"])
    assert set(seen) == {*names, "init.scope"}
    one = seen["s-alias.service"]
    assert (one["name"], one["load"], one["file_state"]) == ("s-a.service", "loaded", "enabled")
    assert (one["fragment"], one["kind"]) == (f"{ETC}/s-a.service", "simple")
    assert set(one["names"]) == {"s-a.service", "s-alias.service"}
    assert str(one["main_pid"]) == host.properties("s-a.service", "MainPID")["MainPID"]
    assert one["control_group"].endswith("/system.slice/s-a.service")
    assert not one["kills_all"]
    assert seen["s-loose.service"]["kills_all"]
    assert [seen[n]["active"] for n in names] == [True, True, False, False, False, True]
    assert [n for n in seen if seen[n]["returnable"]] == ["s-alias.service"]
    assert [n for n in seen if not seen[n]["loaded"]] == ["no.service", "no unit", "x@.service"]
    host.systemctl("stop", "s-a.service", "s-loose.service")


def test_what_stops_along(host: Host, driver: Driver) -> None:
    needs = {
        "requires": "Requires=a-root.service\nAfter=a-root.service",
        "second": "Requires=a-requires.service\nAfter=a-requires.service",
        "both": "Requires=a-second.service a-root.service",
        "requisite": "Requisite=a-root.service\nAfter=a-root.service",
        "binds": "BindsTo=a-root.service\nAfter=a-root.service",
        "part": "PartOf=a-root.service",
        "from": "StopPropagatedFrom=a-root.service",
        "wants": "Wants=a-root.service",
        "idle": "Requires=a-root.service",
        "ring1": "Requires=a-root.service a-ring2.service",
        "ring2": "Requires=a-ring1.service",
    }
    files = {f"a-{name}.service": f"[Unit]\n{text}\n{SLEEP}" for name, text in needs.items()}
    install(host, {"a-root.service": SLEEP, **files})
    running = [name for name in files if name != "a-idle.service"]
    host.systemctl("start", "a-root.service", *running)
    before = active(host)

    along = [unit["name"] for unit in driver.do("units.along", "a-root.service")]
    driver.do("units.stop", "a-root.service", 20)

    assert sorted(["a-root.service", *along]) == sorted(before - active(host))
    order = {name: along.index(f"a-{name}.service") for name in ("both", "second", "requires")}
    assert sorted(order, key=lambda name: order[name]) == ["both", "second", "requires"]


# -- stopped and started ---------------------------------------------------------------------


def test_start_that_succeeds(host: Host, driver: Driver) -> None:
    install(
        host,
        {
            "g-simple.service": f"[Unit]\nStartLimitBurst=2\n{SLEEP}",
            # Keeps it loaded, else systemd forgets how often it was started.
            "g-keeper.service": f"[Unit]\nAfter=g-simple.service\n{SLEEP}",
            "g-oneshot.service": ONESHOT,
            "g-stays.service": f"{ONESHOT}RemainAfterExit=yes\n",
        },
    )
    host.systemctl("start", "g-keeper.service")
    for _ in range(8):  # more often than systemd allows others
        driver.do("units.start", "g-simple.service", 10)
        assert state(host, "g-simple.service") == "active"
        driver.do("units.stop", "g-simple.service", 10)
        assert state(host, "g-simple.service") == "inactive"
    driver.do("units.start", "g-oneshot.service", 10)
    driver.do("units.start", "g-stays.service", 10)
    driver.do("units.stop", "g-stays.service", 10)
    driver.do("units.stop", "there-is-none.service", 10)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "Type=notify\nExecStart=/bin/sh -c 'echo one; echo no GPU >&2; exit 3'",
            "exit-code, exit status 3; it said: one | no GPU",
        ),
        ("Type=oneshot\nExecStart=/bin/false", "exit-code, exit status 1"),
        ("ExecStart=/bin/sleep 1\n[Unit]\nConditionPathExists=/not", "its conditions (Condition"),
        ("ExecStart=/bin/sleep 1\n[Unit]\nAssertPathExists=/not", "systemd says 'assert'"),
        ("ExecStart=/bin/sleep 1\n[Unit]\nRequires=no.service\nAfter=no.service", "not found"),
        ("Type=oneshot\nExecStart=/bin/sleep infinity", "has not started within 0.3 s"),
        ("Type=notify\nExecStart=/not/there", "exit-code, exit status 203"),
    ],
)
def test_start_that_fails(host: Host, driver: Driver, text: str, says: str) -> None:
    install(host, {"f-bad.service": f"[Service]\n{text}\n"})
    with pytest.raises(Failed) as failed:
        driver.do("units.start", "f-bad.service", 0.3 if "within" in says else 10)
    assert failed.value.kind == "ClientStuck"
    assert "f-bad.service" in str(failed.value)
    assert says in str(failed.value)
    host.systemctl("stop", "f-bad.service", check=False)
    driver.do("units.reset_failed", "f-bad.service")
    assert state(host, "f-bad.service") == "inactive"


@once
def test_start_of_what_is_masked_or_missing(host: Host, driver: Driver) -> None:
    install(host, {"m-a.service": SLEEP}, USR)
    host.systemctl("mask", "m-a.service")
    for unit in ("m-a.service", "there-is-none.service"):
        with pytest.raises(Failed, match=f"{unit} cannot be started: .*(masked|not found)"):
            driver.do("units.start", unit, 10)
    assert not driver.do("units.states", ["m-a.service"])["m-a.service"]["returnable"]


def test_stop_that_takes_too_long_and_kill(host: Host, driver: Driver) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(999)"
    ready = f'import subprocess; subprocess.run(["systemd-notify", "--ready"]); {deaf}'
    text = f"[Service]\nType=notify\nNotifyAccess=all\nExecStart=/usr/bin/python3 -c '{ready}'\n"
    install(host, {"k-deaf.service": text})
    driver.do("units.start", "k-deaf.service", 20)
    with pytest.raises(Failed, match=r"k-deaf\.service did not stop within 0\.3 s"):
        driver.do("units.stop", "k-deaf.service", 0.3)
    assert state(host, "k-deaf.service") == "deactivating"  # systemd goes on
    driver.do("units.kill", "k-deaf.service", 20)
    assert state(host, "k-deaf.service") == "failed"
    driver.do("units.reset_failed", "k-deaf.service")


@pytest.mark.parametrize("again", ["daemon-reload", "daemon-reexec"])
def test_systemd_begins_anew_in_mid_stop(host: Host, driver: Driver, again: str) -> None:
    block = "while test -e /run/r-block; do sleep 0.02; done"
    install(host, {"r-slow.service": f"{SLEEP}ExecStop=/bin/sh -c '{block}'\n"})
    host.write("/run/r-block", "")
    driver.do("units.start", "r-slow.service", 10)
    stop = driver.begin("units.stop", "r-slow.service", 60)
    host.wait_for(lambda: state(host, "r-slow.service") == "deactivating")
    host.systemctl(again)
    assert driver.do("units.system_state") in ("running", "degraded")
    assert state(host, "r-slow.service") == "deactivating"
    host.run("rm", "/run/r-block")
    driver.result(stop)
    assert state(host, "r-slow.service") == "inactive"
    # It hears of jobs as before.
    driver.do("units.start", "r-slow.service", 10)
    driver.do("units.stop", "r-slow.service", 10)


# -- held ------------------------------------------------------------------------------------

OWN = """
import sys
sys.path.insert(0, "/usr/lib/migd/python")
import asyncio
from migd.bus.connection import connect
async def main():
    connection = await connect(None, timeout_s=10)
    await connection.request_name(sys.argv[1])
    await connection.wait_closed()
asyncio.run(main())
"""
POLICY = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><policy user="root">
<allow own_prefix="org.held"/><allow send_destination="*"/>
</policy></busconfig>
"""


def held_units(host: Host, mark: str, folder: str) -> list[str]:
    """One unit for each way that units come back, running."""

    def name(way: str) -> str:
        return f"{mark}-{way}"

    files = {
        "restart.service": SLEEP + "Restart=always\nRestartSec=10ms\n",
        "timer.service": SLEEP,
        "timer.timer": "[Timer]\nOnActiveSec=20ms\nOnUnitInactiveSec=20ms\nAccuracySec=1ms\n",
        "socket.service": SLEEP,
        "socket.socket": f"[Socket]\nListenStream=/run/{mark}.sock\n",
        "upheld.service": SLEEP,
        "upholder.service": f"[Unit]\nUpholds={mark}-upheld.service\n{SLEEP}",
        "bus.service": f"[Service]\nType=dbus\nBusName=org.held.{mark}\n"
        f"ExecStart=/usr/bin/python3 /root/own.py org.held.{mark}\n",
        "hand.service": SLEEP,
        "needs.service": f"[Unit]\nRequires={mark}-hand.service\n"
        f"After={mark}-hand.service\n{SLEEP}",
    }
    host.write(
        f"/usr/share/dbus-1/system-services/org.held.{mark}.service",
        f"[D-BUS Service]\nName=org.held.{mark}\nExec=/bin/false\nUser=root\n"
        f"SystemdService={mark}-bus.service\n",
    )
    install(host, {name(file): text for file, text in files.items()}, folder)
    ways = ("restart", "timer", "socket", "upheld", "bus", "hand", "needs")
    held = [f"{name(way)}.service" for way in ways]
    starters = ["timer.timer", "socket.socket", "upholder.service"]
    host.systemctl("start", *(name(file) for file in starters), *held)
    return held


def test_nothing_comes_back_before_the_release(host: Host, driver: Driver) -> None:
    host.write("/root/own.py", OWN)
    host.write("/etc/dbus-1/system.d/held.conf", POLICY)
    marks = {"he": ETC, "hr": RUN, "hu": USR}
    held = [unit for mark, folder in marks.items() for unit in held_units(host, mark, folder)]
    host.systemctl("reload", "dbus.service")
    assert set(held) <= active(host)
    driver.do("hold.take", [*held, "not-there-yet.service"])
    assert set(driver.do("hold.units")) == {*held, "not-there-yet.service"}
    assert set(held) <= active(host), "those that run are not touched"
    killed = [f"{mark}-restart.service" for mark in marks]
    pids = host.properties(killed[0], "MainPID")
    host.systemctl("kill", "--signal=KILL", *killed)
    host.wait_for(lambda: set(killed) <= queued(host))
    for unit in held:
        driver.do("units.stop", unit, 20)
    assert host.properties(killed[0], "MainPID") != pids

    host.systemctl("daemon-reload")
    host.systemctl("daemon-reexec")
    install(host, {"not-there-yet.service": SLEEP})
    by_hand = [f"{mark}-{way}.service" for mark in marks for way in ("needs", "hand", "restart")]
    host.systemctl("start", "--no-block", *by_hand, "not-there-yet.service")
    for mark in marks:
        host.run("python3", "-c", _KNOCK, f"/run/{mark}.sock")
        host.run(
            "busctl", "call", f"org.held.{mark}", "/", "org.held", "Any", "--timeout=1", check=False
        )
    expected = {*held, "not-there-yet.service"}
    host.wait_for(lambda: queued(host) == expected, what="not all are queued")
    host.systemctl("daemon-reload")
    host.systemctl("daemon-reexec")
    assert queued(host) == expected
    assert not {unit for unit in expected if state(host, unit) not in ("inactive", "activating")}
    for unit in expected:
        assert host.properties(unit, "MainPID")["MainPID"] == "0"

    driver.do("hold.release")
    host.wait_for(lambda: expected <= active(host), what="not all have come back")
    assert not host.systemctl("list-units", "--failed", "--no-legend", "h*")
    starters = ("timer.timer", "socket.socket", "upholder.service")
    host.systemctl("stop", *(f"{mark}-{starter}" for mark in marks for starter in starters))
    host.systemctl("stop", *expected)


_KNOCK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.send(b"x")
"""


def test_a_killed_daemon_is_followed_by_another(host: Host, driver: Driver) -> None:
    install(host, {"c-a.service": SLEEP + "Restart=always\nRestartSec=10ms\n"})
    host.systemctl("start", "c-a.service")
    first = Driver(host)
    first.do("hold.take", ["c-a.service"])
    first.do("units.stop", "c-a.service", 10)
    host.systemctl("start", "--no-block", "c-a.service")
    program = host.properties(UNIT, "MainPID")
    first.kill()

    assert driver.do("hold.units") == ["c-a.service"]
    assert driver.do("hold.adopt") is True
    assert host.properties(UNIT, "MainPID") == program
    assert queued(host) == {"c-a.service"}
    driver.do("hold.release")
    host.wait_for(lambda: host.active("c-a.service"))
    assert driver.do("hold.adopt") is False
    assert driver.do("hold.units") == []
    driver.do("hold.release")
    host.systemctl("stop", "c-a.service")


def test_a_killed_daemon_that_does_not_come_back(host: Host, driver: Driver) -> None:
    """What it kept down is started all the same, the last first, one after the other."""
    begun = "test $(systemctl is-active d-b.service) = active"
    units = {
        "d-a.service": f"{SLEEP}ExecStartPre=/bin/sh -c '{begun}'\n",
        "d-b.service": f"{SLEEP}ExecStartPre=/bin/sleep 0.3\n",
    }
    install(host, units)
    first = Driver(host, grace_s=0.5)
    first.do("hold.take", list(units))
    host.systemctl("daemon-reload")
    host.systemctl("daemon-reexec")
    assert not active(host) & set(units)
    first.kill()
    host.wait_for(lambda: set(units) <= active(host))
    assert not host.systemctl("list-units", "--failed", "--no-legend")
    host.wait_for(lambda: not host.systemctl("list-units", "run-*.service", "--no-legend"))
    assert driver.do("hold.adopt") is False
    driver.do("hold.release")  # also takes away the FIFO that was left
    host.systemctl("stop", *units)


@once
def test_stop_cancels_what_is_queued(host: Host, driver: Driver) -> None:
    install(host, {"q-a.service": SLEEP})
    driver.do("hold.take", ["q-a.service"])
    host.systemctl("start", "--no-block", "q-a.service")
    assert queued(host) == {"q-a.service"}
    driver.do("units.stop", "q-a.service", 10)
    assert not queued(host)
    start = driver.begin("units.start", "q-a.service", 30)
    host.wait_for(lambda: queued(host) == {"q-a.service"})
    driver.do("hold.release")
    driver.result(start)
    host.systemctl("stop", "q-a.service")


@once
@pytest.mark.parametrize("how", ["without its FIFO", "deaf", "killed"])
def test_a_hold_that_went_wrong_ends(host: Host, driver: Driver, how: str) -> None:
    install(host, {"w-a.service": SLEEP})
    first = Driver(host)
    first.do("hold.take", ["w-a.service"])
    host.systemctl("start", "--no-block", "w-a.service")
    signals = {"killed": "KILL", "deaf": "STOP"}
    if how in signals:
        host.systemctl("kill", f"--signal={signals[how]}", UNIT)
    else:
        host.run("rm", "/run/migd-test/hold")
    first.kill()
    if how == "killed":
        host.wait_for(lambda: host.active("w-a.service"))
    assert driver.do("hold.adopt") is False
    driver.do("hold.take", ["w-a.service"])
    assert driver.do("hold.units") == ["w-a.service"]
    driver.do("hold.release")
    assert not host.systemctl("list-units", "--failed", "--no-legend", "migd-*")
    host.systemctl("stop", "w-a.service")


def test_the_hold_ends_with_the_system(layers: Layers, tmp_path: Path, release: str) -> None:
    with Host(layers[release], None, tmp_path / "host") as host:
        install(host, {"p-a.service": f"{SLEEP}ExecStartPre=/bin/touch /root/started\n"})
        driver = Driver(host)
        driver.do("hold.take", ["p-a.service"])
        host.systemctl("start", "--no-block", "p-a.service")
        begun = time.monotonic()
        host.reboot()
        assert time.monotonic() - begun < 15
        assert not host.run("ls", "/root").stdout.count("started")
        driver.wait()


# -- the program of the hold -----------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@contextmanager
def program(fifo: Path, grace_s: float) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-IS", hold.__file__, str(fifo), str(grace_s)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            running.kill()


def writer(fifo: Path) -> int:
    """Open it as soon as somebody reads."""
    found: list[int] = []

    def opened() -> bool:
        try:
            found.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    wait_for(opened)
    return found[0]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_hold_program_ends_when_told(fifo: Path) -> None:
    with program(fifo, 60) as running:
        held = writer(fifo)
        os.write(held, hold.HELLO)
        os.write(held, hold.RELEASE)
        assert running.wait(20) == 0
        os.close(held)


def test_hold_program_ends_when_terminated(fifo: Path) -> None:
    with program(fifo, 60) as running:
        held = writer(fifo)
        running.terminate()
        # Before its handler is there, the signal ends it too.
        assert running.wait(20) in (0, -signal.SIGTERM)
        os.close(held)


def test_hold_program_ends_a_grace_after_the_last_writer(fifo: Path) -> None:
    with program(fifo, 0.5) as running:
        for _ in range(3):
            held = writer(fifo)
            os.write(held, hold.HELLO)
            os.close(held)
        held = writer(fifo)
        # Longer than the grace: it stays because somebody has it open, and turns no loop.
        ended = os.pidfd_open(running.pid)
        assert select.select([ended], [], [], 1.2) == ([], [], [])
        assert cpu_s(running.pid) < 0.5
        begun = time.monotonic()
        os.close(held)
        assert running.wait(20) == 0
        assert time.monotonic() - begun >= 0.4
        os.close(ended)


def test_hold_program_ends_without_any_writer(fifo: Path) -> None:
    with program(fifo, 0.1) as running:
        assert running.wait(20) == 0
    with program(fifo.with_name("missing"), 60) as running:
        assert running.wait(20) == 0


# -- programs --------------------------------------------------------------------------------


def test_programs(host: Host, driver: Driver) -> None:
    def run(*command: str, **limits: float) -> dict[str, object]:
        found = driver.do("programs.run", command, **{"limit_s": 20, **limits})
        assert isinstance(found, dict)
        return found

    mixed = run("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    ended = {"status": 7, "signal": 0, "output": "out\nerr\n", "in_time": True, "refused": ""}
    assert mixed == ended
    assert run("/bin/echo", "$HOME", "%n", "\\n")["output"] == "$HOME %n \\n\n"
    killed = run("/bin/sh", "-c", "kill -KILL $$")
    assert (killed["status"], killed["signal"]) == (None, 9)
    assert run("/not/there")["refused"] == "No such file or directory"
    host.run("sh", "-c", "printf '#!/bin/sh\\ntouch /ran' >/opt/p; chmod 777 /opt/p; /opt/p")
    host.run("rm", "/ran")
    assert "/opt/p can be written by others than root" in str(run("/opt/p")["refused"])
    assert host.run("test", "-e", "/ran", check=False).returncode == 1
    host.run("chmod", "755", "/opt/p")
    assert run("/opt/p")["status"] == 0
    host.run("rm", "/ran", "/opt/p")
    late = run("/bin/sleep", "infinity", limit_s=0.2)
    assert (late["status"], late["in_time"]) == (None, False)
    much = run("/usr/bin/yes", output_limit=1000)
    assert (much["signal"], much["output"]) == (signal.SIGXFSZ, "y\n" * 500)
    plain = driver.do("programs.run", ["/usr/bin/env"], limit_s=20, environment={"A": "b c"})
    names = {line.partition("=")[0] for line in plain["output"].splitlines()}
    assert "A=b c\n" in plain["output"]
    assert names <= {
        "A", "LANG", "PATH", "USER", "HOME", "SHELL", "LOGNAME", "INVOCATION_ID",
        "SYSTEMD_EXEC_PID", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE",
    }  # fmt: skip
    side = [driver.begin("programs.run", ["/bin/echo", str(i)], limit_s=20) for i in range(10)]
    assert [driver.result(number)["output"] for number in side] == [f"{i}\n" for i in range(10)]
    assert json.dumps(host.systemctl("list-units", "--failed", "--no-legend", "migd-run*")) == '""'


def test_bare_programs(host: Host, driver: Driver) -> None:
    """Of somebody's own: outside of any sandbox, with what they are given and nothing else."""

    def run(words: str, folder: str = "", limit_s: float = 20) -> dict[str, object]:
        command, told = ["/bin/sh", "-c", words], {"A": "b  c", "B": "$A\n%n"}
        found = driver.do("programs.run_bare", command, told, limit_s=limit_s, folder=folder)
        assert isinstance(found, dict)
        return found

    told = run("tr '\\0' '|' </proc/self/environ; pwd", folder="/srv")
    assert told["output"] == "A=b  c|B=$A\n%n|/srv\n"
    done = run("head -c 3000000 /dev/zero >/usr/lib/bare && touch /root/bare && exit 4")
    assert (done["status"], done["output"]) == (4, "")
    assert host.run("stat", "--format=%s", "/usr/lib/bare", "/root/bare").stdout == "3000000\n0\n"
    host.run("rm", "/usr/lib/bare", "/root/bare")
    # Of much that it says the end is kept; and nothing of it outlives the limit.
    much = run("sleep 98765 & while :; do echo y; done", limit_s=1.5)
    assert (much["in_time"], len(str(much["output"])) < 2 << 20) == (False, True)
    assert "migd-test" not in host.run("find", "/run/migd-test", "-size", "+2M").stdout
    assert host.run("pgrep", "--full", "^sleep 98765$", check=False).stdout == ""
    host.run("chmod", "777", "/srv")
    assert "its workdir /srv: /srv can be written" in str(run("true", folder="/srv")["refused"])
    host.run("chmod", "755", "/srv")


def test_programs_are_shut_in(host: Host, driver: Driver) -> None:
    host.write("/root/theirs", "")
    tries = {
        "touch /usr/lib/program": "Read-only",
        "cat /root/theirs": "No such file",
        "unshare --mount true": "not permitted",
        "chmod u+s /run/migd-test": "not permitted",
        "hostname other": "must be root",
    }
    for words, says in tries.items():
        host.run(*words.split())
        done = driver.do("programs.run", ["/bin/sh", "-c", f"exec {words}"], limit_s=20)
        assert (done["status"] != 0, says in done["output"]) == (True, True), (words, done)
        host.run("sh", "-c", "rm -f /usr/lib/program; chmod u-s /run/migd-test; hostname gpuhost")


def test_the_hold_is_shut_in(host: Host, driver: Driver) -> None:
    driver.do("hold.take", ["any.service"])
    pid = host.properties(UNIT, "MainPID")["MainPID"]
    lines = host.read(f"/proc/{pid}/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")] == [0, 0, 0]
    shut = {
        "RestrictNamespaces": "yes",
        "MemoryDenyWriteExecute": "yes",
        "RestrictAddressFamilies": "AF_UNIX",
    }
    assert host.properties(UNIT, *shut) == shut
    driver.do("hold.release")
