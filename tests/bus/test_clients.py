"""Processes in the way: named, and ended only if that is allowed; on a bus without systemd."""

import asyncio
import fcntl
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dbus_next.signature import Variant

from migd import names
from migd.bus.connection import connect
from tests.bus.manager import H100, World, changing_calls, layouts, world, written
from tests.support.bus import PrivateBus, plain
from tests.support.daemon import Daemon, options
from tests.support.node import Holder, Node, wait_for

ERROR = names.ERROR
THREE = 9
# Ends when told to, and not.
MEEK = ("sleep", "987654")
STUBBORN = ("sh", "-c", "trap '' TERM; exec sleep 987654")
LISTED = "processes: [{executable: sleep, command-line: 'sleep 9876*', grace: 1%s}]\n"
# What ListClients may tell, and how it is typed: dbus/org.migd1.xml.
ALWAYS = {"action": "s", "from": "s", "message": "s"}
PROCESS = {"pid": "u", "command": "s", "user": "s", "unit": "s", "start": "t", "uses": "aa{sv}"}
PERHAPS = {"user-unit": "s", "container": "s", "session": "s"}
USE = {"gpu": "s", "gi": "u", "ci": "u", "how": "s"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("two"), (H100, 2)) as made:
        yield made


@pytest.fixture
def two(shared: World) -> World:
    """Both GPUs balanced, and nobody listed."""
    lists(shared.daemon, "")
    shared.clean()
    shared.put("all-balanced")
    return shared


def lists(daemon: Daemon, text: str) -> None:
    """Make this what clients.yaml says, and have it read."""
    (daemon.config_dir / names.CLIENTS_FILE).write_text(f"version: v1\n{text}")
    daemon.call("Reload")


def large(made: World, index: int = 0) -> int:
    """The id of the 3g.40gb, which all-1g.10gb leaves no room for."""
    found = made.node.gpus()[index]["instances"]
    return next(int(i["gi"]) for i in found if i["profile_id"] == THREE)


@contextmanager
def holding(
    made: World, gi: int | None = None, index: int = 0, command: Sequence[str] = MEEK
) -> Iterator[Holder]:
    """A process that uses an instance, the 3g.40gb by default, once it is what it is to be."""
    gi = large(made, index) if gi is None else gi
    with made.node.hold(index, gi, command=command) as holder:
        shown = Path(f"/proc/{holder.pid}/cmdline")
        wait_for(lambda: shown.read_bytes() == b"sleep\x00987654\x00")
        yield holder


@contextmanager
def untouched(made: World) -> Iterator[None]:
    """No GPU is changed, nor anything tried."""
    before, calls = made.node.gpus(), changing_calls(made.node)
    yield
    assert changing_calls(made.node) == calls
    assert made.node.gpus() == before


def listed(daemon: Daemon) -> list[dict[str, Any]]:
    clients: list[dict[str, Any]]
    (clients,) = daemon.call("ListClients", "a{sv}", {})
    return clients


# -- what is told ----------------------------------------------------------------------------


def test_clients_are_typed_as_the_contract_says(two: World) -> None:
    async def ask() -> list[dict[str, Variant]]:
        connection = await connect(two.bus.address, timeout_s=10)
        try:
            reply: list[list[dict[str, Variant]]] = await connection.call(
                names.BUS_NAME, names.ROOT, names.MANAGER, "ListClients", "a{sv}", [{}]
            )
            return reply[0]
        finally:
            connection.close()

    gi = large(two)
    with holding(two) as holder, two.node.hold(1):
        first, second = sorted(asyncio.run(ask()), key=lambda c: int(c["pid"].value != holder.pid))
    for client in (first, second):
        kinds = {key: value.signature for key, value in client.items()}
        assert kinds.items() <= (ALWAYS | PROCESS | PERHAPS).items()
        assert kinds.keys() >= ALWAYS.keys() | PROCESS.keys()
        for use in client["uses"].value:
            told = {key: value.signature for key, value in use.items()}
            assert told.items() <= USE.items()
            assert told.keys() >= {"gpu", "how"}
    assert first["command"].value == "sleep 987654"
    (use,) = plain(first["uses"])
    assert use == {"gpu": two.uuid(0), "gi": gi, "ci": 0, "how": "listed"}
    (use,) = plain(second["uses"])
    assert use == {"gpu": two.uuid(1), "how": "listed"}


