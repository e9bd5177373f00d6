"""The journal of the running job: each record is on disk before what it tells of is done."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from migd.core.job import (
    Begun,
    Hooked,
    Hooking,
    Reached,
    Record,
    Returned,
    Signaling,
    Stepping,
    Stopping,
)
from migd.core.values import plain, typed
from migd.errors import StateUnwritable
from migd.host import files, trusted

log = logging.getLogger(__name__)

_KINDS: dict[str, type[Any]] = {
    "begun": Begun,
    "stopping": Stopping,
    "signaling": Signaling,
    "stepping": Stepping,
    "reached": Reached,
    "returned": Returned,
    "hooking": Hooking,
    "hooked": Hooked,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_SIZE_LIMIT = 16 << 20


class Journal:
    """One file of JSON lines, there only while a job is. GPUs write to it side by side."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def begin(self, record: Begun) -> None:
        """Start anew with this record; what is left of another job, or damaged, goes.

        Returns when it is on disk. Raises StateUnwritable.
        """
        try:
            await asyncio.to_thread(files.replace, self._path, _line(record))
        except OSError as error:
            raise self._unwritable(error) from error

    async def write(self, record: Record) -> None:
        """Return when the record is on disk. Raises StateUnwritable.

        Records that come while others are being synced go together in the next sync.
        """
        done = asyncio.get_running_loop().create_future()
        self._queue.append((_line(record), done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        try:
            while self._queue:
                batch, self._queue = self._queue, []
                error = await self._append(b"".join(line for line, _ in batch))
                for _, done in batch:
                    if done.done():
                        continue
                    if error:
                        done.set_exception(error)
                    else:
                        done.set_result(None)
        finally:
            self._writing = None

    async def _append(self, data: bytes) -> StateUnwritable | None:
        try:
            await asyncio.to_thread(files.append, self._path, data)
        except OSError as error:
            return self._unwritable(error)
        return None

    def _unwritable(self, error: OSError) -> StateUnwritable:
        return StateUnwritable(f"{self._path} cannot be written ({error.strerror})")

    def remove(self) -> None:
        """The job has ended, and its end is in the state. Raises OSError."""
        files.remove(self._path)

    def read(self) -> list[Record]:
        """What an earlier daemon left. The last line may be torn; what follows damage is lost."""
        try:
            data = trusted.read(self._path, _SIZE_LIMIT) or b""
        except (OSError, ValueError) as error:
            log.error("cannot read %s: %s, ignoring", self._path, error)
            return []
        records: list[Record] = []
        for number, line in enumerate(data.splitlines(), 1):
            try:
                kind, value = json.loads(line)
                records.append(typed(_KINDS[kind], value, f"line {number}"))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                log.warning("%s ends at line %d: %s", self._path, number, error)
                break
        return records


def _line(record: Record) -> bytes:
    return json.dumps([_NAMES[type(record)], plain(record)]).encode() + b"\n"
