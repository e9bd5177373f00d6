"""`migctl create`, `destroy` and `mode`: one GPU, and one thing on it."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from migd.cli.apply import job, tell
from migd.cli.client import Client, options
from migd.cli.node import Objects, Properties
from migd.cli.outcome import Exit, Failure
from migd.cli.terminal import Terminal
from migd.names import COMPUTE_INSTANCE, ERROR, GPU, GPU_INSTANCE

_DEVICE = "MIG-"
_NO_SUCH = f"{ERROR}.NoSuchInstance"
Given = dict[str, str | bool | int | list[str]]


async def create(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Create an instance, and say which MIG devices there are now that were not there before."""
    (gpu,) = await client.call("GetGpu", "s", arguments.gpu)
    before = await client.objects()
    path, interface, given = gpu, GPU, _flags(arguments)
    if arguments.within is not None:
        if arguments.start is not None or arguments.compute or arguments.terminate:
            raise Failure(
                Exit.WRONG_USE, "--in goes with neither --start, --compute nor --terminate"
            )
        path, instance = _instance(before, gpu, arguments.within)
        interface, given = GPU_INSTANCE, _only_if(instance)
    if arguments.start is not None:
        given["start"] = arguments.start
    if arguments.compute:
        given["compute"] = arguments.compute
    ended = await job(
        client, arguments, out, "CreateInstance", "sa{sv}", arguments.profile, options(given),
        path=path, interface=interface,
    )  # fmt: skip
    if ended is None:
        return Exit.DONE
    after = await client.objects() if ended.result in ("done", "partial") else before
    return tell(ended, arguments, out, _new(before, after, gpu))


async def destroy(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Destroy an instance, and only the one that is there now."""
    objects = await client.objects()
    if arguments.gpu.startswith(_DEVICE):
        if arguments.gi is not None:
            raise Failure(Exit.WRONG_USE, "the UUID of a MIG device needs no ids beside it")
        path, interface, given = _device(objects, arguments.gpu)
    elif arguments.gi is None:
        raise Failure(Exit.WRONG_USE, "say which instance: GPU GI, or the UUID of a MIG device")
    else:
        (gpu,) = await client.call("GetGpu", "s", arguments.gpu)
        path, instance = _instance(objects, gpu, arguments.gi)
        interface, given = GPU_INSTANCE, _only_if(instance)
        if arguments.ci is not None:
            path, compute = _compute(objects, path, arguments.ci)
            interface, given = COMPUTE_INSTANCE, {"uuid": str(compute["Uuid"])}
    ended = await job(
        client, arguments, out, "Destroy", "a{sv}", options({**given, **_flags(arguments)}),
        path=path, interface=interface,
    )  # fmt: skip
    return Exit.DONE if ended is None else tell(ended, arguments, out)


async def mode(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Switch the MIG mode of a GPU."""
    (gpu,) = await client.call("GetGpu", "s", arguments.gpu)
    given = _flags(arguments)
    if arguments.max_impact:
        given["max-impact"] = arguments.max_impact
    if arguments.expect:
        given["expect"] = arguments.expect
    ended = await job(
        client, arguments, out, "SetMigMode", "ba{sv}", arguments.mode == "on", options(given),
        path=gpu, interface=GPU,
    )  # fmt: skip
    return Exit.DONE if ended is None else tell(ended, arguments, out)


def _flags(arguments: Namespace) -> Given:
    flags = ("terminate", "allow-reboot", "reset-peers", "no-reset")
    return {f: True for f in flags if getattr(arguments, f.replace("-", "_"), False)}


def _only_if(instance: Properties) -> Given:
    """Options that mean this instance and no other that gets its id."""
    return {"profile": str(instance["Profile"]), "start": int(instance["Placement"][0])}


def _instance(objects: Objects, gpu: str, gi: int) -> tuple[str, Properties]:
    for path, interfaces in objects.items():
        found = interfaces.get(GPU_INSTANCE)
        if found and (found["Gpu"], found["Id"]) == (gpu, gi):
            return path, found
    raise Failure(Exit.FAILED, f"there is no GPU instance {gi} on that GPU", _NO_SUCH)


def _compute(objects: Objects, instance: str, ci: int) -> tuple[str, Properties]:
    for path, interfaces in objects.items():
        found = interfaces.get(COMPUTE_INSTANCE)
        if found and (found["GpuInstance"], found["Id"]) == (instance, ci):
            return path, found
    raise Failure(Exit.FAILED, f"there is no compute instance {ci} in it", _NO_SUCH)


def _device(objects: Objects, uuid: str) -> tuple[str, str, Given]:
    """What to destroy for a MIG device: path, interface and options."""
    inside = {p: i[COMPUTE_INSTANCE] for p, i in objects.items() if COMPUTE_INSTANCE in i}
    for path, compute in inside.items():
        if compute["Uuid"] != uuid:
            continue
        within = compute["GpuInstance"]
        if sum(c["GpuInstance"] == within for c in inside.values()) > 1:
            return path, COMPUTE_INSTANCE, {"uuid": uuid}
        return within, GPU_INSTANCE, _only_if(objects[within][GPU_INSTANCE])
    raise Failure(Exit.FAILED, f"there is no MIG device {uuid}", _NO_SUCH)


def _new(before: Objects, after: Objects, gpu: str) -> list[Mapping[str, Any]]:
    """The instances on a GPU that were not there before."""
    told: list[Mapping[str, Any]] = []
    for path in sorted(after.keys() - before.keys()):
        if instance := after[path].get(GPU_INSTANCE):
            if instance["Gpu"] == gpu:
                start, size = instance["Placement"]
                words = f"GPU instance {instance['Id']}, {instance['Profile']} at {start}:{size}"
                told.append({"gi": instance["Id"], "message": words})
        elif compute := after[path].get(COMPUTE_INSTANCE):
            within = after[compute["GpuInstance"]][GPU_INSTANCE]
            if within["Gpu"] == gpu:
                words = f"compute instance {compute['Id']} in it, {compute['Uuid']}"
                if compute["GpuInstance"] in before:
                    words = words.replace("in it", f"in GPU instance {within['Id']}")
                known = {"gi": within["Id"], "ci": compute["Id"], "uuid": compute["Uuid"]}
                told.append({**known, "message": words})
    return told
