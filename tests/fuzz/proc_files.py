"""What the kernel and other programs say, with what any user of the host can put into it."""

import logging
import os
import re
from pathlib import Path

from migd.core import nodes as capability_nodes
from migd.core import reset
from migd.core.holders import Node, NodeKind
from migd.core.reset import Came, told
from migd.host import capabilities, cgroups, driver, held, log, nodes, pci, processes
from migd.host import reset as nvidia_smi
from migd.host.cgroups import container_path, parse
from migd.host.nodes import Nodes, Places
from migd.host.processes import parsed
from migd.printable import printable
from tests.fuzz.engine import Target
from tests.fuzz.scratch import SCRATCH, parts, together

# -- of processes ----------------------------------------------------------------------------


class _Names(Nodes):
    """Every name that may be a node is one."""

    def __init__(self) -> None:
        pass

    def own(self, name: str) -> os.stat_result | None:
        return Path("/dev/null").stat()

    def node(self, name: str, status: os.stat_result) -> Node | None:
        return Node(NodeKind.RENDER, pci_address=name)


def check_maps(data: bytes) -> None:
    """A process has mapped files of any name; it shows the nodes that these are, and no other."""
    files = [b"/" + name.replace(b"\0", b"") for name in data.split(b"\0\0")]
    lines = [
        b"5612-5613 r--p 00000000 fe:01 1048577                    %b\n" % _escaped(f)
        for f in files
    ]
    folder = SCRATCH.empty()
    (folder / "maps").write_bytes(b"".join([*lines, b"7f00-7f01 rw-p 00000000 00:00 0 \n"]))
    found = held._mapped(str(folder), _Names())
    expected = {name for f in files if (name := Nodes.name(os.fsdecode(_escaped(f))))}
    assert {node.pci_address for node in found} == expected


def _escaped(path: bytes) -> bytes:
    """As the kernel writes it (seq_file_path)."""
    return path.replace(b"\n", rb"\012")


def check_links(data: bytes) -> None:
    """The same for open files."""
    folder = SCRATCH.empty() / "fd"
    folder.mkdir()
    for number, target in enumerate(data.split(b"\0")[:20]):
        if 0 < len(target) < 4096:
            (folder / str(number)).symlink_to(os.fsdecode(target))
    opened = held._opened(str(folder), _Names())
    assert opened is not None
    # None of these links leads to a file that is a node.
    assert opened.files == len(list(folder.iterdir()))


_FIELDS = b"S 1 1 1 0 -1 4194304 100 0 0 0 1 2 0 0 20 0 3 0 4242 1000 100 18446744073709551615\n"


def check_stat(data: bytes) -> None:
    """The name of a process is 15 bytes of its own choice."""
    stat = parsed(b"4711 (" + data.replace(b"\0", b"")[:15] + b") " + _FIELDS)
    assert stat == processes.Stat("S", 1, kernel=False, threads=3, started=4242)


def check_cgroup(data: bytes) -> None:
    """Who may make control groups below his own stays in the unit that he is in."""
    below = os.fsdecode(data.replace(b"\n", b"").replace(b"\0", b"")[:4000])  # PATH_MAX
    manager = f"/user.slice/user-7.slice/user@7.service/{below}"
    for text in (
        f"0::{manager}\n",
        f"1:name=systemd:{manager}\n0::{manager}\n",
        f"4:memory:{manager}\n0::{manager}\n",
    ):
        owner = parse(text)
        assert (owner.unit, owner.session) == ("", ""), owner
        assert owner.manager == (below.rpartition("/")[2] == "init.scope")
    service = parse(f"0::/system.slice/a.service/{below}\n")
    assert service.unit == "a.service"
    assert printable(service.container + service.job).isprintable()
    within = container_path(f"0::/system.slice/a.service/{below}\n")
    assert within == "" or f"/system.slice/a.service/{below}".startswith(within)


# -- of the driver ---------------------------------------------------------------------------

_CAPABILITIES = ("gpu0/mig/gi1/access", "gpu0/mig/gi1/ci0/access")


def check_driver(data: bytes) -> None:
    """Files of the driver and of the kernel, whatever they say; nothing is raised."""
    devices, information, access, version, vendor, number = parts(data, 6)
    folder = SCRATCH.empty()
    address = "0000:3b:00.0"
    contents = {
        "devices": devices,
        f"gpus/{address}/information": information,
        **{f"capabilities/{name}": access for name in _CAPABILITIES},
        "version": version,
        f"sys/bus/pci/devices/{address}/vendor": vendor,
        f"sys/bus/pci/devices/{address}/class": number,
        "sys/module/nvidia_drm/refcnt": number,
        "sys/module/nvidia_drm/parameters/modeset": vendor,
        "sys/class/drm/card0/x": b"",
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "sys/class/drm/card0/device").symlink_to(f"../../../{address}")
    places = Places(
        folder / "dev", folder / "sys", folder / "devices", folder / "gpus", folder / "capabilities"
    )
    host = Nodes(places)
    for name in ("nvidia0", "nvidia-caps/nvidia-cap3", "nvidiactl", "dri/card0"):
        host.node(name, Path("/dev/null").stat())
        host._named(name)
    assert all(uuid.startswith("GPU-") for uuid in host._uuids.values())
    look = capabilities.look(_CAPABILITIES, places)
    assert len(look.missing) + len(look.unseen) in (0, len(_CAPABILITIES))
    pci.has_nvidia_gpu(places)
    assert nvidia_smi.drm(places) is None or str(nvidia_smi.drm(places))
    driver.driver(
        driver.Places(folder, folder / "sys/module/nvidia_drm", folder / "sys/bus/pci/devices")
    )


