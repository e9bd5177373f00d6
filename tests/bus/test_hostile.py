"""Users of the host against the daemon, on a bus with the policy and limits of a host.

What one of them does delays others by few answers: counted, by the serials that the daemon gives
its answers, in the order in which it answered.
"""

import os
import pwd
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from dbus_next.constants import MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from migd import names
from migd.bus import quota
from migd.bus.connection import BUS, BUS_PATH
from migd.bus.incoming import ERROR, RETURN, Incoming
from tests.bus.manager import H100, World, changing_calls, layouts
from tests.support.bus import SystemBus
from tests.support.daemon import Daemon
from tests.support.hostile import OBJECT_MANAGER, PROPERTIES, VERSION, Raw, call, encoded
from tests.support.node import Node, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users")

LIMITS = f"{BUS}.Error.LimitsExceeded"
SYSTEMD = "org.freedesktop.systemd1"
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
# Member, signature, body and interface.
Asked = tuple[str, str, list[Any], str]
# How many answers to somebody else may come first, where one of each in turn is answered: some
# begin before the call arrives.
FEW = 12


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("hostile")
    node = Node.new(folder / "node", (H100, 4))
    with SystemBus() as bus, Daemon(node, bus.address, folder) as daemon:
        yield World(node, bus, daemon)


_HONEST, *_OTHERS = sorted({u.pw_uid for u in pwd.getpwall() if u.pw_uid})
_NEXT = cycle(_OTHERS)


@pytest.fixture
def user() -> int:
    """A user, where there are enough of them one who has not called before."""
    return next(_NEXT)


@pytest.fixture
def four(shared: World) -> Iterator[World]:
    """Four GPUs with instances, of which nothing is changed meanwhile; and little is logged."""
    if not changing_calls(shared.node):
        shared.put("all-balanced")
    before, logged = state(shared), shared.daemon.log
    yield shared
    assert shared.daemon.property("Version")
    assert state(shared) == before
    assert lines(shared.daemon.log.removeprefix(logged)) <= 1


def state(made: World) -> tuple[object, ...]:
    return layouts(made.node), changing_calls(made.node)


def lines(log: str) -> int:
    return len(log.splitlines())


