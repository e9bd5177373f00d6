"""The whole daemon on a simulated node, for tests; what it says is judged by the node's state."""

import asyncio
import copy
import json
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dbus_next.constants import MessageType
from dbus_next.message import Message

from migd import names
from migd.bus.connection import RemoteError
from migd.bus.values import to_wire
from tests.support import boards
from tests.support.bus import Client, PrivateBus, client, plain
from tests.support.daemon import Daemon, options
from tests.support.node import MUTATING, Node

H100 = "h100-80gb-sxm5"

# An instance: profile id, first slice, slices, and the profile ids of the compute instances.
Instance = tuple[int, int, int, tuple[int, ...]]
# Mode and instances, in the order of their first slice.
Layout = tuple[str, tuple[Instance, ...]]
DISABLED: Layout = ("disabled", ())


@dataclass
class World:
    """A node, a bus and the daemon between them."""

    node: Node
    bus: PrivateBus
    daemon: Daemon

    def busctl(self, member: str, signature: str = "", *arguments: str) -> list[Any]:
        """`busctl call` on the manager; the values of the reply without the types of variants."""
        done = self.run_busctl(
            "--json=short",
            "call",
            names.BUS_NAME,
            names.ROOT,
            names.MANAGER,
            member,
            *([signature] if signature else []),
            *arguments,
        )
        assert done.returncode == 0, done.stderr
        return [untyped(v) for v in json.loads(done.stdout)["data"]] if done.stdout.strip() else []

    def run_busctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["busctl", "--timeout=60", *arguments],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self.bus.address},
            capture_output=True,
            text=True,
            check=False,
        )

    def uuid(self, index: int) -> str:
        return str(self.node.gpus()[index]["uuid"])

    def clean(self) -> None:
        """Back to no faults, no latency, no configuration file, and MIG off everywhere."""
        self.node.clear_faults()
        self.node.latency(profile="none", lock="gpu")
        (self.daemon.config_dir / names.CONFIG_FILE).unlink(missing_ok=True)
        self.daemon.call("Reload")
        result, details = self.daemon.applied("all-disabled", max_impact="reset")
        assert result == "done", details
        assert set(layouts(self.node).values()) == {DISABLED}

    def put(self, config: str = "", **options: Any) -> None:
        """Apply what must succeed."""
        result, details = self.daemon.applied(config, **options)
        assert result == "done", details


@contextmanager
def world(folder: Path, *gpus: tuple[str, int], config: str = "") -> Iterator[World]:
    node = Node.new(folder / "node", *gpus)
    with PrivateBus() as bus, Daemon(node, bus.address, folder, config=config) as daemon:
        yield World(node, bus, daemon)


def differences(of: World, config: str = "", **given: Any) -> list[str]:
    """What Assert says."""
    matches, found = of.daemon.call("Assert", "sa{sv}", config, options(given))
    assert matches == (found == [])
    return list(found)


def check_nothing_left(of: World, config: str = "", **given: Any) -> None:
    """It is there: Assert says so, and one more Apply touches nothing."""
    assert differences(of, config, **given) == []
    check_unchanged(of, config, **given)


def check_unchanged(of: World, config: str = "", **given: Any) -> None:
    before, calls = of.node.gpus(), changing_calls(of.node)
    result, details = of.daemon.applied(config, max_impact="none", **given)
    assert (result, details["changed"]) == ("done", False)
    assert (of.node.gpus(), changing_calls(of.node)) == (before, calls)


def check_refused(of: World, error: str, config: str = "", **given: Any) -> str:
    """Apply refuses it and nothing has changed; the message."""
    before, calls = of.node.gpus(), changing_calls(of.node)
    name, message = of.daemon.refused(
        "Apply", "sa{sv}", config, options({"max_impact": "reset", **given})
    )
    assert name == f"{names.ERROR}.{error}", message
    assert (of.node.gpus(), changing_calls(of.node)) == (before, calls)
    return message


