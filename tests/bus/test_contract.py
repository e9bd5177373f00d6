"""The contract against code, policy and a bus that enforces it; callers that are not root."""

import inspect
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from migd import errors, names
from migd.bus import contract
from migd.bus.options import _TYPES
from migd.core import permissions
from tests.bus.manager import H100, World, changing_calls, layouts, world
from tests.support.bus import POLICY, SystemBus
from tests.support.daemon import Daemon
from tests.support.node import Node, wait_for

ROOT = Path(__file__).parents[2]
XML = ROOT / "dbus" / "org.migd1.xml"
STANDARD = {
    f"org.freedesktop.DBus.{name}"
    for name in ("Introspectable", "Peer", "Properties", "ObjectManager")
}
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to call as another user")


def interfaces() -> dict[str, ET.Element]:
    return {str(i.get("name")): i for i in ET.parse(XML).getroot().iter("interface")}


# -- files against each other ----------------------------------------------------------------


def test_every_method_has_its_needs_and_no_more() -> None:
    methods = {
        (name, str(method.get("name")))
        for name, interface in interfaces().items()
        for method in interface.iter("method")
    }
    assert set(permissions.TABLE) == methods


def test_what_changes_something_is_not_free() -> None:
    free = {member for (_, member), needs in permissions.TABLE.items() if not needs}
    readers = {
        "Plan",
        "WaitJob",
        "Assert",
        "Export",
        "Generate",
        "Checkpoint",
        "GetConfig",
        "GetGpu",
    }
    assert free <= {*readers, "ListJobs", "ListClients"}


def test_the_policy_names_the_interfaces_of_the_contract() -> None:
    policy = ET.parse(POLICY).getroot()
    (default,) = (p for p in policy.iter("policy") if p.get("context") == "default")
    rules = [dict(r.attrib) for r in default.iter("allow")]
    assert all(r["send_destination"] == names.BUS_NAME for r in rules)
    assert {r["send_interface"] for r in rules} == {*interfaces(), *STANDARD}
    assert [dict(r.attrib) for r in default.iter("deny")] == [
        {"send_destination": names.BUS_NAME, "send_type": "signal"}
    ]
    # All that is heard of others: of root, and of it of systemd only (host.bus).
    roots = [p for p in policy.iter("policy") if p.get("user") == "root"]
    signals = [r.get("send_interface") for p in roots for r in p.iter("allow") if not r.get("own")]
    assert signals == ["org.freedesktop.systemd1.Manager"]
    assert not [r for r in default.iter("allow") if r.get("own")]
    (owner,) = (r for p in policy.iter("policy") for r in p.iter("allow") if r.get("own"))
    assert owner.get("own") == names.BUS_NAME


def test_names_of_the_code_are_those_of_the_contract() -> None:
    assert set(interfaces()) == {
        names.MANAGER,
        names.GPU,
        names.GPU_INSTANCE,
        names.COMPUTE_INSTANCE,
        names.JOB,
    }


def test_options_are_documented() -> None:
    text = XML.read_text()
    for name, signature in _TYPES.items():
        assert re.search(rf"\b{name} \({signature}\)[:,]", text), name


def test_every_error_has_a_name_of_its_own() -> None:
    classes = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.MigdError)
    ]
    of = {c.dbus_name: c.__name__ for c in classes}
    assert len(of) == len(classes)
    for name in of:
        assert name.startswith((f"{names.ERROR}.", f"{names.DBUS_ERROR}."))
    # Each is in the tree that the module shows its readers.
    assert errors.__doc__
    assert all(c.__name__ in errors.__doc__ for c in classes)


def test_everything_has_a_documentation() -> None:
    lines = XML.read_text().splitlines()
    for number, line in enumerate(lines):
        stripped = line.strip()
        if stripped.startswith(("<property ", "<method ")):
            name = stripped.split('name="')[1].split('"')[0]
            before = "\n".join(lines[max(0, number - 20) : number])
            assert f" {name}: " in before, f"{name} is not documented"


# -- on the bus ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("contract"), (H100, 1)) as made:
        made.put("all-balanced")
        yield made


