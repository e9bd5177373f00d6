"""What others do to the GPUs: noticed from the driver's files, shown, logged once, or put right."""

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from migd import names
from tests.bus.manager import World, changing_calls, layouts, listening, mig_uuids
from tests.support.bus import PrivateBus, run
from tests.support.daemon import Daemon, options
from tests.support.node import Holder, Node, done, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can show a driver's files")

H100, A100 = "h100-80gb-sxm5", "a100-40gb"
# What is noticed within seconds has so long on a busy machine.
SOON_S = 60.0

# Another program that changes instances: GPU, then words of what to do, in order.
FOREIGN = """
import ctypes, sys
import pynvml as n

n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(int(sys.argv[1]))

def at(start):
    for gi in range(15):
        try:
            found = n.nvmlDeviceGetGpuInstanceById(gpu, gi)
        except n.NVMLError_NotFound:
            continue
        if n.nvmlGpuInstanceGetInfo(found).placement.start == start:
            return found

def destroy(start):
    gi = at(start)
    for ci in range(8):
        try:
            n.nvmlComputeInstanceDestroy(n.nvmlGpuInstanceGetComputeInstanceById(gi, ci))
        except n.NVMLError_NotFound:
            pass
    n.nvmlGpuInstanceDestroy(gi)

def create(profile, start, size, compute):
    spot = n.c_nvmlGpuInstancePlacement_t(start, size)
    gi = n.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, profile, ctypes.byref(spot))
    n.nvmlGpuInstanceCreateComputeInstance(gi, compute)

for word in sys.argv[2:]:
    if word[0] == "-":
        destroy(int(word[1:]))
    elif word == "on":
        n.nvmlDeviceSetMigMode(gpu, 1)
    else:
        create(*map(int, word.split(":")))
"""
ONE_AT_2, TWO_AT_0, THREE_AT_4 = "19:2:1:0", "14:0:2:1", "9:4:4:2"


def foreign(node: Node, gpu: int, *words: str) -> None:
    node.python(FOREIGN, str(gpu), *words)


@contextmanager
def watched(
    folder: Path, *gpus: tuple[str, int], settings: str = "", config: str = ""
) -> Iterator[World]:
    """A daemon that sees the node's driver where it looks for the host's."""
    node = Node.new(folder / "node", *gpus)
    prefix = (sys.executable, "-m", "migd.simulator", "run", str(node.path), "--")
    with PrivateBus() as bus:
        daemon = Daemon(node, bus.address, folder / "migd", prefix=prefix, config=config)
        (daemon.config_dir / names.SETTINGS_FILE).write_text(settings)
        # The boot is over for it, as after migd-boot.service.
        daemon.runtime_dir.mkdir()
        (daemon.runtime_dir / names.PUT_BACK_FILE).touch()
        with daemon:
            yield World(node, bus, daemon)


def says(made: World, *parts: str) -> list[str]:
    """Drift, once it has as many sentences, and each has its part."""

    def fits() -> bool:
        told = made.daemon.property("Drift")
        pairs = zip(told, parts, strict=False)
        return len(told) == len(parts) and all(part in sentence for sentence, part in pairs)

    wait_for(fits, timeout=SOON_S, what=f"{parts}\n{made.daemon.log}")
    return list(made.daemon.property("Drift"))


def jobs(made: World) -> list[dict[str, Any]]:
    (found,) = made.daemon.call("ListJobs", "a{sv}", {})
    return list(found)


def logged(made: World, part: str) -> int:
    return sum(part in line for line in made.daemon.log.splitlines())


