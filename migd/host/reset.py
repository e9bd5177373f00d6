"""Resets GPUs by nvidia-smi, in a unit of its own; and tells whether nvidia_drm is loaded."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from migd.core.model import Gpu
from migd.core.reset import Came, Drm, Told, told
from migd.errors import NotSupported
from migd.host.nodes import HOST, Places
from migd.host.programs import Programs

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# GPUs of one command are reset one after the other.
_MORE_S = 15.0
# Bytes. It says little, but a limit counts for every file that a program writes.
_OUTPUT_LIMIT = 1 << 20


class Smi:
    """limit_s: how long the reset of one GPU may take, in seconds; more GPUs have longer."""

    def __init__(self, programs: Programs, limit_s: float = 60.0, path: str = _PATH) -> None:
        self._programs = programs
        self._path = path
        self.limit_s = limit_s

    async def reset(self, gpus: Sequence[Gpu]) -> Told:
        """Reset these GPUs, and no other, in one command.

        No NVML session may be open meanwhile. Raises NoSystemd, and NotSupported where there is no
        nvidia-smi, or not one of root's.
        """
        program = shutil.which("nvidia-smi", path=self._path)
        if program is None:
            raise NotSupported(f"there is no nvidia-smi in {self._path}: install it")
        limit_s = self.limit_s + _MORE_S * (len(gpus) - 1)
        arguments = [program, "--gpu-reset", "-i", ",".join(g.uuid for g in gpus)]
        ended = await self._programs.run(
            arguments,
            limit_s=limit_s,
            environment={"LC_ALL": "C"},
            output_limit=_OUTPUT_LIMIT,
        )
        if ended.refused:
            raise NotSupported(f"{program} {ended.failure}")
        if not ended.in_time:
            return Told(Came.FAILED, f"it did not end within {limit_s:g} s and was ended")
        return told([g.pci_address for g in gpus], ended.status, ended.output)

    async def settled(self) -> None:
        """Wait for the end of a reset that an earlier daemon began. Raises Hung, NoSystemd."""
        await self._programs.settled(self.limit_s + _MORE_S)


def drm(places: Places = HOST) -> Drm | None:
    """The module nvidia_drm, if it is loaded."""
    module = places.sys / "module" / "nvidia_drm"
    try:
        users = int((module / "refcnt").read_text())
    except (OSError, ValueError):
        return None  # built in, it could not be unloaded either; NVIDIA's never is
    holders = tuple(sorted(p.name for p in _entries(module / "holders")))
    try:
        modeset = (module / "parameters" / "modeset").read_text(errors="replace").strip() in (
            "Y",
            "1",
        )
    except OSError:
        return Drm(users, holders, None)
    return Drm(users, holders, modeset)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
