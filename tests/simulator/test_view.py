# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's programs see beside the library when they run on a node as root."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from migd.simulator.node import python_command
from tests.simulator.nvml_help import create, enabled
from tests.support.node import Node


def run(node: Node, *command: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    words = [*python_command(), "run", str(node.path), *flags, "--", *command]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture
def viewed(h100: Node) -> Node:
    if os.geteuid() != 0:
        pytest.skip("a mount namespace of one's own needs root")
    if run(h100, "true").stderr:
        pytest.skip("this kernel or container refuses a mount namespace")
    return h100


def test_pci_devices(viewed: Node) -> None:
    root = Path("/sys/bus/pci/devices")
    if not root.exists():
        pytest.skip("this kernel has no PCI")
    before = sorted(root.iterdir())
    assert run(viewed, "ls", str(root)).stdout.split() == ["0000:1b:00.0", "0000:43:00.0"]
    fields = ("vendor", "device", "class", "numa_node")
    paths = [f"{root}/0000:1b:00.0/{field}" for field in fields]
    assert run(viewed, "cat", *paths).stdout.split() == ["0x10de", "0x2330", "0x030200", "-1"]
    assert sorted(root.iterdir()) == before  # nobody else sees it


def test_proc_follows_the_driver(viewed: Node) -> None:
    information = "/proc/driver/nvidia/gpus/0000:43:00.0/information"
    out = run(viewed, "cat", "/proc/driver/nvidia/version", information).stdout
    assert "580.105.08" in out
    assert viewed.gpus()[1]["uuid"] in out
    flags = () if Path("/proc/modules").exists() else ("--thin-proc",)
    minors = run(viewed, "cat", "/proc/driver/nvidia-caps/mig-minors").stdout
    assert minors.startswith("config 1\nmonitor 2\ngpu0/gi0/access 3\n")
    modules = run(viewed, "cat", "/proc/modules", flags=flags).stdout
    assert "\nnvidia " in f"\n{modules}"
    viewed.unload()
    assert "nvidia" not in run(viewed, "cat", "/proc/modules", flags=flags).stdout
    assert run(viewed, "ls", "/proc/driver").stdout.split() == []
    viewed.load("590.10.01")
    assert "590.10.01" in run(viewed, "cat", "/proc/driver/nvidia/version").stdout


def test_nvidia_smi_lists(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    api.nvmlGpuInstanceCreateComputeInstance(create(enabled(), 9), 2)
    out = h100.run("nvidia-smi", "-L").stdout.splitlines()
    uuid = h100.gpus()[0]["instances"][0]["compute_instances"][0]["uuid"]
    assert out[0] == f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {h100.gpus()[0]['uuid']})"
    assert out[1] == f"  MIG 3g.40gb         Device  0: (UUID: {uuid})"
    assert len(out) == 3


@pytest.mark.parametrize("name", ["0000:1b:00.0", "0", "00000000:1B:00.0"])
def test_nvidia_smi_resets(name: str, h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    create(enabled(), 9)
    create(enabled(1), 9)
    refused = h100.run("nvidia-smi", "-r", "-i", name, check=False)
    assert refused.returncode == 255
    assert "  GPU 00000000:1B:00.0: In use by another client" in refused.stdout
    api.nvmlShutdown()
    done = h100.run("nvidia-smi", "--gpu-reset", "-i", name)
    assert "GPU 00000000:1B:00.0 was successfully reset." in done.stdout
    assert [len(h100.layout(index)) for index in (0, 1)] == [0, 1]


def test_nvidia_smi_resets_nothing_where_drm_holds(h100: Node) -> None:
    h100.surprise("drm-holds")
    done = h100.run("nvidia-smi", "-r", check=False)
    assert done.returncode == 255
    assert "2 devices are currently being used" in done.stdout


def test_nvidia_smi_wants_peers(tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", ("a100-40gb", 4))
    for index, group in enumerate((7, 7, 7, 8)):
        node.surprise("reset-needs-peers", group, gpu=index)
    addresses = [gpu["pci"] for gpu in node.gpus()]
    done = node.run("nvidia-smi", "-r", "-i", "1", check=False)
    assert done.returncode == 255
    assert f"{addresses[0]}, {addresses[2]}\n" in done.stdout
    assert addresses[3] not in done.stdout
    assert node.run("nvidia-smi", "-r", "-i", "3").returncode == 0
    assert node.run("nvidia-smi", "-r", "-i", "1,0,2").stdout.count("successfully") == 3


def test_nvidia_smi_without_a_driver(h100: Node) -> None:
    h100.unload()
    done = h100.run("nvidia-smi", "-L", check=False)
    assert done.returncode == 1
    assert "couldn't communicate with the NVIDIA driver" in done.stdout
    assert h100.run("nvidia-smi", "-r", "-i", "9", check=False).returncode == 1