def test_changes_of_others_are_shown_and_logged_once(tmp_path: Path) -> None:
    with watched(tmp_path, (H100, 2)) as made:
        made.put("all-1g.10gb", gpus=["0"])
        before, calls = layouts(made.node), changing_calls(made.node)
        assert made.daemon.property("Drift") == []
        assert made.daemon.property("DriftSince") == 0

        async def hears() -> None:
            async with listening(made) as caller:
                await asyncio.to_thread(foreign, made.node, 0, "-2")

                def drift() -> list[Any]:
                    return [
                        m.body[1]["Drift"].value
                        for m in caller.signals("PropertiesChanged")
                        if m.path == names.ROOT and "Drift" in m.body[1]
                    ]

                await caller.until(drift, SOON_S)
                (told,) = drift()
                assert len(told) == 1
                assert "(1g.10gb at 2:1) is gone" in told[0]

        run(hears(), timeout_s=2 * SOON_S)
        assert made.daemon.property("DriftSince") > 0
        assert made.daemon.property("Match") == "no"
        assert "drift: GPU 0 (NVIDIA H100" in made.daemon.log

        # Of a GPU that nobody settled it is no drift, and yet to be seen.
        foreign(made.node, 1, "on", THREE_AT_4)
        path = names.gpu_instance_path(made.uuid(1), 1)
        wait_for(lambda: has_object(made, path), timeout=SOON_S, what=made.daemon.log)
        says(made, "GPU 0 ")
        assert logged(made, "drift: ") == 1

        # A start, too, only looks.
        made.daemon.restart()
        says(made, "is gone")
        assert logged(made, "drift: ") == 2

        foreign(made.node, 0, ONE_AT_2)
        says(made)
        assert made.daemon.property("DriftSince") == 0
        assert logged(made, "no drift any more: GPU 0") == 1
        assert layouts(made.node)[made.uuid(0)] == before[made.uuid(0)]
        foreign_calls = changing_calls(made.node) - calls
        assert foreign_calls == {
            "nvmlComputeInstanceDestroy": 1,
            "nvmlGpuInstanceDestroy": 1,
            "nvmlDeviceSetMigMode": 1,
            "nvmlDeviceCreateGpuInstanceWithPlacement": 2,
            "nvmlGpuInstanceCreateComputeInstance": 2,
        }


def has_object(made: World, path: str) -> bool:
    (objects,) = made.daemon.call(
        "GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager"
    )
    return path in objects


def test_reload_reset_and_loss_are_noticed(tmp_path: Path) -> None:
    """In an idle daemon that lets the driver go, and sees the one that comes."""
    with watched(tmp_path, (H100, 2)) as made:
        node = made.node
        made.put("all-1g.10gb")
        calls = changing_calls(node)
        wait_for(lambda: done(lambda: node.reset(1)), what="the GPU is in use for ever")
        says(made, "GPU instances ")
        wait_for(lambda: done(node.unload), what="the driver is in use for ever")
        says(made, "the NVIDIA driver is not loaded")
        assert made.daemon.property("Driver") == ""
        node.load("590.10.01")
        says(made, "MIG mode is disabled, and was enabled", "MIG mode is disabled")
        assert made.daemon.property("Driver") == "590.10.01"
        assert changing_calls(node) == calls

        # One falls off the bus: the kernel module lets go of it, and NVML has an error for it.
        node.fault("nvml*", returns="GPU_IS_LOST", gpu=1)
        address = node.gpus()[1]["pci"].lower()[-12:]
        shutil.rmtree(node.path / "view/driver/nvidia/gpus" / address)
        says(made, "MIG mode is disabled", "GPU 1 (NVIDIA H100 80GB HBM3, ")
        wait_for(lambda: "GPU_IS_LOST" in made.daemon.property("Drift")[1], timeout=SOON_S)
        assert changing_calls(node) == calls


@pytest.mark.parametrize("board", [H100, A100])
def test_what_was_settled_is_put_right_exactly(board: str, tmp_path: Path) -> None:
    """Also at a start; what is not drifted is not touched, nor what is only staged for it."""
    one = {H100: "1g.10gb", A100: "1g.5gb"}[board]
    config = f"""\
version: v1
mig-configs:
  mine:
  - {{devices: all, mig-enabled: true, mig-devices: {{"{one}": 3}}}}
"""
    with watched(tmp_path, (board, 2), settings="drift: reapply\n", config=config) as made:
        node = made.node
        made.put("mine", max_impact="reset")
        made.daemon.call("Stage", "sa{sv}", "all-enabled", options({"gpus": ["1"]}))
        before, uuids = layouts(node), [mig_uuids(gpu) for gpu in node.gpus()]
        (_, (first, second, third)) = before[made.uuid(0)]
        (kept,) = (gi for gi, start in uuids[0] if start == third[1])
        with node.hold(0, kept) as holder:
            other = THREE_AT_4 if third[1] < 4 else TWO_AT_0
            foreign(node, 0, f"-{first[1]}", f"-{second[1]}", other)
            assert layouts(node) != before
            wait_for(lambda: layouts(node) == before, timeout=SOON_S, what=made.daemon.log)
            says(made)
            assert holder.alive()
        assert [mig_uuids(gpu) for gpu in node.gpus()] == uuids
        assert jobs(made)[0]["uid"] == 0xFFFFFFFF
        made.daemon.stop()
        wait_for(lambda: done(lambda: node.reset(0)), what="a worker stays")
        made.daemon.start()
        wait_for(lambda: layouts(node) == before, timeout=SOON_S, what=made.daemon.log)
        says(made)
        assert [mig_uuids(gpu) for gpu in node.gpus()] == uuids


