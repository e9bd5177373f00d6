"""The reboot of the host for MIG modes that no reset puts in force: asked for, or why not.

Only where migd.yaml and whoever wants the job both allow it, and nobody would be cut off; once for
what is wanted. The job is over by then: its clients run until the host goes down, and what is
wanted is put back by the boot after that, like after any other.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from migd.core.asked import ITSELF
from migd.core.job import Begun
from migd.core.reboot import Asker, Owed, Reboots, against
from migd.errors import MigdError, NoSystemd
from migd.host.log import Event, fields
from migd.host.logind import Inhibitor, Logind, Session
from migd.service.state import GpuState, StateStore

log = logging.getLogger(__name__)

_MICROSECONDS = 1_000_000


class Reboot:
    """Asks logind. All methods are for one event loop."""

    def __init__(
        self,
        logind: Logind,
        store: StateStore,
        strangers: Callable[[], Awaitable[Sequence[str]]],
    ) -> None:
        """strangers: who has a GPU and is not in clients.yaml, in words; raises MigdError."""
        self._logind = logind
        self._store = store
        self._strangers = strangers
        self.allowed = Reboots.NEVER
        self.notice_s = 60

    def possible(self, asker: Asker) -> bool:
        """Whether the host may be rebooted for what somebody wants, if nobody is cut off."""
        return asker.reboots and self.allowed is Reboots.WHEN_NEEDED

    async def asker(self, pid: int) -> Asker:
        """Somebody who allows a reboot, by a process of theirs."""
        return Asker(reboots=True, session=await self._logind.session_of(pid))

    async def against(self, begun: Begun, gpus: Sequence[str], asker: Asker, boot: str) -> str:
        """What stands against a reboot for a job, in words; "" if nothing does."""
        owed = [o for gpu in gpus if (state := self._store.gpus.get(gpu)) and (o := state.owed)]
        try:
            inhibitors = [_inhibitor(i) for i in await self._logind.inhibitors()]
            sessions = await self._logind.sessions()
            scheduled = await self._logind.scheduled()
            strangers = await self._strangers()
        except MigdError as error:
            return f"what would be cut off is not known: {error}"
        others = [_session(s) for s in sessions if s.id != asker.session]
        return against(begun.choice, boot, owed, inhibitors, others, strangers, scheduled)

    async def ask(self, begun: Begun, gpus: Sequence[str], boot: str) -> str:
        """Keep what the reboot is for, and then ask for it; when it comes, in words.

        Raises StateUnwritable, NoSystemd: it does not come then.
        """
        before = {gpu: self._store.gpus.get(gpu, GpuState()) for gpu in gpus}
        owed = Owed(begun.choice, boot)
        # Not there yet, and wanted all the same: the next boot is to put it back.
        chosen = None if begun.choice.uid == ITSELF else begun.choice
        self._store.update(
            {gpu: GpuState(chosen or s.wanted, s.settled, owed) for gpu, s in before.items()}
        )
        when = time.time_ns() // 1000 + self.notice_s * _MICROSECONDS
        clock = time.strftime("%H:%M:%S", time.localtime(when / _MICROSECONDS))
        why = f"migd puts the MIG configuration {begun.choice.label} in force (job {begun.id})"
        try:
            await self._logind.reboot_at(when, why)
        except NoSystemd:
            self._store.update(before)
            raise
        log.warning(
            "the host is rebooted at %s: %s", clock, why,
            extra=fields(Event.REBOOT, job=begun.id),
        )  # fmt: skip
        return clock


def _inhibitor(inhibitor: Inhibitor) -> str:
    return f"{inhibitor.who} (pid {inhibitor.pid}): {inhibitor.why}"


def _session(session: Session) -> str:
    return f"{session.user} in session {session.id}"
