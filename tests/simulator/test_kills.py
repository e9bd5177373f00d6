# SPDX-License-Identifier: Apache-2.0
"""Processes killed at any moment of a call leave a sound state and no lock.

SIMULATOR_KILLS=2000 pytest tests/simulator/test_kills.py kills that often instead of a little.
"""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from migd.simulator import boards, build
from tests.simulator.nvml_help import capacity, create, enabled
from tests.support.node import Node, wait_for

KILLS = int(os.environ.get("SIMULATOR_KILLS", "40"))
PROCESSES = 3
BOARD = "h100-80gb-sxm5"
PROFILES = {row["id"]: row for row in boards.board(BOARD).profiles}
ENGINES = ("copy_engines", "decoders", "encoders", "jpeg", "ofa")


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("busy") / "busy"
    source = Path(__file__).with_name("busy.c")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([build.compiler(), *flags, source, "-o", program, "-ldl"], check=True)
    return program


class Crowd:
    def __init__(self, program: Path, node: Node, random: Random) -> None:
        self._program, self._node, self._random = program, node, random
        self._running: list[subprocess.Popen[str]] = []
        self._started = 0

    def fill(self) -> None:
        while len(self._running) < PROCESSES:
            self._started += 1
            command = [str(self._program), str(self._node.library), str(self._started)]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            self._running.append(process)

    def kill_one(self) -> None:
        victim = self._running.pop(self._random.randrange(len(self._running)))
        victim.send_signal(signal.SIGKILL)
        _, errors = victim.communicate()
        assert (victim.returncode, errors) == (-signal.SIGKILL, "")

    def kill_all(self) -> None:
        while self._running:
            self.kill_one()


@contextmanager
def crowd(program: Path, node: Node, random: Random) -> Iterator[Crowd]:
    busy = Crowd(program, node, random)
    try:
        yield busy
    finally:
        busy.kill_all()


def spans(rows: list[dict[str, Any]]) -> list[int]:
    places = [row["placement"] for row in rows]
    return [at for place in places for at in range(place["start"], place["start"] + place["size"])]


def sound_instance(instance: dict[str, Any]) -> None:
    profile = PROFILES[instance["profile_id"]]
    offered = {row["id"]: row for row in profile["compute_profiles"]}
    assert instance["placement"] in profile["placements"]
    inner = instance["compute_instances"]
    taken = spans(inner)
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(range(profile["slices"]))
    assert sum(offered[one["profile_id"]]["sm"] for one in inner) <= profile["sm"]
    for identifier, count in Counter(one["profile_id"] for one in inner).items():
        assert count <= offered[identifier]["instances"]


def sound(node: Node) -> None:
    """No overlap, no engine or count exceeded, no id or index twice, none without MIG."""
    for gpu in node.gpus():
        instances = gpu["instances"]
        taken = spans(instances)
        assert len(taken) == len(set(taken))
        assert not instances or gpu["mode"]["current"] == "enabled"
        for instance in instances:
            sound_instance(instance)
        for identifier, count in Counter(one["profile_id"] for one in instances).items():
            assert count <= PROFILES[identifier]["instances"]
        for engine in ENGINES:
            used = sum(PROFILES[one["profile_id"]][engine] for one in instances)
            assert used <= PROFILES[0][engine]
        devices = [one for instance in instances for one in instance["compute_instances"]]
        for key in ("index", "uuid"):
            assert len({one[key] for one in devices}) == len(devices)


def more_calls(node: Node, than: int) -> bool:
    return sum(node.calls().values()) > than


@pytest.mark.parametrize("lock", ["gpu", "node"])
def test_kills_leave_a_sound_state(lock: str, h100: Node, busy: Path, nvml: Any) -> None:
    random = Random(lock)
    h100.latency(lock=lock)
    with crowd(busy, h100, random) as processes:
        for _ in range(KILLS // 2):
            processes.fill()
            before = sum(h100.calls().values())
            wait_for(partial(more_calls, h100, before + random.randrange(400)))
            processes.kill_one()
            sound(h100)
            if random.random() < 0.1:
                processes.kill_all()
                random.choice((h100.reboot, partial(h100.reset, 0), h100.unload))()
                sound(h100)
                if not h100.show()["driver"]["loaded"]:
                    h100.load()
    api = nvml(h100)
    assert h100.show()["sessions"] == [os.getpid()]
    for index in (0, 1):  # would wait for ever for a lock that a killed process has
        clear(api, enabled(index))
        assert {row: capacity(enabled(index), row) for row in PROFILES} == {
            identifier: profile["instances"] for identifier, profile in PROFILES.items()
        }
        for identifier in PROFILES:
            api.nvmlGpuInstanceDestroy(create(enabled(index), identifier))


def clear(api: Any, device: Any) -> None:
    for row in range(15):
        try:
            instance = api.nvmlDeviceGetGpuInstanceById(device, row)
        except api.NVMLError_NotFound:
            continue
        for inner in range(8):
            try:
                found = api.nvmlGpuInstanceGetComputeInstanceById(instance, inner)
            except api.NVMLError_NotFound:
                continue
            api.nvmlComputeInstanceDestroy(found)
        api.nvmlGpuInstanceDestroy(instance)