def test_who_is_in_the_way_is_named_once_and_left_alone(tmp_path: Path) -> None:
    """And keeps no other GPU from being put right."""
    with watched(tmp_path, (H100, 2), settings="drift: reapply\n") as made:
        node = made.node
        made.put("all-1g.10gb")
        wanted = layouts(node)[made.uuid(1)]
        with held_elsewhere(made) as holder:
            told = says(made, "it is left so: GPU 0 ")
            assert str(holder.pid) in told[0]
            held, calls = layouts(node)[made.uuid(0)], changing_calls(node)
            assert layouts(node)[made.uuid(1)] == wanted
            # Another thing that changes is looked at, and is not tried again at once.
            foreign(node, 0, "-0")
            says(made, "1g.10gb at 0:1")
            assert holder.alive()
            assert layouts(node)[made.uuid(0)] == (held[0], held[1][1:])
            assert logged(made, "is not put right") == 1
            assert (changing_calls(node) - calls).keys() == {
                "nvmlComputeInstanceDestroy",
                "nvmlGpuInstanceDestroy",
            }
        assert [job["config"] for job in jobs(made)] == ["all-1g.10gb"] * 2


@contextmanager
def held_elsewhere(made: World) -> Iterator[Holder]:
    """While migd is away somebody makes another instance, and uses it, where some are settled.

    Of the other GPU one is lost.
    """
    made.daemon.stop()
    foreign(made.node, 0, "-4", "-5", "-6", THREE_AT_4)
    foreign(made.node, 1, "-2")
    (gi,) = (i["gi"] for i in made.node.gpus()[0]["instances"] if i["profile_id"] == 9)
    with made.node.hold(0, gi) as holder:
        made.daemon.start()
        yield holder


def test_what_somebody_made_that_is_also_wanted_counts_as_settled(tmp_path: Path) -> None:
    config = """\
version: v1
mig-configs:
  mine:
  - {devices: all, mig-enabled: true, mig-devices: {"1g.10gb": 1}}
"""
    with watched(tmp_path, (H100, 1), settings="drift: reapply\n", config=config) as made:
        made.put("mine")
        start = made.node.gpus()[0]["instances"][0]["placement"]["start"]
        assert start != 2
        foreign(made.node, 0, f"-{start}", ONE_AT_2)
        there, calls = layouts(made.node), changing_calls(made.node)
        wait_for(lambda: logged(made, "no drift any more"), timeout=SOON_S, what=made.daemon.log)
        made.daemon.restart()
        says(made)
        assert (layouts(made.node), changing_calls(made.node)) == (there, calls)


def test_what_a_job_changes_is_no_drift(tmp_path: Path) -> None:
    """Whoever looks in the middle of it, and whenever that look ends."""
    with watched(tmp_path, (H100, 2)) as made:
        made.put("all-1g.10gb")
        for call in ("nvmlGpuInstanceDestroy", "nvmlDeviceCreateGpuInstanceWithPlacement"):
            made.node.latency(call, 100)
        number, _ = made.daemon.apply("all-balanced")
        looks = 0
        while made.daemon.property("Job") != "/":
            made.daemon.call("Export", "a{sv}", {})
            looks += 1
        assert looks > 1
        assert made.daemon.wait(number)[0] == "done"
        made.daemon.call("Export", "a{sv}", {})
        assert made.daemon.property("Drift") == []
        assert logged(made, "drift") == 0
