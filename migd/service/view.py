"""The node as last seen, with names for the processes on it, and whether it is what is wanted."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from migd.core.holders import Holder
from migd.core.job import Choice
from migd.core.model import Gpu, Process, Target
from migd.core.plan import plan_gpu
from migd.errors import Hung, MigdError, Nvml
from migd.host.processes import describe
from migd.host.threads import in_thread
from migd.nvml.client import Observation
from migd.service.configuration import Configuration

_NAMES_S = 10.0


class Match(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    NONE = "none"


@dataclass(frozen=True)
class View:
    """What readers are shown.

    troubled, unseen: as in nvml.client.Observation; holders: by pid
    """

    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    troubled: Mapping[str, Hung | Nvml] = field(default_factory=dict)
    unseen: tuple[Hung | Nvml, ...] = ()
    holders: Mapping[int, Holder] = field(default_factory=dict)

    def with_gpu(self, gpu: Gpu) -> "View":
        """The view once one GPU has been seen again."""
        return replace(
            self,
            gpus=tuple(gpu if g.uuid == gpu.uuid else g for g in self.gpus),
            troubled={u: why for u, why in self.troubled.items() if u != gpu.uuid},
        )

    def refuse_troubled(self, uuids: Collection[str]) -> None:
        """Raise why one of these GPUs cannot be looked at, if so."""
        for uuid, why in self.troubled.items():
            if uuid in uuids:
                raise why

    def holder(self, process: Process) -> Holder:
        return self.holders.get(process.pid) or Holder(process.pid, command="not looked up yet")

    @property
    def reboot_owed(self) -> str:
        """Why a reset or reboot is owed: MIG modes that are set and not in force."""
        return "; ".join(
            f"{g}: MIG mode {g.pending} is pending, a reset of it or a reboot puts it in force"
            for g in self.gpus
            if g.pending != g.mode
        )


async def seen(observation: Observation) -> View:
    """A view of what was observed."""
    pids = {p.pid for g in observation.gpus for p in g.processes}
    holders: Mapping[int, Holder] = {}
    if pids:
        with contextlib.suppress(TimeoutError):  # they are shown by their pids then
            holders = await in_thread(lambda: describe(pids), _NAMES_S)
    return View(
        observation.driver,
        observation.gpus,
        observation.troubled,
        observation.unseen,
        holders,
    )


def match(view: View, wanted: Mapping[str, Choice], configuration: Configuration) -> Match:
    """Whether every GPU with something wanted has it, as far as can be judged."""
    if not wanted:
        return Match.NONE
    there = {g.uuid: g for g in view.gpus if g.uuid not in view.troubled}
    if not wanted.keys() <= there.keys():
        return Match.UNKNOWN
    targets: dict[Choice, dict[str, Target]] = {}
    try:
        for choice in wanted.values():
            if choice not in targets:
                targets[choice] = configuration.targets(choice, view.gpus)
        left = [plan_gpu(there[uuid], targets[choice][uuid]) for uuid, choice in wanted.items()]
    except (MigdError, KeyError):
        # The name is gone, or this hardware refuses it now.
        return Match.UNKNOWN
    return Match.NO if any(p.steps for p in left) else Match.YES