def test_what_would_become_of_a_client_follows_the_list(two: World) -> None:
    with holding(two):
        (client,) = listed(two.daemon)
        assert (client["action"], client["from"]) == ("refuse", "any")
        assert "clients.yaml" in client["message"]
        lists(two.daemon, LISTED % "")
        (client,) = listed(two.daemon)
        assert (client["action"], client["message"]) == ("end", "it is ended for good")
        lists(two.daemon, "unlisted: terminate\n")
        assert listed(two.daemon)[0]["action"] in ("end", "stop")
    wait_for(lambda: not listed(two.daemon))


def test_units_are_not_loaded_without_systemd(two: World) -> None:
    lists(two.daemon, "systemd-services: [nvidia-dcgm.service, {unit: dcgm.service, kill: true}]\n")
    assert listed(two.daemon) == []
    summary, _ = two.daemon.plan("all-1g.10gb")
    assert (summary["stops"], summary["will-not-return"], summary["blockers"]) == ([], [], [])
    two.put("all-1g.10gb")


def test_a_client_that_nobody_listed_is_named_and_left_alone(two: World) -> None:
    gi = large(two)
    with holding(two) as holder, untouched(two):
        files = written(two.daemon.state_dir)
        summary, _ = two.daemon.plan("all-1g.10gb")
        assert (summary["stops"], summary["will-not-return"]) == ([], [])
        (blocker,) = summary["blockers"]
        told = (blocker["kind"], blocker["pid"], blocker["gpu"], blocker["gi"])
        assert told == ("process", holder.pid, two.uuid(0), gi)
        name, message = two.daemon.refused("Apply", "sa{sv}", "all-1g.10gb", {})
        assert (name, message) == (f"{ERROR}.InUse", blocker["message"])
        for part in (str(holder.pid), "sleep 987654", "GPU 0", "3g.40gb", "clients.yaml"):
            assert part in message
        assert written(two.daemon.state_dir) == files
        assert holder.alive()


@pytest.mark.parametrize(
    "entry",
    [
        "{executable: nap, command-line: 'sleep 9876*'}",
        "{executable: sleep, stop-for: mode}",
        "{executable: sleep, stop-for: reset}",
    ],
)
def test_a_list_that_does_not_reach_it(two: World, entry: str) -> None:
    lists(two.daemon, f"processes: [{entry}]\n")
    with holding(two) as holder, untouched(two):
        name, _ = two.daemon.refused("Apply", "sa{sv}", "all-1g.10gb", {})
        assert name == f"{ERROR}.InUse"
        assert holder.alive()


@pytest.mark.parametrize("method", ["Plan", "Apply"])
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"terminate": Variant("s", "yes")}, ("'terminate'", "type b")),
        ({"terminated": Variant("b", True)}, ("'terminated'", "terminate")),
    ],
)
def test_options_that_are_not_known(
    two: World, method: str, given: dict[str, Variant], parts: tuple[str, ...]
) -> None:
    with holding(two) as holder, untouched(two):
        name, message = two.daemon.refused(method, "sa{sv}", "all-1g.10gb", given)
        assert name == f"{names.DBUS_ERROR}.InvalidArgs"
        for part in parts:
            assert part in message
        assert holder.alive()


# -- what is done ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "given"),
    [(LISTED % "", {}), ("unlisted: terminate\n", {}), ("", {"terminate": True})],
)
def test_a_client_is_ended_as_the_plan_said(two: World, text: str, given: dict[str, Any]) -> None:
    lists(two.daemon, text)
    gi = large(two)
    with holding(two) as holder, two.node.hold(1, large(two, 1)) as other:
        before = two.node.gpus()[1]
        summary, _ = two.daemon.plan("all-1g.10gb", gpus=["0"], **given)
        (leaves,) = summary["will-not-return"]
        assert (leaves["pid"], leaves["gpu"], leaves["gi"]) == (holder.pid, two.uuid(0), gi)
        assert (summary["stops"], summary["blockers"]) == ([], [])
        assert holder.alive()

        result, details = two.daemon.applied(
            "all-1g.10gb", gpus=["0"], expect=summary["digest"], **given
        )

        assert (result, details["message"]) == ("done", "GPUs: 1 done")
        (told,) = details["clients"]
        assert (told["pid"], told["result"]) == (holder.pid, "ended")
        assert f"pid {holder.pid} (sleep 987654)" in told["what"]
        assert not holder.alive()
        assert len(two.node.layout(0)) == 7
        # Nothing was asked of the other GPU.
        assert other.alive()
        assert two.node.gpus()[1] == before
    jobs: list[dict[str, Any]]
    (jobs,) = two.daemon.call("ListJobs", "a{sv}", {})
    assert two.daemon.wait(jobs[0]["id"]) == (result, details)


