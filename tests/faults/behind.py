"""A booted host whose migd has a proxy between it and the bus, and the cases at each of its calls.

migd is installed there as by a package; only its waits for others are shorter.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.proxy import Place, Proxy
from tests.host import available, crash, image, layer
from tests.host.host import Host
from tests.support.node import Node

RELEASE = "bookworm"
_SOCKET = "/run/migd-test-bus"
_LIB = "/usr/lib/migd/python/migd"
# The same code, with less patience: file, what is there, and what is there instead.
_SHORTER = (
    ("host/manager.py", "CALL_S = 30.0", "CALL_S = 3.0"),
    ("host/logind.py", "_LIMIT_S = 20.0", "_LIMIT_S = 3.0"),
    ("service/permit.py", "QUICK_S = 10.0", "QUICK_S = 3.0"),
    ("service/clientrun.py", "_SILENT_S, _PAUSE_S = 60.0, 1.0", "_SILENT_S, _PAUSE_S = 8.0, 0.3"),
    ("host/holding.py", "grace_s: float = 60.0", "grace_s: float = 6.0"),
    ("bus/connection.py", "timeout_s: float = 25.0,\n", "timeout_s: float = 3.0,\n"),
)


@dataclass(frozen=True)
class Case:
    """scene: of which family, and which of its scenes if there are several."""

    scene: str
    place: Place
    kind: str

    def __str__(self) -> str:
        service, member, nth = self.place
        return f"{self.scene}:{service.rpartition('.')[2]}.{member}#{nth}={self.kind}"

    @classmethod
    def parse(cls, text: str) -> "Case":
        scene, _, rest = text.rpartition(":")
        place, kind = rest.split("=")
        call, nth = place.split("#")
        service, member = call.split(".")
        return cls(scene, Place(f"org.freedesktop.{service}", member, int(nth)), kind)

    @property
    def stratum(self) -> tuple[str, ...]:
        return self.scene, self.place.member, self.kind


def missing(family: str, notes: list[str]) -> bool:
    """Whether there can be no hosts here, which is noted."""
    if reason := available.incapable() or available.missing():
        notes.append(f"{family}: no cases, because here is no test host: {reason}")
    return bool(reason)


@contextmanager
def booted(gpus: Sequence[tuple[str, int]], prepare: Callable[[Host], None]) -> Iterator[Host]:
    """prepare: is given the host before it is started."""
    with TemporaryDirectory(prefix="migd-site-") as name:
        folder = Path(name)
        base = image.base(RELEASE)
        layers = [layer.project(folder / "project", [base]), layer.driver(folder / "driver"), base]
        host = Host(layers, Node.new(folder / "node", *gpus), folder / "host")
        prepare(host)
        for file, old, new in _SHORTER:
            text = (layers[0] / _LIB.lstrip("/") / file).read_text()
            assert text.count(old) == 1, (file, old)
            host.write(f"{_LIB}/{file}", text.replace(old, new))
        with host:
            yield host


@contextmanager
def proxied(host: Host, services: frozenset[str]) -> Iterator[Proxy]:
    """Between migd and the bus of a host that runs, for calls of these services."""
    with ExitStack() as stack:
        root = Path(f"/proc/{host.machine.leader}/root")
        upstream = root / "run/dbus/system_bus_socket"
        proxy = Proxy(root / _SOCKET.lstrip("/"), upstream, services)
        proxy.start()
        stack.callback(proxy.stop)
        drop_in = f"[Service]\nEnvironment=DBUS_SYSTEM_BUS_ADDRESS=unix:path={_SOCKET}\n"
        host.write(f"{crash.ETC}/migd.service.d/proxy.conf", drop_in)
        host.systemctl("daemon-reload")
        host.systemctl("restart", "migd.service")
        yield proxy