def untyped(value: Any) -> Any:
    """A value of busctl's JSON without the types of variants, at any depth."""
    if isinstance(value, dict):
        if value.keys() == {"type", "data"}:
            return untyped(value["data"])
        return {key: untyped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [untyped(item) for item in value]
    return value


def entry(instances: Mapping[str, int] | None, devices: str = "all") -> str:
    """A configuration of one entry; None switches MIG off."""
    return document({"only": [(devices, instances)]})


def document(configs: Mapping[str, Sequence[tuple[str, Mapping[str, int] | None]]]) -> str:
    """A configuration file: by name, entries of devices and instances; None switches MIG off."""
    lines = ["version: v1", "mig-configs:"]
    for name, entries in configs.items():
        lines.append(f"  {name}:")
        for devices, instances in entries:
            lines.append(f"  - devices: {devices}")
            lines.append(f"    mig-enabled: {str(instances is not None).lower()}")
            shown = ", ".join(f'"{n}": {count}' for n, count in (instances or {}).items())
            lines.append(f"    mig-devices: {{{shown}}}")
    return "\n".join(lines) + "\n"


# -- the true state --------------------------------------------------------------------------


def layout(gpu: Mapping[str, Any]) -> Layout:
    """One GPU of Node.gpus()."""
    return gpu["mode"]["current"], tuple(
        sorted((_instance(i) for i in gpu["instances"]), key=lambda i: i[1])
    )


def _instance(instance: Mapping[str, Any]) -> Instance:
    return (
        instance["profile_id"],
        instance["placement"]["start"],
        instance["placement"]["size"],
        tuple(sorted(c["profile_id"] for c in instance["compute_instances"])),
    )


def layouts(node: Node) -> dict[str, Layout]:
    """By GPU UUID."""
    return {g["uuid"]: layout(g) for g in node.gpus()}


def mig_uuids(gpu: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    """By GPU instance id and start."""
    return {
        (i["gi"], i["placement"]["start"]): c["uuid"]
        for i in gpu["instances"]
        for c in i["compute_instances"]
    }


def changing_calls(node: Node) -> Counter[str]:
    """How often each function that changes something was called."""
    calls = node.calls()
    return Counter({name: calls[name] for name in MUTATING if calls.get(name)})


def predicted(
    before: Iterable[Mapping[str, Any]], steps: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, Layout], Counter[str]]:
    """What a plan says will be there, and the calls that it takes: worked out from its steps."""
    gpus = {g["uuid"]: g for g in before}
    modes = {u: g["mode"]["current"] for u, g in gpus.items()}
    instances = {u: {i["gi"]: _instance(i) for i in g["instances"]} for u, g in gpus.items()}
    calls: Counter[str] = Counter()
    for number, step in enumerate(steps):
        uuid = step["gpu"]
        there = instances[uuid]
        assert step["index"] == gpus[uuid]["index"]
        match step["action"]:
            case "set-mode":
                modes[uuid] = step["mode"]
                calls["nvmlDeviceSetMigMode"] += 1
            case "destroy-instance":
                gone = there.pop(step["gi"])
                assert gone[:3] == (step["profile-id"], *step["placement"])
                calls["nvmlGpuInstanceDestroy"] += 1
                calls["nvmlComputeInstanceDestroy"] += len(gone[3])
            case "create-instance":
                inside = step.get("compute")
                if inside is None:
                    inside = [_default(gpus[uuid]["board"], step["profile-id"])]
                there[-1 - number] = (
                    step["profile-id"],
                    *step["placement"],
                    tuple(sorted(inside)),
                )
                calls["nvmlDeviceCreateGpuInstanceWithPlacement"] += 1
                calls["nvmlGpuInstanceCreateComputeInstance"] += len(inside)
            case "destroy-compute":
                profile, start, size, inside = there[step["gi"]]
                ci = next(
                    c
                    for i in gpus[uuid]["instances"]
                    for c in i["compute_instances"]
                    if (i["gi"], c["ci"]) == (step["gi"], step["ci"])
                )
                left = list(inside)
                left.remove(ci["profile_id"])
                there[step["gi"]] = (profile, start, size, tuple(left))
                calls["nvmlComputeInstanceDestroy"] += 1
            case "create-compute":
                profile, start, size, inside = there[step["gi"]]
                new = step.get("compute")
                if new is None:
                    new = [_default(gpus[uuid]["board"], profile)]
                there[step["gi"]] = (profile, start, size, tuple(sorted([*inside, *new])))
                calls["nvmlGpuInstanceCreateComputeInstance"] += len(new)
            case unknown:
                raise AssertionError(f"a step of no known kind: {unknown}")
    return {
        u: (modes[u], tuple(sorted(instances[u].values(), key=lambda i: i[1]))) for u in gpus
    }, calls


def _default(board: str, profile_id: int) -> int:
    return boards.compute_profiles(board, profile_id)[1]


def written(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a folder: inode, time of the last change, content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_ino, status.st_mtime_ns, data)
    status = folder.stat()
    return {**found, ".": (status.st_ino, status.st_mtime_ns, b"")}


# -- a program that listens ------------------------------------------------------------------

OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
PROPERTIES = "org.freedesktop.DBus.Properties"


class Listener:
    """A program on the bus that is told every signal of the daemon."""

    def __init__(self, of: Client) -> None:
        self.client = of

    async def call(
        self, member: str, signature: str = "", *body: Any, path: str = names.ROOT,
        interface: str = names.MANAGER,
    ) -> list[Any]:  # fmt: skip
        reply = await self.exchange(member, signature, *body, path=path, interface=interface)
        return [plain(value) for value in reply.body]

    async def exchange(
        self, member: str, signature: str = "", *body: Any, path: str = names.ROOT,
        interface: str = names.MANAGER,
    ) -> Message:  # fmt: skip
        """The reply as a message; its serial tells when it was sent, signals have theirs."""
        message = Message(
            destination=names.BUS_NAME,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=to_wire(signature, body),
        )
        reply = await self.client.connection.exchange(message, timeout_s=60)
        if reply.message_type is MessageType.ERROR:
            raise RemoteError(reply.error_name, str(reply.body[0]))
        return reply

    async def refused(self, *arguments: Any, **named: Any) -> tuple[str, str]:
        with pytest.raises(RemoteError) as error:
            await self.call(*arguments, **named)
        return error.value.name, error.value.message

    async def get(self, name: str, path: str = names.ROOT, interface: str = names.MANAGER) -> Any:
        return (await self.call("Get", "ss", interface, name, path=path, interface=PROPERTIES))[0]

    async def objects(self) -> "Objects":
        found: Objects = (await self.call("GetManagedObjects", interface=OBJECT_MANAGER))[0]
        return found

    async def apply(self, config: str, **given: Any) -> tuple[int, str]:
        number, path = await self.call("Apply", "sa{sv}", config, options(given))
        return number, path

    async def wait(self, number: int) -> tuple[str, dict[str, Any]]:
        result, details = await self.call("WaitJob", "u", number)
        return result, details

    async def until(self, condition: Callable[[], Any], limit_s: float = 30) -> None:
        """Wait for what only the node or a file can tell."""
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.002)

    def signals(self, member: str = "") -> list[Message]:
        return [m for m in self.client.signals if not member or m.member == member]

    def body(self, member: str) -> list[list[Any]]:
        return [[plain(v) for v in m.body] for m in self.signals(member)]


