"""Device nodes of the NVIDIA driver: which of them an open or mapped file is."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from migd.core.holders import Node, NodeKind, capability
from migd.core.nodes import device_number

# Where a node can lie that is plausible enough to be asked for its device number: in any /dev,
# also of a chroot or a container. "/nvidia0" is in a /dev that is no longer mounted anywhere.
_PATH = re.compile(
    r"(?:.*/dev)?/(nvidia[^/ ]*|nvidia-caps/nvidia-cap\d+|nvidia-caps-imex-channels/[^/ ]+"
    r"|dri/(?:renderD|card)\d+)(?: \(deleted\))?",
    re.DOTALL,
)
_GPU = re.compile(r"nvidia(\d+)")
_CAPABILITY = re.compile(r"nvidia-caps/nvidia-cap(\d+)")
_BY_PATH = re.compile(r"pci-([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])-(?:card|render)")
_DRM = re.compile(r"card\d+|renderD\d+")
_NVIDIA = "0x10de"
# Of the GPUs' major, the last two minors are nvidia-modeset and nvidiactl (nvidia-modprobe).
_GPU_MINORS = range(254)


@dataclass(frozen=True)
class Places:
    """Where the host tells about its devices; others than the default ones are for tests."""

    dev: Path = Path("/dev")
    sys: Path = Path("/sys")
    devices: Path = Path("/proc/devices")
    gpus: Path = Path("/proc/driver/nvidia/gpus")
    capabilities: Path = Path("/proc/driver/nvidia/capabilities")


HOST = Places()


class Nodes:
    """The nodes that this host has now. Numbers decide; names only where numbers say nothing.

    Hosts for tests have stand-in nodes of some other driver, all with one number. There a name
    counts, if the file has the same number as this host's own node of that name.
    """

    def __init__(self, places: Places = HOST) -> None:
        self._places = places
        self._majors = majors(places.devices)
        self._uuids = _uuids(places.gpus)
        self._own: dict[str, os.stat_result | None] = {}
        self._by_number: dict[int, str] = {}
        self._by_name: dict[str, str] = {}
        self._find_cards()

    @staticmethod
    def name(path: str) -> str | None:
        """The name below /dev of what may be a node of ours, by its path alone."""
        match = _PATH.fullmatch(path)
        return match[1] if match else None

    def node(self, name: str, status: os.stat_result) -> Node | None:
        """Which node a file with this name and status is; None if it is none of ours."""
        if not stat.S_ISCHR(status.st_mode):
            return None
        number = status.st_rdev
        drivers = self._majors.get(os.major(number))
        if drivers:
            return self._numbered(drivers, number)
        own = self.own(name)
        return self._named(name) if own and own.st_rdev == number else None

    def own(self, name: str) -> os.stat_result | None:
        """The status of this host's node of that name, if there is one."""
        if name not in self._own:
            try:
                self._own[name] = (self._places.dev / name).stat()
            except OSError:
                self._own[name] = None
        return self._own[name]

    def _numbered(self, drivers: set[str], number: int) -> Node | None:
        minor = os.minor(number)
        if "drm" in drivers:
            address = self._by_number.get(number)
            return Node(NodeKind.RENDER, pci_address=address) if address else None
        if "nvidia-caps" in drivers:
            return self._capability(minor)
        # Newer drivers register nvidiactl and nvidia-modeset beside it, with the same major.
        if drivers & {"nvidia", "nvidia-frontend"} and minor in _GPU_MINORS:
            return self._gpu(minor)
        return Node(NodeKind.CONTROL)

    def _named(self, name: str) -> Node | None:
        if match := _GPU.fullmatch(name):
            return self._gpu(int(match[1]))
        if match := _CAPABILITY.fullmatch(name):
            return self._capability(int(match[1]))
        if name.startswith("dri/"):
            address = self._by_name.get(name)
            return Node(NodeKind.RENDER, pci_address=address) if address else None
        return Node(NodeKind.CONTROL)

    def _gpu(self, minor: int) -> Node:
        return Node(NodeKind.GPU, minor, self._uuids.get(minor, ""))

    def _capability(self, minor: int) -> Node:
        belongs = capability(minor)
        uuid = self._uuids.get(belongs[0], "") if belongs else ""
        return Node(NodeKind.CAPABILITY, minor, uuid)

    def _find_cards(self) -> None:
        """Which PCI device each node in /dev/dri belongs to; only of GPUs that can be NVIDIA's."""
        for card in _listed(self._places.sys / "class/drm"):
            if _DRM.fullmatch(card.name) and (address := _target(card / "device")):
                self._add_card(card.name, address)
        for link in _listed(self._places.dev / "dri/by-path"):
            if (match := _BY_PATH.fullmatch(link.name)) and (card_name := _target(link)):
                self._add_card(card_name, match[1])

    def _add_card(self, card: str, address: str) -> None:
        vendor = _text(self._places.sys / "bus/pci/devices" / address / "vendor")
        if vendor.strip() in ("", _NVIDIA):
            name = f"dri/{card}"
            self._by_name[name] = address
            if own := self.own(name):
                self._by_number[own.st_rdev] = address


def majors(devices: Path) -> dict[int, set[str]]:
    """Names of our drivers by major; more than one can share a major."""
    found: dict[int, set[str]] = {}
    characters = _text(devices).partition("Block devices:")[0]
    for line in characters.splitlines():
        number, _, name = line.strip().partition(" ")
        major = device_number(number)
        if major is not None and (name.startswith("nvidia") or name == "drm"):
            found.setdefault(major, set()).add(name)
    return found


def _uuids(folder: Path) -> dict[int, str]:
    """UUIDs of GPUs by device minor, as the driver of this host says.

    A minor is any driver's: where migd runs on simulated GPUs, real ones can be there beside them.
    """
    found = {}
    for gpu in _listed(folder):
        lines = _text(gpu / "information").splitlines()
        told = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
        minor = device_number(told.get("Device Minor", ""))
        if minor is not None and told.get("GPU UUID", "").startswith("GPU-"):
            found[minor] = told["GPU UUID"]
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _target(link: Path) -> str:
    """The last part of what a link points to."""
    try:
        return link.readlink().name
    except OSError:
        return ""
