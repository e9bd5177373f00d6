"""The reset of a GPU by nvidia-smi, as values: what it said, and what stands in its way. Pure."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from migd.core.clients import Blocked, steps_aside
from migd.core.holders import Client
from migd.core.model import Gpu, Impact
from migd.core.plan import Plan
from migd.printable import printable

# As nvidia-smi writes them, with eight digits of the domain; elsewhere there are four.
_ADDRESS = re.compile(r"\b([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})\.([0-7])\b")
_NOT_SUPPORTED = re.compile(r"not supported", re.IGNORECASE)
_IN_USE = re.compile(r"in use by|being used|used by some other process", re.IGNORECASE)
# NVML's code for it, with which nvidia-smi ends then (NVIDIA/mig-parted).
_STATUS_NOT_SUPPORTED = 3
_LONGEST = 300


class Came(StrEnum):
    """What came of a reset.

    PEERS: it was refused because other GPUs must be reset in the same command
    """

    DONE = "done"
    IN_USE = "in-use"
    NOT_SUPPORTED = "not-supported"
    PEERS = "peers"
    FAILED = "failed"


@dataclass(frozen=True)
class Told:
    """How `nvidia-smi --gpu-reset` ended.

    words: what it printed, in one line, cut; status: its exit code, -1 where it has none
    peers: PCI addresses, as Gpu.pci_address
    """

    came: Came
    words: str = ""
    status: int = -1
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drm:
    """The module nvidia_drm, which is loaded.

    users: how often it is in use, by the kernel's count; holders: modules that need it
    modeset: whether it drives displays itself, None where that cannot be read
    """

    users: int
    holders: tuple[str, ...]
    modeset: bool | None

    @property
    def holds(self) -> bool:
        """Whether it is known to keep GPUs in use: somebody uses it, or it has them open itself."""
        return self.users > 0 or bool(self.holders) or self.modeset is True

    def __str__(self) -> str:
        if self.holders:
            return f"the module nvidia_drm is loaded and used by {', '.join(self.holders)}"
        if self.users:
            return "the module nvidia_drm is loaded and in use"
        return "the module nvidia_drm is loaded" + (" with modeset=1" if self.modeset else "")


def told(asked: Collection[str], status: int | None, output: str) -> Told:
    """What a run of nvidia-smi came to.

    asked: PCI addresses of the GPUs that it was to reset; status: None when a signal ended it

    Known to be printed, with these exit codes: "was successfully reset" (0); "could not be reset",
    with "In use by another client" for each (255: NVIDIA/mig-parted issue 181, NVIDIA/NVSentinel
    issue 1690) or with "Not Supported"; "Resetting GPU ... is not supported." (3: MIG User Guide,
    NVIDIA/gpu-operator issue 1606). Missing peers are named in an error (nvidia-smi(1)), whose
    words are not published: so whoever is named and was not asked for is one.
    """
    words = _plainly(output)
    peers = tuple(dict.fromkeys(a for a in addresses(output) if a not in asked))
    if status == 0:
        came = Came.DONE
    elif peers:
        came = Came.PEERS
    elif status == _STATUS_NOT_SUPPORTED or _NOT_SUPPORTED.search(output):
        came = Came.NOT_SUPPORTED
    else:
        came = Came.IN_USE if _IN_USE.search(output) else Came.FAILED
    return Told(came, words, -1 if status is None else status, peers if came is Came.PEERS else ())


def addresses(text: str) -> list[str]:
    """The PCI addresses in a text, as Gpu.pci_address."""
    return [
        f"{int(domain, 16):04x}:{bus}:{device}.{function}".lower()
        for domain, bus, device, function in _ADDRESS.findall(text)
    ]


def _plainly(text: str) -> str:
    return printable(" ".join(text.split()), _LONGEST)


def blocked_by_drm(plan: Plan, drm: Drm | None) -> tuple[Blocked, ...]:
    """Why no GPU of the plan that needs it can be reset, if nvidia_drm has them.

    It opens every GPU that it drives, in the kernel, where no process is seen (NVIDIA/mig-parted
    issue 181). Loaded but neither used nor with modeset=1, it is not known to be in the way.
    """
    gpus = [g.gpu for g in plan.gpus if g.impact.rank >= Impact.RESET.rank]
    if not gpus or drm is None or not drm.holds:
        return ()
    advice = (
        "end what draws on these GPUs, such as a display server, and unload it with "
        "`rmmod nvidia_drm`"
    )
    named = ", ".join(map(str, gpus))
    message = f"{named} cannot be reset: {drm}, and it keeps GPUs in use: {advice}"
    return (Blocked(message, advice, module="nvidia_drm", gpus=tuple(g.uuid for g in gpus)),)


def unfit_peers(
    peers: Iterable[Gpu], clients: Sequence[Client], in_job: Collection[str]
) -> list[str]:
    """Why peers cannot be reset along, in sentences: they would lose something, or are in use.

    clients: who has GPUs now; in_job: UUIDs of the GPUs whose pending mode is the job's own
    """
    found = []
    for gpu in peers:
        if gpu.instances:
            found.append(f"{gpu} has MIG instances, which a reset destroys")
        elif gpu.pending != gpu.mode and gpu.uuid not in in_job:
            found.append(f"MIG mode {gpu.pending} is pending on {gpu}, and a reset would switch it")
        found += [
            f"{gpu} is used by {c.holder}"
            for c in clients
            if c.of(gpu.uuid) and not steps_aside(c.holder)
        ]
    return found
