"""GPU clients in a test host: modelled on real ones, and what systemd and the kernel see of them.

A client is a process of `gpu-client`, which a host gets by `install`. Units of it are active, and
`started` returns, when it has all that it was told to take.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.host import layer
from tests.host.host import Host
from tests.host.process import Process
from tests.support.node import Node, wait_for

ETC = "/etc/systemd/system"
PROGRAM = "/usr/local/bin/gpu-client"
CONTAINER = "docker-" + "0123456789abcdef" * 4 + ".scope"
ALICE, BOB = 1001, 1002

# What processes have is inherited by the command behind "--"; mappings are not.
_PROGRAM = f"""\
#!/usr/bin/python3 -IS
import argparse, ctypes, mmap, os, signal, socket, time

parser = argparse.ArgumentParser()
parser.add_argument("--hold", action="append", default=[], help="GPU or GPU:GI: as with CUDA")
parser.add_argument("--hidden", action="store_true", help="and NVML does not list it")
parser.add_argument("--session", action="store_true", help="have NVML initialized")
parser.add_argument("--open", action="append", default=[])
parser.add_argument("--map", action="append", default=[], help="and close its descriptor")
parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
parser.add_argument("--slow", type=float, default=0, help="take so many seconds to end")
parser.add_argument("command", nargs="*")
given = parser.parse_args()

library = ctypes.CDLL("{layer.NODE}/lib/libnvidia-ml.so.1")
if given.session:
    assert library.nvmlInit_v2() == 0
library.sim_open.restype = ctypes.c_void_p
library.sim_hold.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
for what in given.hold:
    gpu, _, gi = what.partition(":")
    node = library.sim_open(b"{layer.NODE}/state", ctypes.byref(ctypes.c_int()))
    fd = library.sim_hold(node, int(gpu), int(gi or -1), int(given.hidden))
    assert fd >= 0, (what, fd)
    os.set_inheritable(fd, True)
for path in given.open:
    os.set_inheritable(os.open(path, os.O_RDONLY), True)
maps = []
for path in given.map:
    fd = os.open(path, os.O_RDWR)
    maps.append(mmap.mmap(fd, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE))
    os.close(fd)

def end(*_):
    time.sleep(given.slow)
    os._exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if given.stubborn else end)
