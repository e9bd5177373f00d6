# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's programs look at beside the library: modules, PCI devices, /proc, nvidia-smi.

The files lie in the node and follow its state; `enter` shows them to this process and its
children only, in a mount namespace of their own.
"""

import ctypes
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

_CLONE_NEWNS = 0x00020000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18

_SMI = """\
#!{python}
import sys
sys.path.insert(0, {package!r})
from migd.simulator.smi import main
sys.exit(main({node!r}, sys.argv[1:]))
"""


def _address(gpu: dict[str, Any]) -> str:
    return str(gpu["pci"]).removeprefix("0000").lower()


def _pci_files(gpu: dict[str, Any]) -> dict[str, str]:
    device, subsystem = int(gpu["pci_device_id"], 16), int(gpu["pci_subsystem_id"], 16)
    return {
        "vendor": f"0x{device & 0xFFFF:04x}\n",
        "device": f"0x{device >> 16:04x}\n",
        "subsystem_vendor": f"0x{subsystem & 0xFFFF:04x}\n",
        "subsystem_device": f"0x{subsystem >> 16:04x}\n",
        "class": "0x030200\n",
        "revision": "0xa1\n",
        "numa_node": "-1\n",
        "resource": "0x0000000000000000 0x0000000000000000 0x0000000000000000\n",
        "reset": "",
    }


def _information(gpu: dict[str, Any]) -> str:
    return (
        f"Model: \t\t {gpu['name']}\nIRQ:   \t\t 0\nGPU UUID: \t {gpu['uuid']}\n"
        f"Bus Type: \t PCIe\nBus Location: \t {_address(gpu)}\n"
        f"Device Minor: \t {gpu['minor']}\nGPU Excluded:\t No\n"
    )


# Minor numbers of capabilities: open-gpu-kernel-modules nv-caps.c. The table is the same on every
# machine. What follows the instances (capabilities/gpuN/mig/giI) is the library's, which makes and
# removes instances. Nodes in /dev/nvidia-caps are not shown: files without the driver's device
# behind them would be a lie.
_GPUS, _GI_IDS, _CI_IDS = 32, 15, 8
_CAPABILITIES = {"config": (1, 0o400), "monitor": (2, 0o444)}


def _mig_minors() -> Iterator[str]:
    for name, (minor, _) in _CAPABILITIES.items():
        yield f"{name} {minor}\n"
    for gpu in range(_GPUS):
        for gi in range(_GI_IDS):
            minor = 3 + 135 * gpu + 9 * gi
            yield f"gpu{gpu}/gi{gi}/access {minor}\n"
            for ci in range(_CI_IDS):
                yield f"gpu{gpu}/gi{gi}/ci{ci}/access {minor + 1 + ci}\n"


def _capability_files() -> Iterator[tuple[str, str]]:
    for name, (minor, mode) in _CAPABILITIES.items():
        text = f"DeviceFileMinor: {minor}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n"
        yield f"nvidia/capabilities/mig/{name}", text
    yield "nvidia-caps/mig-minors", "".join(_mig_minors())


def _driver_files(shown: dict[str, Any]) -> Iterator[tuple[str, str]]:
    version = shown["driver"]["version"]
    yield (
        "nvidia/version",
        f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  (simulated)\n",
    )
    for gpu in shown["gpus"]:
        yield f"nvidia/gpus/{_address(gpu)}/information", _information(gpu)
    yield from _capability_files()


def _modules(shown: dict[str, Any]) -> str:
    try:
        own = Path("/proc/modules").read_text().splitlines(keepends=True)
    except OSError:
        own = []
    lines = [line for line in own if not line.startswith("nvidia")]
    if shown["driver"]["loaded"]:
        lines += [
            "nvidia_uvm 1855488 0 - Live 0x0000000000000000 (POE)\n",
            "nvidia 14376960 1 nvidia_uvm, Live 0x0000000000000000 (POE)\n",
        ]
    return "".join(lines)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def prepare(node: Path, shown: dict[str, Any]) -> None:
    folder = node / "view"
    for gpu in shown["gpus"]:
        for name, text in _pci_files(gpu).items():
            _write(folder / "pci" / _address(gpu) / name, text)
    smi = node / "bin" / "nvidia-smi"
    package = str(Path(__file__).parent.parent.parent)
    _write(smi, _SMI.format(python=sys.executable, package=package, node=str(node.resolve())))
    smi.chmod(0o755)
    refresh(node, shown)


def refresh(node: Path, shown: dict[str, Any]) -> None:
    """Rewrites in place what depends on the state: files that are mounted somewhere stay mounted.

    Somebody who may change the state but not these files leaves them as they are.
    """
    folder = node / "view"
    try:
        _write(folder / "modules", _modules(shown))
        driver = folder / "driver"
        files = dict(_driver_files(shown)) if shown["driver"]["loaded"] else {}
        _remove_others(driver, files)
        for name, text in files.items():
            _write(driver / name, text)
    except PermissionError:
        return


def _remove_others(driver: Path, files: Collection[str]) -> None:
    """Remove what was shown and is not any more, but nothing that is the library's."""
    capabilities = driver / "nvidia" / "capabilities"
    seen = []
    for folder, below, names in os.walk(driver):
        path = Path(folder)
        if path == capabilities:
            below[:] = [name for name in below if not name.startswith("gpu")]
        seen.append(path)
        for name in names:
            if str((path / name).relative_to(driver)) not in files:
                (path / name).unlink()
    for path in reversed(seen):
        if path != driver and not any(path.iterdir()):
            path.rmdir()


class _Mounts:
    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _check(self, result: int, what: str) -> None:
        if result != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"{what}: {os.strerror(error)}")

    def unshare(self) -> None:
        self._check(self._libc.unshare(_CLONE_NEWNS), "unshare")
        private = self._libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        self._check(private, "making / private")

    def bind(self, source: Path, target: Path) -> None:
        done = self._libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None)
        self._check(done, f"binding {target}")

    def tmpfs(self, target: Path) -> None:
        done = self._libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", 0, None)
        self._check(done, f"covering {target}")


def _cover_proc(mounts: _Mounts, folder: Path) -> None:
    """A /proc of links into the real one, so that there is a place for /proc/modules."""
    proc, real = Path("/proc"), folder / "proc"
    real.mkdir(exist_ok=True)
    mounts.bind(proc, real)
    mounts.tmpfs(proc)
    for entry in real.iterdir():
        if entry.name == "driver":
            (proc / entry.name).mkdir()
        elif not entry.name.isdigit():
            (proc / entry.name).symlink_to(entry)
    (proc / "modules").touch()


def enter(node: Path, *, thin_proc: bool = False) -> None:
    """Shows the node's files to this process. Without the right to do so nothing happens.

    Raises:
        OSError: this is root, and the kernel still refuses.

    """
    if os.geteuid() != 0:
        return
    mounts = _Mounts()
    mounts.unshare()
    folder = node.resolve() / "view"
    if thin_proc and not Path("/proc/modules").exists():
        _cover_proc(mounts, folder)
    for source, target in (
        ("modules", Path("/proc/modules")),
        ("driver", Path("/proc/driver")),
        ("pci", Path("/sys/bus/pci/devices")),
    ):
        # A kernel without modules or PCI has no such place, and none can be made in /proc or /sys.
        if target.exists():
            mounts.bind(folder / source, target)
