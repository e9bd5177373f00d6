"""The resets that the GPUs of one job need: one at a time, and with no NVML session of ours."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence

from migd.core.job import Begun
from migd.core.model import Gpu, Mode
from migd.core.reset import Came, Told, unfit_peers
from migd.errors import ImpactExceeded, InUse, MigdError, Nvml, ResetRequired
from migd.host.reset import Smi, drm
from migd.nvml.client import NvmlClient, Observation
from migd.service.clients import Clients

log = logging.getLogger(__name__)

CALL = "nvidia-smi --gpu-reset"
# Before each attempt, where GPUs are in use: who has just ended may hold one for a moment.
_PAUSES_S = (0.0, 1.0)
# How long GPUs of the job that must be reset together wait for each other.
_TOGETHER_S = 300.0


class Resets:
    """Those of one job."""

    def __init__(
        self,
        nvml: NvmlClient,
        smi: Smi,
        clients: Clients,
        begun: Begun,
        switching: Iterable[str] = (),
    ) -> None:
        """switching: UUIDs of the GPUs that the job may have to reset."""
        self._nvml = nvml
        self._smi = smi
        self._clients = clients
        self._reset_peers = begun.reset_peers
        self._gpus = {b.gpu for b in begun.gpus}
        self._asked = {uuid: asyncio.Event() for uuid in switching}
        self._along: set[str] = set()

    def asked(self, gpu: str) -> None:
        """Tell that a GPU has been asked to switch, or will not be: others need not wait for it."""
        if gpu in self._asked:
            self._asked[gpu].set()

    async def reset(self, gpu: Gpu, wanted: Mode) -> None:
        """Put the mode that is pending on a GPU in force; what came of that is to be read back.

        wanted: the mode, for the sentence that says why it is not in force
        Raises InUse, ResetRequired, ImpactExceeded, Nvml, Hung, NoDriver; NoSystemd, NotSupported.
        """
        async with self._nvml.closed() as look:
            if gpu.uuid in self._along and _in_force(gpu, await look()):
                return  # another of them was first
            told = await self._try([gpu])
        if told.came is Came.PEERS:
            told = await self._with_peers(gpu, told.peers)
        if told.came is not Came.DONE:
            raise _refusal(gpu, wanted, told)

    async def _with_peers(self, gpu: Gpu, addresses: Sequence[str]) -> Told:
        there = {g.pci_address: g for g in (await self._nvml.observe()).gpus}
        named = ", ".join(str(there.get(a, f"the GPU at {a}")) for a in addresses)
        together = f"{gpu}: the driver resets it only together with {named}"
        if not self._reset_peers:
            raise ImpactExceeded(
                f"{together}: allow that with reset-peers (migctl apply --reset-peers), or start "
                "nvidia-fabricmanager where these GPUs have NVSwitches, and apply again"
            )
        if unknown := [a for a in addresses if a not in there]:
            raise ImpactExceeded(f"{together}, and nothing is known of {', '.join(unknown)}")
        await self._wait_for([there[a].uuid for a in addresses])
        async with self._nvml.closed() as look:
            seen = await look()
            if _in_force(gpu, seen):
                return Told(Came.DONE)
            gpus = seen.gpus
            peers = [g for g in gpus if g.pci_address in addresses]
            unfit = [str(why) for p in peers if (why := seen.troubled.get(p.uuid))]
            unfit += unfit_peers(peers, await self._clients.look(gpus), self._gpus)
            if unfit:
                raise ImpactExceeded(f"{together}, and {'; '.join(unfit)}")
            told = await self._try([gpu, *peers])
            if told.came is Came.DONE:
                self._along |= {p.uuid for p in peers}
        return told

    async def _wait_for(self, gpus: Sequence[str]) -> None:
        """Wait for those of this job until their modes are pending: one reset then does for all."""
        waits = [self._asked[g].wait() for g in gpus if g in self._asked]
        # Whoever takes longer is looked at as it is then.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TOGETHER_S):
                await asyncio.gather(*waits)

    async def _try(self, gpus: Sequence[Gpu]) -> Told:
        told = Told(Came.FAILED)
        for pause in _PAUSES_S:
            await asyncio.sleep(pause)
            told = await self._smi.reset(gpus)
            log.info("reset of %s: %s: %s", ", ".join(map(str, gpus)), told.came, told.words)
            if told.came is not Came.IN_USE:
                break
        return told


def _in_force(gpu: Gpu, seen: Observation) -> bool:
    return any(g.mode == g.pending for g in seen.gpus if g.uuid == gpu.uuid)


def _refusal(gpu: Gpu, wanted: Mode, told: Told) -> MigdError:
    """Why a GPU was not reset. Persistence mode is a client: NVIDIA/NVSentinel issue 1690."""
    if told.came is Came.IN_USE:
        module = drm()
        also = f"; {module}, and that can be what uses it (`rmmod nvidia_drm`)" if module else ""
        return InUse(
            f"{gpu} was not reset: nvidia-smi says that another client uses it{also}. Persistence "
            f"mode without nvidia-persistenced counts, too (`nvidia-smi -i {gpu.index} -pm 0`)"
        )
    if told.came is Came.NOT_SUPPORTED:
        return ResetRequired(
            f"{gpu} cannot be reset on this host (a virtual machine, perhaps), so only a reboot "
            f"puts MIG mode {wanted} in force: apply with allow-reboot, or set it with `nvidia-smi "
            f"-i {gpu.index} -mig {int(wanted is Mode.ENABLED)}`, reboot, and apply again"
        )
    said = told.words or f"it ended with exit code {told.status} and said nothing"
    text = f"{gpu} was not reset by nvidia-smi: {said}"
    return Nvml(text, call=CALL, code=told.status, name="RESET_FAILED")