def test_an_instance_that_stays_keeps_its_process(two: World) -> None:
    small = next(i["gi"] for i in two.node.gpus()[0]["instances"] if i["profile_id"] != THREE)
    lists(two.daemon, "unlisted: terminate\n" + LISTED % "")
    with holding(two, small) as stays, holding(two) as leaves:
        summary, _ = two.daemon.plan("", text=_without_three())
        assert [c["pid"] for c in summary["will-not-return"]] == [leaves.pid]
        two.put(text=_without_three(), terminate=True)
        assert (stays.alive(), leaves.alive()) == (True, False)


def _without_three() -> str:
    """Balanced, but for the largest instance."""
    return (
        "version: v1\nmig-configs:\n  small:\n  - devices: all\n    mig-enabled: true\n"
        "    mig-devices: {1g.10gb: 2, 2g.20gb: 1}\n"
    )


def test_a_plan_without_steps_ends_nobody(two: World) -> None:
    lists(two.daemon, "unlisted: terminate\n" + LISTED % "")
    with holding(two) as holder, untouched(two):
        summary, _ = two.daemon.plan("all-balanced", terminate=True)
        assert summary["will-not-return"] == []
        result, details = two.daemon.applied("all-balanced", terminate=True)
        assert (result, details["changed"], details["clients"]) == ("done", False, [])
        assert holder.alive()


def test_a_client_that_comes_or_goes_makes_another_plan(two: World) -> None:
    lists(two.daemon, LISTED % "")
    without = two.daemon.plan("all-1g.10gb")[0]["digest"]
    with holding(two) as holder:
        summary, _ = two.daemon.plan("all-1g.10gb")
        assert summary["digest"] != without
        assert two.daemon.plan("all-1g.10gb")[0]["digest"] == summary["digest"]
        with untouched(two):
            name, _ = two.daemon.refused("Apply", "sa{sv}", "all-1g.10gb", expects(without))
            assert name == f"{ERROR}.Changed"
            assert holder.alive()
    # It has ended between the plan and Apply.
    with untouched(two):
        name, _ = two.daemon.refused("Apply", "sa{sv}", "all-1g.10gb", expects(summary["digest"]))
        assert name == f"{ERROR}.Changed"
    result, details = two.daemon.applied("all-1g.10gb", expect=without)
    assert (result, details["clients"]) == ("done", [])


def expects(digest: str) -> dict[str, Variant]:
    return options({"expect": digest})


def test_a_client_that_does_not_end_is_not_killed(two: World) -> None:
    lists(two.daemon, LISTED % "")
    with holding(two, command=STUBBORN) as holder, untouched(two):
        result, details = two.daemon.applied("all-1g.10gb")
        assert result == "failed"
        assert [(g["result"], g["error"]) for g in details["gpus"]] == [
            ("rolled-back", f"{ERROR}.ClientStuck")
        ] * 2
        for part in (f"pid {holder.pid}", "within 1 s", "kill: true"):
            assert part in details["message"]
        assert not details["wanted"]
        assert holder.alive()


def test_a_client_is_killed_where_its_entry_says_so(two: World) -> None:
    lists(two.daemon, LISTED % ", kill: true")
    with holding(two, command=STUBBORN) as holder:
        begun = time.monotonic()
        assert two.daemon.applied("all-1g.10gb")[0] == "done"
        assert time.monotonic() - begun >= 1
        assert not holder.alive()


