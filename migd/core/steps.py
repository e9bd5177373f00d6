"""The steps a plan is made of: what they are, how they are written down, how they are told."""

from dataclasses import dataclass
from typing import Any

from migd.core.model import Gpu, Mode, Placement
from migd.core.values import plain, typed


@dataclass(frozen=True)
class SetMode:
    """Switch MIG mode.

    reset: the GPU must be reset for it to take effect
    pending: it is to take effect later, with a reset or reboot that somebody else asks for
    """

    mode: Mode
    reset: bool
    pending: bool = False


@dataclass(frozen=True)
class DestroyInstance:
    """Destroy a GPU instance with the compute instances in it."""

    gi: int
    profile_id: int
    placement: Placement


@dataclass(frozen=True)
class DestroyCompute:
    """Destroy one compute instance; its GPU instance stays."""

    gi: int
    ci: int


@dataclass(frozen=True)
class CreateInstance:
    """Create a GPU instance at a placement; compute None is the one instance that fills it."""

    profile_id: int
    placement: Placement
    compute: tuple[int, ...] | None


@dataclass(frozen=True)
class CreateCompute:
    """Create compute instances in a GPU instance that stays (None: the one that fills it)."""

    gi: int
    compute: tuple[int, ...] | None


Step = SetMode | DestroyInstance | DestroyCompute | CreateInstance | CreateCompute

_KINDS: dict[str, type[Any]] = {
    "set-mode": SetMode,
    "destroy-instance": DestroyInstance,
    "destroy-compute": DestroyCompute,
    "create-instance": CreateInstance,
    "create-compute": CreateCompute,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def action(step: Step) -> str:
    """The name of its kind, as on the bus and in the journal."""
    return _NAMES[type(step)]


def as_plain(step: Step) -> dict[str, Any]:
    return {"action": action(step), **plain(step)}


def from_plain(value: Any, where: str = "step") -> Step:
    """The inverse of `as_plain`. Raises ValueError that says where the value differs."""
    if not isinstance(value, dict) or value.get("action") not in _KINDS:
        raise ValueError(f"{where}: not a step")
    kind = _KINDS[value["action"]]
    step: Step = typed(kind, {k: v for k, v in value.items() if k != "action"}, where)
    return step


def sentence(step: Step, gpu: Gpu) -> str:
    """What the step does to `gpu`, for people."""
    match step:
        case SetMode(mode, pending=True):
            return f"leave MIG mode {mode} pending, for a reset or a reboot"
        case SetMode(mode, reset):
            how = "; this resets the GPU" if reset else ""
            return f"switch MIG mode to {mode}{how}"
        case DestroyInstance(gi, profile_id, placement):
            return f"destroy GPU instance {gi} ({gpu.profile_name(profile_id)} at {placement})"
        case DestroyCompute(gi, ci):
            return f"destroy compute instance {ci} of GPU instance {gi}"
        case CreateInstance(profile_id, placement, compute):
            return f"create {gpu.profile_name(profile_id)} at {placement}{inside(compute)}"
        case CreateCompute(gi, compute):
            count = 1 if compute is None else len(compute)
            return f"create {_compute_instances(count)} in GPU instance {gi}"


def inside(compute: tuple[int, ...] | None) -> str:
    """What an instance is to have in it, to be said after its name; "" if one that fills it."""
    return "" if compute is None else f" with {_compute_instances(len(compute))}"


def _compute_instances(count: int) -> str:
    return f"{count} compute instance{'s' * (count != 1)}"