def memory(made: World) -> int:
    """The most bytes that the daemon ever had."""
    status = Path(f"/proc/{made.daemon.pid}/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


@contextmanager
def frozen(made: World) -> Iterator[None]:
    """The daemon does nothing meanwhile, and what is sent to it waits."""
    os.kill(made.daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(made.daemon.pid, signal.SIGCONT)


@contextmanager
def callers(made: World, *uids: int) -> Iterator[list[Raw]]:
    """Connections of users whom the daemon knows already."""
    with ExitStack() as stack:
        raws = [stack.enter_context(Raw(made.bus.socket, uid)) for uid in uids]
        for raw in raws:
            raw.send(call(*VERSION, serial=2))
            assert raw.answer(2).kind == RETURN
            raw.answers.clear()
        yield raws


def answers(raws: list[Raw]) -> list[Incoming]:
    """All that have come by now."""
    for raw in raws:
        raw.flush()
    return [a for raw in raws for a in raw.of_daemon]


def decoded(data: bytes) -> Message:
    message = Incoming(data).read()
    assert message
    return message


def error(answer: Incoming) -> str:
    message = answer.read()
    assert message
    return str(message.error_name or "")


FLOODS: dict[str, Callable[[int], bytes]] = {
    "properties": lambda n: call(*VERSION, serial=n),
    "objects": lambda n: call("GetManagedObjects", "", [], OBJECT_MANAGER, serial=n),
    "pings": lambda n: call("Ping", "", [], f"{BUS}.Peer", serial=n),
    "plans": lambda n: call("Plan", "sa{sv}", ["all-balanced", {}], serial=n),
    "texts": lambda n: call(
        "Assert", "sa{sv}", ["", {"text": Variant("s", "a: [" + "b, " * 999)}], serial=n
    ),
    "clients": lambda n: call("ListClients", "a{sv}", [{}], serial=n),
    "exports": lambda n: call("Export", "a{sv}", [{}], serial=n),
    "rubbish": lambda n: call("Get", "ss", ["a.b", "C"], PROPERTIES, serial=n),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_delays_others_by_few_answers(four: World, user: int, kind: str) -> None:
    with callers(four, user, user, user, _HONEST, 0) as (*flooding, one, root):
        with frozen(four):
            for raw in flooding:
                raw.send(b"".join(FLOODS[kind](n) for n in range(3, 103)))
                raw.flush()
            for raw in (one, root):
                raw.send(call(*VERSION, serial=3))
                raw.flush()
        answers = [raw.answer(3) for raw in (one, root)]
        # In the end it is answered, too.
        flooding[0].answer(3)
        for raw in flooding:
            raw.flush()
        flood = [a for raw in flooding for a in raw.of_daemon if error(a) != LIMITS]
        for answer in answers:
            assert sum(a.serial < answer.serial for a in flood) <= FEW


def test_what_is_too_much_is_refused_and_then_ignored(four: World, user: int) -> None:
    with callers(four, user, user, user, user) as raws:
        with frozen(four):
            for raw in raws:
                raw.send(b"".join(call(*VERSION, serial=n) for n in range(3, 128)))
                raw.flush()

        wait_for(lambda: sum(a.kind == RETURN for a in answers(raws)) >= quota.MAX_CALLS)
        refused = [error(a) for a in answers(raws) if a.kind == ERROR]
        assert set(refused) == {LIMITS}
        assert len(answers(raws)) < 4 * 125
    assert f"too many calls of uid {user}" in four.daemon.log


def test_who_waits_is_bounded_and_leaves_nothing_behind(shared: World, user: int) -> None:
    shared.node.latency(CREATE, 4_000)
    number, _ = shared.daemon.apply("all-1g.10gb")
    for _ in range(2):
        with callers(shared, user, user, user) as raws:
            waits = [call("WaitJob", "u", [number], serial=n) for n in range(3, 103)]
            for raw in raws:
                raw.send(b"".join([*waits[:80], call(*VERSION, serial=1000)]))
            for raw in raws:
                assert raw.answer(1000).kind == RETURN  # the others are at work
                raw.answers.clear()
            raws[0].send(b"".join(waits[80:]))
            wait_for(partial(answers, raws))
            assert {error(a) for a in answers(raws)} == {LIMITS}
    # The places of those who have left are free again.
    with callers(shared, user) as (raw,):
        raw.send(call("WaitJob", "u", [number], serial=3))
        shared.node.latency(profile="none")
        assert raw.answer(3).kind == RETURN


def huge(kind: str) -> bytes:
    match kind:
        case "28 MB":
            return call("Plan", "sa{sv}", ["", {"text": Variant("ay", b"x" * (28 << 20))}])
        case "3 MB":
            return call("Plan", "sa{sv}", ["", {"text": Variant("s", "x" * (3 << 20))}])
        case "numbers":
            return call("Plan", "sa{sv}", ["", {"text": Variant("au", list(range(250_000)))}])
        case "options":
            many = {str(n): Variant("b", True) for n in range(20_000)}
            return call("Plan", "sa{sv}", ["", many])
        case "signal":
            message = Message.new_signal(
                "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "JobRemoved",
                "au", [list(range(250_000))],
            )  # fmt: skip
            message.destination = names.BUS_NAME
            message.serial = 2
            return encoded(message)
        case _:
            return call("Ping", "", [], f"{BUS}.Peer", path="/" + "a" * (5 << 20))


@pytest.mark.parametrize("kind", ["28 MB", "3 MB", "numbers", "options", "signal", "path"])
def test_huge_messages_are_not_read(four: World, user: int, kind: str) -> None:
    before = memory(four)
    with callers(four, user, 0) as (raw, root):
        raw.send(huge(kind))
        root.send(call(*VERSION, serial=3))
        assert root.answer(3).kind == RETURN
        if kind not in ("signal", "path"):
            assert error(raw.answer(2)) == LIMITS
        raw.send(call(*VERSION, serial=4))
        assert raw.answer(4).kind == RETURN
    assert memory(four) - before < 24 << 20


def test_the_deepest_and_widest_arguments(four: World, user: int) -> None:
    deep: Any = Variant("s", "bottom")
    for _ in range(60):
        deep = Variant("v", deep)
    wide = Variant("(" + "(yv)" * 60 + ")", [[1, Variant("a{sv}", {})]] * 60)
    with Raw(four.bus.socket, user) as raw:
        for serial, value in enumerate((deep, wide, Variant("g", "s" * 255)), 2):
            raw.send(call("Plan", "sa{sv}", ["", {"text": value}], serial=serial))
            assert error(raw.answer(serial)) == f"{BUS}.Error.InvalidArgs"
        long = "\x1b[31m" + "x" * 900_000
        for serial, message in enumerate(
            (
                call("GetGpu", "s", [long], serial=10),
                call("GetConfig", "s", [long], serial=11),
                call("Plan", "sa{sv}", [long, {}], serial=12),
                call("Plan", "sa{sv}", ["", {long: Variant("b", False)}], serial=13),
                call("Get", "ss", [names.MANAGER, long], PROPERTIES, serial=14),
            ),
            10,
        ):
            raw.send(message)
            answer = raw.answer(serial)
            assert answer.kind == ERROR
            assert len(answer.data) < 20_000


def test_a_hostile_text_holds_up_nobody(four: World, user: int) -> None:
    text = "version: v1\nmig-configs:\n  a: [" + "&a 1," * 170_000 + "]\n"
    with callers(four, user, user) as (raw, honest):
        raw.send(call("Plan", "sa{sv}", ["", {"text": Variant("s", text)}], serial=3))
        raw.flush()
        for serial in range(3, 103):
            honest.send(call(*VERSION, serial=serial))
            honest.answer(serial)
        refused = raw.answer(3)
        assert error(refused) == f"{names.ERROR}.Config"
        # The node is looked at before the text, which takes a second: most come after that.
        assert sum(a.serial < refused.serial for a in honest.of_daemon) >= 90


def test_who_does_not_read_stops_nobody(four: World, user: int) -> None:
    """dbus-daemon takes nothing more from us once 127 MiB of our answers are not read."""
    objects: Asked = ("GetManagedObjects", "", [], OBJECT_MANAGER)
    with callers(four, user, user, 0) as (*deaf, root):
        for raw in deaf:
            raw.send(b"".join(call(*objects, serial=n) for n in range(3, 53)))
        for serial in range(3, 103):
            root.send(call(*objects, serial=serial))
            root.answer(serial)
        unread = [
            root.bus("GetConnectionStats", "s", raw.name, interface=f"{BUS}.Debug.Stats")
            for raw in deaf
        ]
        # All of it is 4 MB.
        assert sum(found["OutgoingBytes"] for (found,) in unread) < 2**19
        # Once they read, they are answered.
        for raw in deaf:
            assert raw.answer(52).kind == RETURN


def test_no_descriptor_is_taken(four: World, user: int) -> None:
    with callers(four, user) as (raw,), Path(os.devnull).open() as null:
        before = four.daemon.descriptors()
        for member, signature, body, interface in (
            VERSION,
            ("Plan", "h", [0], names.MANAGER),
            ("Nothing", "a{sv}", [{"text": Variant("h", 0)}], names.MANAGER),
            ("Ping", "", [], f"{BUS}.Peer"),
        ):
            message = decoded(call(member, signature, body, interface, serial=3))
            message.unix_fds = [null.fileno()] * 16
            for _ in range(8):
                raw.answers.clear()
                socket.send_fds(raw.socket, [encoded(message)], message.unix_fds)
                refused = raw.answer(3)
                assert (refused.kind, refused.sender) == (ERROR, BUS)
        assert four.daemon.descriptors() == before


def test_what_does_not_exist_leaves_no_trace(four: World, user: int) -> None:
    nowhere = f"{names.ROOT}/gpu/GPU_0/gi/1"
    asked: list[tuple[str, str, list[Any], str, str, str]] = [
        ("Get", "ss", [names.GPU, "Uuid"], PROPERTIES, nowhere, "UnknownObject"),
        ("Introspect", "", [], f"{BUS}.Introspectable", nowhere, "UnknownObject"),
        ("Cancel", "", [], names.JOB, names.job_path(4_000_000_000), "UnknownObject"),
        ("Get", "ss", [names.MANAGER, "Nothing"], PROPERTIES, names.ROOT, "UnknownProperty"),
        ("Set", "ssv", [names.MANAGER, "Version", Variant("s", "")], PROPERTIES, names.ROOT,
         "PropertyReadOnly"),
        ("Cancel", "", [], names.JOB, names.ROOT, "UnknownInterface"),
        ("Nothing", "", [], names.MANAGER, names.ROOT, "UnknownMethod"),
        ("Plan", "sa{sv}", ["", {"colour": Variant("s", "red")}], names.MANAGER, names.ROOT,
         "InvalidArgs"),
    ]  # fmt: skip
    with callers(four, user) as (raw,):
        for number in range(200):
            member, signature, body, interface, path, refusal = asked[number % len(asked)]
            raw.send(call(member, signature, body, interface, path=path, serial=3 + number))
            assert error(raw.answer(3 + number)) == f"{BUS}.Error.{refusal}"


def test_forged_signals_and_answers_change_nothing(shared: World, user: int) -> None:
    shared.node.latency(CREATE, 100)
    before = shared.daemon.log
    with callers(shared, user, 0) as (forger, root):
        (daemon,) = root.bus("GetNameOwner", "s", names.BUS_NAME)
        number, _ = shared.daemon.apply("all-balanced")
        root.send(call("WaitJob", "u", [number], serial=3))
        forged = [
            *(Message.new_signal(BUS_PATH, BUS, "NameOwnerChanged", "sss", [name, name, ""])
              for name in (root.name, SYSTEMD, names.BUS_NAME)),
            Message.new_signal(BUS_PATH, BUS, "NameLost", "s", [names.BUS_NAME]),
            Message.new_signal(
                "/org/freedesktop/systemd1", f"{SYSTEMD}.Manager", "JobRemoved", "uoss",
                [1, "/org/freedesktop/systemd1/job/1", "x.service", "done"],
            ),
            Message.new_signal(
                names.ROOT, PROPERTIES, "PropertiesChanged", "sa{sv}as", [names.MANAGER, {}, []]
            ),
            *(Message(message_type=MessageType.METHOD_RETURN, reply_serial=serial, signature="u",
                      body=[0]) for serial in range(1, 300)),
            *(Message(message_type=MessageType.ERROR, reply_serial=serial, signature="s",
                      body=["no"], error_name="a.b") for serial in range(1, 300)),
        ]  # fmt: skip
        for message in forged:
            for destination in (daemon, names.BUS_NAME):
                message.destination, message.serial = destination, 9
                forger.send(encoded(message))
        forger.flush()
        # Root has not left, so it is told.
        assert root.answer(3).kind == RETURN
    assert {mode for mode, _ in layouts(shared.node).values()} == {"enabled"}
    assert shared.daemon.wait(number)[0] == "done"
    shared.node.latency(profile="none")
    assert lines(shared.daemon.log.removeprefix(before)) == 2  # the job's begin and end