def test_a_job_that_waits_for_a_client_is_busy_and_can_be_canceled(two: World) -> None:
    lists(two.daemon, LISTED.replace("grace: 1", "grace: 600") % "")
    with holding(two, command=STUBBORN) as holder, untouched(two):
        number, path = two.daemon.apply("all-1g.10gb")

        def waits() -> bool:
            waiting = two.daemon.property("Waiting", path=path, interface=names.JOB)
            return f"pid {holder.pid} " in waiting and waiting.endswith(" to end")

        wait_for(waits)
        assert two.daemon.property("Phase", path=path, interface=names.JOB) == "stop"
        name, message = two.daemon.refused("Apply", "sa{sv}", "all-disabled", {})
        assert name == f"{ERROR}.Busy"
        assert path in message
        assert listed(two.daemon)[0]["pid"] == holder.pid
        two.daemon.call("Cancel", path=path, interface=names.JOB)
        result, details = two.daemon.wait(number)
        assert result == "canceled"
        assert {g["result"] for g in details["gpus"]} == {"rolled-back"}
        assert holder.alive()
    two.put("all-1g.10gb")


def test_a_file_is_followed_without_being_told(two: World) -> None:
    with holding(two) as holder:
        (two.daemon.config_dir / names.CLIENTS_FILE).write_text("version: v1\n" + LISTED % "")
        wait_for(lambda: listed(two.daemon)[0]["action"] == "end")
        # What cannot be read leaves in force what was.
        (two.daemon.config_dir / names.CLIENTS_FILE).write_text("processes: [{}]\n")
        wait_for(lambda: "clients.yaml" in " ".join(two.daemon.property("ConfigErrors")))
        two.put("all-1g.10gb")
        assert not holder.alive()


def test_whom_to_stop_is_known_before_anything_is_changed(two: World) -> None:
    """A daemon that starts with a file that it cannot read has nothing that could stay in force."""
    two.put("all-balanced")
    more = two.daemon.config_dir / names.CLIENTS_DIR
    more.mkdir()
    (more / "site.yaml").write_text("processes: [{}]\n")
    two.daemon.restart()
    before, calls = two.node.gpus(), changing_calls(two.node)
    summary, _ = two.daemon.plan("all-1g.10gb")
    assert [b["kind"] for b in summary["blockers"]] == ["clients"]
    name, message = two.daemon.refused("Apply", "sa{sv}", "all-1g.10gb", {})
    assert name == f"{names.ERROR}.Config"
    assert f"{more}/site.yaml:1:13" in message
    assert (two.node.gpus(), changing_calls(two.node)) == (before, calls)
    # What changes nothing disturbs nobody.
    two.put("all-balanced")
    (more / "site.yaml").unlink()
    wait_for(lambda: two.daemon.property("ConfigErrors") == [])
    two.put("all-1g.10gb")


# -- open device nodes -----------------------------------------------------------------------

# What has a node is looked for on the whole machine: one test at a time, also of other test runs.
_ALONE = Path(tempfile.gettempdir(), "migd-test-stand-in-nodes.lock")

# A /dev of its own, with stand-ins that have the number of /dev/zero, as those of test hosts have
# not; then the command.
_DEV = """
mount -t tmpfs -o mode=755 dev "$0" && cp -a /dev/null /dev/zero /dev/full /dev/random \
  /dev/urandom /dev/fd "$0" && mkdir "$0/nvidia-caps" && mknod "$0/nvidiactl" c 1 5 &&
mknod "$0/nvidia0" c 1 5 && for n in 3 12 13 21; do
  mknod "$0/nvidia-caps/nvidia-cap$n" c 1 5 || exit 1; done &&
mount --move "$0" /dev && exec "$@"
"""
_UNSHARE = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _DEV)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An A100, on which a switch of the mode is a reset; and a daemon with a /dev of its own."""
    folder = tmp_path_factory.mktemp("nodes")
    place = folder / "dev"
    place.mkdir()
    prefix = (*_UNSHARE, str(place))
    if os.geteuid() != 0 or subprocess.run([*prefix, "true"], check=False).returncode != 0:
        pytest.skip("a /dev of its own needs root, who may mount")
    node = Node.new(folder / "node", ("a100-40gb", 1))
    with PrivateBus() as bus, Daemon(node, bus.address, folder, prefix=prefix) as daemon:
        yield World(node, bus, daemon)


Opening = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def opening(nodes: World) -> Iterator[Opening]:
    """Start a process that has a node open, in the daemon's /dev, and only that."""
    started: list[subprocess.Popen[bytes]] = []

    def start(node: str) -> "subprocess.Popen[bytes]":
        enter = ("nsenter", f"--mount=/proc/{nodes.daemon.pid}/ns/mnt")
        script = f"exec sleep 987654 3</dev/{node}"
        process = subprocess.Popen([*enter, "sh", "-c", script])
        started.append(process)
        wait_for(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"sleep"))
        return process

    with _ALONE.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lists(nodes.daemon, "")
        nodes.clean()
        yield start
        for process in started:
            process.kill()
            process.wait()


