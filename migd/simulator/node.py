# SPDX-License-Identifier: Apache-2.0
"""A simulated node seen from outside: makes it, reads its true state, and does things to it.

Only the library knows the layout of the state; this module talks to its sim_* functions.
"""

import ctypes
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from migd.simulator import environment
from migd.simulator.errors import InUse, ResetNotSupported, SimulatorError

LIBRARY = Path("lib/libnvidia-ml.so.1")

RETURN_CODES = {
    "SUCCESS": 0,
    "UNINITIALIZED": 1,
    "INVALID_ARGUMENT": 2,
    "NOT_SUPPORTED": 3,
    "NO_PERMISSION": 4,
    "ALREADY_INITIALIZED": 5,
    "NOT_FOUND": 6,
    "INSUFFICIENT_SIZE": 7,
    "INSUFFICIENT_POWER": 8,
    "DRIVER_NOT_LOADED": 9,
    "TIMEOUT": 10,
    "IRQ_ISSUE": 11,
    "LIBRARY_NOT_FOUND": 12,
    "FUNCTION_NOT_FOUND": 13,
    "CORRUPTED_INFOROM": 14,
    "GPU_IS_LOST": 15,
    "RESET_REQUIRED": 16,
    "OPERATING_SYSTEM": 17,
    "LIB_RM_VERSION_MISMATCH": 18,
    "IN_USE": 19,
    "MEMORY": 20,
    "NO_DATA": 21,
    "INSUFFICIENT_RESOURCES": 23,
    "ARGUMENT_VERSION_MISMATCH": 25,
    "DEPRECATED": 26,
    "NOT_READY": 27,
    "GPU_NOT_FOUND": 28,
    "INVALID_STATE": 29,
    "RESET_TYPE_NOT_SUPPORTED": 30,
    "UNKNOWN": 999,
}

FAULT_ACTIONS = {"return": 1, "hang": 2, "no-effect": 3, "die": 4, "die-after": 5}

# Milliseconds, and whether the number is assumed. Measured ones: a SetMigMode with its reset on
# A100 (NVIDIA/gpu-operator issue 351), init and first handle (kubernetes-sigs/
# dra-driver-nvidia-gpu pull request 1018). Nobody has published the others; on Ampere a mode
# change that stays pending takes as long here as one that resets, on hardware less. The mode that
# is in force already was set on 8 H100 within a second (NVIDIA/gpu-operator issue 1310).
DEFAULT_LATENCIES = {
    "nvmlDeviceSetMigMode@same": (10, True),
    "nvmlDeviceSetMigMode@reset": (4500, False),
    "nvmlDeviceSetMigMode@resetless": (300, True),
    "nvmlDeviceCreateGpuInstance": (120, True),
    "nvmlDeviceCreateGpuInstanceWithPlacement": (120, True),
    "nvmlGpuInstanceDestroy": (150, True),
    "nvmlGpuInstanceCreateComputeInstance": (40, True),
    "nvmlGpuInstanceCreateComputeInstanceWithPlacement": (40, True),
    "nvmlComputeInstanceDestroy": (30, True),
    "nvmlInit": (10, False),
    "nvmlInit_v2": (10, False),
    "nvmlInitWithFlags": (10, False),
    "first-handle": (25, False),
}

# The numbers of control.h; {gpu}, {gi}, {pids} and {node} are filled in.
_REFUSALS = {
    1: "there is no GPU {gpu} in {node}",
    2: "the driver is not loaded in {node}",
    3: "the driver is already loaded in {node}",
    4: "in use by {pids}",
    5: "resetting GPU {gpu} is not supported: it is passed through to a virtual machine",
    6: "there is no GPU instance {gi} on GPU {gpu}",
    7: "the state of {node} cannot be opened",
    8: "the tables of {node} are full",
    9: "the library refuses the description of {node}",
}

_KINDS = {4: InUse, 5: ResetNotSupported}

_ON = 0xFFFFFFFF
_FUNCTIONS: Mapping[str, tuple[Any, Sequence[Any]]] = {
    "sim_open": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)]),
    "sim_close": (None, [ctypes.c_void_p]),
    "sim_create": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_char_p]),
    "sim_dump": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "sim_reboot": (ctypes.c_int, [ctypes.c_void_p]),
    "sim_reset": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "sim_unload": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "sim_load": (ctypes.c_int, [ctypes.c_void_p]),
    "sim_hold": (ctypes.c_int, [ctypes.c_void_p, *[ctypes.c_int] * 3]),
    "sim_fault": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_int] * 4]),
    "sim_fault_clear": (ctypes.c_int, [ctypes.c_void_p]),
    "sim_latency": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_int],
    ),
    "sim_latency_clear": (ctypes.c_int, [ctypes.c_void_p]),
    "sim_lock_model": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    "sim_surprise_name": (ctypes.c_char_p, [ctypes.c_int]),
    "sim_surprise": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_int],
    ),
}


