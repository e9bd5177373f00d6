"""The method calls at work: how many there may be, and that they end with their caller."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from migd.bus.standard import Refusal

# Calls that are waiting cost little (a few KiB) and may wait for minutes, so they are not queued
# behind each other: each is a task from the start, and these only bound the memory. The bus has a
# limit of its own for the replies a connection may wait for (128 on a Debian system bus).
MAX_CALLS_PER_SENDER = 2_000
MAX_CALLS = 10_000

Work = Coroutine[Any, Any, Any]


class Calls:
    def __init__(self) -> None:
        self._by_sender: dict[str, set[asyncio.Task[Any]]] = {}
        self._count = 0

    def start(
        self, sender: str, work: Callable[[], Work], done: Callable[[asyncio.Task[Any]], None]
    ) -> None:
        """Start work for a sender; Refusal when too much of it is unfinished."""
        tasks = self._by_sender.get(sender, set())
        if len(tasks) >= MAX_CALLS_PER_SENDER:
            raise Refusal("LimitsExceeded", f"{len(tasks)} of your calls are still unanswered")
        if self._count >= MAX_CALLS:
            raise Refusal("LimitsExceeded", f"{self._count} calls are still unanswered")
        task = asyncio.get_running_loop().create_task(work())
        self._by_sender.setdefault(sender, tasks).add(task)
        self._count += 1
        task.add_done_callback(lambda task: self._remove(sender, task))
        task.add_done_callback(done)

    def cancel(self, sender: str) -> None:
        for task in self._by_sender.get(sender, ()):
            task.cancel()

    async def stop(self, timeout_s: float) -> None:
        """Cancel all, and wait for those that end in time."""
        tasks = [task for tasks in self._by_sender.values() for task in tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    def _remove(self, sender: str, task: asyncio.Task[Any]) -> None:
        self._count -= 1
        tasks = self._by_sender[sender]
        tasks.discard(task)
        if not tasks:
            del self._by_sender[sender]