print("pid", os.getpid(), flush=True)
if address := os.environ.get("NOTIFY_SOCKET"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", address.replace("@", "\\0", 1))
if given.command:
    os.execvp(given.command[0], given.command)
while True:
    signal.pause()
"""


def client(*arguments: str) -> list[str]:
    """The command of a client."""
    return [PROGRAM, *arguments]


def unit(
    *arguments: str, unit: Sequence[str] = (), service: Sequence[str] = (), enabled: bool = True
) -> str:
    """A service that is a client. unit, service: more lines of these sections."""
    lines = [
        "[Unit]",
        *unit,
        "[Service]",
        "Type=notify",
        f"ExecStart={shlex.join(client(*arguments))}",
    ]
    lines += service
    lines += ["[Install]", "WantedBy=multi-user.target"] if enabled else []
    return "\n".join(lines) + "\n"


_LAUNCH = "ExecStart=/usr/bin/systemctl start --no-block nvsm-core.service nvsm-mqtt.service"
_CONTROL = ("--open=/dev/nvidiactl", "--open=/dev/nvidia-uvm")

# The services of a GPU host as NVIDIA's packages have them, for two GPUs. DCGM holds GPUs so that
# NVML does not list it; persistenced has them open; the exporter and nvsm only need others.
UNITS = {
    "nvidia-dcgm.service": unit(
        "--hold=0", "--hold=1", "--hidden", *_CONTROL, "--open=/dev/nvidia0", "--open=/dev/nvidia1",
        service=["Restart=always", "RestartSec=0"],
    ),
    "dcgm-exporter.service": unit(
        "--open=/dev/nvidiactl",
        unit=["BindsTo=nvidia-dcgm.service", "After=nvidia-dcgm.service"],
        service=["Restart=always", "RestartSec=0"],
    ),
    "nvidia-persistenced.service": unit(
        "--session", *_CONTROL, "--open=/dev/nvidia0", "--open=/dev/nvidia1",
        unit=["Before=nvidia-dcgm.service"], service=["Restart=always", "RestartSec=0"],
    ),
    "nvsm.service": "[Unit]\nAfter=nvidia-dcgm.service\n[Service]\nType=oneshot\n"
    f"RemainAfterExit=yes\n{_LAUNCH}\n[Install]\nWantedBy=multi-user.target\n",
    "nvsm-core.service": unit(
        *_CONTROL, "--hold=1", "--hidden", unit=["PartOf=nvsm.service"], enabled=False
    ),
    "nvsm-mqtt.service": unit(unit=["PartOf=nvsm.service"], enabled=False),
}  # fmt: skip
# In the order in which the packaged list has them stopped, for less than a reset.
STOPPED = (
    "dcgm-exporter.service", "nvsm-core.service", "nvsm-mqtt.service", "nvsm.service",
    "nvidia-dcgm.service",
)  # fmt: skip
PERSISTENCED = "nvidia-persistenced.service"


def install(host: Host, units: Mapping[str, str] = UNITS, folder: str = ETC) -> None:
    """Give a host the program and these units, enabled where they say WantedBy=; also off."""
    if not host.running:
        host.write(PROGRAM, _PROGRAM, 0o755)
    for name, text in units.items():
        host.write(f"{folder}/{name}", text)
    enabled = [name for name, text in units.items() if "WantedBy=" in text]
    if host.running:
        host.systemctl("daemon-reload")
        if enabled:
            host.systemctl("enable", "--quiet", *enabled)
        return
    wants = host.disk / ETC.lstrip("/") / "multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    for name in enabled:
        (wants / name).symlink_to(f"{folder}/{name}")


def lists(host: Host, text: str, name: str = "test.yaml") -> None:
    """Add to the lists of clients, and have migd read them."""
    host.write(f"/etc/migd/clients.d/{name}", f"version: v1\n{text}")
    if host.running:
        host.call("Reload")


# -- processes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A client that runs; process is what was spawned for it, which may have another pid."""

    host: Host
    pid: int
    process: Process

    @property
    def alive(self) -> bool:
        return alive(self.host, self.pid)


def started(host: Host, *arguments: str, user: str | None = None) -> Started:
    """A loose process, of root or a user."""
    return _started(host, client(*arguments), user)


def in_scope(host: Host, scope: str, *arguments: str) -> Started:
    """A process in a scope, as container engines make them."""
    # By a unit: what is entered from outside the host stays in the cgroups v1 of the outside.
    run = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect"]
    return _started(host, [*run, "systemd-run", "--scope", f"--unit={scope}", *client(*arguments)])


def in_session(host: Host, user: str, *arguments: str) -> Started:
    """A process in a login session of its own."""
    run = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--uid={user}"]
    return _started(host, [*run, "--property=PAMName=login", *client(*arguments)])


def transient(host: Host, name: str, *arguments: str) -> int:
    """A transient unit; its main pid."""
    host.run(
        "systemd-run", "--quiet", f"--unit={name}", "--service-type=notify", *client(*arguments)
    )
    return main_pid(host, name)


def linger(host: Host, user: str) -> None:
    """Have the user's service manager run from the next boot on, without a login."""
    host.write(f"/var/lib/systemd/linger/{user}", "")


def as_user(host: Host, user: str, number: int, *command: str) -> str:
    """Run a command that talks to the user's service manager."""
    environment = ("env", f"XDG_RUNTIME_DIR=/run/user/{number}")
    return host.run(*environment, *command, user=user).stdout.strip()


def run_until_ready(host: Host, *command: str, user: str | None = None) -> Started:
    """Anything that prints "pid" and its own when it is ready."""
    return _started(host, command, user)


def _started(host: Host, command: Sequence[str], user: str | None = None) -> Started:
    process = host.spawn(*command, user=user)

    def told() -> "re.Match[str] | None":
        assert process.alive(), f"{command} ended with {process.wait()}: {process.output}"
        return re.search(r"^pid (\d+)$", process.output, re.MULTILINE)

    wait_for(told, what=f"{command} is not ready")
    match = told()
    assert match
    return Started(host, int(match[1]), process)


def _proc(host: Host, pid: int | str) -> Path:
    return Path(f"/proc/{host.machine.leader}/root/proc/{pid}")


def alive(host: Host, pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    with suppress(OSError):
        return (_proc(host, pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def processes(host: Host, text: str) -> list[int]:
    """Pids of processes whose command line has `text` in it."""
    found = []
    for folder in _proc(host, "").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return sorted(found)


# -- units -----------------------------------------------------------------------------------


def main_pid(host: Host, name: str) -> int:
    return int(host.properties(name, "MainPID")["MainPID"])


@dataclass(frozen=True)
class Seen:
    """A unit as systemd shows it."""

    state: str
    sub: str
    pid: int
    invocation: str


_SEEN = ("Id", "ActiveState", "SubState", "MainPID", "InvocationID")


def seen(host: Host, names: Iterable[str]) -> dict[str, Seen]:
    """Units by their names."""
    shown = host.systemctl("show", *names, *(f"--property={name}" for name in _SEEN))
    found = {}
    for block in shown.split("\n\n"):
        row = dict(line.split("=", 1) for line in block.splitlines())
        pid = int(row.get("MainPID") or 0)
        found[row["Id"]] = Seen(row["ActiveState"], row["SubState"], pid, row["InvocationID"])
    return found


# sd-messages.h: SD_MESSAGE_UNIT_*
_EVENTS = {
    "7d4958e842da4a758f6c1cdc7b36dcc5": "starting",
    "39f53479d3a045ac8e11786248231fbf": "started",
    "de5b426a63be47a7b6ac3eaac82e2f6f": "stopping",
    "9d1aaa27d60140bd96365438aad20286": "stopped",
}


def events(host: Host, names: Iterable[str]) -> list[tuple[str, str]]:
    """What became of these units since the boot, such as ("stopping", "a.service"), in order."""
    wanted = [f"MESSAGE_ID={number}" for number in _EVENTS]
    host.run("journalctl", "--sync")
    text = host.run("journalctl", "--boot", "--quiet", "--output=json", "_PID=1", *wanted).stdout
    rows = [json.loads(line) for line in text.splitlines()]
    known = set(names)
    return [(_EVENTS[r["MESSAGE_ID"]], r["UNIT"]) for r in rows if r.get("UNIT") in known]


def active(host: Host) -> set[str]:
    """All units that run or are about to, but those that come and go by themselves."""
    lines = host.systemctl("list-units", "--plain", "--no-legend", "--state=active,activating")
    names = {line.split()[0] for line in lines.splitlines()}
    return {
        n for n in names if not n.startswith(("run-r", "run-u", "session-", "systemd-hostnamed"))
    }


def failed(host: Host) -> str:
    """Units that failed, and what of the hold is left; nothing is how it should be."""
    left = host.systemctl("list-units", "--all", "--plain", "--no-legend", "migd-[hr]*")
    return host.systemctl("list-units", "--state=failed", "--plain", "--no-legend") + left


def instances(node: Node, gpu: int) -> dict[int, str]:
    """Profiles by the ids of the instances."""
    return {row["gi"]: row["profile"] for row in node.gpus()[gpu]["instances"]}