_aliases: dict[tuple[str, int], str] = {}


def _alias(path: Path) -> str:
    """The loader knows files by name and would give back a library that was replaced since."""
    key = (str(path), path.stat().st_ino)
    if key not in _aliases:
        replaced = sum(name == key[0] for name, _ in _aliases)
        _aliases[key] = f"{path.parent}/{'./' * replaced}{path.name}"
    return _aliases[key]


def load_library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(_alias(path.resolve()))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def _check_driver(driver: str, boards_of_node: Sequence[str]) -> None:
    """A driver that is older than a board does not know it: NVIDIA MIG User Guide's table."""
    from migd.simulator import boards, build

    build.check_version(driver)

    def parts(version: str) -> list[int]:
        return [int(part) for part in version.split(".") if part.isdigit()]

    for key in boards_of_node:
        least = boards.min_driver(key)
        if least is not None and parts(driver) < parts(least):
            raise SimulatorError(f"{key} needs driver {least} or later, not {driver}")


class Node:
    """An existing node. Every method raises SimulatorError with a sentence when it is refused."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "state").exists():
            raise SimulatorError(f"{self.path} is not a simulated node")
        self._library: ctypes.CDLL | None = None
        self._handle = ctypes.c_void_p()
        self._inode = 0
        self._room = 1 << 16

    @classmethod
    def create(
        cls,
        path: str | Path,
        wanted: Sequence[tuple[str, int]],
        *,
        seed: int | None = None,
        driver: str | None = None,
    ) -> "Node":
        from migd.simulator import build, description, view

        path = Path(path)
        if (path / "state").exists():
            raise SimulatorError(f"{path} is already a simulated node")
        text = description.describe(wanted, seed)
        version = build.DRIVER_VERSION if driver is None else driver
        _check_driver(version, [key for key, _ in wanted])
        library = build.build(version)
        (path / "lib").mkdir(parents=True, exist_ok=True)
        build.install(library, path / LIBRARY)
        log = path / "calls.log"
        log.touch()
        log.chmod(0o666)
        temporary = path / f".state.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        code = load_library(path / LIBRARY).sim_create(os.fsencode(temporary), text.encode())
        if code != 0:
            temporary.unlink(missing_ok=True)
            raise SimulatorError(_REFUSALS[code].format(node=path))
        temporary.chmod(0o666)
        temporary.rename(path / "state")
        node = cls(path)
        view.prepare(path, node.show())
        return node

    def close(self) -> None:
        if self._library is not None:
            self._library.sim_close(self._handle)
            self._library = None

    def _lib(self) -> ctypes.CDLL:
        inode = (self.path / LIBRARY).stat().st_ino
        if self._library is not None and inode == self._inode:
            return self._library
        self.close()
        library = load_library(self.path / LIBRARY)
        error = ctypes.c_int()
        handle = library.sim_open(os.fsencode(self.path / "state"), ctypes.byref(error))
        if not handle:
            raise SimulatorError(
                f"{self.path / 'state'} cannot be opened: {os.strerror(error.value)}"
            )
        self._library, self._handle, self._inode = library, ctypes.c_void_p(handle), inode
        return library

    def _check(self, code: int, *, gpu: int = -1, gi: int = -1, pids: bytes = b"") -> None:
        if code != 0:
            text = _REFUSALS.get(code, f"refused with {code}")
            raise _KINDS.get(code, SimulatorError)(
                text.format(gpu=gpu, gi=gi, pids=pids.decode() or "nobody", node=self.path)
            )

    def show(self) -> dict[str, Any]:
        library = self._lib()
        while True:
            buffer = ctypes.create_string_buffer(self._room)
            length = library.sim_dump(self._handle, buffer, self._room)
            if length < self._room:
                shown: dict[str, Any] = json.loads(buffer.raw[:length])
                return shown
            self._room = length * 2

    def fault(
        self, call: str, action: str, *, code: str = "UNKNOWN", nth: int = 0, gpu: int | None = None
    ) -> None:
        """Sets one rule. The N-th matching call from now meets it; every one where `nth` is 0.

        `call` may end in `*` (or `...`) for any rest of the name.
        """
        call = call[:-3] + "*" if call.endswith("...") else call
        code = code.removeprefix("NVML_ERROR_").removeprefix("NVML_")
        if code not in RETURN_CODES:
            raise SimulatorError(f"{code!r} is not a return code of NVML such as IN_USE")
        library = self._lib()
        if not call.endswith("*") and not hasattr(library, call):
            raise SimulatorError(f"the simulated library has no function {call}")
        if nth < 0 or (gpu is not None and gpu < 0):
            raise SimulatorError("--nth and --gpu are not negative")
        number = -1 if gpu is None else gpu
        self._check(
            library.sim_fault(
                self._handle, call.encode(), FAULT_ACTIONS[action], RETURN_CODES[code], nth, number
            )
        )

    def clear_faults(self) -> None:
        self._check(self._lib().sim_fault_clear(self._handle))

    def latency(self, call: str, ms: float, *, assumed: bool = False) -> None:
        library = self._lib()
        plain = call.split("@")[0]
        if plain != "first-handle" and not hasattr(library, plain):
            raise SimulatorError(f"the simulated library has no function {plain}")
        if not 0 <= ms <= 3_600_000:
            raise SimulatorError("a latency is between 0 ms and an hour")
        self._check(library.sim_latency(self._handle, call.encode(), int(ms * 1000), int(assumed)))

    def latency_profile(self, name: str) -> None:
        self._check(self._lib().sim_latency_clear(self._handle))
        if name == "default":
            for call, (ms, assumed) in DEFAULT_LATENCIES.items():
                self.latency(call, ms, assumed=assumed)
        elif name != "none":
            raise SimulatorError(f"there is no latency profile {name!r}: none or default")

    def lock_model(self, model: str) -> None:
        if model not in {"gpu", "node"}:
            raise SimulatorError(f"there is no lock model {model!r}: gpu or node")
        self._check(self._lib().sim_lock_model(self._handle, int(model == "node")))

    def surprises(self) -> tuple[str, ...]:
        library = self._lib()
        names: list[str] = []
        while name := library.sim_surprise_name(len(names)):
            names.append(name.decode())
        return tuple(names)

    def surprise(self, name: str, value: bool | int, *, gpu: int | None = None) -> None:  # noqa: FBT001
        """Turns a switch on or off, for one GPU or all; a number is for those that count."""
        names = self.surprises()
        if name not in names:
            raise SimulatorError(f"there is no surprise {name!r}: {', '.join(names)}")
        number = (_ON if value else 0) if isinstance(value, bool) else value
        which = -1 if gpu is None else gpu
        code = self._lib().sim_surprise(self._handle, names.index(name), number, which)
        self._check(code, gpu=which)

    def reboot(self) -> None:
        self._check(self._lib().sim_reboot(self._handle))
        self._refresh_view()

    def reset(self, gpu: int) -> None:
        pids = ctypes.create_string_buffer(1024)
        code = self._lib().sim_reset(self._handle, gpu, pids, len(pids))
        self._check(code, gpu=gpu, pids=pids.value)
        self._refresh_view()

    def unload(self) -> None:
        pids = ctypes.create_string_buffer(1024)
        self._check(self._lib().sim_unload(self._handle, pids, len(pids)), pids=pids.value)
        self._refresh_view()

    def load(self, driver: str | None = None) -> None:
        if driver is not None:
            self.upgrade(driver)
        self._check(self._lib().sim_load(self._handle))
        self._refresh_view()

    def upgrade(self, driver: str) -> None:
        """Replaces the library only, as a package does; the loaded module stays what it is."""
        from migd.simulator import build

        _check_driver(driver, [row["board"] for row in self.show()["boards"]])
        build.install(build.build(driver), self.path / LIBRARY)

    def hold(self, gpu: int, gi: int | None = None, *, hidden: bool = False) -> int:
        """A descriptor that holds the GPU, for this pid, as long as it is open; exec keeps it."""
        number = -1 if gi is None else gi
        fd: int = self._lib().sim_hold(self._handle, gpu, number, int(hidden))
        if fd < 0:
            self._check(-fd, gpu=gpu, gi=number)
        return fd

    def _refresh_view(self) -> None:
        from migd.simulator import view

        view.refresh(self.path, self.show())

    def environment(self, base: Mapping[str, str] = os.environ) -> dict[str, str]:
        return environment.of(self.path, base)


def python_command() -> list[str]:
    return [sys.executable, "-m", "migd.simulator"]
