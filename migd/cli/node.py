"""The node as the bus shows it, in values: GPUs, instances, processes, the running job."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from migd.names import COMPUTE_INSTANCE, GPU, GPU_INSTANCE, JOB, MANAGER, ROOT

Properties = Mapping[str, Any]
Objects = Mapping[str, Mapping[str, Properties]]


@dataclass(frozen=True)
class Instance:
    """A GPU instance with its compute instances, in the order of their ids."""

    properties: Properties
    compute: tuple[Properties, ...]

    @property
    def id(self) -> int:
        return int(self.properties["Id"])

    @property
    def placement(self) -> tuple[int, int]:
        start, size = self.properties["Placement"]
        return start, size


@dataclass(frozen=True)
class Gpu:
    """A GPU with its instances, in the order of their placements."""

    properties: Properties
    instances: tuple[Instance, ...]

    def processes(self, instance: Instance | None) -> list[Properties]:
        """What NVML lists on an instance, or on the GPU as a whole."""
        gi = instance.id if instance else None
        return [p for p in self.properties.get("Processes", ()) if p.get("gi") == gi]


@dataclass(frozen=True)
class Node:
    """All of it; `job` is None when none runs."""

    properties: Properties
    gpus: tuple[Gpu, ...]
    job: Properties | None


def node(manager: Properties, objects: Objects) -> Node:
    """The node, from the manager's properties and the managed objects."""
    instances: dict[str, list[Instance]] = {}
    compute: dict[str, list[Properties]] = {}
    for properties in _having(objects.values(), COMPUTE_INSTANCE):
        compute.setdefault(properties["GpuInstance"], []).append(properties)
    for path, interfaces in objects.items():
        if GPU_INSTANCE in interfaces:
            properties = interfaces[GPU_INSTANCE]
            inside = sorted(compute.get(path, ()), key=lambda c: int(c["Id"]))
            instances.setdefault(properties["Gpu"], []).append(Instance(properties, tuple(inside)))
    gpus = (
        Gpu(i[GPU], tuple(sorted(instances.get(path, ()), key=lambda i: i.placement)))
        for path, i in objects.items()
        if GPU in i
    )
    return Node(
        objects.get(ROOT, {}).get(MANAGER, manager),
        tuple(sorted(gpus, key=lambda g: int(g.properties["Index"]))),
        next(_having(objects.values(), JOB), None),
    )


def _having(objects: Iterable[Mapping[str, Properties]], interface: str) -> Iterator[Properties]:
    return (interfaces[interface] for interfaces in objects if interface in interfaces)


def kebab(name: str) -> str:
    """A property's name as the keys on the bus are written: MigModePending, mig-mode-pending."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def plain(properties: Properties) -> dict[str, Any]:
    return {kebab(name): value for name, value in properties.items()}


def as_json(everything: Node) -> dict[str, Any]:
    """The node for --json: properties under kebab-case keys, instances inside their GPUs."""
    return {
        **plain(everything.properties),
        "job": None if everything.job is None else plain(everything.job),
        "gpus": [_gpu_json(gpu, everything.job) for gpu in everything.gpus],
    }


def _gpu_json(gpu: Gpu, job: Properties | None) -> dict[str, Any]:
    at_work = job is not None and gpu.properties.get("Job", "/") != "/"
    instances = []
    for instance in gpu.instances:
        mine = {k: v for k, v in plain(instance.properties).items() if k != "gpu"}
        inside = [
            {k: v for k, v in plain(c).items() if k != "gpu-instance"} for c in instance.compute
        ]
        instances.append({**mine, "compute-instances": inside})
    number = job["Id"] if job is not None and at_work else None
    return {**plain(gpu.properties), "job": number, "gpu-instances": instances}
