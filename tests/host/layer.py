"""What lies over a base image: the installed project, and the driver as programs find it.

Made of the working tree, and read-only like the image, so that one serves all hosts of a session.
"""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from migd import names

CHECKOUT = Path(__file__).parents[2]

# In a host: the node, and the simulator's own Python package.
NODE = Path("/srv/node")
SIMULATOR = Path("/srv/simulator")
MODPROBE_CALLS = Path("/run/nvidia-modprobe.calls")

_DEVICES = Path("etc/simulated-devices.conf")
_UNIT = f"""\
[Unit]
Description=Device nodes of the simulated driver
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/systemd-tmpfiles --create /{_DEVICES}
ExecStart=/usr/bin/simulated-view
"""
# The library of a real driver keeps its state in the kernel. And the sandbox has a /proc of its own
# in systemd 252, without what nspawn and we have mounted there; the folder is bound, because
# nspawn's boot_id is a file that is removed, which nothing can be mounted from or to.
DROP_IN = Path("/usr/lib/systemd/system/migd.service.d/simulated.conf")
_RANDOM = Path("/run/simulated-random")
_SIMULATED = f"""\
[Service]
ReadWritePaths={NODE}
BindReadOnlyPaths=/proc/driver {_RANDOM}:{Path(names.BOOT_ID_FILE).parent}
"""
_VIEW = f"""\
#!/bin/sh
# What the kernel module shows, which follows the node; a host without a node has no driver.
set -eu
mkdir -p {_RANDOM}
cat {names.BOOT_ID_FILE} >{_RANDOM}/boot_id
show() {{
    if [ -d "{NODE}/view/$1" ] && [ -d "$2" ]; then
        mount --bind "{NODE}/view/$1" "$2"
    fi
}}
show driver /proc/driver
show pci /sys/bus/pci/devices
"""
_SIMULATOR = f"""\
#!/bin/sh
# `simulator hold {NODE} --gpu 0 -- sleep infinity`, for units and people.
PYTHONPATH={SIMULATOR} exec /usr/bin/python3 -m migd.simulator "$@"
"""
_SMI = f"""\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "{SIMULATOR}")
from migd.simulator.smi import main

sys.exit(main("{NODE}", sys.argv[1:]))
"""
# As in nvidia-modprobe.c: -f so often as one likes, and it ends at the first that it cannot make.
# What it was called with is kept for tests.
_MODPROBE = f"""\
#!/usr/bin/python3 -IS
import os, sys

with open("{MODPROBE_CALLS}", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
for option, path in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    ours = option == "-f" and path.startswith("/proc/driver/nvidia/")
    if not (ours and os.access(path, os.R_OK)):
        sys.exit(1)
    with open(path) as file:
        told = dict(line.split(": ") for line in file.read().splitlines())
    if told["DeviceFileModify"] != "1":
        continue
    os.makedirs("/dev/nvidia-caps", mode=0o755, exist_ok=True)
    node = "/dev/nvidia-caps/nvidia-cap" + told["DeviceFileMinor"]
    if not os.path.exists(node):
        os.mknod(node, 0o020000, os.makedev(1, 3))
    os.chmod(node, int(told["DeviceFileMode"]))
"""


def project(folder: Path, bases: Iterable[Path]) -> Path:
    """The layer of the project in a new folder; `bases` are the images that it will lie over."""
    subprocess.run([CHECKOUT / "packaging/install", folder], check=True)
    vendor = folder / "usr/lib/migd/vendor"
    vendor.mkdir()
    pynvml = importlib.util.find_spec("pynvml")
    assert pynvml
    assert pynvml.origin
    shutil.copy(pynvml.origin, vendor)
    for base in bases:
        _compile(folder, base)
    # As a package does, too.
    units = [unit for unit in (folder / "usr/lib/systemd/system").iterdir() if _installs(unit)]
    subprocess.run(
        ["systemctl", "--quiet", f"--root={folder}", "enable", *(unit.name for unit in units)],
        check=True,
    )
    return _old(folder)


def _old(folder: Path) -> Path:
    """Keep the boot from what is done after updates: where /usr is newer than /etc/.updated."""
    os.utime(folder / "usr", (0, 0))
    return folder


def _compile(folder: Path, base: Path) -> None:
    """As a package does when it is installed; else each boot of each host would compile anew."""
    script = (
        'mount --bind "$1/usr/lib/migd" "$2/mnt" && exec chroot "$2" python3 -m compileall -qq /mnt'
    )
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(folder), str(base)]
    subprocess.run(command, check=True)


def _installs(unit: Path) -> bool:
    return "[Install]" in unit.read_text().splitlines()


def driver(folder: Path) -> Path:
    """The layer of the driver in a new folder."""
    library = folder / "usr/lib/libnvidia-ml.so.1"
    # A link, because the library looks for its state beside the file that it really is.
    library.parent.mkdir(parents=True)
    library.symlink_to(NODE / "lib" / library.name)
    _write(folder / "usr/lib/systemd/system/simulated-devices.service", _UNIT)
    _write(folder / DROP_IN.relative_to("/"), _SIMULATED)
    wants = folder / "usr/lib/systemd/system/sysinit.target.wants/simulated-devices.service"
    wants.parent.mkdir()
    wants.symlink_to("../simulated-devices.service")
    _write(folder / "usr/bin/simulated-view", _VIEW, 0o755)
    _write(folder / "usr/bin/simulator", _SIMULATOR, 0o755)
    _write(folder / "usr/bin/nvidia-smi", _SMI, 0o755)
    _write(folder / "usr/bin/nvidia-modprobe", _MODPROBE, 0o755)
    for place in (NODE, SIMULATOR / "migd"):
        (folder / place.relative_to("/")).mkdir(parents=True)
    return _old(folder)


def add_devices(disk: Path, gpus: list[dict[str, Any]], *, capabilities: bool = True) -> None:
    """Write which device nodes a host has from each boot on, to the upper layer of its disk.

    capabilities: also those of all instances that there can be; else nvidia-modprobe makes them
    """
    text = "".join(f"{line}\n" for line in _device_lines(gpus, capabilities=capabilities))
    _write(disk / _DEVICES, text)


def _device_lines(gpus: list[dict[str, Any]], *, capabilities: bool) -> Iterable[str]:
    """Lines of tmpfiles.d. All are /dev/null by number: no driver stands behind the real ones."""

    def node(path: str, mode: str, group: str = "root") -> str:
        return f"c /dev/{path} {mode} root {group} - 1:3"

    for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"):
        yield node(name, "0666")
    yield "d /dev/nvidia-caps 0755 root root -"
    yield "d /dev/dri/by-path 0755 root root -"
    yield node("nvidia-caps/nvidia-cap1", "0400")
    yield node("nvidia-caps/nvidia-cap2", "0444")
    for gpu in gpus:
        index, minor = int(gpu["index"]), int(gpu["minor"])
        yield node(f"nvidia{minor}", "0666")
        # 15 GPU instances of an access node and 8 compute instances each: nv-caps.c.
        for number in range(3 + 135 * minor, 3 + 135 * (minor + capabilities)):
            yield node(f"nvidia-caps/nvidia-cap{number}", "0444")
        yield node(f"dri/card{index}", "0660", "video")
        yield node(f"dri/renderD{128 + index}", "0666")
        address = str(gpu["pci"]).lower()[-12:]
        for name, kind in ((f"card{index}", "card"), (f"renderD{128 + index}", "render")):
            yield f"L /dev/dri/by-path/pci-{address}-{kind} - - - - ../{name}"


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
