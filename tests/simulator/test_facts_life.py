# SPDX-License-Identifier: Apache-2.0
"""Documented facts: the mode, the life of instances and what is awkward about them.

Sources are named as in test_facts.py; gpu-op is NVIDIA/gpu-operator.
"""

from typing import Any

import pynvml
import pytest

from migd.simulator import boards
from migd.simulator.errors import SimulatorError
from tests.simulator.conftest import MakeNode
from tests.simulator.nvml_help import (
    IN_USE,
    INVALID_ARGUMENT,
    NOT_FOUND,
    NOT_SUPPORTED,
    RESET_REQUIRED,
    capacity,
    create,
    enabled,
    gpu,
    id_of,
    refused,
)
from tests.simulator.test_catalogue import MODELS
from tests.simulator.test_sessions import OPEN, python
from tests.support.node import Node, wait_for

ON, OFF = "enabled", "disabled"


def mode(node: Node, index: int = 0) -> tuple[str, str]:
    row = node.gpus()[index]["mode"]
    return row["current"], row["pending"]


def full(device: Any, profile: int = 9, inner: int = 2) -> tuple[Any, Any]:
    instance = create(device, profile)
    return instance, pynvml.nvmlGpuInstanceCreateComputeInstance(instance, inner)


@pytest.mark.parametrize("key", boards.OFFERED)
def test_generations(key: str, make_node: MakeNode, nvml: Any) -> None:
    """mig-ug; gpu-op#2603; ogkm PDB_PROP_GPU_RESETLESS_MIG_SUPPORTED: who needs a reset for the
    mode, who keeps it over a reboot, and that nobody keeps instances."""
    node = make_node((key, 1))
    nvml(node)
    facts = MODELS[key]["mig_mode"]
    assert facts["enable_needs_gpu_reset"] == facts["mode_survives_reboot"]  # Ampere, nobody else
    assert facts["enable_needs_gpu_reset"] == (MODELS[key]["architecture"] == "Ampere")
    (resetless,) = pynvml.nvmlDeviceGetFieldValues(gpu(), [184])  # nvml.h: use it, not the name
    assert resetless.value.uiVal == int(not facts["enable_needs_gpu_reset"])
    with node.hold(0):
        status = pynvml.nvmlDeviceSetMigMode(gpu(), 1)
        assert status == (IN_USE if facts["enable_needs_gpu_reset"] else 0)
    full(enabled(), 0, 4 if MODELS[key]["compute_slices"] == 7 else 3)
    node.reboot()
    kept = ON if facts["mode_survives_reboot"] else OFF
    assert mode(node) == (kept, kept)
    assert node.layout(0) == []


def test_success_alone_does_not_mean_active(a100: Node, nvml: Any) -> None:
    """nvml.h; gpu-op#118, #1845: "In use by another client" is in activationStatus."""
    nvml(a100)
    with a100.hold(0):
        assert pynvml.nvmlDeviceSetMigMode(gpu(), 1) == IN_USE
        assert pynvml.nvmlDeviceGetMigMode(gpu()) == [0, 1]


@pytest.mark.parametrize(
    ("switch", "status"),
    [
        pytest.param("passthrough", NOT_SUPPORTED, id="mig-ug prints Not Supported"),
        pytest.param("passthrough-asks-reset", RESET_REQUIRED, id="nvml.h says RESET_REQUIRED"),
    ],
)
def test_ampere_in_a_virtual_machine(switch: str, status: int, a100: Node, nvml: Any) -> None:
    """gpu-op#1606: pending until the machine reboots; a reset "is not supported"."""
    a100.surprise(switch)
    nvml(a100)
    assert pynvml.nvmlDeviceSetMigMode(gpu(), 1) == status
    assert mode(a100) == (OFF, ON)
    pynvml.nvmlShutdown()
    with pytest.raises(SimulatorError, match="resetting GPU 0 is not supported"):
        a100.reset(0)
    done = a100.run("nvidia-smi", "-r", "-i", "0", check=False)
    assert done.returncode == 3
    assert done.stdout == "Resetting GPU 00000000:1B:00.0 is not supported.\n"
    a100.reboot()
    assert mode(a100) == (ON, ON)