def test_who_has_only_opened_a_gpu_is_in_the_way_of_a_reset(nodes: World, opening: Opening) -> None:
    process = opening("nvidia0")
    (client,) = listed(nodes.daemon)
    assert (client["pid"], client["from"], client["action"]) == (process.pid, "reset", "refuse")
    assert client["uses"] == [{"gpu": nodes.uuid(0), "how": "open"}]
    with untouched(nodes):
        summary, _ = nodes.daemon.plan("all-balanced", max_impact="reset")
        assert [b["pid"] for b in summary["blockers"]] == [process.pid]
        name, message = nodes.daemon.refused(
            "Apply", "sa{sv}", "all-balanced", options({"max_impact": "reset"})
        )
        assert name == f"{ERROR}.InUse"
        assert f"is held open by pid {process.pid} (sleep 987654)" in message
        assert process.poll() is None
    result, details = nodes.daemon.applied("all-balanced", max_impact="reset", terminate=True)
    assert (result, [c["pid"] for c in details["clients"]]) == ("done", [process.pid])
    assert process.wait(10) == -signal.SIGTERM
    # It is no hindrance to instances.
    again = opening("nvidia0")
    nodes.put("all-1g.5gb", terminate=True)
    assert again.poll() is None


def test_who_is_listed_is_not_ended_for_what_is_created_beside_others(
    nodes: World, opening: Opening
) -> None:
    nodes.put("all-enabled", max_impact="reset")
    lists(nodes.daemon, LISTED % "")
    gpu = names.gpu_path(nodes.uuid(0))

    def create() -> list[str]:
        call: tuple[Any, ...] = ("CreateInstance", "sa{sv}", "1g.5gb", {})
        number, _ = nodes.daemon.call(*call, path=gpu, interface=names.GPU)
        result, details = nodes.daemon.wait(number)
        assert result == "done"
        return [client["result"] for client in details["clients"]]

    first = opening("nvidia0")
    assert create() == ["ended"]
    assert first.wait(10) != 0
    second = opening("nvidia0")
    assert create() == []
    assert second.poll() is None
    assert [profile for profile, _, _ in nodes.node.layout(0)] == [19, 19]


def test_the_node_of_an_instance_tells_which(nodes: World, opening: Opening) -> None:
    nodes.put("all-balanced", max_impact="reset")
    held = {i["gi"]: i["profile_id"] for i in nodes.node.gpus()[0]["instances"]}
    gi = next(g for g in held if g in (1, 2))  # of the nodes that there are: 3 + 9 * gi
    process = opening(f"nvidia-caps/nvidia-cap{3 + 9 * gi}")
    (client,) = listed(nodes.daemon)
    assert client["uses"] == [{"gpu": nodes.uuid(0), "gi": gi, "how": "capability"}]
    with untouched(nodes):
        name, message = nodes.daemon.refused(
            "Apply", "sa{sv}", "all-disabled", options({"max_impact": "reset"})
        )
        assert name == f"{ERROR}.InUse"
        assert f"GPU instance {gi} (" in message
    nodes.put("all-disabled", max_impact="reset", terminate=True)
    assert process.wait(10) == -signal.SIGTERM
    assert layouts(nodes.node)[nodes.uuid(0)][0] == "disabled"


def test_a_node_of_no_gpu_is_no_hindrance(nodes: World, opening: Opening) -> None:
    process = opening("nvidiactl")
    assert listed(nodes.daemon) == []
    nodes.put("all-balanced", max_impact="reset", terminate=True)
    assert process.poll() is None
