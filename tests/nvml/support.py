"""What the worker tests share: a client for the time of a block, and GPUs as they truly are."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from migd.core.model import Gpu, Mode, Placement
from migd.nvml.client import Limits, NvmlClient
from tests.support import boards

H100, A100, A30 = "h100-80gb-sxm5", "a100-40gb", "a30-24gb"

# Fills each GPU: of each profile as many as still fit, with the compute instances that argv names.
FILL = """
import sys, pynvml as n
n.nvmlInit()
for index in range(n.nvmlDeviceGetCount()):
    device = n.nvmlDeviceGetHandleByIndex(index)
    n.nvmlDeviceSetMigMode(device, 1)
    for profile in map(int, sys.argv[1].split(",")):
        try:
            instance = n.nvmlDeviceCreateGpuInstance(device, profile)
        except n.NVMLError:
            continue
        for compute in map(int, sys.argv[2].split(",")):
            try:
                n.nvmlGpuInstanceCreateComputeInstance(instance, compute)
            except n.NVMLError:
                pass
"""
# Destroys GPU instance argv[2] of GPU argv[1] with its compute instance, and creates another.
REPLACE = """
import sys, ctypes, pynvml as n
gpu, gi, profile, start, size = map(int, sys.argv[1:])
n.nvmlInit()
device = n.nvmlDeviceGetHandleByIndex(gpu)
old = n.nvmlDeviceGetGpuInstanceById(device, gi)
n.nvmlComputeInstanceDestroy(n.nvmlGpuInstanceGetComputeInstanceById(old, 0))
n.nvmlGpuInstanceDestroy(old)
place = n.c_nvmlGpuInstancePlacement_t(start, size)
new = n.nvmlDeviceCreateGpuInstanceWithPlacement(device, profile, ctypes.byref(place))
n.nvmlGpuInstanceCreateComputeInstance(new, 0)
"""


def children() -> set[int]:
    """Processes that this one has started and that are not reaped."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread has ended meanwhile
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


@asynccontextmanager
async def nvml(lock: Path, **limits: Any) -> AsyncIterator[NvmlClient]:
    """A client; its workers stay until the end of the block unless idle_s is given."""
    made = NvmlClient(lock, Limits(**{"idle_s": 60.0, "retry_s": 1, **limits}))
    try:
        yield made
    finally:
        await made.close()


def is_true(gpu: Gpu, truth: dict[str, Any]) -> None:
    """Whether a snapshot is what the node's state says."""
    board = truth["board"]
    model = boards.catalogue()[board]
    assert (gpu.index, gpu.uuid, gpu.name) == (truth["index"], truth["uuid"], truth["name"])
    assert gpu.pci_address == truth["pci"][4:].lower()
    assert gpu.device_id == int(truth["pci_device_id"], 16)
    assert gpu.subsystem_id == int(truth["pci_subsystem_id"], 16)
    assert gpu.mode == Mode(truth["mode"]["current"])
    assert gpu.pending == Mode(truth["mode"]["pending"])
    assert gpu.resetless == (not model["mig_mode"]["enable_needs_gpu_reset"])
    if model.get("nvml_total_memory_mib"):
        assert gpu.memory_mib == model["nvml_total_memory_mib"]
    assert sorted(gpu.profiles, key=lambda p: p.id) == sorted(
        boards.profiles(board), key=lambda p: p.id
    )
    assert {i.id: i for i in gpu.instances}.keys() == {i["gi"] for i in truth["instances"]}
    for there in truth["instances"]:
        (found,) = (i for i in gpu.instances if i.id == there["gi"])
        offered, default = boards.compute_profiles(board, there["profile_id"])
        assert found.profile_id == there["profile_id"]
        assert gpu.profile_name(found.profile_id) == there["profile"]
        assert found.placement == Placement(**there["placement"])
        assert sorted(found.compute_profiles, key=lambda c: c.id) == sorted(
            offered, key=lambda c: c.id
        )
        assert found.default_compute == default
        assert [
            (c.id, c.profile_id, c.placement, c.uuid)
            for c in sorted(found.compute, key=lambda c: c.id)
        ] == [
            (c["ci"], c["profile_id"], Placement(**c["placement"]), c["uuid"])
            for c in sorted(there["compute_instances"], key=lambda c: c["ci"])
        ]
