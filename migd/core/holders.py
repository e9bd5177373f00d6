"""Who uses a GPU: processes as people know them, and what of which GPU each of them has."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from migd.core.model import Gpu


class NodeKind(StrEnum):
    """Device nodes of the driver.

    GPU: /dev/nvidiaN; RENDER: /dev/dri/* of a GPU; CAPABILITY: /dev/nvidia-caps/*; CONTROL:
    /dev/nvidiactl, -modeset, -uvm and all others, which belong to no GPU
    """

    GPU = "gpu"
    RENDER = "render"
    CAPABILITY = "capability"
    CONTROL = "control"


@dataclass(frozen=True)
class Node:
    """A device node that a process has open or mapped.

    minor: of a GPU the device minor, of a capability its minor; 0 otherwise
    gpu: the UUID of the GPU that it is of, where the driver tells; "" where only the minor does
    pci_address: of a render node, as Gpu.pci_address; "" otherwise
    """

    kind: NodeKind
    minor: int = 0
    gpu: str = ""
    pci_address: str = ""
    mapped: bool = False


class How(StrEnum):
    """What shows that a process has something of a GPU.

    LISTED: NVML lists it. CAPABILITY: it has an instance's capability node open. MAPPED: it has
    mapped the GPU's node, as programs do that have a context on it. OPEN: it has only opened the
    node, as every program does that uses NVML, or that uses another GPU through CUDA.
    """

    LISTED = "listed"
    CAPABILITY = "capability"
    MAPPED = "mapped"
    OPEN = "open"


@dataclass(frozen=True)
class Use:
    """What a process has of one GPU; gi and ci are None for the GPU as a whole."""

    gpu: str
    gi: int | None
    ci: int | None
    how: How

    @property
    def merely_open(self) -> bool:
        """It hinders a reset, and nothing less."""
        return self.how is How.OPEN


@dataclass(frozen=True)
class Holder:
    """A process as people know it. Texts come from the process itself; none can steer a terminal.

    started: clock ticks after boot (/proc/PID/stat, field 22), which tells it from a later process
    with the same pid; 0 if it is gone or not to be seen from here
    command: its command line, cut; executable: path of its program, "" where it cannot be read
    uid: -1 where it cannot be read; user: its name, or the number
    unit: the unit of the system's service manager, "" outside of it
    user_unit: the unit of a user's service manager; container: what runs it and its name;
    session: logind's name of the login session; job: Slurm's number of it; each "" for none
    began: the same moment as started, in microseconds since the epoch; 0 where it is not known
    """

    pid: int
    started: int = 0
    command: str = ""
    executable: str = ""
    uid: int = -1
    user: str = ""
    unit: str = ""
    user_unit: str = ""
    container: str = ""
    session: str = ""
    job: str = ""
    began: int = 0

    def __str__(self) -> str:
        of = f" of user {self.user}" if self.user else ""
        return f"pid {self.pid} ({self.command}){of}{self.place and ' in ' + self.place}"

    @property
    def place(self) -> str:
        """Where it runs, the most telling: container, user's unit, unit; "" for nowhere."""
        if self.container:
            return f"container {self.container}"
        where = self.user_unit or self.unit
        if self.job:
            return f"{where} (job {self.job})" if where else f"job {self.job}"
        return where


@dataclass(frozen=True)
class Found:
    """A process that has device nodes of the driver, or that NVML lists."""

    holder: Holder
    nodes: frozenset[Node]


@dataclass(frozen=True)
class Client:
    """A process with what it has of GPUs; nothing if it only has nodes that belong to no GPU."""

    holder: Holder
    uses: tuple[Use, ...]

    def of(self, gpu: str) -> tuple[Use, ...]:
        """What it has of one GPU."""
        return tuple(u for u in self.uses if u.gpu == gpu)


# gpuN/giI/access and gpuN/giI/ciC/access have these minors on every machine; N is the device
# minor (open-gpu-kernel-modules, nv-caps.c).
_FIRST, _PER_GPU, _PER_GI = 3, 135, 9


def capability(minor: int) -> tuple[int, int, int | None] | None:
    """Device minor, GPU instance and compute instance of a capability; None for those of no GPU."""
    if minor < _FIRST:
        return None
    gpu, rest = divmod(minor - _FIRST, _PER_GPU)
    gi, ci = divmod(rest, _PER_GI)
    return gpu, gi, ci - 1 if ci else None


def clients(found: Iterable[Found], gpus: Sequence[Gpu]) -> tuple[Client, ...]:
    """What each process has of which GPU, by NVML's lists and by its nodes; in order of pids."""
    by_minor = {g.minor: g for g in gpus}
    by_uuid = {g.uuid: g for g in gpus}
    by_address = {g.pci_address: g for g in gpus}
    listed = _listed(gpus)
    made = []
    for one in found:
        uses = set(listed.get(one.holder.pid, ()))
        for node in one.nodes:
            gpu = _gpu_of(node, by_minor, by_uuid, by_address)
            if gpu and (use := _use(node, gpu)):
                uses.add(use)
        made.append(Client(one.holder, tuple(sorted(_telling(uses), key=_order))))
    return tuple(sorted(made, key=lambda c: c.holder.pid))


def _listed(gpus: Iterable[Gpu]) -> dict[int, list[Use]]:
    by_pid: dict[int, list[Use]] = {}
    for gpu in gpus:
        for process in gpu.processes:
            use = Use(gpu.uuid, process.gi, process.ci, How.LISTED)
            by_pid.setdefault(process.pid, []).append(use)
    return by_pid


def _gpu_of(
    node: Node,
    by_minor: Mapping[int, Gpu],
    by_uuid: Mapping[str, Gpu],
    by_address: Mapping[str, Gpu],
) -> Gpu | None:
    if node.kind is NodeKind.RENDER:
        return by_address.get(node.pci_address)
    if node.gpu:
        return by_uuid.get(node.gpu)
    if node.kind is NodeKind.GPU:
        return by_minor.get(node.minor)
    belongs = capability(node.minor) if node.kind is NodeKind.CAPABILITY else None
    return by_minor.get(belongs[0]) if belongs else None


def _use(node: Node, gpu: Gpu) -> Use | None:
    if node.kind is not NodeKind.CAPABILITY:
        return Use(gpu.uuid, None, None, How.MAPPED if node.mapped else How.OPEN)
    belongs = capability(node.minor)
    return Use(gpu.uuid, belongs[1], belongs[2], How.CAPABILITY) if belongs else None


def _telling(uses: set[Use]) -> set[Use]:
    """Without those that say no more than another: of one thing, the first How counts.

    Who uses an instance has the GPU's node open, and mapped, only to reach the instance.
    """
    ranks = list(How)
    best: dict[tuple[str, int | None, int | None], Use] = {}
    for use in uses:
        key = (use.gpu, use.gi, use.ci)
        if key not in best or ranks.index(use.how) < ranks.index(best[key].how):
            best[key] = use
    inside = {u.gpu for u in best.values() if u.gi is not None}
    finer = {(u.gpu, u.gi) for u in best.values() if u.ci is not None}
    return {
        u
        for u in best.values()
        if not (u.gi is None and u.gpu in inside and u.how is not How.LISTED)
        and not (u.gi is not None and u.ci is None and (u.gpu, u.gi) in finer)
    }


def _order(use: Use) -> tuple[str, int, int]:
    return use.gpu, -1 if use.gi is None else use.gi, -1 if use.ci is None else use.ci
