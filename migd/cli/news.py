"""What is new on the node, as records for programs: the node as signals change it, compared.

Nobody says that something has changed: what was told last is compared with what is there now. So a
restart of the daemon is one comparison more, and nothing that happened meanwhile is missed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from migd.cli.node import Gpu, Node, Objects, Properties, kebab, node
from migd.names import JOB, MANAGER, ROOT

Record = dict[str, Any]

# The keys of a record: `what` is one of these, and `time` is in every one. For the manual.
KINDS = {
    "daemon": "first of all, and when the daemon has ended or is back: present; and if it is, "
    "version, driver, match, job: the id of the running one or null",
    "job-new": "a job has begun: id, type, config, uid, gpus: their UUIDs",
    "job-step": "it got on: id, phase, step: how many are over, steps, waiting: for what",
    "job-removed": "it has ended: id, type, result, details; result and details as in "
    "JobRemoved on the bus",
    "layout": "instances of a GPU came or went: gpu: its UUID, index, gpu-instances: all that it "
    "has now, as in status",
    "gpu": "the MIG mode or the state of a GPU is new: gpu, index, mig-mode, mig-mode-pending, "
    "state",
    "gpu-added": "a GPU is there that was not: gpu, index, name",
    "gpu-removed": "a GPU is gone: gpu, index, name",
    "match": "match: whether the node is as wanted: yes, no, unknown or none; since",
    "drift": "drift: how GPUs differ from what jobs last reached, a sentence each; empty when "
    "they do not any more; the next four are like it",
    "config-errors": "config-errors: why files were refused, or cannot be had",
    "conflicts": "conflicts: units beside which nothing is changed",
    "reboot-owed": "reboot-owed: why the host must be rebooted; empty when it need not be",
    "driver": "driver: its version; empty when there is none",
    "wanted": "wanted: by UUID, the configuration that each GPU should have",
    "configs": "configs: the names that apply takes",
}
_OF_MANAGER = (
    "Driver",
    "Configs",
    "ConfigErrors",
    "Conflicts",
    "Wanted",
    "Drift",
    "RebootOwed",
    "Match",
)
_OF_GPU = ("MigMode", "MigModePending", "State")
_OF_STEP = ("Phase", "Step", "Steps", "Waiting")


@dataclass(frozen=True)
class Signal:
    """A signal of the daemon; variants are unwrapped."""

    path: str
    member: str
    values: tuple[Any, ...]


class Picture:
    """The node as the daemon shows it, kept up to date by its signals."""

    def __init__(self, manager: Properties) -> None:
        self._objects = {ROOT: {MANAGER: dict(manager)}}

    def show(self, objects: Objects) -> None:
        """Show these objects, whatever there was beside the manager."""
        self._objects = _copied(objects) | {ROOT: self._objects[ROOT]}

    def take(self, signal: Signal) -> bool:
        """Have a signal change the picture; whether it is one that can."""
        match signal.member, signal.values:
            case "PropertiesChanged", (interface, changed, _):
                # What is not there any more has changed for the last time.
                if interface in self._objects.get(signal.path, {}):
                    self._objects[signal.path][interface] |= changed
            case "InterfacesAdded", (path, interfaces):
                self._objects.setdefault(path, {}).update(interfaces)
            case "InterfacesRemoved", (path, interfaces):
                left = self._objects.get(path, {}).items()
                self._objects[path] = {n: v for n, v in left if n not in interfaces}
            case _:
                return False
        return True

    def node(self) -> Node:
        """It as values of its own."""
        copied = _copied(self._objects)
        return node(copied[ROOT][MANAGER], copied)

    def job(self, path: str) -> Properties:
        return self._objects.get(path, {}).get(JOB, {})


def _copied(objects: Objects) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        path: {name: dict(values) for name, values in interfaces.items()}
        for path, interfaces in objects.items()
    }


def daemon(now: Node) -> Record:
    """That there is one, and what it says first."""
    told = {kebab(name): now.properties.get(name, "") for name in ("Version", "Driver", "Match")}
    job = None if now.job is None else now.job["Id"]
    return {"what": "daemon", "present": True, **told, "job": job}


def job_new(number: int, kind: str, job: Properties) -> Record:
    """`job`: its properties, as far as they are known."""
    record = {"what": "job-new", "id": number, "type": kind, "config": job.get("Config", "")}
    return {**record, "uid": job.get("StartedByUid"), "gpus": job.get("Gpus", [])}


def job_removed(number: int, kind: str, result: str, details: Properties) -> Record:
    record = {"what": "job-removed", "id": number, "type": kind}
    return {**record, "result": result, "details": details}


def news(before: Node, now: Node) -> Iterator[Record]:
    """What is different, in an order that can be read: why, then what, then what it comes to.

    That a job has begun or ended is not among it: a signal says so, with more than the node shows.
    """
    yield from _job(before.job, now.job)
    yield from _gpus(before, now)
    for name in _OF_MANAGER:
        value = now.properties.get(name)
        if value != before.properties.get(name):
            since = {"since": now.properties.get("MatchSince", 0)} if name == "Match" else {}
            yield {"what": kebab(name), kebab(name): value, **since}


def _job(before: Properties | None, now: Properties | None) -> Iterator[Record]:
    if before and now and before["Id"] == now["Id"]:
        step = _picked(now, _OF_STEP)
        if step != _picked(before, _OF_STEP):
            yield {"what": "job-step", "id": now["Id"], **step}


def _gpus(before: Node, now: Node) -> Iterator[Record]:
    gone = {gpu.properties["Uuid"]: gpu for gpu in before.gpus}
    for gpu in now.gpus:
        was = gone.pop(gpu.properties["Uuid"], None)
        if was is None:
            yield {"what": "gpu-added", **_which(gpu), "name": gpu.properties.get("Name", "")}
        yield from _gpu(was or Gpu({}, ()), gpu)
    for gpu in gone.values():
        yield {"what": "gpu-removed", **_which(gpu), "name": gpu.properties.get("Name", "")}


def _gpu(before: Gpu, now: Gpu) -> Iterator[Record]:
    state = _picked(now.properties, _OF_GPU)
    if state != _picked(before.properties, _OF_GPU):
        yield {"what": "gpu", **_which(now), **state}
    if layout(before) != layout(now):
        yield {"what": "layout", **_which(now), "gpu-instances": layout(now)}


def layout(gpu: Gpu) -> list[Record]:
    """Its instances without what changes while they are there."""
    return [
        {
            **_picked(instance.properties, ("Id", "Profile", "ProfileId", "Placement")),
            "compute-instances": [
                _picked(compute, ("Id", "Profile", "ProfileId", "Placement", "Uuid"))
                for compute in instance.compute
            ],
        }
        for instance in gpu.instances
    ]


def _which(gpu: Gpu) -> Record:
    return {"gpu": gpu.properties["Uuid"], "index": gpu.properties["Index"]}


def _picked(properties: Properties, names: tuple[str, ...]) -> Record:
    return {kebab(name): properties[name] for name in names if name in properties}
