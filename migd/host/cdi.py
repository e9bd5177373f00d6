"""CDI, by which containers get GPUs and MIG instances: NVIDIA's tools write the specification anew.

A specification names the instances and their device nodes, so it is wrong after each change, and
NVIDIA's own unit notices changes of the driver only (nvidia-container-toolkit#1828).
"""

import asyncio
import shutil
from dataclasses import dataclass

from migd import names
from migd.errors import ClientStuck
from migd.host.programs import SYSTEM_PATH, Programs
from migd.host.units import Units, UnitState

# In nvidia-container-toolkit since 1.18; nvidia-cdi-refresh.env in its /etc says where it writes.
REFRESH = "nvidia-cdi-refresh.service"
_CTK = "nvidia-ctk"
# What either may take.
LIMIT_S = 60.0
# A specification has some kilobytes for each device.
_LARGEST = 64 << 20
# Its unit is started again and again where it fails (Restart=on-failure), of which only the first
# times are waited for: clients are down meanwhile.
AGAIN_S = 5.0
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Told:
    """What came of it, as a sentence."""

    text: str
    failed: bool = False


class Cdi:
    """All methods are for one event loop."""

    def __init__(self, units: Units, programs: Programs, *, again_s: float = AGAIN_S) -> None:
        self._units = units
        self._programs = programs
        self._again_s = again_s

    async def refreshes(self) -> bool:
        """Whether this host has NVIDIA's unit for it. Raises NoSystemd."""
        return (await self._units.states([REFRESH]))[REFRESH].loaded

    async def refresh(self) -> Told:
        """Run NVIDIA's unit again. Raises NoSystemd.

        It is not waited for where it may wait for us: it comes after multi-user.target in some
        versions, which comes after us, and after migd-boot.service in all.
        """
        boot = (await self._units.states([names.BOOT_UNIT]))[names.BOOT_UNIT]
        if boot.active_state == "activating" or boot.waits or await self._units.booting():
            return await self._queue()
        try:
            await self._units.start(REFRESH, LIMIT_S, again=True)
        except ClientStuck as error:
            state, again = await self._tried_again()
            if state.active_state == "activating":
                return Told(f"CDI is as before for now: {error}; systemd goes on", failed=True)
            if not state.condition or state.result == "exec-condition":
                return Told(f"CDI is as before: the conditions of {REFRESH} do not hold")
            if not again or state.result != "success":
                return Told(f"CDI may be as before: {error}", failed=True)
        return Told(f"{REFRESH} has written CDI's specification anew")

    async def _queue(self) -> Told:
        try:
            await self._units.queue(REFRESH, again=True)
        except ClientStuck as error:
            return Told(f"CDI is as before: {error}", failed=True)
        return Told(f"{REFRESH} is to write CDI's specification anew once the boot lets it")

    async def _tried_again(self) -> tuple[UnitState, bool]:
        """How it is when systemd starts it no more or AGAIN_S is over; whether it was started."""
        again = False
        end = asyncio.get_running_loop().time() + self._again_s
        while True:
            state = (await self._units.states([REFRESH]))[REFRESH]
            if state.active_state != "activating" or asyncio.get_running_loop().time() > end:
                # It may have been over before we looked.
                return state, again or state.restarts > 0
            again = True
            await asyncio.sleep(_PAUSE_S)

    async def generate(self, output: str) -> Told:
        """Run nvidia-ctk to write `output`. Raises NoSystemd."""
        program = shutil.which(_CTK, path=SYSTEM_PATH)
        if not program:
            return Told(f"{_CTK}, which is to write {output}, is not installed", failed=True)
        # By the name of the file it is YAML or JSON (nvidia-ctk cdi generate --help).
        arguments = [program, "cdi", "generate", f"--output={output}"]
        # The limit is for each file that it writes, and not only for what it says.
        done = await self._programs.run(arguments, limit_s=LIMIT_S, output_limit=_LARGEST)
        if done.failure:
            return Told(f"CDI may be as before in {output}: {_CTK} {done.failure}", failed=True)
        return Told(f"{_CTK} has written {output}")