def objects(made: World) -> dict[str, str]:
    """An object of each interface."""
    gpu = made.node.gpus()[0]
    gi = gpu["instances"][0]["gi"]
    return {
        names.MANAGER: names.ROOT,
        names.GPU: names.gpu_path(gpu["uuid"]),
        names.GPU_INSTANCE: names.gpu_instance_path(gpu["uuid"], gi),
        names.COMPUTE_INSTANCE: names.compute_instance_path(gpu["uuid"], gi, 0),
    }


def test_introspection_has_names_and_documentation(one: World) -> None:
    for interface, path in objects(one).items():
        (xml,) = one.daemon.call(
            "Introspect", path=path, interface="org.freedesktop.DBus.Introspectable"
        )
        found = {i.get("name"): i for i in ET.fromstring(xml).iter("interface")}
        assert interface in found
        told, written = found[interface], interfaces()[interface]
        for kind in ("method", "signal", "property"):
            for there, here in zip(told.iter(kind), written.iter(kind), strict=True):
                assert ET.canonicalize(ET.tostring(there), strip_text=True) == ET.canonicalize(
                    ET.tostring(here), strip_text=True
                )
        for argument in told.iter("arg"):
            assert argument.get("name")
        # The words of the contract come along, for whoever reads the XML.
        first = next(iter(written.iter("property"))).get("name")
        assert f"{first}: " in xml


def test_busctl_shows_every_member(one: World) -> None:
    for interface, path in objects(one).items():
        done = one.run_busctl("introspect", "--no-legend", names.BUS_NAME, path, interface)
        assert done.returncode == 0, done.stderr
        shown = {line.split()[0].lstrip("."): line.split()[1] for line in done.stdout.splitlines()}
        expected = {
            str(member.get("name")): kind
            for kind in ("method", "signal", "property")
            for member in interfaces()[interface].iter(kind)
        }
        assert {n: k for n, k in shown.items() if n in expected} == expected


def test_busctl_shows_the_tree(one: World) -> None:
    done = one.run_busctl("tree", "--list", names.BUS_NAME)
    assert done.returncode == 0
    assert set(objects(one).values()) <= set(done.stdout.split())


def test_the_contract_holds_the_handlers() -> None:
    loaded = contract.load(XML.read_text())
    with pytest.raises(Exception, match="Plan"):
        loaded.check({})


# -- a bus with the policy of a host -----------------------------------------------------------


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("system")
    node = Node.new(folder / "node", (H100, 1))
    with SystemBus() as bus, Daemon(node, bus.address, folder) as daemon:
        yield World(node, bus, daemon)


