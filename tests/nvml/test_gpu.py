"""The same reading on the GPUs of this host. It changes nothing, and needs no MIG to be on."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from migd.core.model import Gpu, Mode
from migd.core.profiles import ProfileName
from migd.nvml.client import Observation
from tests.nvml.support import children, nvml
from tests.support.bus import run
from tests.support.node import wait_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not Path("/dev/nvidiactl").exists(), reason="no NVIDIA driver here: no /dev/nvidiactl"
    ),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    lock = tmp_path_factory.mktemp("gpu") / "worker.lock"
    before = children()

    async def main() -> Observation:
        async with nvml(lock) as client:
            return await client.observe()

    found = run(main(), timeout_s=120)
    wait_for(lambda: children() <= before)
    return found


def smi(query: str) -> list[list[str]]:
    """What NVIDIA's own tool says, a row for each GPU."""
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def test_driver_and_gpus(seen: Observation) -> None:
    assert seen.gpus
    assert not seen.troubled
    rows = smi("index,uuid,name,pci.bus_id,driver_version,memory.total")
    assert len(rows) == len(seen.gpus)
    for gpu, (index, uuid, name, pci, driver, memory) in zip(seen.gpus, rows, strict=True):
        assert (gpu.index, gpu.uuid, gpu.name) == (int(index), uuid, name)
        assert gpu.pci_address == pci.lower()[4:]
        assert seen.driver == driver
        assert gpu.memory_mib == pytest.approx(int(memory), rel=0.02)


def test_ids_are_those_of_the_pci_device(seen: Observation) -> None:
    for gpu in seen.gpus:
        folder = Path("/sys/bus/pci/devices") / gpu.pci_address
        if not folder.exists():
            pytest.skip(f"{folder} is not to be seen from here")
        device, vendor = ((folder / n).read_text() for n in ("device", "vendor"))
        assert gpu.device_id == int(device, 16) << 16 | int(vendor, 16)


def test_mode(seen: Observation) -> None:
    said = {"Enabled": Mode.ENABLED, "Disabled": Mode.DISABLED, "[N/A]": Mode.UNSUPPORTED}
    rows = smi("mig.mode.current,mig.mode.pending")
    for gpu, (current, pending) in zip(seen.gpus, rows, strict=True):
        assert (gpu.mode, gpu.pending) == (said[current], said[pending])


def capable(seen: Observation) -> list[Gpu]:
    found = [g for g in seen.gpus if g.mode is not Mode.UNSUPPORTED]
    if not found:
        pytest.skip("no GPU of this host has MIG")
    return found


def test_profiles(seen: Observation) -> None:
    for gpu in capable(seen):
        assert gpu.profiles
        assert len({p.id for p in gpu.profiles}) == len(gpu.profiles)
        for profile in gpu.profiles:
            name = ProfileName.parse(profile.name)
            assert name.slices == profile.slices
            assert profile.instances > 0
            assert profile.multiprocessors > 0
            assert profile.placements
            assert len({p.size for p in profile.placements}) == 1


def test_profiles_are_those_of_nvidia_smi(seen: Observation) -> None:
    for gpu in capable(seen):
        done = subprocess.run(
            ["nvidia-smi", "mig", "-lgip", "-i", str(gpu.index)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if gpu.mode is not Mode.ENABLED or done.returncode != 0:
            continue
        for profile in gpu.profiles:
            assert f"MIG {profile.name} " in done.stdout


def test_instances(seen: Observation) -> None:
    for gpu in capable(seen):
        spots = {(p.id, s) for p in gpu.profiles for s in p.placements}
        for instance in gpu.instances:
            assert (instance.profile_id, instance.placement) in spots
            assert instance.default_compute in {c.id for c in instance.compute_profiles}
            for compute in instance.compute:
                assert compute.uuid.startswith("MIG-")
        masks = [i.placement.mask for i in gpu.instances]
        assert sum(masks) == _union(masks)


def _union(masks: list[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def test_processes_are_there(seen: Observation) -> None:
    for gpu in seen.gpus:
        for process in gpu.processes:
            assert process.pid > 0
            assert (process.gi is None) or gpu.mode is Mode.ENABLED


def test_no_session_is_left(seen: Observation, lock: Path) -> None:
    """Also: two looks side by side, and this process never opens the driver."""

    async def main() -> None:
        async with nvml(lock) as client:
            first, second = await asyncio.gather(client.observe(), client.observe())
            assert [g.uuid for g in first.gpus] == [g.uuid for g in second.gpus]
            assert [g.uuid for g in first.gpus] == [g.uuid for g in seen.gpus]

    run(main(), timeout_s=120)
    opened = {os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}
    assert not any(o.startswith("/dev/nvidia") for o in opened)
    assert "libnvidia-ml" not in Path("/proc/self/maps").read_text()
