"""What people and processes call themselves and ask for, on the way through the whole daemon: to
the bus, to migctl on a terminal and in a pipe, and to the log.
"""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dbus_next.signature import Variant

from migd import names
from migd.bus.connection import BUS
from tests.bus.manager import H100, World, world
from tests.unit.test_printable import STEERS

# As arguments of a process: whatever is neither NUL nor too long.
ARGUMENTS = [
    b"\x1b]0;owned\x07",
    b"\nmigd: all is well\r",
    b"\xff\xfe\xed\xa0\x80",
    "\u202e\x9b2J\u2028".encode(),
    *[b"\x1b" * 100_000] * 10,
]
NAME = "\x1b]0;owned\x07\n\u202e"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("hostile"), (H100, 1)) as found:
        found.put("all-1g.10gb")
        yield found


@contextmanager
def hostile(made: World) -> Iterator[list[int]]:
    """Processes that use the GPU and instances of it, by pid."""
    with ExitStack() as stack:
        pids = []
        for gi in (None, made.node.gpus()[0]["instances"][0]["gi"]):
            arguments = [os.fsdecode(a) for a in ARGUMENTS]
            command = ["sh", "-c", "kill -STOP $$", *arguments]
            held = made.node.hold(0, gi, command=command)
            pids.append(stack.enter_context(held).pid)
        yield pids


def texts(value: Any) -> Iterator[str]:
    """All in a reply, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


def check_harmless(value: Any, longest: int = 5000) -> None:
    for text in texts(value):
        assert not STEERS.search(text), text[:200]
        assert len(text) <= longest


def migctl(made: World, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "migd.cli.main", *arguments],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": made.bus.address, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=False,
    )
    check_harmless([done.stdout.decode(), done.stderr.decode()], 100_000)
    return done.stdout.decode()


def on_a_terminal(made: World, *arguments: str) -> str:
    """What migctl writes to one, without its own colours."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "migd.cli.main", "--color=never", *arguments],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": made.bus.address, "LC_ALL": "C.UTF-8"},
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        data = b""
        try:
            while piece := os.read(ours, 4096):
                data += piece
        except OSError:
            pass  # the other end is closed
    os.close(ours)
    return data.decode().replace("\r\n", "\n")


def test_processes_in_every_property_and_reply(made: World) -> None:
    with hostile(made) as pids:
        made.daemon.call("Export", "a{sv}", {})
        (objects,) = made.daemon.call("GetManagedObjects", interface=f"{BUS}.ObjectManager")
        (clients,) = made.daemon.call("ListClients", "a{sv}", {})
        plan = made.daemon.plan("all-disabled")
        for told in (objects, clients, plan):
            check_harmless(told)
            for pid in pids:
                assert str(pid) in str(told)
        (manager,) = made.daemon.call("GetAll", "s", names.MANAGER, interface=f"{BUS}.Properties")
        check_harmless(manager)
        (command,) = {client["command"] for client in clients}
        shown = r"\x1b]0;owned\x07 \nmigd: all is well\r \udcff"
        assert command.startswith(f"sh -c kill -STOP $$ {shown}")
        name, text = made.daemon.refused("Apply", "sa{sv}", "all-disabled", {})
        assert name == f"{names.ERROR}.InUse"
        check_harmless(text)
        check_harmless(made.daemon.log, 1 << 20)


@pytest.mark.parametrize("verb", [("status",), ("clients",), ("plan", "all-disabled")])
def test_processes_in_migctl(made: World, verb: tuple[str, ...]) -> None:
    with hostile(made) as pids:
        for told in (migctl(made, *verb), json.dumps(json.loads(migctl(made, *verb, "--json")))):
            assert all(str(pid) in told for pid in pids)
            assert r"\x1b]0;owned" in told.replace(r"\\x", r"\x")
        shown = on_a_terminal(made, *verb)
        assert str(pids[0]) in shown
        check_harmless(shown, 100_000)


def test_what_is_asked_for_is_not_told_back_as_it_is(made: World) -> None:
    """Nor as long as it is: an error is a sentence."""
    long = "\x1b\n" * (1 << 18)
    asked: list[tuple[str, str, tuple[Any, ...]]] = [
        ("Plan", "sa{sv}", (long, {})),
        ("Plan", "sa{sv}", ("all-disabled", {long: Variant("s", "")})),
        ("Plan", "sa{sv}", ("all-disabled", {"max-impact": Variant("s", long)})),
        ("Plan", "sa{sv}", ("all-disabled", {"gpus": Variant("as", [long])})),
        ("Plan", "sa{sv}", ("", {"text": Variant("s", long)})),
        ("Plan", "sa{sv}", ("", {"text": Variant("s", f'"{"k" * 1000000}": 1')})),
        ("Stage", "sa{sv}", (long, {})),
        ("GetConfig", "s", (long,)),
        ("GetGpu", "s", (long,)),
    ]
    for member, signature, arguments in asked:
        name, text = made.daemon.refused(member, signature, *arguments)
        assert name.startswith((names.ERROR, names.DBUS_ERROR)), (member, name)
        assert not name.endswith(".Failed"), (member, text)
        check_harmless(text, 10_000)


@pytest.mark.parametrize("name", [NAME, "x" * 201, "\x85"])
def test_names_that_cannot_be_shown_name_no_config(made: World, name: str) -> None:
    """YAML can write any character; whoever lists configurations would have to show it."""
    path = made.daemon.config_dir / names.CONFIG_FILE
    entry = "[{devices: all, mig-enabled: false}]"
    try:
        path.write_text(f"version: v1\nmig-configs: {{{json.dumps(name)}: {entry}}}\n")
        error, text = made.daemon.refused("Reload")
        assert error == f"{names.ERROR}.Config"
        assert "is no name for a config" in text
        check_harmless([text, made.daemon.property("ConfigErrors")])
        assert name not in made.daemon.property("Configs")
        migctl(made, "status")
    finally:
        path.unlink()
        made.daemon.call("Reload")


def test_texts_of_files_in_what_is_wrong_with_them(made: World, tmp_path: Path) -> None:
    odd = json.dumps(NAME)
    bad = {
        names.SETTINGS_FILE: f"config: {odd}\n{odd}: 1\n",
        names.CLIENTS_FILE: f"version: {odd}\nsystemd-services: [{odd}]\nprocesses: [{odd}]\n",
        names.CONFIG_FILE: f"version: {odd}\nmig-configs: {{a: [{{devices: {odd}}}]}}\n",
    }
    try:
        for name, text in bad.items():
            (made.daemon.config_dir / name).write_text(text)
        _, told = made.daemon.refused("Reload")
        check_harmless([told, made.daemon.property("ConfigErrors")])
        migctl(made, "status")
        for name, text in bad.items():
            (tmp_path / name).write_text(text)
            (judged,) = json.loads(migctl(made, "check", "--json", str(tmp_path / name)))["files"]
            assert not judged["good"]
        check_harmless(made.daemon.log, 1 << 20)
    finally:
        for name in bad:
            (made.daemon.config_dir / name).unlink()
        made.daemon.call("Reload")