def test_passthrough_is_no_matter_without_a_reset(h100: Node, nvml: Any) -> None:
    """ogkm: resetless boards switch in a virtual machine as well."""
    h100.surprise("passthrough")
    nvml(h100)
    assert pynvml.nvmlDeviceSetMigMode(gpu(), 1) == 0
    assert mode(h100) == (ON, ON)


def test_mode_is_per_gpu(make_node: MakeNode, nvml: Any) -> None:
    """mig-ug: mixed servers are normal."""
    node = make_node(("h100-80gb-sxm5", 2), ("a30-24gb", 1))
    nvml(node)
    enabled(1)
    assert [mode(node, index)[0] for index in range(3)] == [OFF, ON, OFF]


@pytest.mark.parametrize("board", ["h100-80gb-sxm5", "a100-40gb"])
def test_disabling_with_instances(board: str, make_node: MakeNode, nvml: Any) -> None:
    """NVIDIA DGX Station (GB300) MIG playbook: `-mig 0` is "In use by another client"."""
    nvml(make_node((board, 1)))
    device = enabled()
    create(device, 9)
    with refused(IN_USE):
        pynvml.nvmlDeviceSetMigMode(device, 0)


@pytest.mark.parametrize("blocker", ["a context", "a subscription", "an open NVML session"])
def test_what_blocks_an_ampere_reset(blocker: str, a100: Node, nvml: Any) -> None:
    """mig-ug, gpu-op#118, HAMi#1088: contexts, DCGM, any client with NVML open."""
    nvml(a100)
    if blocker == "an open NVML session":
        with python(a100, OPEN):
            assert pynvml.nvmlDeviceSetMigMode(gpu(), 1) == IN_USE
    else:
        with a100.hold(0, hidden=blocker == "a subscription"):
            assert pynvml.nvmlDeviceSetMigMode(gpu(), 1) == IN_USE
    wait_for(lambda: len(a100.show()["sessions"]) == 1)
    assert pynvml.nvmlDeviceSetMigMode(gpu(), 1) == 0


def test_while_pending_a_set_changes_nothing(a100: Node, nvml: Any) -> None:
    """ogkm kmigmgrSetPartitioningMode; gpu-op#1845 (580.65.06): a switch here."""
    a100.surprise("pending-sticks")
    nvml(a100)
    with a100.hold(0):
        pynvml.nvmlDeviceSetMigMode(gpu(), 1)
    for wanted in (0, 1):
        assert pynvml.nvmlDeviceSetMigMode(gpu(), wanted) == IN_USE
        assert mode(a100) == (OFF, ON)


def test_pending_can_stay_over_reboots(a100: Node, h100: Node, nvml: Any) -> None:
    """gpu-op#668: a mode that was disabled stayed pending over reboots."""
    for node in (a100, h100):
        node.surprise("pending-survives-reboot")
        nvml(node)
        enabled()
    nvml(a100)
    with a100.hold(0):
        assert pynvml.nvmlDeviceSetMigMode(gpu(), 0) == IN_USE
    for _ in range(2):
        a100.reboot()
        assert mode(a100) == (ON, OFF)
    h100.reboot()  # the mode is not in the InfoROM there
    assert mode(h100) == (OFF, OFF)


def test_the_minor_number_may_change(a100: Node, nvml: Any) -> None:
    """nvml.h on nvmlDeviceSetMigMode: also by a reset that somebody else asks for."""
    a100.surprise("minor-changes-after-reset")
    nvml(a100)
    before = [row["minor"] for row in a100.gpus()]
    assert before == [0, 1]
    enabled()
    assert pynvml.nvmlDeviceGetMinorNumber(gpu()) == 2
    pynvml.nvmlShutdown()
    a100.reset(1)
    assert [row["minor"] for row in a100.gpus()] == [2, 0]
    information = a100.path / "view/driver/nvidia/gpus/0000:43:00.0/information"
    assert "Device Minor: \t 0\n" in information.read_text()


