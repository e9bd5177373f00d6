"""How a file or a caller names GPUs: by index, UUID, PCI address, or the ids of their board."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from migd.config.faults import shortened
from migd.config.scalars import integer
from migd.core.model import Gpu
from migd.errors import NoSuchGpu

_NVIDIA = 0x10DE
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PCI_ADDRESS = re.compile(r"([0-9a-f]{4}|[0-9a-f]{8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
_BARE_ID = re.compile(r"[0-9A-Fa-f]{8}")


@dataclass(frozen=True)
class Filter:
    """Boards by device << 16 | vendor, and by the same of their subsystem unless it is None."""

    device_id: int
    subsystem_id: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Raises ValueError with what is wrong when no NVIDIA GPU can match `text`."""
        parts = text.split(":")
        ids = [_board_id(part) for part in parts]
        if len(parts) > 2 or None in ids:
            hint = f'; write "0x{text}"' if _BARE_ID.fullmatch(text) else ""
            raise ValueError(f'"{shortened(text)}" matches no GPU{hint or _RIGHT_FILTER}')
        device, subsystem = (*ids, None)[:2]
        assert device is not None
        if device & 0xFFFF != _NVIDIA:
            swapped = (device & 0xFFFF) << 16 | device >> 16
            hint = f'; write "0x{swapped:08X}"' if swapped & 0xFFFF == _NVIDIA else _RIGHT_FILTER
            raise ValueError(f'"{text}" matches no NVIDIA GPU: the vendor 10DE stands last{hint}')
        return cls(device, subsystem)

    def matches(self, gpu: Gpu) -> bool:
        return self.device_id == gpu.device_id and self.subsystem_id in (None, gpu.subsystem_id)

    def __str__(self) -> str:
        subsystem = "" if self.subsystem_id is None else f":0x{self.subsystem_id:08X}"
        return f"0x{self.device_id:08X}{subsystem}"


_RIGHT_FILTER = (
    '; write the device and vendor id of the board, such as "0x20B010DE", '
    'or with its subsystem "0x20B010DE:0x134F10DE"'
)


def _board_id(text: str) -> int | None:
    number = integer(text)
    return number if number is not None and text[0].isdigit() and number < 1 << 32 else None


def canonical_device(text: str) -> str | None:
    """A GPU's UUID or PCI address as `Gpu` has them, or None when `text` is neither."""
    kind, _, rest = text.partition("-")
    if kind.lower() == "gpu" and _UUID.fullmatch(rest.lower()):
        return f"GPU-{rest.lower()}"
    if match := _PCI_ADDRESS.fullmatch(text.lower()):
        return f"{int(match[1], 16):04x}:{match[2]}"
    return None


def find_gpu(gpus: Sequence[Gpu], name: int | str) -> Gpu:
    """The GPU with an index (3 or "3"), a UUID or a PCI address. Raises NoSuchGpu."""
    wanted = str(name).lower()
    address = canonical_device(wanted)
    for gpu in gpus:
        if wanted in (str(gpu.index), gpu.uuid.lower()) or address == gpu.pci_address:
            return gpu
    raise NoSuchGpu(
        f"there is no GPU {shortened(str(name))}; this node has {listed(gpus)}. "
        "A GPU is named by its index, its UUID or its PCI address"
    )


def listed(gpus: Sequence[Gpu]) -> str:
    """The GPUs with all their names, for a sentence."""
    return (
        ", ".join(
            f"GPU {g.index} {g.name} ({g.uuid}, {g.pci_address}, device id 0x{g.device_id:08X})"
            for g in sorted(gpus, key=lambda g: g.index)
        )
        or "no GPU"
    )
