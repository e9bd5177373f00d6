"""Work in threads: waited for so long, and let go of when who waits is canceled."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from migd.host.threads import in_thread


def test_what_it_gives_and_raises() -> None:
    def fails() -> None:
        raise OSError("so")

    assert asyncio.run(in_thread(lambda: 7, 10)) == 7
    with pytest.raises(OSError, match="so"):
        asyncio.run(in_thread(fails, 10))


def test_what_does_not_end_is_let_go_of() -> None:
    end = threading.Event()
    with pytest.raises(TimeoutError):
        asyncio.run(in_thread(end.wait, 0.05))
    end.set()


def test_canceled_at_the_moment_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever cancels waits for the end of it, so that must not be lost."""

    async def canceled() -> bool:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(in_thread(lambda: 7, 10))
        tell = loop.call_soon_threadsafe

        def both(callback: Callable[..., object], *arguments: object) -> None:
            tell(lambda: (callback(*arguments), task.cancel()))

        monkeypatch.setattr(loop, "call_soon_threadsafe", both)
        await asyncio.wait({task})
        return task.cancelled()

    assert asyncio.run(canceled())