_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def check_smi(data: bytes) -> None:
    """Whatever nvidia-smi prints: the exit code decides whether it was a reset."""
    output = data[:4096].decode(errors="replace")
    asked = ("0000:1a:00.0",)
    for status in (None, 0, 1, 3, 255):
        found = told(asked, status, output)
        assert (found.came is Came.DONE) == (status == 0)
        assert found.words.isprintable()
        assert len(found.words) < 400
        assert bool(found.peers) == (found.came is Came.PEERS)
        assert not set(found.peers) & set(asked)
        assert all(_ADDRESS.fullmatch(peer) for peer in found.peers)


# -- to the log ------------------------------------------------------------------------------


def check_log(data: bytes) -> None:
    """What is logged is one record with the fields that it was given."""
    text = data.decode(errors="surrogateescape")
    fields = {"MIGD_JOB": text, "MESSAGE_ID": "x"}
    record = logging.LogRecord("migd", logging.INFO, "", 1, "%s", (text,), None)
    setattr(record, log._FIELDS, fields)
    read = _read(log._datagram(text, record))
    sent = text.encode(errors="replace")
    assert read.pop("MESSAGE") == sent
    assert read.pop("MIGD_JOB") == sent
    assert read.keys() == {"PRIORITY", "SYSLOG_IDENTIFIER", "CODE_FUNC", "MIGD_TOPIC", "MESSAGE_ID"}


def _read(datagram: bytes) -> dict[str, bytes]:
    """As journald does: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/."""
    found: dict[str, bytes] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[9 + length :]
        assert name.decode() not in found
        found[name.decode()] = value
        datagram = rest
    return found


_PATHS = (
    b"dev/nvidia0", b"/dev/nvidiactl", b"dev/nvidia-caps/nvidia-cap12", b"dev/dri/renderD128",
    b"nvidia", b" (deleted)", b"/dri/", b"dev/nvidia-uvm", b"anon_inode:", b"\r",
    b"\r7f-8f r--s 0 0 0 /dev/nvidia1", b"\0\0", b"memfd:", b"[heap]", b"lib/libnvidia-ml.so.1",
)  # fmt: skip
_GROUPS = (
    b"app.slice/", b"a.service", b"init.scope", b"docker-", b"0123456789abcdef" * 4, b".scope",
    b"/", b"session-3.scope", b"job_7", b"slurmstepd.scope/", b"slurm", b"machine-a.scope",
    b"lxc.payload.a", b"\r0::/system.slice/b.service", b"0::/", b":", b"kubepods", b"pod0a-1",
    b"user@8.service", b"\\x2d", b"\x0c1:name=systemd:/system.slice/migd.service",
    b"systemd-nspawn@a.service", b"buildkit", b"libpod",
)  # fmt: skip
_DRIVER_FILES = (
    (
        b"Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n226 drm\n511 nvidia-caps\n\n"
        b"Block devices:\n8 sd\n"
    ),
    b"GPU UUID:\tGPU-12345678-1234-1234-1234-123456789abc\nDevice Minor:\t 0\n",
    b"DeviceFileMinor: 12\nDeviceFileMode: 256\nDeviceFileModify: 1\n",
    b"NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06\n", b"0x10de\n", b"0x030200\n",
)  # fmt: skip
_SMI = (
    b"GPU 00000000:1A:00.0 was successfully reset.\nAll done.\n",
    b"The following GPUs could not be reset:\n  GPU 00000000:1A:00.0: In use by another client\n",
    b"Resetting GPU 00000000:1A:00.0 is not supported.\n",
    b"GPU 00000000:1A:00.0 must be reset with 00000000:1B:00.0\n",
)  # fmt: skip

TARGETS = (
    Target(
        "maps",
        1000,
        check_maps,
        (held, nodes),
        (b"dev/nvidia0", b"usr/lib/libc.so.6\0\0dev/nvidiactl"),
        _PATHS,
    ),
    Target(
        "links", 800, check_links, (held, nodes), (b"/dev/nvidia0\0/dev/null\0socket:[1]",), _PATHS
    ),
    Target(
        "stat", 1500, check_stat, (processes,), (b"bash", b"a) R 2 (b"), (b")", b"(", b" ", b"\n")
    ),
    Target(
        "cgroup",
        500,
        check_cgroup,
        (cgroups,),
        (
            b"app.slice/a.service",
            b"app.slice/docker-" + b"0123456789abcdef" * 4 + b".scope",
            b"init.scope",
        ),
        _GROUPS,
    ),
    Target(
        "driver",
        250,
        check_driver,
        (nodes, capabilities, driver, pci, nvidia_smi, capability_nodes),
        (together(*_DRIVER_FILES), together(*_DRIVER_FILES[:5], b"3")),
        (
            b"\n",
            b":",
            b"nvidia-frontend",
            b"GPU-",
            b"Device Minor:",
            b"DeviceFileMinor:",
            b" ",
            b"Y",
        ),
    ),
    Target(
        "smi",
        600,
        check_smi,
        (reset,),
        _SMI,
        (
            b"00000000:1b:00.0",
            b"FFFFFFFF:00:00.0",
            b"0001:00:00.0",
            b"not supported",
            b"in use by",
            b"GPU ",
        ),
    ),
    Target(
        "log",
        1500,
        check_log,
        (log,),
        (b"job 7: done", b"a\nMESSAGE=b"),
        (b"\n", b"=", b"PRIORITY=0", bytes(8)),
    ),
)
