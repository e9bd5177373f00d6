# SPDX-License-Identifier: Apache-2.0
"""What callers without privilege may ask, and what they may not do."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.nvml_help import create, enabled
from tests.support.node import Node

NOBODY = 65534

# Prints a line a call: its name and the return code.
ASK = """
import ctypes, os, sys
from pynvml import *
uid = int(sys.argv[1])
if uid:
    os.setgroups([]), os.setgid(uid), os.setuid(uid)
nvmlInit()
d = nvmlDeviceGetHandleByIndex(0)
n = ctypes.c_uint()
array = (c_nvmlGpuInstance_t * 8)()
def ask(name, *arguments):
    try:
        globals()[name](*arguments)
    except NVMLError as error:
        print(name, error.value)
    else:
        print(name, 0)
ask("nvmlDeviceGetMigMode", d)
ask("nvmlDeviceGetName", d)
ask("nvmlDeviceGetGpuInstanceProfileInfo", d, 0)
ask("nvmlDeviceGetMaxMigDeviceCount", d)
ask("nvmlDeviceGetMigDeviceHandleByIndex", d, 0)
mig = nvmlDeviceGetMigDeviceHandleByIndex(d, 0)
ask("nvmlDeviceGetUUID", mig)
ask("nvmlDeviceGetComputeRunningProcesses", mig)
print("--")
ask("nvmlDeviceGetComputeRunningProcesses", d)
ask("nvmlDeviceGetGpuInstances", d, 9, array, ctypes.byref(n))
ask("nvmlDeviceGetGpuInstanceById", d, 1)
ask("nvmlDeviceGetGpuInstancePossiblePlacements", d, 9, None, ctypes.byref(n))
ask("nvmlDeviceGetGpuInstanceRemainingCapacity", d, 9)
ask("nvmlDeviceCreateGpuInstance", d, 9)
ask("nvmlDeviceSetMigMode", d, 1)
"""


def answers(node: Node, uid: int) -> tuple[list[str], list[str]]:
    free, restricted = node.python(ASK, str(uid)).split("--\n")
    return (
        [line.split()[1] for line in free.splitlines()],
        [line.split()[1] for line in restricted.splitlines()],
    )


@pytest.fixture
def node(nvml: Any) -> Iterator[Node]:
    """In a folder that others can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        node = Node.new(Path(folder) / "node", ("h100-80gb-sxm5", 1))
        api = nvml(node)
        api.nvmlGpuInstanceCreateComputeInstance(create(enabled(), 9), 2)
        api.nvmlShutdown()
        yield node


def test_the_owner_of_the_node_is_privileged(node: Node) -> None:
    free, restricted = answers(node, 0)
    assert set(free) == {"0"}
    assert set(restricted) == {"0"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_others_may_look_and_not_touch(node: Node) -> None:
    free, restricted = answers(node, NOBODY)
    assert set(free) == {"0"}
    assert set(restricted) == {"4"}
    assert len(node.layout(0)) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_node_of_an_ordinary_user_works_for_its_owner(node: Node) -> None:
    os.chown(node.path / "state", NOBODY, NOBODY)
    assert set(answers(node, NOBODY)[1]) == {"0"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the capability to lose")
def test_root_without_the_capability(node: Node) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv of util-linux is not there to drop a capability")
    node.surprise("sys-admin-needed")
    script = (
        "from pynvml import *; nvmlInit();nvmlDeviceSetMigMode(nvmlDeviceGetHandleByIndex(0), 1)"
    )
    assert node.run(sys.executable, "-c", script, check=False).returncode == 0
    bare = node.run(
        "setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", script, check=False
    )
    assert "NVMLError_NoPermission" in bare.stderr
