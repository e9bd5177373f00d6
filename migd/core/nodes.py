"""The capabilities that MIG instances need, and what an instance that is missing means for CDI.

A process gets at an instance by two device nodes, one of the GPU instance and one of the compute
instance in it. The driver tells of each in a file below /proc/driver/nvidia/capabilities.
"""

from collections.abc import Iterable, Sequence

from migd.core.model import Gpu, Mode

# In such a file (open-gpu-kernel-modules, nv-caps.c); others are for nvidia-modprobe.
_MINOR = "DeviceFileMinor"
# Of the largest minor, with 20 bits, and some to spare.
_DIGITS = 8


def capability_files(gpus: Iterable[Gpu]) -> tuple[str, ...]:
    """Of all instances that are there: `gpu0/mig/gi1/access`, `gpu0/mig/gi1/ci0/access`.

    They go by the device minor; a GPU of which NVML does not say it has none here.
    """
    return tuple(
        f"gpu{gpu.minor}/mig/gi{gi.id}/{name}"
        for gpu in gpus
        if gpu.minor >= 0
        for gi in gpu.instances
        for name in ("access", *(f"ci{ci.id}/access" for ci in gi.compute))
    )


def device_minor(text: str) -> int | None:
    """The minor number of a capability's node, by its file; None where that does not tell."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == _MINOR:
            return device_number(value.strip())
    return None


def device_number(text: str) -> int | None:
    """A major or a minor as the kernel writes it; None for what is none."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else None


def empty(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """GPUs in MIG mode without any MIG device; `nvidia-ctk cdi generate` fails on such a host."""
    return tuple(
        g for g in gpus if g.mode is Mode.ENABLED and not any(i.compute for i in g.instances)
    )
