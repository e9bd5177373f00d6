"""The method calls at work: they end with their caller, and with the daemon."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Work = Coroutine[Any, Any, Any]
Task = asyncio.Task[Any]


class Calls:
    """How many there may be, the quota of their users decides."""

    def __init__(self) -> None:
        self._by_sender: dict[str, set[Task]] = {}

    def start(self, sender: str, work: Work, done: Callable[[Task], None]) -> Task:
        task = asyncio.get_running_loop().create_task(work)
        self._by_sender.setdefault(sender, set()).add(task)
        task.add_done_callback(lambda task: self._remove(sender, task))
        task.add_done_callback(done)
        return task

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

    def _remove(self, sender: str, task: Task) -> None:
        tasks = self._by_sender[sender]
        tasks.discard(task)
        if not tasks:
            del self._by_sender[sender]
