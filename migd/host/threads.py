"""Work that may never end: in a thread that is waited for so long, and not at exit."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


async def in_thread(work: Callable[[], T], limit_s: float) -> T:
    """What `work` gives or raises. Raises TimeoutError after limit_s seconds; the thread goes on.

    What /proc tells of a process can wait for a driver call that it is stuck in, and a user's name
    for a directory service. Threads of asyncio.to_thread would be waited for when the program ends.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001 - raised where it is waited for
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, daemon=True).start()
    async with asyncio.timeout(limit_s):
        return await done