def test_without_a_client_instances_stay_as_they_are(h100: Node, nvml: Any) -> None:
    """ogkm kmigmgrSaveToPersistence, kmigmgrRestoreFromPersistence: rebuilt at the next open."""
    nvml(h100)
    full(enabled())
    create(gpu(), 19)
    before = h100.gpus()[0]["instances"]
    pynvml.nvmlShutdown()
    assert h100.show()["sessions"] == []
    nvml(h100)
    assert h100.gpus()[0]["instances"] == before
    assert id_of(pynvml.nvmlDeviceGetGpuInstanceById(gpu(), 1)) == 1


@pytest.mark.parametrize("event", ["reboot", "reset", "unload"])
def test_what_takes_instances(event: str, h100: Node, nvml: Any) -> None:
    """mig-ug, k8s-device-plugin#225."""
    nvml(h100)
    full(enabled())
    pynvml.nvmlShutdown()
    {"reboot": h100.reboot, "reset": lambda: h100.reset(0), "unload": h100.unload}[event]()
    if event == "unload":
        h100.load()
    assert h100.layout(0) == []
    assert mode(h100)[0] == (ON if event == "reset" else OFF)


def test_destroying_in_the_wrong_order(h100: Node, nvml: Any) -> None:
    """nvml.h; ogkm kmigmgrIsGPUInstanceReadyToBeDestroyed."""
    nvml(h100)
    instance, inner = full(enabled())
    with refused(IN_USE):
        pynvml.nvmlGpuInstanceDestroy(instance)
    pynvml.nvmlComputeInstanceDestroy(inner)
    with h100.hold(0, 1), refused(IN_USE):
        pynvml.nvmlGpuInstanceDestroy(instance)
    pynvml.nvmlGpuInstanceDestroy(instance)


def test_the_first_instance_needs_an_idle_gpu_and_later_ones_do_not(h100: Node, nvml: Any) -> None:
    """ogkm kmigmgrCreateGPUInstanceCheck_GA100."""
    nvml(h100)
    device = enabled()
    with h100.hold(0), refused(IN_USE):
        create(device, 9)
    create(device, 9)
    with h100.hold(0, 1):
        create(device, 9)


def test_a_gpu_instance_without_compute_shows_in_no_walk(h100: Node, nvml: Any) -> None:
    """DRA#1452: MIG device handles are of compute instances."""
    nvml(h100)
    device = enabled()
    create(device, 9)
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        with refused(NOT_FOUND):
            pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index)


def test_a_retry_meets_a_compute_instance_that_is_gone(h100: Node, nvml: Any) -> None:
    """DRA#907: IN_USE after the compute instance went, with nobody there, and then no more."""
    h100.surprise("gi-busy-after-ci-destroy", 2)
    nvml(h100)
    instance, inner = full(enabled())
    pynvml.nvmlComputeInstanceDestroy(inner)
    for _ in range(2):
        assert h100.gpus()[0]["holders"] == []
        with refused(IN_USE):
            pynvml.nvmlGpuInstanceDestroy(instance)
        with refused(NOT_FOUND):
            pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
    pynvml.nvmlGpuInstanceDestroy(instance)
    pynvml.nvmlGpuInstanceDestroy(create(gpu(), 9))  # it had no compute instance


def test_it_can_stay_busy_for_good(h100: Node, nvml: Any) -> None:
    """DCGM#95: instances that cannot be destroyed, with no process listed."""
    h100.surprise("gi-busy-after-ci-destroy")
    assert h100.gpus()[0]["surprises"] == {"gi-busy-after-ci-destroy": True}
    nvml(h100)
    instance, inner = full(enabled())
    pynvml.nvmlComputeInstanceDestroy(inner)
    for _ in range(5):
        with refused(IN_USE):
            pynvml.nvmlGpuInstanceDestroy(instance)


