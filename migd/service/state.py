"""What outlives the daemon: per GPU what is wanted and what is settled, the last jobs, job ids."""

import json
import logging
import reprlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from migd.core.job import Choice, PastJob
from migd.core.model import Layout
from migd.core.reboot import Owed
from migd.core.values import LATER, Within, plain, typed
from migd.errors import StateUnwritable
from migd.host import files, trusted

log = logging.getLogger(__name__)

VERSION = 1
JOBS_KEPT = 64
# Ids are taken from a block that is reserved on disk, so that a job with nothing to do can have
# one without a write, and yet no id is ever given twice.
_ID_BLOCK = 1000
# Of a number that is 32 bits wide on the bus; no node sees as many jobs.
_LAST_ID = (1 << 32) - 1
_SIZE_LIMIT = 16 << 20


@dataclass(frozen=True)
class GpuState:
    """wanted: who asked for what; settled: the layout last reached, with exact placements.

    owed: the reboot that was asked for to reach what was wanted; it is not kept when that is
    reached, or something else is wanted
    """

    wanted: Choice | None = None
    settled: Layout | None = None
    owed: Owed | None = field(default=None, metadata={LATER: True})


@dataclass(frozen=True)
class State:
    """The state file. `next_id` is the first job id that was never reserved."""

    version: int = VERSION
    next_id: Annotated[int, Within(1, _LAST_ID)] = 1
    gpus: dict[str, GpuState] = field(default_factory=dict)
    jobs: tuple[PastJob, ...] = ()


class StateStore:
    """The state in memory, and its file. A change is on disk before it counts.

    refused: why the file could not be used when it was read; "" if it could
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = State()
        self._next_id = 1
        self._recent: tuple[PastJob, ...] = ()
        self.refused = ""

    @property
    def gpus(self) -> dict[str, GpuState]:
        return self._state.gpus

    @property
    def jobs(self) -> tuple[PastJob, ...]:
        """The last jobs that ended, newest first; those that changed nothing are not on disk."""
        return self._recent

    def load(self) -> None:
        """Read the file. One that cannot be used is set aside, with a word in the log."""
        try:
            data = trusted.read(self._path, _SIZE_LIMIT)
            if data is not None:
                self._state = typed(State, _current(json.loads(data)), self._path.name)
        except (OSError, ValueError, RecursionError) as error:
            aside = self._path.with_name(self._path.name + ".refused")
            self.refused = f"{self._path} cannot be used ({error}); it is kept as {aside}"
            log.error("%s, starting anew", self.refused)
            self._set_aside(aside)
        self._next_id = self._state.next_id
        self._recent = self._state.jobs

    def _set_aside(self, aside: Path) -> None:
        try:
            files.rename(self._path, aside.name)
        except OSError as error:
            log.warning("cannot rename %s: %s, ignoring", self._path, error)

    def reserve_ids(self) -> None:
        """Make room for jobs that write nothing. Raises StateUnwritable."""
        if self._next_id + _ID_BLOCK // 10 > self._state.next_id:
            self._write(replace(self._state, next_id=self._next_id + _ID_BLOCK))

    def next_id(self) -> int:
        """A new job id. Raises StateUnwritable when none is reserved and none can be."""
        if self._next_id >= self._state.next_id:
            self.reserve_ids()
        self._next_id += 1
        return self._next_id - 1

    def seen(self, job: int) -> None:
        """An id found in a journal: never give it again."""
        self._next_id = max(self._next_id, job + 1)

    def remember(self, job: PastJob) -> None:
        """Keep the end of a job in memory; the next write takes it along."""
        others = (past for past in self._recent if past.id != job.id)
        self._recent = (job, *others)[:JOBS_KEPT]

    def update(self, gpus: dict[str, GpuState]) -> None:
        """Write these GPUs and the jobs remembered. Raises StateUnwritable, changing nothing."""
        self._write(replace(self._state, gpus=self._state.gpus | gpus, jobs=self._recent))

    def close(self) -> None:
        """Give back the ids that were reserved and not used, and write what is remembered."""
        try:
            if (self._next_id, self._recent) != (self._state.next_id, self._state.jobs):
                self._write(replace(self._state, next_id=self._next_id, jobs=self._recent))
        except StateUnwritable as error:
            log.warning("%s, ignoring", error)

    def _write(self, state: State) -> None:
        data = json.dumps(plain(state)).encode()
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.replace(self._path, data)
        except OSError as error:
            raise StateUnwritable(
                f"{self._path} cannot be written ({error.strerror}); nothing is changed as long as "
                "its outcome could not be kept"
            ) from error
        self._state = state


def _current(value: object) -> object:
    version = value.get("version") if isinstance(value, dict) else None
    if version != VERSION:
        raise ValueError(f"its version is {reprlib.repr(version)}, this migd reads {VERSION}")
    return value
