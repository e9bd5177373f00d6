# SPDX-License-Identifier: Apache-2.0
"""Several processes on one node: what they share, what they pin, and what a kill leaves."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from migd.simulator.errors import SimulatorError
from tests.simulator.conftest import MakeNode
from tests.simulator.nvml_help import (
    DRIVER_NOT_LOADED,
    LIB_RM_VERSION_MISMATCH,
    create,
    enabled,
    instances,
    refused,
)
from tests.support.node import Node, wait_for

OPEN = """
import sys, pynvml
pynvml.nvmlInit()
print("open", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


@contextmanager
def python(node: Node, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=node.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_what_one_process_makes_another_sees(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    create(device, 9)
    out = h100.python(
        "from pynvml import *; nvmlInit(); d = nvmlDeviceGetHandleByIndex(0);"
        "g = nvmlDeviceGetGpuInstanceById(d, 1);"
        "print(nvmlGpuInstanceGetInfo(g).profileId); nvmlGpuInstanceDestroy(g)"
    )
    assert out == "9\n"
    assert instances(device, 9) == []
    assert api.nvmlDeviceGetMigMode(device) == [1, 1]


def test_sessions_are_counted_and_listed(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    api.nvmlInit()
    assert h100.show()["sessions"] == [os.getpid()]
    api.nvmlShutdown()
    assert h100.show()["sessions"] == [os.getpid()]
    api.nvmlShutdown()
    assert h100.show()["sessions"] == []
    with refused(api.NVML_ERROR_UNINITIALIZED):
        api.nvmlShutdown()
    with refused(api.NVML_ERROR_UNINITIALIZED):
        api.nvmlDeviceGetCount()


def test_a_killed_process_has_no_session(h100: Node) -> None:
    with python(h100, OPEN) as process:
        assert h100.show()["sessions"] == [process.pid]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert h100.show()["sessions"] == []


def test_a_session_ends_with_exec(h100: Node) -> None:
    with python(h100, OPEN) as process:
        assert process.stdin is not None
        process.stdin.write("import os; os.execvp('sleep', ['sleep', 'infinity'])\n")
        process.stdin.flush()
        wait_for(lambda: h100.show()["sessions"] == [])
        assert process.poll() is None


def test_unload_and_load(h100: Node, a100: Node, nvml: Any) -> None:
    for node, kept in ((h100, "disabled"), (a100, "enabled")):
        api = nvml(node)
        create(enabled(), 9)
        with pytest.raises(SimulatorError, match=f"in use by {os.getpid()}"):
            node.unload()
        api.nvmlShutdown()
        with node.hold(1) as holder, pytest.raises(SimulatorError, match=str(holder.pid)):
            node.unload()
        node.unload()
        before = node.calls()["nvmlInitWithFlags"]
        with refused(DRIVER_NOT_LOADED):
            api.nvmlInit()
        assert node.calls()["nvmlInitWithFlags"] == before + 1
        assert node.log()[-1].result == "DRIVER_NOT_LOADED"
        with pytest.raises(SimulatorError, match="not loaded"):
            node.unload()
        with pytest.raises(SimulatorError, match="not loaded"):
            node.simulated.hold(0)
        node.load()
        with pytest.raises(SimulatorError, match="already loaded"):
            node.load()
        api.nvmlInit()
        assert node.gpus()[0]["mode"]["current"] == kept
        assert node.layout(0) == []


def test_a_reset_takes_the_instances_and_is_refused_while_anybody_is_there(
    h100: Node, nvml: Any
) -> None:
    api = nvml(h100)
    create(enabled(0), 9)
    create(enabled(1), 9)
    with pytest.raises(SimulatorError, match=f"in use by {os.getpid()}"):
        h100.reset(0)
    api.nvmlShutdown()
    with h100.hold(0, 1), pytest.raises(SimulatorError, match="in use by"):
        h100.reset(0)
    with h100.hold(1, 1):
        h100.reset(0)
    assert [h100.layout(index) for index in (0, 1)] == [[], [(9, 4, [])]]
    with pytest.raises(SimulatorError, match="no GPU 2"):
        h100.reset(2)


def test_a_library_that_was_replaced_under_a_loaded_module(h100: Node) -> None:
    version = "import pynvml as p; p.nvmlInit(); print(p.nvmlSystemGetDriverVersion())"
    assert h100.python(version) == "580.105.08\n"
    with python(h100, OPEN) as old:
        h100.upgrade("590.10.01")
        done = h100.run(sys.executable, "-c", version, check=False)
        assert "NVMLError_LibRmVersionMismatch" in done.stderr
        tell(old, "assert pynvml.nvmlSystemGetDriverVersion() == '580.105.08'")
        tell(old, "pynvml.nvmlShutdown()")
        h100.unload()
        h100.load()
        assert h100.show()["driver"] == {"loaded": True, "version": "590.10.01"}
        assert h100.python(version) == "590.10.01\n"
        tell(
            old,
            "exec('try: pynvml.nvmlInit()\\nexcept pynvml.NVMLError as e: "
            f"assert e.value == {LIB_RM_VERSION_MISMATCH}\\nelse: raise SystemExit(1)')",
        )


def test_without_a_state_the_driver_is_not_loaded(h100: Node, tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import pynvml; pynvml.nvmlInit()"],
        env={**h100.environment(), "NVIDIA_SIMULATOR_STATE": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "NVMLError_DriverNotLoaded" in done.stderr


def test_the_state_can_be_named(make_node: MakeNode) -> None:
    library, state = make_node(("h100-80gb-sxm5", 1)), make_node(("a30-24gb", 3))
    done = subprocess.run(
        [sys.executable, "-c", "import pynvml as p; p.nvmlInit(); print(p.nvmlDeviceGetCount())"],
        env={**library.environment(), "NVIDIA_SIMULATOR_STATE": str(state.path / "state")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3\n"
