"""Real processes with stand-in nodes: who has which, and who is nobody's client."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from migd.core.holders import Found, Node, NodeKind
from migd.host import held, processes, scan
from migd.host.cgroups import Owner
from migd.host.nodes import Nodes, Places
from migd.host.processes import ancestors, descendants, describe, stat
from tests.support.node import wait_for

# No process has it: pids end at 2**22. For a scan by somebody who runs none of these processes.
STRANGER = 2**22 + 1
NULL, ZERO = (1, 3), (1, 5)
ADDRESS = "0000:3b:00.0"

HOLD = """
import ctypes, mmap, os, sys, threading
how, *paths = sys.argv[1:]
for path in paths:
    opened = os.open(path, os.O_RDWR)
    if how == "mapped":
        keep = mmap.mmap(opened, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        os.close(opened)
        kept = globals().setdefault("all", []); kept.append(keep)
def stay():
    print("there", flush=True)
    sys.stdin.read()
if how == "thread":
    threading.Thread(target=stay).start()
    ctypes.CDLL(None).pthread_exit(None)
stay()
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes are made by root")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A host without a driver, whose nodes are made by the test."""
    for folder in ("dev/nvidia-caps", "dev/dri/by-path", "sys"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "devices").write_text(
        "Character devices:\n  1 mem\n\nBlock devices:\n  1 nvidia-caps\n"
    )
    return Places(tmp_path / "dev", tmp_path / "sys", tmp_path / "devices")


def node(places: Places, name: str, number: tuple[int, int] = NULL) -> Path:
    path = places.dev / name
    os.mknod(path, 0o20666, os.makedev(*number))
    return path


@contextmanager
def process(*command: str | bytes, argv0: str | bytes | None = None) -> Iterator[int]:
    """One that has said that it is there."""
    told = subprocess.Popen(
        command if argv0 is None else (argv0, *command[1:]),
        executable=command[0],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert told.stdout is not None
        assert told.stdout.readline() == b"there\n"
        yield told.pid
    finally:
        told.kill()
        told.communicate()


@contextmanager
def holder(how: str, *paths: Path, argv0: str | bytes | None = None) -> Iterator[int]:
    with process(sys.executable, "-c", HOLD, how, *map(str, paths), argv0=argv0) as pid:
        yield pid


def found(pid: int, places: Places, *listed: int, own: int = STRANGER) -> Found | None:
    return next((f for f in scan.scan(listed, places, own) if f.holder.pid == pid), None)


def nodes_of(pid: int, places: Places) -> set[Node]:
    one = found(pid, places)
    return set(one.nodes) if one else set()


@needs_root
def test_open_nodes_are_told_by_their_names_where_numbers_say_nothing(places: Places) -> None:
    names = ("nvidia3", "nvidiactl", "nvidia-caps/nvidia-cap12", "nvidia-modeset", "nvidia-uvm")
    with holder("open", *(node(places, name) for name in names)) as pid:
        assert nodes_of(pid, places) == {
            Node(NodeKind.GPU, 3),
            Node(NodeKind.CAPABILITY, 12),
            Node(NodeKind.CONTROL),
        }


@needs_root
def test_who_has_only_control_nodes_is_found_with_them(places: Places) -> None:
    with holder("open", node(places, "nvidiactl")) as pid:
        assert nodes_of(pid, places) == {Node(NodeKind.CONTROL)}


@needs_root
def test_a_mapping_is_left_when_the_descriptor_is_closed(places: Places) -> None:
    with holder("mapped", node(places, "nvidia0", ZERO)) as pid:
        assert nodes_of(pid, places) == {Node(NodeKind.GPU, 0, mapped=True)}


@pytest.mark.parametrize("name", ["\rnvidia", "x\r0 /dev/nvidia0"])
def test_a_mapped_file_is_named_as_its_owner_likes(
    places: Places, tmp_path: Path, name: str
) -> None:
    """The kernel breaks no line within a path, whatever else there is in it."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(4096))
    with holder("mapped", path) as pid:
        assert held.held(pid, Nodes(places)) == frozenset()


@needs_root
def test_what_is_open_and_mapped_is_told_once(places: Places) -> None:
    path = node(places, "nvidia0", ZERO)
    with path.open("rb") as kept, holder("mapped", path):
        descriptor = kept.fileno()
        shell = f"import os; os.dup2({descriptor}, 9)\n" + HOLD
        with subprocess.Popen(
            [sys.executable, "-c", shell, "mapped", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor],
        ) as both:  # fmt: skip
            assert both.stdout is not None
            both.stdout.readline()
            assert nodes_of(both.pid, places) == {Node(NodeKind.GPU, 0, mapped=True)}
            both.kill()


@needs_root
def test_a_mapping_that_may_not_be_looked_at_counts_by_its_name(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, **_: int) -> os.stat_result:
        raise PermissionError(path)

    with holder("mapped", node(places, "nvidia0", ZERO)) as pid:
        nodes = Nodes(places)
        assert nodes.own("nvidia0")
        monkeypatch.setattr(os, "stat", refuse)
        assert held.held(pid, nodes) == {Node(NodeKind.GPU, 0, mapped=True)}


@needs_root
def test_numbers_decide_where_the_driver_is_known(places: Places) -> None:
    places.devices.write_text("Character devices:\n  1 mem\n  1 nvidia\n  1 nvidiactl\n\n")
    with holder("open", node(places, "nvidia7", ZERO)) as pid:
        assert nodes_of(pid, places) == {Node(NodeKind.GPU, 5)}
    places.devices.write_text("Character devices:\n  1 nvidia-caps\n")
    with holder("open", places.dev / "nvidia7") as pid:
        assert nodes_of(pid, places) == {Node(NodeKind.CAPABILITY, 5)}
    places.devices.write_text("Character devices:\n  1 nvidia-uvm\n")
    with holder("open", places.dev / "nvidia7") as pid:
        assert nodes_of(pid, places) == {Node(NodeKind.CONTROL)}


@needs_root
def test_the_driver_tells_whose_a_minor_is(places: Places) -> None:
    there = replace(places, gpus=places.dev / "gpus")
    about = there.gpus / "0000:3b:00.0" / "information"
    about.parent.mkdir(parents=True)
    about.write_text("Model: \t\t NVIDIA H100\nGPU UUID: \t GPU-1\nDevice Minor: \t 3\n")
    nodes = [node(places, name) for name in ("nvidia3", "nvidia4", "nvidia-caps/nvidia-cap408")]
    with holder("open", *nodes) as pid:
        assert nodes_of(pid, there) == {
            Node(NodeKind.GPU, 3, "GPU-1"),
            Node(NodeKind.GPU, 4),
            Node(NodeKind.CAPABILITY, 3 + 3 * 135, "GPU-1"),
        }


@needs_root
def test_a_node_that_was_deleted_is_still_open(places: Places) -> None:
    places.devices.write_text("Character devices:\n  1 nvidia-frontend\n")
    with holder("open", node(places, "nvidia3")) as pid:
        (places.dev / "nvidia3").unlink()
        assert nodes_of(pid, places) == {Node(NodeKind.GPU, 3)}


@needs_root
def test_a_node_in_a_container_is_the_same_device(places: Places) -> None:
    node(places, "nvidia0")
    inner = Places(places.dev / "dev", places.sys, places.devices)
    inner.dev.mkdir()
    with holder("open", node(inner, "nvidia0")) as pid:
        assert nodes_of(pid, places) == {Node(NodeKind.GPU, 0)}


@needs_root
def test_a_name_alone_is_nothing(places: Places) -> None:
    """Not of a file, nor of a device other than this host's own, nor of a node it lacks."""
    node(places, "nvidia0")
    elsewhere = Places(places.dev / "dev", places.sys, places.devices)
    elsewhere.dev.mkdir()
    other = (node(elsewhere, "nvidia0", ZERO), node(elsewhere, "nvidia1"))
    (places.dev / "nvidia2").write_text("a file")
    with holder("open", *other, places.dev / "nvidia2") as pid:
        assert nodes_of(pid, places) == set()


@needs_root
def test_a_render_node_is_told_by_the_pci_device_that_it_belongs_to(places: Places) -> None:
    path = node(places, "dri/renderD128")
    link = places.dev / "dri/by-path" / f"pci-{ADDRESS}-render"
    with holder("open", path) as pid:
        assert nodes_of(pid, places) == set()
        link.symlink_to("../renderD128")
        assert nodes_of(pid, places) == {Node(NodeKind.RENDER, pci_address=ADDRESS)}
        places.devices.write_text("Character devices:\n  1 drm\n")
        assert nodes_of(pid, places) == {Node(NodeKind.RENDER, pci_address=ADDRESS)}
        vendor = places.sys / "bus/pci/devices" / ADDRESS / "vendor"
        vendor.parent.mkdir(parents=True)
        vendor.write_text("0x1a03\n")
        assert nodes_of(pid, places) == set()
        vendor.write_text("0x10de\n")
        link.unlink()
        card = places.sys / "class/drm/renderD128"
        card.mkdir(parents=True)
        (card / "device").symlink_to(f"../../../{ADDRESS}")
        assert nodes_of(pid, places) == {Node(NodeKind.RENDER, pci_address=ADDRESS)}


@needs_root
def test_other_threads_hold_what_the_first_one_has_left_behind(places: Places) -> None:
    with holder("thread", node(places, "nvidia0"), node(places, "nvidia1", ZERO)) as pid:
        wait_for(lambda: (now := stat(pid)) and now.state == "Z", what="the first thread ends")
        one = found(pid, places)
        assert one is not None
        assert one.nodes == {Node(NodeKind.GPU, 0), Node(NodeKind.GPU, 1)}
        assert one.holder.started > 0
        assert one.holder.command.startswith("python")


@needs_root
def test_a_process_as_people_know_it(places: Places) -> None:
    name = b"evil\n\x1b[31m\xff"
    with holder("open", node(places, "nvidia0"), argv0=name) as pid:
        one = found(pid, places)
        assert one is not None
        assert one.holder.command.startswith(r"evil\n\x1b[31m\udcff -c")
        assert len(one.holder.command) == 200
        assert one.holder.command.isprintable()
        assert one.holder.executable == os.path.realpath(sys.executable)
        assert (one.holder.uid, one.holder.user) == (0, "root")


@needs_root
def test_who_is_migd_or_runs_for_it_is_left_out(places: Places) -> None:
    path = node(places, "nvidia0")
    with holder("open", path) as pid:
        assert found(pid, places, own=os.getpid()) is None
        assert found(pid, places, pid, own=os.getpid()) is None
        assert found(pid, places, own=pid) is None
        assert found(pid, places) is not None


@needs_root
def test_a_login_shell_is_left_out_unless_it_does_more_than_a_shell_does(places: Places) -> None:
    path = node(places, "nvidia0", ZERO)
    with process("/bin/bash", "-c", f"exec 9<>{path}; echo there; read", argv0="-bash") as pid:
        assert found(pid, places) is None
        assert found(pid, places, pid) is None
    with process("/bin/bash", "-c", f"exec 9<>{path}; echo there; read") as pid:
        assert found(pid, places) is not None
    with holder("mapped", path, argv0="-bash") as pid:
        assert found(pid, places) is not None


@needs_root
@pytest.mark.parametrize("owner", [Owner("migd.service"), Owner(manager=True)])
def test_service_managers_and_what_else_is_in_migds_unit_are_left_out(
    places: Places, monkeypatch: pytest.MonkeyPatch, owner: Owner
) -> None:
    with holder("open", node(places, "nvidia0")) as pid:
        monkeypatch.setattr(processes, "owner", lambda *_: Owner("x.service"))
        monkeypatch.setattr(scan, "owner", lambda *_: Owner("x.service"))
        assert found(pid, places) is not None
        monkeypatch.setattr(processes, "owner", lambda *_: owner)
        monkeypatch.setattr(scan, "owner", lambda *_: owner)
        assert found(pid, places) is None


@needs_root
def test_who_logs_somebody_in_is_left_out(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder("open", node(places, "nvidia0")) as pid:
        assert found(pid, places) is not None
        program = Path(sys.executable).resolve().name
        monkeypatch.setattr(scan, "_LOGINS", (program,))
        assert found(pid, places) is not None
        session = Owner("session-1.scope", session="1")
        monkeypatch.setattr(processes, "owner", lambda *_: session)
        assert found(pid, places) is None


def test_who_nvml_lists_is_described_whatever_he_has(places: Places) -> None:
    with process(sys.executable, "-c", HOLD, "open") as pid:
        assert found(pid, places) is None
        one = found(pid, places, pid)
        assert one is not None
        assert one.nodes == frozenset()
        assert one.holder == describe([pid])[pid]
        now = stat(pid)
        assert now is not None
        assert one.holder.started == now.started > 0
    gone = found(STRANGER - 1, places, STRANGER - 1)
    assert gone is not None
    assert gone.holder.started == 0
    assert "gone" in gone.holder.command


@needs_root
def test_the_first_process_and_the_kernels_are_nobodys_clients(places: Places) -> None:
    with holder("open", node(places, "nvidia0")) as pid:
        told = {f.holder.pid for f in scan.scan((1, 2), places, STRANGER)}
        assert told & {1, 2, pid} == {pid}


def test_a_lack_of_descriptors_does_not_look_like_idle_processes(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many"):
        scan.scan((), places, STRANGER)


def test_only_what_looks_like_a_node_is_asked_for_its_status(
    tmp_path: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status of a file on a dead network mount would never come."""
    asked: list[object] = []
    real = os.stat

    def watch(path: str, *, dir_fd: int | None = None) -> os.stat_result:
        asked.append(os.readlink(path, dir_fd=dir_fd))
        return real(path, dir_fd=dir_fd)

    paths = [tmp_path / name for name in ("nvidia0", "nvidia.log", "dri/card0")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with holder("open", *paths) as pid:
        monkeypatch.setattr(os, "stat", watch)
        held.held(pid, Nodes(places))
        assert asked == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/dev/nvidia0", "nvidia0"),
        ("/dev/nvidia0 (deleted)", "nvidia0"),
        ("/nvidia0", "nvidia0"),
        ("/srv/root\n/dev/nvidia-caps/nvidia-cap3", "nvidia-caps/nvidia-cap3"),
        ("/dev/nvidia-caps-imex-channels/channel0", "nvidia-caps-imex-channels/channel0"),
        ("/dev/dri/renderD129", "dri/renderD129"),
        ("/dev/dri/card0", "dri/card0"),
        ("/net/nvidia0", None),
        ("/net/dev/x/nvidia0", None),
        ("/usr/lib/libnvidia-ml.so.1", None),
        ("/usr/lib/nvidia/dri/swrast_dri.so", None),
        ("pipe:[1]", None),
    ],
)
def test_paths_that_look_like_nodes(path: str, name: str | None) -> None:
    assert Nodes.name(path) == name


@needs_root
def test_processes_that_come_and_go_are_no_error(places: Places) -> None:
    path = node(places, "nvidia0", ZERO)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            subprocess.run(["/bin/sh", "-c", f"exec 9<{path}; exit"], check=True)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with holder("mapped", path) as pid:
            until = time.monotonic() + 1
            while time.monotonic() < until:
                assert found(pid, places)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_program_that_was_replaced_meanwhile_is_told_by_its_path(tmp_path: Path) -> None:
    program = tmp_path / "shell"
    shutil.copy("/bin/sh", program)
    with process(str(program), "-c", "echo there; read line") as pid:
        assert describe([pid])[pid].executable == str(program)
        program.unlink()
        assert describe([pid])[pid].executable == str(program)


def test_a_pid_that_became_anothers_meanwhile_describes_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = stat(os.getpid())
    assert now is not None
    stats = iter([now, replace(now, started=now.started + 1)])
    monkeypatch.setattr(processes, "stat", lambda _: next(stats))
    assert describe([os.getpid()])[os.getpid()].started == 0


def test_families() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], 'open'])"
    with process(sys.executable, "-c", script, HOLD) as pid:
        (child,) = descendants(pid)
        assert ancestors(child)[:2] == [pid, os.getpid()]
        assert child in descendants(os.getpid())
    assert descendants(STRANGER) == []
    assert ancestors(STRANGER) == []


def test_a_name_cannot_pass_for_other_fields_of_the_process() -> None:
    name = b") R 1 1 1"
    libc = ctypes.CDLL(None)
    pid = os.fork()
    if pid == 0:
        libc.prctl(15, name, 0, 0, 0)
        signal.pause()
        os._exit(0)
    try:
        wait_for(lambda: name in Path(f"/proc/{pid}/stat").read_bytes(), what="the name is taken")
        wait_for(lambda: (now := stat(pid)) and now.state == "S", what="it waits")
        now = stat(pid)
        assert now is not None
        assert now.parent == os.getpid()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