@asynccontextmanager
async def listening(of: World) -> AsyncIterator[Listener]:
    async with client(of.bus, f"type='signal',path_namespace='{names.ROOT}'") as connected:
        yield Listener(connected)


def replayed(start: "Objects", signals: Iterable[Message]) -> "Objects":
    """What a program that follows the signals believes to be there."""
    found: Objects = copy.deepcopy(start)
    for message in signals:
        body = [plain(v) for v in message.body]
        match message.member:
            case "InterfacesAdded":
                found.setdefault(body[0], {}).update(body[1])
            case "InterfacesRemoved":
                for name in body[1]:
                    del found[body[0]][name]
                if not found[body[0]]:
                    del found[body[0]]
            case "PropertiesChanged" if message.path != names.ROOT:
                assert not body[2]
                found[message.path][body[0]].update(body[1])
    return found


# -- the objects on the bus ------------------------------------------------------------------

Objects = dict[str, dict[str, dict[str, Any]]]


def true_objects(node: Node) -> Objects:
    """The objects that must be on the bus, with the properties that the state tells."""
    found: Objects = {}
    for gpu in node.gpus():
        root = names.gpu_path(gpu["uuid"])
        found[root] = {
            names.GPU: {
                "Uuid": gpu["uuid"],
                "Index": gpu["index"],
                "PciAddress": gpu["pci"][4:].lower(),
                "Name": gpu["name"],
                "MigMode": gpu["mode"]["current"],
                "MigModePending": gpu["mode"]["pending"],
            }
        }
        for gi in gpu["instances"]:
            path = f"{root}/gi/{gi['gi']}"
            found[path] = {
                names.GPU_INSTANCE: {
                    "Id": gi["gi"],
                    "Gpu": root,
                    "Profile": gi["profile"],
                    "ProfileId": gi["profile_id"],
                    "Placement": [gi["placement"]["start"], gi["placement"]["size"]],
                }
            }
            for ci in gi["compute_instances"]:
                found[f"{path}/ci/{ci['ci']}"] = {
                    names.COMPUTE_INSTANCE: {
                        "Id": ci["ci"],
                        "GpuInstance": path,
                        "ProfileId": ci["profile_id"],
                        "Placement": [ci["placement"]["start"], ci["placement"]["size"]],
                        "Uuid": ci["uuid"],
                    }
                }
    return found


def known(shown: Objects, truth: Objects) -> Objects:
    """`shown` without jobs, and without the properties that the truth does not tell."""
    return {
        path: {
            name: {
                p: v
                for p, v in values.items()
                if p in truth.get(path, {}).get(name, dict.fromkeys(values))
            }
            for name, values in interfaces.items()
        }
        for path, interfaces in shown.items()
        if names.JOB not in interfaces
    }
