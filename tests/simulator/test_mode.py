# SPDX-License-Identifier: Apache-2.0
"""MIG mode: what a set call returns, what it changes, and what outlives what."""

import subprocess
import sys
from typing import Any

import pytest

from migd.simulator.errors import SimulatorError
from tests.simulator.nvml_help import (
    GPU_IS_LOST,
    IN_USE,
    INVALID_ARGUMENT,
    NOT_SUPPORTED,
    RESET_REQUIRED,
    create,
    enabled,
    gpu,
    refused,
)
from tests.support.node import Node, wait_for

SESSION = """
import sys, pynvml
pynvml.nvmlInit()
print("open", flush=True)
sys.stdin.read()
"""


def modes(node: Node, index: int = 0) -> tuple[str, str]:
    mode = node.gpus()[index]["mode"]
    return mode["current"], mode["pending"]


def test_hopper_switches_at_once_also_while_in_use(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    with h100.hold(0):
        assert api.nvmlDeviceSetMigMode(gpu(), 1) == 0
    assert modes(h100) == ("enabled", "enabled")
    assert modes(h100, 1) == ("disabled", "disabled")


def test_ampere_resets_by_itself_when_nobody_is_there(a100: Node, nvml: Any) -> None:
    api = nvml(a100)
    assert api.nvmlDeviceSetMigMode(gpu(), 1) == 0
    assert modes(a100) == ("enabled", "enabled")


@pytest.mark.parametrize("hidden", [False, True])
def test_ampere_stays_pending_while_held(hidden: bool, a100: Node, nvml: Any) -> None:
    api = nvml(a100)
    with a100.hold(0, hidden=hidden):
        assert api.nvmlDeviceSetMigMode(gpu(), 1) == IN_USE
        assert modes(a100) == ("disabled", "enabled")
        assert api.nvmlDeviceGetMigMode(gpu()) == [0, 1]
        assert api.nvmlDeviceSetMigMode(gpu(1), 1) == 0  # the other GPU is free
        api.nvmlShutdown()
        with pytest.raises(SimulatorError, match=r"in use by [0-9]+$"):
            a100.reset(0)
    a100.reset(0)
    assert modes(a100) == ("enabled", "enabled")


def test_any_other_session_blocks_an_ampere_reset(a100: Node, nvml: Any) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SESSION],
        env=a100.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        api = nvml(a100)
        assert api.nvmlDeviceSetMigMode(gpu(), 1) == IN_USE
        other.kill()
    wait_for(lambda: other.pid not in a100.show()["sessions"])
    assert api.nvmlDeviceSetMigMode(gpu(), 1) == 0
    assert modes(a100) == ("enabled", "enabled")


@pytest.mark.parametrize(
    ("switch", "status"),
    [("no-own-reset", IN_USE), ("reset-needs-peers", 16), ("drm-holds", IN_USE)],
)
def test_the_driver_does_not_reset_by_itself(
    switch: str, status: int, a100: Node, nvml: Any
) -> None:
    api = nvml(a100)
    a100.surprise(switch)
    assert api.nvmlDeviceSetMigMode(gpu(), 1) == status
    assert modes(a100) == ("disabled", "enabled")
    api.nvmlShutdown()
    if switch == "drm-holds":
        with pytest.raises(SimulatorError, match="in use by nobody"):
            a100.reset(0)
        a100.surprise(switch, False)
    a100.reset(0)
    assert modes(a100) == ("enabled", "enabled")


def test_setting_the_current_mode_back_clears_the_pending_one(a100: Node, nvml: Any) -> None:
    api = nvml(a100)
    with a100.hold(0):
        api.nvmlDeviceSetMigMode(gpu(), 1)
        assert api.nvmlDeviceSetMigMode(gpu(), 0) == 0
        assert modes(a100) == ("disabled", "disabled")


def test_pending_can_stick(a100: Node, nvml: Any) -> None:
    a100.surprise("pending-sticks")
    api = nvml(a100)
    with a100.hold(0):
        api.nvmlDeviceSetMigMode(gpu(), 1)
        assert api.nvmlDeviceSetMigMode(gpu(), 0) == IN_USE
        assert modes(a100) == ("disabled", "enabled")


@pytest.mark.parametrize("fixture", ["h100", "a100"])
def test_disabling_with_instances_is_refused(
    fixture: str, request: pytest.FixtureRequest, nvml: Any
) -> None:
    node: Node = request.getfixturevalue(fixture)
    api = nvml(node)
    device = enabled()
    instance = create(device, 9)
    with refused(IN_USE):
        api.nvmlDeviceSetMigMode(device, 0)
    assert modes(node) == ("enabled", "enabled")
    api.nvmlGpuInstanceDestroy(instance)
    assert api.nvmlDeviceSetMigMode(device, 0) == 0
    assert modes(node) == ("disabled", "disabled")


def test_reboot(h100: Node, a100: Node, nvml: Any) -> None:
    for node, kept in ((h100, "disabled"), (a100, "enabled")):
        api = nvml(node)
        create(enabled(), 9)
        node.reboot()
        assert modes(node) == (kept, kept)
        assert node.layout(0) == []
        assert node.show()["boot"] == 2
        assert node.show()["sessions"] == []
        with refused(GPU_IS_LOST):
            api.nvmlDeviceGetMigMode(gpu())


def test_a_reboot_brings_the_pending_mode_on_ampere(a100: Node, nvml: Any) -> None:
    api = nvml(a100)
    with a100.hold(0) as holder:
        api.nvmlDeviceSetMigMode(gpu(), 1)
        a100.reboot()
        assert modes(a100) == ("enabled", "enabled")
        assert holder.pid not in [row["pid"] for row in a100.gpus()[0]["holders"]]


@pytest.mark.parametrize(
    ("switch", "status"), [("passthrough", NOT_SUPPORTED), ("passthrough-asks-reset", 16)]
)
def test_passed_through_to_a_virtual_machine(
    switch: str, status: int, a100: Node, nvml: Any
) -> None:
    assert RESET_REQUIRED == 16
    a100.surprise(switch, gpu=0)
    api = nvml(a100)
    assert api.nvmlDeviceSetMigMode(gpu(), 1) == status
    assert modes(a100) == ("disabled", "enabled")
    api.nvmlShutdown()
    with pytest.raises(SimulatorError, match="not supported"):
        a100.reset(0)
    a100.reboot()
    assert modes(a100) == ("enabled", "enabled")


def test_bad_arguments(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    with refused(INVALID_ARGUMENT):
        api.nvmlDeviceSetMigMode(gpu(), 2)
    with refused(INVALID_ARGUMENT):
        api.nvmlDeviceGetMigMode(None)
    with refused(INVALID_ARGUMENT):
        api.nvmlDeviceGetHandleByIndex(2)


def test_the_minor_number_can_change_with_a_reset(a100: Node, nvml: Any) -> None:
    a100.surprise("minor-changes-after-reset", gpu=0)
    api = nvml(a100)
    device = enabled()
    assert api.nvmlDeviceGetMinorNumber(device) == 2
    assert [row["minor"] for row in a100.gpus()] == [2, 1]
