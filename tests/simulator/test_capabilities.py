# SPDX-License-Identifier: Apache-2.0
"""The files of MIG capabilities beside the library: those of the instances that there are."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.simulator.nvml_help import create, enabled, gpu, instances
from tests.support.node import Node

MakeNode = Callable[..., Node]


def tree(node: Node) -> set[str]:
    """What is there below capabilities, config and monitor of MIG aside."""
    root = node.path / "view/driver/nvidia/capabilities"
    found = {str(path.relative_to(root)) for path in root.glob("gpu*/**/access")}
    folders = {str(path.relative_to(root)) for path in root.glob("gpu*/**/[gc]i*")}
    assert folders == {os.path.dirname(name) for name in found}  # noqa: PTH120 - names, no paths
    return found


def true_tree(node: Node) -> set[str]:
    found = set()
    for row in node.gpus():
        for gi in row["instances"]:
            base = f"gpu{row['minor']}/mig/gi{gi['gi']}"
            found.add(f"{base}/access")
            found |= {f"{base}/ci{ci['ci']}/access" for ci in gi["compute_instances"]}
    return found


def test_follows_instances(h100: Node, nvml: Any) -> None:
    """While another process looks: at once, at each step, with the driver's text."""
    api = nvml(h100)
    assert tree(h100) == set()
    instance = create(enabled(1), 9)
    assert tree(h100) == {"gpu1/mig/gi1/access"}
    first = api.nvmlGpuInstanceCreateComputeInstance(instance, 0)
    second = api.nvmlGpuInstanceCreateComputeInstance(instance, 0)
    whole = {f"gpu1/mig/gi1/{name}access" for name in ("", "ci0/", "ci1/")}
    assert tree(h100) == whole == true_tree(h100)
    file = h100.path / "view/driver/nvidia/capabilities/gpu1/mig/gi1/ci1/access"
    # nv-caps.c: 3 + 135 * 1 + 9 * 1, and 1 + 1 for the second compute instance.
    text = "DeviceFileMinor: 149\nDeviceFileMode: 292\nDeviceFileModify: 1\n"
    assert file.read_text() == text
    assert file.stat().st_mode & 0o777 == 0o444
    api.nvmlComputeInstanceDestroy(first)
    assert tree(h100) == whole - {"gpu1/mig/gi1/ci0/access"}
    api.nvmlComputeInstanceDestroy(second)
    api.nvmlGpuInstanceDestroy(instance)
    assert tree(h100) == set()
    assert [path.name for path in file.parents[4].iterdir()] == ["mig"]


def end_by_disable(node: Node, api: Any) -> None:
    for row in instances(gpu(), 19):
        api.nvmlGpuInstanceDestroy(row)
    api.nvmlDeviceSetMigMode(gpu(), 0)
    api.nvmlShutdown()


def end_by_reset(node: Node, api: Any) -> None:
    api.nvmlShutdown()
    node.reset(0)


def end_by_reboot(node: Node, api: Any) -> None:
    node.reboot()


def end_by_unload(node: Node, api: Any) -> None:
    api.nvmlShutdown()
    node.unload()
    assert list((node.path / "view/driver").iterdir()) == []
    node.load()


@pytest.mark.parametrize("end", [end_by_disable, end_by_reset, end_by_reboot, end_by_unload])
@pytest.mark.parametrize("board", ["h100-80gb-sxm5", "a100-40gb"])
def test_ends_with_the_instances(
    board: str, end: Callable[[Node, Any], None], make_node: MakeNode, nvml: Any
) -> None:
    node = make_node((board, 2))
    api = nvml(node)
    device = enabled()
    for _ in range(2):
        create(device, 19)
    assert len(tree(node)) == 2
    end(node, api)
    assert tree(node) == true_tree(node) == set()
    assert (node.path / "view/driver/nvidia/version").exists()


def test_follows_the_minor_number(h100: Node, nvml: Any) -> None:
    h100.surprise("minor-changes-after-reset", gpu=0)
    api = nvml(h100)
    create(enabled(), 9)
    api.nvmlShutdown()
    h100.reset(0)
    nvml(h100)
    create(gpu(), 9)
    assert h100.gpus()[0]["minor"] == 2
    assert tree(h100) == true_tree(h100) == {"gpu2/mig/gi1/access"}


def test_destroyed_and_still_visible(h100: Node, nvml: Any) -> None:
    h100.surprise("destroyed-stay-visible", 2)
    api = nvml(h100)
    api.nvmlGpuInstanceDestroy(create(enabled(), 9))
    assert len(instances(gpu(), 9)) == 1
    assert tree(h100) == {"gpu0/mig/gi1/access"}
    assert instances(gpu(), 9) == []
    assert tree(h100) == set()


@pytest.mark.parametrize("call", ["nvmlDeviceCreateGpuInstance", "nvmlGpuInstanceDestroy"])
def test_killed_right_after(call: str, h100: Node) -> None:
    """A change whose process never came back from it."""
    h100.fault(call, die_after=True)
    script = (
        "import pynvml as n; n.nvmlInit(); gpu = n.nvmlDeviceGetHandleByIndex(0);"
        "n.nvmlDeviceSetMigMode(gpu, 1); made = n.nvmlDeviceCreateGpuInstance(gpu, 9);"
        "n.nvmlGpuInstanceDestroy(made)"
    )
    h100.python(script, check=False)
    left = {"gpu0/mig/gi1/access"} if "Create" in call else set()
    assert tree(h100) == left == true_tree(h100)


def test_what_cannot_be_written_is_no_error(h100: Node, nvml: Any) -> None:
    """And is made up for by the next who can."""
    view = h100.path / "view"
    away = view.rename(h100.path / "away")
    api = nvml(h100)
    instance = create(enabled(), 9)
    api.nvmlGpuInstanceCreateComputeInstance(instance, 2)
    assert len(h100.layout(0)) == 1
    away.rename(view)
    assert true_tree(h100) == tree(h100) == {f"gpu0/mig/gi1/{n}access" for n in ("", "ci0/")}


def test_what_was_there_stays_over_a_refresh(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    create(enabled(1), 9)
    file = h100.path / "view/driver/nvidia/capabilities/gpu1/mig/gi1/access"
    inode = file.stat().st_ino
    api.nvmlShutdown()
    h100.reset(0)
    assert file.stat().st_ino == inode
    assert tree(h100) == true_tree(h100)


def test_view_holds_no_leftovers(h100: Node, nvml: Any) -> None:
    nvml(h100)
    create(enabled(), 9)
    assert sorted(path.name for path in (h100.path / "view").iterdir()) == [
        "driver",
        "modules",
        "pci",
    ]
