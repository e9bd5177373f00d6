"""The host of a soak: boards, clients of all kinds, users, little room for the state."""

import socket
from contextlib import suppress
from pathlib import Path

import yaml

from migd import names
from tests.host import layer
from tests.host.crash import ETC, outer_pid
from tests.host.host import Host
from tests.support.node import MUTATING, Node

# A mode that takes a reset, and one that does not.
GPUS = (("a100-40gb", 2), ("h100-80gb-sxm5", 2))
LATENCY_MS = 3.0
# Limits that fit a simulated node, so that what hangs does not take the hour.
LIMITS = {
    "nvml-open": 8, "nvml-read": 8, "nvml-change": 8, "nvml-in-use": 1, "nvml-idle": 1,
    "client-grace": 3, "client-stop": 20, "client-start": 20, "gpu-reset": 20,
}  # fmt: skip
FLAKY = "/run/soak-flaky"  # as long as it is there, s-flaky does not start
SOCKET = "/run/soak.socket"
BALLAST = f"{names.STATE_DIR}/ballast"

_SLEEP = "ExecStart=/bin/sleep infinity\n"
_INSTALL = "[Install]\nWantedBy=multi-user.target\n"


def _holds(gpu: int, *more: str) -> str:
    words = ("--gpu", str(gpu), *more, "--", "sleep", "infinity")
    return f"Type=exec\nExecStart=/usr/bin/simulator hold {layer.NODE} {' '.join(words)}\n"


_LICENSE = f"/bin/sh -c 'test ! -e {FLAKY} || {{ echo no license is left; exit 1; }}'"
UNITS = {
    "s-holder.service": f"[Service]\n{_holds(0)}Restart=always\nRestartSec=0\n{_INSTALL}",
    "s-hidden.service": f"[Service]\n{_holds(2, '--hidden')}Restart=on-failure\n{_INSTALL}",
    "s-along.service": "[Unit]\nRequires=s-holder.service\nAfter=s-holder.service\n"
    f"[Service]\n{_SLEEP}Restart=always\n{_INSTALL}",
    "s-slow.service": f"[Service]\n{_SLEEP}ExecStop=/bin/sleep 0.7\n{_INSTALL}",
    "s-flaky.service": f"[Service]\nExecStartPre={_LICENSE}\n{_SLEEP}{_INSTALL}",
    "s-called.socket": f"[Socket]\nListenStream={SOCKET}\n[Install]\nWantedBy=sockets.target\n",
    "s-called.service": f"[Service]\n{_SLEEP}",
}
# Those that run whenever nothing is wrong, and those that migd is told of.
ALWAYS = ("s-holder.service", "s-hidden.service", "s-along.service", "s-slow.service")
FLAKY_UNIT, CALLED = "s-flaky.service", "s-called.service"
SERVICES = (*ALWAYS, FLAKY_UNIT, CALLED)
_LISTED = [n for n in SERVICES if n != "s-along.service"]
CLIENTS = yaml.safe_dump({"version": "v1", "systemd-services": _LISTED})

CONFIG = """\
version: v1
mig-configs:
  plain:
    - {devices: all, mig-enabled: false}
  half:
    - {devices: [0, 1], mig-enabled: true, mig-devices: {3g.20gb: 1, 1g.5gb: 2}}
    - {devices: [2, 3], mig-enabled: true, mig-devices: {3g.40gb: 1, 2g.20gb: 1}}
  first:
    - {devices: [0, 2], mig-enabled: true, mig-devices: {}}
    - {devices: [1, 3], mig-enabled: false}
"""
# The state has a disk of its own, which can be filled without harm to the host.
_STATE_MOUNT = f"""\
[Unit]
Before=migd.service
[Mount]
What=tmpfs
Where={names.STATE_DIR}
Type=tmpfs
Options=size=1m,mode=0700
[Install]
WantedBy=multi-user.target
"""
_MOUNT = "var-lib-migd.mount"
_AFTER_IT = "[Unit]\nRequiresMountsFor=/var/lib/migd\n[Service]\nRestartSec=100ms\n"


def settings(**more: object) -> str:
    """migd.yaml with these keys."""
    given = {key.replace("_", "-"): value for key, value in more.items()}
    return yaml.safe_dump({**given, "time-limits": LIMITS})


class Stage:
    """A host that is up, its node, and ways to it that cost little."""

    def __init__(self, host: Host) -> None:
        assert host.node
        self.host = host
        self.node: Node = host.node
        self._outer: dict[int, int] = {}

    def path(self, inside: str) -> Path:
        return Path(f"/proc/{self.host.machine.leader}/root{inside}")

    def write(self, inside: str, text: str) -> None:
        """Put a file into place whole, as configuration management does."""
        path = self.path(inside)
        new = path.with_name(f".{path.name}.new")
        new.write_text(text)
        new.rename(path)

    def remove(self, inside: str) -> None:
        self.path(inside).unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """migd's, as the host knows it; 0 when it is down."""
        return int(self.host.properties("migd.service", "MainPID")["MainPID"])

    def outer(self, pid: int) -> int:
        """As we know it."""
        if pid not in self._outer:
            self._outer[pid] = outer_pid(self.host, pid)
        return self._outer[pid]

    def workers(self, pid: int) -> list[int]:
        """Children of migd that live, by our pids of them."""
        found = set()
        with suppress(OSError):
            for task in Path(f"/proc/{self.outer(pid)}/task").iterdir():
                with suppress(OSError):
                    found |= {int(c) for c in (task / "children").read_text().split()}
        return sorted(found)

    def poke(self) -> None:
        """Have systemd start what listens to the socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as poke, suppress(OSError):
            poke.settimeout(5)
            poke.connect(str(self.path(SOCKET)))


def prepare(host: Host) -> None:
    """Before the boot."""
    assert host.node
    for call in MUTATING:
        host.node.latency(call, LATENCY_MS)
    host.write("/etc/migd/config.yaml", CONFIG)
    host.write("/etc/migd/clients.yaml", CLIENTS)
    host.write("/etc/migd/clients.d/none.yaml", "version: v1\n")
    host.write("/etc/migd/migd.yaml", settings())
    host.write(f"{ETC}/{_MOUNT}", _STATE_MOUNT)
    host.write(f"{ETC}/migd.service.d/soak.conf", _AFTER_IT)
    for name, text in UNITS.items():
        host.write(f"{ETC}/{name}", text)


def people(host: Host) -> None:
    """After the boot: everybody runs, and alice is in the group whose members may operate migd."""
    host.run("groupadd", "--system", "--force", "migd")
    host.run("usermod", "--append", "--groups=migd", "alice")
    units = [n for n, text in UNITS.items() if "[Install]" in text]
    host.systemctl("enable", "--quiet", "--now", *units)
