"""A gate: many are inside at once, or it is closed and nobody is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Gate:
    """All methods are for one event loop."""

    def __init__(self) -> None:
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def inside(self) -> AsyncIterator[None]:
        """Be inside for as long as the block lasts; wait before it while the gate is closed."""
        # Once more: who was woken may find it closed again.
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def closed(self, limit_s: float) -> AsyncIterator[None]:
        """Nobody is inside for as long as the block lasts; one such block after the other.

        Raises TimeoutError when somebody is still inside after limit_s seconds; those who come
        later wait outside meanwhile.
        """
        async with self._turn:
            self._open.clear()
            try:
                async with asyncio.timeout(limit_s):
                    await self._empty.wait()
                yield
            finally:
                self._open.set()
