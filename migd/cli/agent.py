"""An agent of polkit on this terminal, for as long as the daemon may want a password typed."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

PROGRAM = "pkttyagent"

# How long it may take to be known to polkit, and to end.
_READY_S = 5.0
_END_S = 5.0


@contextlib.asynccontextmanager
async def agent() -> AsyncIterator[None]:
    """Have somebody asked here who calls from this process; root needs none.

    Where there is none to be had, whoever has another one, as on a desktop, is asked there.
    """
    process = None if os.geteuid() == 0 else await _started()
    try:
        yield
    finally:
        if process:
            await _ended(process)


async def _started() -> asyncio.subprocess.Process | None:
    """Return once it is known to polkit: it closes the pipe then, or at its end."""
    ready, notify = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            # It asks for its parent. An agent of the session comes first.
            PROGRAM, f"--notify-fd={notify}", "--fallback",
            pass_fds=(notify,),
        )  # fmt: skip
    except OSError:
        os.close(ready)
        return None
    finally:
        os.close(notify)
    await _closed(ready)
    return process


async def _closed(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_reader(descriptor, told.set)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READY_S):
                await told.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """As it restores the terminal at SIGTERM, it is killed only where that does not help."""
    with contextlib.suppress(ProcessLookupError):
        # Its own terminate() waits for it, too, beside asyncio; see cli.far.
        os.kill(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
