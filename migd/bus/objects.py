"""The service as objects on the bus: pure translation, from its values to those of the contract."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from dbus_next.signature import Variant

from migd import __version__, names
from migd.bus.tree import Objects
from migd.bus.values import variant
from migd.core.clients import Blocked, Clearing, End, Standing, Stop
from migd.core.holders import Holder, Use
from migd.core.hooks import HookOutcome
from migd.core.inside import compute_name
from migd.core.job import ClientOutcome, Outcome, PastJob
from migd.core.model import ComputeInstance, Gpu, GpuInstance, Process, Profile
from migd.core.plan import GpuPlan
from migd.core.steps import (
    CreateCompute,
    CreateInstance,
    DestroyCompute,
    DestroyInstance,
    SetMode,
    Step,
    action,
    sentence,
)
from migd.errors import (
    ConfigRefused,
    Conflict,
    HookFailed,
    Hung,
    ImpactExceeded,
    NoSuchInstance,
    Nvml,
)
from migd.service.job import Job
from migd.service.planning import Planned
from migd.service.request import Blocker
from migd.service.service import Service
from migd.service.view import View

_MIB = 1 << 20
Properties = dict[str, Any]
NONE: Objects = {}


def objects(service: Service) -> Objects:
    """All objects there are now, by path."""
    job = service.jobs.current
    found: dict[str, dict[str, Properties]] = {names.ROOT: {names.MANAGER: _manager(service, job)}}
    for gpu in service.view.gpus:
        path = names.gpu_path(gpu.uuid)
        found[path] = {names.GPU: _gpu(gpu, service, job)}
        for gi in gpu.instances:
            found[names.gpu_instance_path(gpu.uuid, gi.id)] = {
                names.GPU_INSTANCE: _gpu_instance(gpu, gi)
            }
            for ci in gi.compute:
                found[names.compute_instance_path(gpu.uuid, gi.id, ci.id)] = {
                    names.COMPUTE_INSTANCE: _compute_instance(gpu, gi, ci, service.view)
                }
    if job:
        found[names.job_path(job.begun.id)] = {names.JOB: _job(job)}
    return found


def meant(
    view: View, path: str
) -> tuple[Gpu, tuple[GpuInstance, ...], tuple[ComputeInstance, ...]]:
    """What the object of a GPU or an instance is: its GPU, and its instances as far as it is one.

    Raises NoSuchInstance where it is gone.
    """
    for gpu in view.gpus:
        if path == names.gpu_path(gpu.uuid):
            return gpu, (), ()
        for gi in gpu.instances:
            if path == names.gpu_instance_path(gpu.uuid, gi.id):
                return gpu, (gi,), ()
            for ci in gi.compute:
                if path == names.compute_instance_path(gpu.uuid, gi.id, ci.id):
                    return gpu, (gi,), (ci,)
    raise NoSuchInstance(f"what {path} was is gone")


def _manager(service: Service, job: Job | None) -> Properties:
    return {
        "Version": __version__,
        "Driver": service.view.driver,
        "Configs": service.config_names,
        "Wanted": {uuid: choice.label for uuid, choice in service.wanted.items()},
        "Match": service.match.value,
        "MatchSince": service.match_since,
        "RebootOwed": service.view.reboot_owed,
        "Job": names.job_path(job.begun.id) if job else "/",
        "ConfigErrors": list(service.config_errors),
        "Drift": list(service.drift.sentences),
        "DriftSince": service.drift.since,
        "Conflicts": list(service.conflicts.found),
    }


def _gpu(gpu: Gpu, service: Service, job: Job | None) -> Properties:
    wanted = service.wanted.get(gpu.uuid)
    working = job is not None and gpu.uuid in job.gpus
    return {
        "Uuid": gpu.uuid,
        "Index": gpu.index,
        "PciAddress": gpu.pci_address,
        "Name": gpu.name,
        "Memory": gpu.memory_mib * _MIB,
        "MigMode": gpu.mode.value,
        "MigModePending": gpu.pending.value,
        "State": _state(service.view.troubled.get(gpu.uuid)),
        "Wanted": wanted.label if wanted else "",
        "Profiles": _profiles(gpu.profiles),
        "Processes": [_process(p, service.view) for p in gpu.processes],
        "Job": names.job_path(job.begun.id) if job and working else "/",
    }


def _state(trouble: Hung | Nvml | None) -> str:
    if trouble is None:
        return "ok"
    return "hung" if isinstance(trouble, Hung) else "failed"


@lru_cache(maxsize=32)
def _profiles(profiles: tuple[Profile, ...]) -> Variant:
    """Those of a board never change: made once, not again for each GPU at each sign of a job."""
    return variant("aa{sv}", [_profile(p) for p in profiles])


def _profile(profile: Profile) -> dict[str, Variant]:
    return {
        "id": Variant("u", profile.id),
        "name": Variant("s", profile.name),
        "slices": Variant("u", profile.slices),
        "memory": Variant("t", profile.memory_mib * _MIB),
        "instances": Variant("u", profile.instances),
        "multiprocessors": Variant("u", profile.multiprocessors),
        "placements": Variant("a(uu)", [[p.start, p.size] for p in profile.placements]),
    }


def _process(process: Process, view: View) -> dict[str, Variant]:
    told = _holder(view.holder(process))
    if process.gi is not None:
        told["gi"] = Variant("u", process.gi)
    if process.ci is not None:
        told["ci"] = Variant("u", process.ci)
    return told


def _holder(holder: Holder) -> dict[str, Variant]:
    told = {
        "pid": Variant("u", holder.pid),
        "command": Variant("s", holder.command),
        "user": Variant("s", holder.user),
        "unit": Variant("s", holder.unit),
    }
    where = {
        "user-unit": holder.user_unit,
        "container": holder.container,
        "session": holder.session,
    }
    return told | {name: Variant("s", text) for name, text in where.items() if text}


def _gpu_instance(gpu: Gpu, gi: GpuInstance) -> Properties:
    profile = gpu.profile(gi.profile_id)
    return {
        "Id": gi.id,
        "Gpu": names.gpu_path(gpu.uuid),
        "Profile": gpu.profile_name(gi.profile_id),
        "ProfileId": gi.profile_id,
        "Placement": (gi.placement.start, gi.placement.size),
        "Memory": profile.memory_mib * _MIB if profile else 0,
    }


def _compute_instance(gpu: Gpu, gi: GpuInstance, ci: ComputeInstance, view: View) -> Properties:
    return {
        "Id": ci.id,
        "GpuInstance": names.gpu_instance_path(gpu.uuid, gi.id),
        "Profile": compute_name(gpu, gi, ci),
        "ProfileId": ci.profile_id,
        "Placement": (ci.placement.start, ci.placement.size),
        "Uuid": ci.uuid,
        "Processes": [_process(p, view) for p in gpu.processes if (p.gi, p.ci) == (gi.id, ci.id)],
    }


def _job(job: Job) -> Properties:
    return {
        "Id": job.begun.id,
        "Type": job.begun.type,
        "Config": job.begun.label,
        "Gpus": list(job.gpus),
        "StartedByUid": job.begun.choice.uid,
        "StartTimestamp": job.begun.started,
        "Phase": job.phase.value,
        "Step": job.step,
        "Steps": job.steps,
        "Waiting": job.waiting,
        "Cancelable": job.cancelable,
    }


# -- answers ---------------------------------------------------------------------------------


def summary(planned: Planned) -> dict[str, Variant]:
    plan = planned.plan
    return {
        "impact": Variant("s", plan.impact.value),
        "gpus": Variant("as", [g.gpu.uuid for g in plan.gpus if g.steps]),
        "stops": Variant("as", list(planned.clearing.units)),
        "will-not-return": Variant("aa{sv}", _not_returning(planned.clearing)),
        "blockers": Variant("aa{sv}", [_blocker(b) for b in planned.blockers]),
        "digest": Variant("s", planned.digest),
    }


def _not_returning(clearing: Clearing) -> list[dict[str, Variant]]:
    units = [{"unit": Variant("s", name)} for name in clearing.lost]
    return units + [_holder(e.client.holder) | _of(e.uses[0]) for e in clearing.ends]


def _blocker(blocker: Blocker) -> dict[str, Variant]:
    told = {"message": Variant("s", str(blocker.error))}
    if blocker.client is None:
        return {"kind": Variant("s", _kind(blocker)), **told}
    told |= _holder(blocker.client.holder) | (_of(blocker.use) if blocker.use else {})
    return {"kind": Variant("s", "process"), **told}


def _kind(blocker: Blocker) -> str:
    """What stands in the way, if it is no process."""
    match blocker.error:
        case ImpactExceeded():
            return "impact"
        case Conflict():
            return "conflict"
        case ConfigRefused():
            return "clients"
        case HookFailed():
            return "hook"
    return "module" if blocker.module else "unit"


def _of(use: Use) -> dict[str, Variant]:
    told = {"gpu": Variant("s", use.gpu)}
    told |= {"gi": Variant("u", use.gi)} if use.gi is not None else {}
    return told | ({"ci": Variant("u", use.ci)} if use.ci is not None else {})


def client(standing: Standing) -> dict[str, Variant]:
    """One of ListClients."""
    action, message = _told(standing.decision)
    told = {
        "action": Variant("s", action),
        "from": Variant("s", standing.since.value),
        "message": Variant("s", message),
    }
    if standing.client is None:
        assert isinstance(standing.decision, Stop)
        return {"unit": Variant("s", standing.decision.unit), **told}
    holder = standing.client.holder
    uses = [_of(u) | {"how": Variant("s", u.how.value)} for u in standing.client.uses]
    told |= {"uses": Variant("aa{sv}", uses)}
    return _holder(holder) | {"start": Variant("t", holder.began)} | told


def _told(decision: Stop | End | Blocked) -> tuple[str, str]:
    match decision:
        case Stop(unit):
            return "stop", f"{unit} is stopped and started again"
        case End():
            return "end", "it is ended for good"
        case Blocked():
            return "refuse", decision.advice


def steps(plans: Iterable[GpuPlan]) -> list[dict[str, Variant]]:
    return [_step(s, plan.gpu) for plan in plans for s in plan.steps]


def _step(step: Step, gpu: Gpu) -> dict[str, Variant]:
    told = {
        "gpu": Variant("s", gpu.uuid),
        "index": Variant("u", gpu.index),
        "action": Variant("s", action(step)),
        "message": Variant("s", sentence(step, gpu)),
    }
    match step:
        case SetMode(mode, reset, pending):
            told |= {"mode": Variant("s", mode.value), "reset": Variant("b", reset)}
            told |= {"pending": Variant("b", pending)} if pending else {}
        case DestroyInstance(gi, profile_id, placement):
            told["gi"] = Variant("u", gi)
            told |= _where(gpu, profile_id, placement.start, placement.size)
        case DestroyCompute(gi, ci):
            told |= {"gi": Variant("u", gi), "ci": Variant("u", ci)}
        case CreateInstance(profile_id, placement, compute):
            told |= _where(gpu, profile_id, placement.start, placement.size)
            if compute is not None:
                told["compute"] = Variant("au", list(compute))
        case CreateCompute(gi, compute):
            told["gi"] = Variant("u", gi)
            if compute is not None:
                told["compute"] = Variant("au", list(compute))
    return told


def _where(gpu: Gpu, profile_id: int, start: int, size: int) -> dict[str, Variant]:
    return {
        "profile": Variant("s", gpu.profile_name(profile_id)),
        "profile-id": Variant("u", profile_id),
        "placement": Variant("(uu)", [start, size]),
    }


def details(past: PastJob) -> dict[str, Variant]:
    return {
        "message": Variant("s", past.message),
        "changed": Variant("b", past.changed),
        "wanted": Variant("b", past.wanted),
        "gpus": Variant("aa{sv}", [_outcome(o) for o in past.outcomes]),
        "clients": Variant("aa{sv}", [_client_outcome(c) for c in past.clients]),
        "after": Variant("as", list(past.after.told)),
        "hooks": Variant("aa{sv}", [_hook(h) for h in past.hooks]),
    }


def _hook(outcome: HookOutcome) -> dict[str, Variant]:
    told = {
        "moment": Variant("s", outcome.moment.value),
        "command": Variant("s", outcome.command),
        "result": Variant("s", "failed" if outcome.failure else "done"),
    }
    if outcome.failure:
        told["message"] = Variant("s", outcome.failure)
        told["output"] = Variant("as", list(outcome.output))
    return told


def _client_outcome(outcome: ClientOutcome) -> dict[str, Variant]:
    told = {"unit": Variant("s", outcome.unit), "result": Variant("s", outcome.fate.value)}
    if outcome.pid:
        told["pid"] = Variant("u", outcome.pid)
    texts = {"what": outcome.what, "message": outcome.message}
    return told | {name: Variant("s", text) for name, text in texts.items() if text}


def _outcome(outcome: Outcome) -> dict[str, Variant]:
    told = {
        "gpu": Variant("s", outcome.gpu),
        "index": Variant("u", outcome.index),
        "result": Variant("s", outcome.ending.value),
    }
    texts: Mapping[str, str] = {
        "error": outcome.error,
        "message": outcome.message,
        "call": outcome.call,
        "code-name": outcome.code_name,
        "left": outcome.left,
    }
    told |= {name: Variant("s", text) for name, text in texts.items() if text}
    if outcome.call:
        told["code"] = Variant("i", outcome.code)
    return told


def jobs(service: Service) -> list[dict[str, Variant]]:
    """The running job, and those that have ended, newest first."""
    told = [_past(p) for p in service.past_jobs]
    if service.jobs.current:
        told.insert(0, _running(service.jobs.current))
    return told


def _running(job: Job) -> dict[str, Variant]:
    begun = job.begun
    return {
        "id": Variant("u", begun.id),
        "type": Variant("s", begun.type),
        "config": Variant("s", begun.label),
        "uid": Variant("u", begun.choice.uid),
        "result": Variant("s", ""),
        "start": Variant("t", begun.started),
        "end": Variant("t", 0),
        "message": Variant("s", job.waiting),
    }


def _past(past: PastJob) -> dict[str, Variant]:
    return {
        "id": Variant("u", past.id),
        "type": Variant("s", past.type),
        "config": Variant("s", past.label),
        "uid": Variant("u", past.choice.uid),
        "result": Variant("s", past.result.value),
        "start": Variant("t", past.started),
        "end": Variant("t", past.ended),
        "message": Variant("s", past.message),
    }