def test_capacities_are_coupled(h100: Node, nvml: Any) -> None:
    """nvml.h, public -lgip pastes: a 7g takes every other profile's room."""
    nvml(h100)
    device = enabled()
    create(device, 0)
    assert [capacity(device, row) for row in (19, 20, 15, 14, 9, 5, 0)] == [0] * 7


@pytest.mark.parametrize("listings", [1, 3])
def test_destroyed_instances_stay_visible(listings: int, h100: Node, nvml: Any) -> None:
    """go-nvml#146: SUCCESS, and still in the listings: by id, in the walk, and in the way."""
    h100.surprise("destroyed-stay-visible", listings)
    nvml(h100)
    device = enabled()
    instance, inner = full(device)
    pynvml.nvmlComputeInstanceDestroy(inner)
    mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, 0)
    with refused(IN_USE):
        pynvml.nvmlGpuInstanceDestroy(instance)
    for _ in range(listings - 1):
        pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
    with refused(NOT_FOUND):
        pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
    with refused(INVALID_ARGUMENT):
        pynvml.nvmlDeviceGetUUID(mig)
    pynvml.nvmlGpuInstanceDestroy(instance)
    pynvml.nvmlGpuInstanceDestroy(instance)  # once more changes nothing
    assert capacity(device, 0) == 0
    for _ in range(listings - 1):
        pynvml.nvmlDeviceGetGpuInstanceById(device, 1)
    with refused(NOT_FOUND):
        pynvml.nvmlDeviceGetGpuInstanceById(device, 1)
    assert capacity(device, 0) == 1


@pytest.mark.parametrize("stale", [False, True])
def test_reads_that_are_stale_for_a_session(stale: bool, h100: Node, nvml: Any) -> None:
    """libcudacxx#224 (2021): another process deletes 1 of 3, HandleByIndex still gives 3."""
    h100.surprise("stale-mig-handles", stale)
    nvml(h100)
    device = enabled()
    for _ in range(3):
        full(device, 19, 0)

    def seen() -> int:
        count = 0
        for index in range(7):
            try:
                pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index)
            except pynvml.NVMLError_NotFound:
                continue
            count += 1
        return count

    assert seen() == 3
    h100.python(
        "from pynvml import *; nvmlInit(); d = nvmlDeviceGetHandleByIndex(0);"
        "g = nvmlDeviceGetGpuInstanceById(d, 7);"
        "nvmlComputeInstanceDestroy(nvmlGpuInstanceGetComputeInstanceById(g, 0));"
        "nvmlGpuInstanceDestroy(g)"
    )
    assert seen() == (3 if stale else 2)
    pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    assert seen() == 2


def test_the_maximum_of_mig_devices_is_not_their_number(h100: Node, nvml: Any) -> None:
    """nvml.h, go-nvml#60: 0 with MIG off, 7 with none there."""
    nvml(h100)
    assert [pynvml.nvmlDeviceGetMaxMigDeviceCount(one) for one in (enabled(), gpu(1))] == [7, 0]


def test_a_uuid_of_two_layouts(h100: Node, nvml: Any) -> None:
    """mig-ug: a 3g and later a 1c.3g in that instance have one UUID; DRA: ciInfo.device has it."""
    nvml(h100)
    found = []
    for inner in (2, 0):
        instance, made = full(enabled(), 9, inner)
        device = pynvml.nvmlComputeInstanceGetInfo(made).device
        found.append(pynvml.nvmlDeviceGetUUID(device))
        pynvml.nvmlComputeInstanceDestroy(made)
        pynvml.nvmlGpuInstanceDestroy(instance)
    assert len(set(found)) == 1
