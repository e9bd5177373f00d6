"""PutBack: once a boot, what is wanted, or what was settled; judged by the node."""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from migd import names
from tests.bus.manager import H100, Layout, World, layout, mig_uuids, world
from tests.support.daemon import no_process_left

__all__ = ["no_process_left"]  # a fixture

A100 = "a100-40gb"
NOT_PUT_BACK = f"{names.ERROR}.NotPutBack"
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
CONFIG = """\
version: v1
mig-configs:
  mine:
  - {devices: [0], mig-enabled: true, mig-devices: {1g.10gb: 3, 2g.20gb: 1}}
  - {devices: [1], mig-enabled: true, mig-devices: {1g.5gb: 2, 3g.20gb: 1}}
"""


@pytest.fixture
def node_world(tmp_path: Path, no_process_left: None) -> Iterator[World]:
    """One H100, which loses its mode at a reboot, and one A100, which keeps it."""
    with world(tmp_path, (H100, 1), (A100, 1)) as made:
        made.daemon.configure(CONFIG)
        made.daemon.call("Reload")
        yield made


def reboot(made: World) -> None:
    """The host goes down and comes back; who has a GPU is gone, and so is /run."""
    made.daemon.stop()
    marker(made).unlink(missing_ok=True)
    made.node.reboot()
    made.daemon.start()


def marker(made: World) -> Path:
    return made.daemon.runtime_dir / names.PUT_BACK_FILE


def put_back(made: World) -> str:
    (message,) = made.daemon.call("PutBack", "a{sv}", {})
    return str(message)


def not_put_back(made: World) -> str:
    name, message = made.daemon.refused("PutBack", "a{sv}", {})
    assert name == NOT_PUT_BACK
    return message


def everything(made: World) -> list[tuple[Layout, dict[tuple[int, int], str]]]:
    return [(layout(gpu), mig_uuids(gpu)) for gpu in made.node.gpus()]


def test_what_is_settled_comes_back_as_it_was(node_world: World) -> None:
    made = node_world
    assert made.daemon.applied("mine", max_impact="reset")[0] == "done"
    before = everything(made)
    reboot(made)
    assert everything(made) != before
    calls = made.node.mutating_calls()
    assert "put back mine: 2 GPUs changed" in put_back(made)
    assert everything(made) == before
    assert made.daemon.property("Match") == "yes"
    (jobs,) = made.daemon.call("ListJobs", "a{sv}", {})
    assert (jobs[0]["type"], jobs[0]["uid"], jobs[0]["result"]) == ("put-back", 0xFFFFFFFF, "done")
    # Once a boot, also by the next daemon.
    assert made.node.mutating_calls() > calls
    calls = made.node.mutating_calls()
    made.daemon.restart()
    assert "nothing is done again in this boot: put back mine" in put_back(made)
    assert made.node.mutating_calls() == calls
    # And it stays wanted, by whoever asked for it.
    reboot(made)
    put_back(made)
    assert everything(made) == before


def test_nothing_is_wanted(node_world: World) -> None:
    made = node_world
    assert put_back(made) == "nothing is wanted of the GPUs of this host"
    assert not made.node.mutating_calls()
    assert marker(made).exists()


def test_only_the_file_wants_something(node_world: World) -> None:
    made = node_world
    (made.daemon.config_dir / names.SETTINGS_FILE).write_text("config: mine\n")
    reboot(made)
    assert "put back mine: 2 GPUs changed" in put_back(made)
    assert [layout(gpu)[0] for gpu in made.node.gpus()] == ["enabled", "enabled"]
    assert made.daemon.property("Match") == "yes"


@pytest.mark.parametrize(
    "text", ["", CONFIG.replace("mine", "other"), "{", CONFIG.replace("2g", "9g")]
)
def test_the_name_is_gone_or_refused(node_world: World, text: str) -> None:
    made = node_world
    assert made.daemon.applied("mine", max_impact="reset")[0] == "done"
    before = everything(made)
    made.daemon.configure(text)
    reboot(made)
    told = put_back(made)
    assert everything(made) == before
    assert "cannot have mine" in told
    assert "the layout that it had last" in told


def test_neither_is_there_any_more(node_world: World) -> None:
    made = node_world
    (made.daemon.config_dir / names.SETTINGS_FILE).write_text("config: nowhere\n")
    reboot(made)
    assert "nowhere" in not_put_back(made)
    assert not made.node.mutating_calls()
    assert not marker(made).exists()
    # It can be asked for again once that is mended.
    (made.daemon.config_dir / names.SETTINGS_FILE).write_text("config: mine\n")
    made.daemon.call("Reload")
    assert "2 GPUs changed" in put_back(made)


