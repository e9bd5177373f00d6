# SPDX-License-Identifier: Apache-2.0
"""A simulated node for tests: its true state, and everything that can happen to it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from migd.simulator import node as simulator
from migd.simulator.errors import SimulatorError

MUTATING = (
    "nvmlDeviceSetMigMode",
    "nvmlDeviceCreateGpuInstance",
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceDestroy",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlGpuInstanceCreateComputeInstanceWithPlacement",
    "nvmlComputeInstanceDestroy",
)


class Call(NamedTuple):
    """One line of calls.log; times are CLOCK_MONOTONIC in nanoseconds."""

    ended: int
    pid: int
    name: str
    gpu: int | None
    result: str
    begun: int


def wait_for(condition: Callable[[], object], *, timeout: float = 20.0, what: str = "") -> None:
    """Waits for a condition of another process; there is nothing to be told by."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout} s in vain{': ' if what else ''}{what}")
        time.sleep(0.002)


def at_rest(pid: int) -> list[str]:
    """The names of what a process has open, when they were the same for half a second.

    What belongs to a worker is closed a little after its end, and a thread may be reading.
    """
    seen: list[str] = []

    def same() -> bool:
        nonlocal seen
        before, seen = seen, sorted(entry.name for entry in Path(f"/proc/{pid}/fd").iterdir())
        if seen != before:
            time.sleep(0.5)
        return seen == before

    wait_for(same, what="what the process has open does not come to rest")
    return seen


def done(change: Callable[[], None]) -> bool:
    """Whether the driver allows a reset or an unload now, and then it is done."""
    try:
        change()
    except SimulatorError:
        return False
    return True


class Holder:
    """A real process that holds a GPU, or one of its instances, until it is ended."""

    def __init__(self, node: "Node", arguments: Sequence[str], command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [*simulator.python_command(), "hold", str(node.path), *arguments, "--", *command]
        )
        self._node = node
        wait_for(self._is_there, what="the holder is not there")

    @property
    def pid(self) -> int:
        return self._process.pid

    def _is_there(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"the holder ended with {self._process.returncode}")
        holders = (holder for gpu in self._node.gpus() for holder in gpu["holders"])
        return any(holder["pid"] == self.pid for holder in holders)

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


class Node:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.simulated = simulator.Node(path)

    @classmethod
    def new(
        cls,
        path: Path,
        *gpus: tuple[str, int],
        seed: int | None = None,
        driver: str | None = None,
    ) -> "Node":
        """`gpus` are pairs of board and count, such as ("h100-80gb-sxm5", 8)."""
        simulator.Node.create(path, gpus, seed=seed, driver=driver).close()
        return cls(path)

    @property
    def library(self) -> Path:
        return self.path / simulator.LIBRARY

    def show(self) -> dict[str, Any]:
        return self.simulated.show()

    def gpus(self) -> list[dict[str, Any]]:
        gpus: list[dict[str, Any]] = self.show()["gpus"]
        return gpus

    def layout(self, gpu: int) -> list[tuple[int, int, list[int]]]:
        """Per instance, by start: profile id, start, and the profile ids of its CIs."""
        return sorted(
            (
                (
                    instance["profile_id"],
                    instance["placement"]["start"],
                    [inner["profile_id"] for inner in instance["compute_instances"]],
                )
                for instance in self.gpus()[gpu]["instances"]
            ),
            key=lambda row: row[1],
        )

    def calls(self) -> dict[str, int]:
        calls: dict[str, int] = self.show()["calls"]
        return calls

    def modelled(self) -> dict[str, Any]:
        """Modelled milliseconds: `calls` by function, and `total_ms`."""
        modelled: dict[str, Any] = self.show()["modelled"]
        return modelled

    def mutating_calls(self) -> int:
        calls = self.calls()
        return sum(calls.get(name, 0) for name in MUTATING)

    def fault(
        self,
        call: str,
        *,
        nth: int = 0,
        returns: str | None = None,
        hang: bool = False,
        no_effect: bool = False,
        die: bool = False,
        die_after: bool = False,
        gpu: int | None = None,
    ) -> None:
        """Exactly one of returns, hang, no_effect, die and die_after."""
        switches = {"hang": hang, "no-effect": no_effect, "die": die, "die-after": die_after}
        chosen = [name for name, on in switches.items() if on]
        chosen += ["return"] if returns is not None else []
        (action,) = chosen
        self.simulated.fault(call, action, code=returns or "UNKNOWN", nth=nth, gpu=gpu)

    def clear_faults(self) -> None:
        self.simulated.clear_faults()

    def latency(
        self,
        call: str | None = None,
        ms: float = 0,
        *,
        profile: str | None = None,
        lock: str | None = None,
    ) -> None:
        if profile is not None:
            self.simulated.latency_profile(profile)
        if call is not None:
            self.simulated.latency(call, ms)
        if lock is not None:
            self.simulated.lock_model(lock)

    def surprise(self, name: str, value: bool | int = True, *, gpu: int | None = None) -> None:
        self.simulated.surprise(name, value, gpu=gpu)

    def hold(
        self,
        gpu: int,
        gi: int | None = None,
        *,
        hidden: bool = False,
        command: Sequence[str] = ("sleep", "infinity"),
    ) -> Holder:
        arguments = ["--gpu", str(gpu)]
        arguments += [] if gi is None else ["--gi", str(gi)]
        arguments += ["--hidden"] if hidden else []
        return Holder(self, arguments, command)

    def reboot(self) -> None:
        self.simulated.reboot()

    def reset(self, gpu: int) -> None:
        self.simulated.reset(gpu)

    def unload(self) -> None:
        self.simulated.unload()

    def load(self, driver: str | None = None) -> None:
        self.simulated.load(driver)

    def upgrade(self, driver: str) -> None:
        self.simulated.upgrade(driver)

    def environment(self, base: Mapping[str, str] = os.environ) -> dict[str, str]:
        """For programs that are run directly, without the simulator's `run`."""
        return self.simulated.environment(base)

    def run(
        self, *command: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment(), text=True, capture_output=True, check=check, **options
        )

    def python(self, script: str, *arguments: str, check: bool = True) -> str:
        """Runs a Python script on the node, in a process of its own; returns what it prints."""
        done = self.run(sys.executable, "-c", script, *arguments, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"exit {done.returncode}: {done.stderr}")
        return done.stdout

    def log(self) -> list[Call]:
        records = []
        for line in (self.path / "calls.log").read_text().splitlines():
            ended, pid, name, gpu, result, begun = line.split()
            number = None if gpu == "-" else int(gpu)
            records.append(Call(int(ended), int(pid), name, number, result, int(begun)))
        return records
