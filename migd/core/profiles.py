"""Profile names: their grammar, their canonical form, and NVIDIA's rule that computes them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from migd.core.model import ComputeProfile

_NAME = re.compile(
    r"(?:(?P<c>[0-9]{1,2})c\.)?(?P<g>[0-9]{1,2})g\.(?P<gb>[0-9]{1,4})gb"
    r"(?:(?P<sign>[+-])(?P<attributes>.+))?"
)
_ATTRIBUTE = re.compile(r"[A-Za-z](?:[A-Za-z0-9.]*[A-Za-z0-9])?")

# NVML_GPU_INSTANCE_PROFILE_* and the attribute in their names (nvml.h; go-nvlib spells it so).
# REV2 has none: only its memory size tells it from its plain namesake.
_SUFFIX_OF_ENUM = {
    7: "+me",
    8: "+me",
    10: "+gfx",
    11: "+gfx",
    12: "+gfx",
    17: "+gfx",
    13: "-me",
    14: "-me",
    15: "+me.all",
    16: "+me.all",
}


@dataclass(frozen=True)
class ProfileName:
    """A parsed name such as `1c.3g.20gb` or `1g.10gb+me`; equal names are equal values.

    compute: compute slices of the compute instance; equal to `slices` when it fills the instance
    attributes: sorted, each with its sign, for example ("+me",)
    """

    compute: int
    slices: int
    gb: int
    attributes: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "ProfileName":
        """Raises ValueError with what is wrong when `text` is no profile name."""
        match = _NAME.fullmatch(text)
        if not match:
            raise ValueError(
                f"{text!r} is not a profile name; one looks like 1g.10gb, 1c.3g.40gb or 1g.10gb+me"
            )
        slices = int(match["g"])
        compute = int(match["c"]) if match["c"] else slices
        if not 0 < compute <= slices:
            raise ValueError(f"{text!r}: a compute instance has 1 to {slices} slices")
        attributes = match["attributes"].split(",") if match["attributes"] else []
        for attribute in attributes:
            if not _ATTRIBUTE.fullmatch(attribute):
                raise ValueError(f"{text!r}: {attribute!r} is not an attribute")
        if len(set(attributes)) != len(attributes):
            raise ValueError(f"{text!r} names an attribute twice")
        sign = match["sign"]
        return cls(
            compute, slices, int(match["gb"]), tuple(sorted(f"{sign}{a}" for a in attributes))
        )

    @property
    def gpu_instance(self) -> "ProfileName":
        """The name of the GPU instance profile alone."""
        return ProfileName(self.slices, self.slices, self.gb, self.attributes)

    def __str__(self) -> str:
        compute = "" if self.compute == self.slices else f"{self.compute}c."
        sign = self.attributes[0][0] if self.attributes else ""
        suffix = sign + ",".join(a[1:] for a in self.attributes)
        return f"{compute}{self.slices}g.{self.gb}gb{suffix}"


def computed_name(enum: int, slices: int, memory_mib: int, total_mib: int) -> str:
    """The name NVIDIA gives a profile, where the driver does not tell it (MIG mode off).

    enum: NVML_GPU_INSTANCE_PROFILE_*
    memory_mib, total_mib: of the instance and of the GPU, in MiB

    The rule is go-nvlib's getMigMemorySizeGB: eighths of the memory, rounded up, of whole GiB;
    halves round up.
    """
    eighths = Fraction(ceil(Fraction(8 * memory_mib, total_mib)), 8)
    gb = floor(eighths * ceil(Fraction(total_mib, 1024)) + Fraction(1, 2))
    return f"{slices}g.{gb}gb{_SUFFIX_OF_ENUM.get(enum, '')}"


def filling(
    slices: int, multiprocessors: int, offered: Sequence[ComputeProfile]
) -> ComputeProfile | None:
    """The compute profile that fills a GPU instance of so many compute slices and SMs.

    It is the widest, and of several as wide the one with the most SMs that are really there: on
    Hopper a 1g of double memory has 26 SMs, and only compute profile 7 reaches them all (the one
    that `nvidia-smi mig -cgi 15 -C` takes); its namesake 0 would leave ten idle.
    """
    fitting = [c for c in offered if c.slices <= slices and c.multiprocessors <= multiprocessors]
    return max(fitting, key=lambda c: (c.slices, c.multiprocessors, -c.id), default=None)