def test_what_is_wanted_cannot_be_read(node_world: World) -> None:
    made = node_world
    (made.daemon.config_dir / names.SETTINGS_FILE).write_text("config: [\n")
    reboot(made)
    assert "migd.yaml" in not_put_back(made)
    made.daemon.stop()
    made.daemon.state.write_text("{")
    made.daemon.start()
    assert "state.json" in not_put_back(made)
    assert not made.node.mutating_calls()


def test_a_gpu_that_is_in_use_does_not_keep_the_other_from_it(node_world: World) -> None:
    made = node_world
    assert made.daemon.applied("mine", max_impact="reset")[0] == "done"
    before = everything(made)
    reboot(made)
    with made.node.hold(1) as holder:
        told = not_put_back(made)
        assert f"pid {holder.pid} (" in told
        assert "1 GPUs changed" in told
        assert everything(made)[0] == before[0]
        assert everything(made)[1] != before[1]
        assert holder.alive()
    assert "1 GPUs changed, 1 as they should be" in put_back(made)
    assert everything(made) == before


def test_other_uuids_are_told(node_world: World) -> None:
    made = node_world
    assert made.daemon.applied("mine", max_impact="reset")[0] == "done"
    before = everything(made)
    made.node.surprise("gi-ids-other-order-after-reboot", True, gpu=0)
    reboot(made)
    told = put_back(made)
    assert [row[0] for row in everything(made)] == [row[0] for row in before]
    assert everything(made)[0] != before[0]
    assert "GPU 0: MIG devices have other UUIDs: " in told
    assert all(
        uuid in told for uuid in {*before[0][1].values()} ^ {*everything(made)[0][1].values()}
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can show PCI devices of the simulator")
def test_the_driver_comes_late(node_world: World) -> None:
    made, daemon = node_world, node_world.daemon
    assert daemon.applied("mine", max_impact="reset")[0] == "done"
    before = everything(made)
    daemon.stop()
    made.node.reboot()
    made.node.unload()
    daemon.prefix = (sys.executable, "-m", "migd.simulator", "run", str(made.node.path), "--")
    daemon.start()
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(put_back, made)
        assert "not loaded" in daemon.refused("Plan", "sa{sv}", "mine", {})[1]
        assert not told.done()
        made.node.load()
        assert "2 GPUs changed" in told.result(60)
    assert everything(made) == before


def test_a_boot_does_not_wait_for_a_driver_that_hangs(node_world: World) -> None:
    made = node_world
    made.daemon.configure(CONFIG)
    limits = "config: mine\ntime-limits: {boot: 10, nvml-change: 12}\n"
    (made.daemon.config_dir / names.SETTINGS_FILE).write_text(limits)
    reboot(made)
    made.node.fault(CREATE, nth=1, hang=True, gpu=0)
    assert "not over after 10 s, while waiting for job" in not_put_back(made)
    # The other GPU has long been done.
    assert len(layout(made.node.gpus()[1])[1]) == 3
    assert not marker(made).exists()


def test_no_gpu_and_no_driver(tmp_path: Path, no_process_left: None) -> None:
    with world(tmp_path, (H100, 1)) as made:
        (made.daemon.config_dir / names.SETTINGS_FILE).write_text("config: all-1g.10gb\n")
        made.daemon.stop()
        made.node.unload()
        made.daemon.start()
        assert put_back(made) == "there is no NVIDIA GPU in this host"


def test_no_gpu_has_mig(tmp_path: Path, no_process_left: None) -> None:
    with world(tmp_path, ("t4-16gb", 1)) as made:
        (made.daemon.config_dir / names.SETTINGS_FILE).write_text("config: all-1g.10gb\n")
        made.daemon.restart()
        assert put_back(made) == "no GPU of this host has MIG"
        assert not made.node.mutating_calls()


def test_a_gpu_that_is_not_there_any_more(node_world: World) -> None:
    made = node_world
    assert made.daemon.applied("mine", max_impact="reset")[0] == "done"
    before = everything(made)
    made.daemon.stop()
    state = json.loads(made.daemon.state.read_text())
    state["gpus"]["GPU-gone"] = state["gpus"][made.uuid(0)]
    made.daemon.state.write_text(json.dumps(state))
    made.daemon.start()
    reboot(made)
    assert "GPU GPU-gone, which should have mine, is not there" in put_back(made)
    assert everything(made) == before