def as_nobody(made: World, *command: str) -> subprocess.CompletedProcess[str]:
    nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run(
        [*nobody, *command],
        env={"PATH": os.environ["PATH"], "DBUS_SYSTEM_BUS_ADDRESS": made.bus.address},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def send(made: World, member: str, *arguments: str, path: str = names.ROOT) -> tuple[bool, str]:
    """dbus-send as another user: whether it was answered, and what was printed."""
    done = as_nobody(
        made,
        "dbus-send",
        f"--bus={made.bus.address}",
        "--print-reply",
        f"--dest={names.BUS_NAME}",
        path,
        member,
        *arguments,
    )
    return done.returncode == 0, done.stdout + done.stderr


def ask(made: World, member: str, *arguments: str) -> tuple[bool, str]:
    """busctl as another user, for arguments that dbus-send has no words for."""
    done = as_nobody(
        made, "busctl", "call", names.BUS_NAME, names.ROOT, names.MANAGER, member, *arguments
    )
    return done.returncode == 0, done.stdout + done.stderr


@needs_root
def test_another_user_reads(system: World) -> None:
    gpu = names.gpu_path(system.uuid(0))
    properties = "org.freedesktop.DBus.Properties"
    sent: tuple[tuple[str, tuple[str, ...], str], ...] = (
        (f"{properties}.Get", (f"string:{names.MANAGER}", "string:Configs"), names.ROOT),
        (f"{properties}.GetAll", (f"string:{names.GPU}",), gpu),
        ("org.freedesktop.DBus.ObjectManager.GetManagedObjects", (), names.ROOT),
        ("org.freedesktop.DBus.Introspectable.Introspect", (), gpu),
        ("org.freedesktop.DBus.Peer.Ping", (), names.ROOT),
        (f"{names.MANAGER}.GetConfig", ("string:all-1g.10gb",), names.ROOT),
        (f"{names.MANAGER}.GetGpu", ("string:0",), names.ROOT),
    )
    for member, arguments, path in sent:
        answered, text = send(system, member, *arguments, path=path)
        assert answered, f"{member}: {text}"
    for asked in (
        ("ListJobs", "a{sv}", "0"),
        ("Plan", "sa{sv}", "all-1g.10gb", "0"),
        ("Assert", "sa{sv}", "all-disabled", "0"),
        ("Export", "a{sv}", "0"),
        ("Generate", "a{sv}", "0"),
        ("Checkpoint", "a{sv}", "0"),
    ):
        answered, text = ask(system, *asked)
        assert answered, f"{asked}: {text}"


@needs_root
def test_another_user_changes_nothing(system: World) -> None:
    node = system.node
    before, calls = layouts(node), changing_calls(node)
    denied = f"{names.DBUS_ERROR}.AccessDenied"
    for asked, why in (
        # busctl has words of its own for the standard errors, and keeps ours to itself.
        (("all-1g.10gb", "0"), "Access denied"),
        # What would be refused to anybody needs no permission to be told.
        (("nope", "0"), "nope"),
        (("", "1", "colour", "s", "red"), "colour"),
    ):
        for member in ("Apply", "Stage"):
            answered, text = ask(system, member, "sa{sv}", *asked)
            assert not answered
            assert why in text
    (kept,) = system.daemon.call("Checkpoint", "a{sv}", {})
    for checkpoint, why in ((kept, "Access denied"), ("{}", "Version")):
        answered, text = ask(system, "Restore", "sa{sv}", checkpoint, "0")
        assert not answered
        assert why in text
    answered, text = send(system, f"{names.MANAGER}.Reload")
    assert not answered
    assert denied in text
    # There is no polkit on this bus.
    assert "polkit cannot be asked" in text
    assert "ask as root" in text
    assert (layouts(node), changing_calls(node)) == (before, calls)
    assert system.daemon.call("ListJobs", "a{sv}", {}) == [[]]

    node.latency("nvmlDeviceCreateGpuInstanceWithPlacement", 100)
    number, path = system.daemon.apply("all-1g.10gb")
    answered, text = send(system, f"{names.JOB}.Cancel", path=path)
    assert not answered
    assert denied in text
    answered, text = send(system, f"{names.MANAGER}.WaitJob", f"uint32:{number}")
    assert answered
    assert '"done"' in text
    node.latency(profile="none")
    system.put("all-disabled")


@needs_root
def test_another_user_does_not_own_the_name(system: World) -> None:
    def refused() -> None:
        done = as_nobody(
            system,
            "dbus-send",
            f"--bus={system.bus.address}",
            "--print-reply",
            "--dest=org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus.RequestName",
            f"string:{names.BUS_NAME}",
            "uint32:0",
        )
        assert done.returncode != 0
        assert "AccessDenied" in done.stderr

    refused()
    system.daemon.stop()
    try:
        refused()
    finally:
        system.daemon.start()


@needs_root
def test_nobody_sends_it_signals_or_other_interfaces(system: World) -> None:
    answered, text = send(system, "org.example1.Anything.Do")
    assert not answered
    assert "AccessDenied" in text

    # The bus tells a monitor what it delivers: the signal must not be among it.
    with subprocess.Popen(
        ["dbus-monitor", "--address", system.bus.address],
        stdout=subprocess.PIPE,
        text=True,
    ) as monitor:
        assert monitor.stdout is not None
        try:
            # It is a monitor once it was told that it lost its name.
            for line in monitor.stdout:
                if "NameLost" in line:
                    break
            for kind, member in (("signal", "Forged"), ("method_call", "Ping")):
                as_nobody(
                    system,
                    "dbus-send",
                    f"--bus={system.bus.address}",
                    f"--type={kind}",
                    f"--dest={names.BUS_NAME}",
                    "/org/migd1",
                    f"org.freedesktop.DBus.Peer.{member}",
                )
            seen = []
            for line in monitor.stdout:
                seen.append(line)
                if "member=Ping" in line:
                    break
        finally:
            monitor.terminate()
    forged = next(n for n, line in enumerate(seen) if "member=Forged" in line)
    assert f"error_name={names.DBUS_ERROR}.AccessDenied" in seen[forged + 1]
    wait_for(lambda: system.daemon.running)
