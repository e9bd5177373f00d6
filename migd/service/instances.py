"""Changes to one GPU: an instance more, an instance less, or its MIG mode, and nothing else.

Each is planned from how the GPU is when its turn comes, but about what the caller was shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from migd.config.exact import placed
from migd.config.faults import shortened
from migd.config.instances import Instance, canonical_profile
from migd.config.target import text_of
from migd.config.use import profiles_by_name
from migd.core.inside import compute_name
from migd.core.instances import added, emptied, filled, refuse_beyond, without
from migd.core.job import Choice
from migd.core.model import ComputeInstance, Gpu, GpuInstance, Layout, Mode, Target, Wanted
from migd.core.permissions import (
    CREATING,
    CREATING_COMPUTE,
    DESTROYING,
    DESTROYING_COMPUTE,
    SETTING_MODE,
    Method,
)
from migd.core.plan import GpuPlan, offers, plan_gpu
from migd.core.profiles import ProfileName
from migd.errors import Changed, InvalidRequest, NoSuchProfile, NotSupported
from migd.service.jobs import now
from migd.service.request import InstanceRequest

_CREATE, _DESTROY, _SET_MODE = "create-instance", "destroy-instance", "set-mig-mode"


@dataclass(frozen=True)
class Change:
    """One change to the GPU with the UUID `gpu`.

    kind: the type of its job; target: what the GPU should have, by how it is; raises why not
    goes: GPU instance and compute instance (None for all of it) that it destroys, if it does
    """

    method: Method
    kind: str
    request: InstanceRequest
    gpu: str
    target: Callable[[Gpu], Target]
    goes: tuple[int | None, int | None] = (None, None)

    def plan(self, gpu: Gpu, settled: Layout | None) -> GpuPlan:
        made = plan_gpu(gpu, self.target(gpu), settled)
        if self.kind != _SET_MODE:
            refuse_beyond(made, *self.goes)
        return made

    def choice(self, made: GpuPlan, uid: int) -> Choice:
        """What is wanted of the GPU from then on: exactly what it has then, or only its mode.

        The mode alone is chosen as with mode-only of Apply: the instances are still to come, and
        none of them would be what somebody wanted.
        """
        only_mode = self.kind == _SET_MODE
        goal = Target(made.goal.mode, ()) if only_mode else made.goal
        try:
            text = text_of(made.gpu, goal)
        except ValueError as error:
            raise NotSupported(
                f"what is on {made.gpu} has no name that could be kept for the next boot: {error}"
            ) from error
        return Choice("", text, only_mode, uid, now())


def set_mode(gpu: Gpu, *, enabled: bool, request: InstanceRequest) -> Change:
    mode = Mode.ENABLED if enabled else Mode.DISABLED
    about = replace(request, config=mode.value)
    target = Target(mode, None, no_reset=request.no_reset)
    return Change(SETTING_MODE, _SET_MODE, about, gpu.uuid, lambda _: target)


def create(gpu: Gpu, profile: str, request: InstanceRequest) -> Change:
    """Raises InvalidRequest."""
    name = _parsed(profile)
    if name != name.gpu_instance:
        raise InvalidRequest(
            f"{name} is a compute instance: create {name.gpu_instance} with compute=[{name}, ...], "
            "or call CreateInstance of the GPU instance that it shall be in"
        )
    inside = None if request.compute is None else [_parsed(c) for c in request.compute]
    for compute in inside or ():
        if compute.gpu_instance != name:
            raise InvalidRequest(f"{compute} is not for {name}; one such as 1c.{name} is")

    def target(gpu: Gpu) -> Target:
        return added(gpu, _resolved(gpu, name, request.start, inside))

    about = replace(request, config=str(name))
    return Change(CREATING, _CREATE, about, gpu.uuid, target)


def destroy(gpu: Gpu, shown: GpuInstance, request: InstanceRequest) -> Change:
    """Raises InvalidRequest and Changed."""
    _refuse_another(gpu, shown, request)
    about = replace(request, config=gpu.profile_name(shown.profile_id))
    return Change(
        DESTROYING, _DESTROY, about, gpu.uuid, lambda gpu: without(gpu, shown), (shown.id, None)
    )


def create_compute(gpu: Gpu, shown: GpuInstance, profile: str, request: InstanceRequest) -> Change:
    """Raises InvalidRequest and Changed."""
    _refuse_another(gpu, shown, request)
    name = _parsed(profile)
    within = ProfileName.parse(gpu.profile_name(shown.profile_id))
    if name.gpu_instance != within:
        raise InvalidRequest(
            f"{name} is not for GPU instance {shown.id}, a {within}; one such as 1c.{within} is"
        )

    def target(gpu: Gpu) -> Target:
        return filled(gpu, shown, _resolved(gpu, within, shown.placement.start, [name]).compute)

    about = replace(request, config=str(name))
    return Change(CREATING_COMPUTE, _CREATE, about, gpu.uuid, target)


def destroy_compute(
    gpu: Gpu, shown: GpuInstance, compute: ComputeInstance, request: InstanceRequest
) -> Change:
    """Raises Changed."""
    if request.uuid not in ("", compute.uuid):
        raise Changed(
            f"compute instance {compute.id} of GPU instance {shown.id} of {gpu} is {compute.uuid}, "
            f"not {shortened(request.uuid)}: look again"
        )
    about = replace(request, config=compute_name(gpu, shown, compute))
    return Change(
        DESTROYING_COMPUTE,
        _DESTROY,
        about,
        gpu.uuid,
        lambda gpu: emptied(gpu, shown, compute),
        (shown.id, compute.id),
    )


def _parsed(text: str) -> ProfileName:
    try:
        return canonical_profile(text)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _refuse_another(gpu: Gpu, shown: GpuInstance, request: InstanceRequest) -> None:
    """Raises Changed where the caller says that it means an instance other than the one there."""
    is_it = request.start in (None, shown.placement.start)
    name = gpu.profile_name(shown.profile_id)
    if request.profile:
        is_it = is_it and _parsed(request.profile) == ProfileName.parse(name)
    if not is_it:
        raise Changed(
            f"GPU instance {shown.id} of {gpu} is {name} at {shown.placement}, and not the one "
            "that is meant: look again"
        )


def _resolved(
    gpu: Gpu, name: ProfileName, start: int | None, inside: Sequence[ProfileName] | None
) -> Wanted:
    """What the names mean on that GPU. Raises NoSuchProfile, and NoSpace if too much is inside."""
    known = profiles_by_name(gpu)
    if name not in known:
        raise NoSuchProfile(f"{name} is not offered by {gpu}; it has {offers(gpu)}")
    # What is inside does not depend on where it is; a profile may have no place at all.
    at = min((p.start for p in known[name].placements), default=0) if start is None else start
    compute = None if inside is None else tuple(map(str, inside))
    (wanted,) = placed(gpu, [Instance(str(name), at, compute)], known, "create")
    return replace(wanted, placement=None) if start is None else wanted
