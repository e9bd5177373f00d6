"""What can be seen of the driver without asking it: the module, its GPUs, its MIG instances.

Reading the file `information` of a GPU would wake one that is asleep and wait for the driver
(open-gpu-kernel-modules nv_procfs_read_gpu_info), so names and inode numbers have to do.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Where the kernel tells about the driver; others than the default ones are for tests."""

    driver: Path = Path("/proc/driver/nvidia")
    module: Path = Path("/sys/module/nvidia")
    pci: Path = Path("/sys/bus/pci/devices")


HOST = Places()


@dataclass(frozen=True)
class Driver:
    """The driver as seen from outside. As long as two are equal, it has most likely not changed.

    version: of the kernel module, the text of its file; "" where it is not loaded
    module: inode of its folder in sysfs, where numbers do not come again: another after a reload
    gpus: PCI address, inode in procfs, inode of the PCI device in sysfs; 0 where there is none
    instances: paths of GPU and compute instances, gpu0/mig/gi1/ci0, with inodes. The same path can
        be another instance with another inode; procfs may also give the same number again
    """

    version: str
    module: int
    gpus: tuple[tuple[str, int, int], ...]
    instances: tuple[tuple[str, int], ...]

    @property
    def loaded(self) -> bool:
        return bool(self.version or self.module)


def driver(places: Places = HOST) -> Driver:
    """Look. What cannot be read counts as not there; raises nothing.

    The version is read through the module, and waits while it is suspended or resumed.
    """
    return Driver(
        _text(places.driver / "version"),
        _inode(places.module),
        tuple(
            (name, inode, _inode(places.pci / name))
            for name, inode in _listed(places.driver / "gpus")
        ),
        tuple(_instances(os.fspath(places.driver / "capabilities"))),
    )


def _instances(folder: str) -> Iterator[tuple[str, int]]:
    for gpu, _ in _listed(folder):
        if gpu.startswith("gpu"):
            for gi, inode in _listed(f"{folder}/{gpu}/mig"):
                path = f"{gpu}/mig/{gi}"
                yield path, inode
                yield from ((f"{path}/{ci}", n) for ci, n in _listed(f"{folder}/{path}"))


def _listed(folder: str | Path) -> list[tuple[str, int]]:
    """Names and inodes, in order; the numbers come with the names and cost no further call."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.inode()) for entry in entries)
    except OSError:
        return []


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
