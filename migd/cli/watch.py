"""`migctl watch`: what happens on the node, as it happens, over restarts of the daemon.

It only listens: it asks for the node once for each daemon that it meets, and starts none.
"""

import asyncio
import json
import os
import stat
import sys
import time
from argparse import Namespace
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress

from migd.cli import news, text
from migd.cli.client import Client
from migd.cli.news import Picture, Record, Signal
from migd.cli.node import Node
from migd.cli.outcome import GONE, Exit, Failure
from migd.cli.progress import Progress
from migd.cli.tell import as_job, told
from migd.cli.terminal import Terminal
from migd.names import MANAGER, ROOT

# What the daemon changes at once it tells in several signals, and at most every 50 ms.
_TOGETHER_S = 0.05


async def watch(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Tell what happens until somebody interrupts, or what was waited for is there."""
    shown = Shown(out, arguments.host, as_json=arguments.json)
    try:
        async with aclosing(Watch(client).records()) as records:
            async for record in records:
                shown.tell(record)
                code = _ends(arguments.until, record)
                if code is not None:
                    return code
    finally:
        shown.clear()
    raise AssertionError


def _ends(until: str | None, record: Record) -> Exit | None:
    match until, record["what"]:
        case "match", _ if record.get("match") == "yes":
            return Exit.DONE
        case "job", "job-removed":
            return Exit.DONE if record["result"] == "done" else Exit.FAILED
        case "layout", "layout":
            return Exit.DONE
    return None


class Watch:
    """What the daemon says, as records."""

    def __init__(self, client: Client) -> None:
        self._client = client
        # Records; who the daemon is, when that changes; and what ends it all.
        self._queue: asyncio.Queue[Record | str | Exception] = asyncio.Queue()
        self._picture: Picture | None = None
        # What was told last of this daemon, and of the one before.
        self._last: Node | None = None
        self._before: Node | None = None
        self._due: asyncio.TimerHandle | None = None

    async def records(self) -> AsyncGenerator[Record, None]:
        """All that happens from now on; raises Failure when nothing can be heard any more."""
        with _reader_gone(self._queue):
            await self._client.follow(self._heard, self._moved)
            closed = asyncio.create_task(self._closed())
            try:
                for record in await self._look(self._client.daemon):
                    yield record
                while True:
                    item = await self._queue.get()
                    if isinstance(item, Exception):
                        raise item
                    for record in await self._look(item) if isinstance(item, str) else [item]:
                        yield record
            finally:
                closed.cancel()
                await asyncio.wait([closed])

    async def _closed(self) -> None:
        try:
            await self._client.closed()
        except Failure as failure:
            self._queue.put_nowait(failure)

    async def _look(self, daemon: str) -> list[Record]:
        """What is to be told now that this one is the daemon, or nobody is."""
        if not daemon:
            return [_timed({"what": "daemon", "present": False})]
        now = await self._load()
        if now is None:
            return []  # it has ended again, and that is in the queue
        changes = news.news(self._before, now) if self._before else ()
        self._last = now
        return [_timed(record) for record in (news.daemon(now), *changes)]

    async def _load(self) -> Node | None:
        """The node as it is shown when the last reply comes; None if there is no daemon any more.

        Replies and signals come in order: what is heard after a reply is newer than it.
        """
        try:
            picture = Picture(await self._client.properties(ROOT, MANAGER))
            self._picture = picture
            picture.show(await self._client.objects())
        except Failure as failure:
            if failure.name not in GONE:
                raise
            return None
        return picture.node() if self._picture is picture else None

    def _moved(self, daemon: str) -> None:
        self._flush()
        self._before = self._last or self._before
        self._last = self._picture = None
        self._queue.put_nowait(daemon)

    def _heard(self, signal: Signal) -> None:
        match signal.member, signal.values:
            case "JobNew", (number, path, kind):
                job = self._picture.job(path) if self._picture else {}
                self._tell(news.job_new(number, kind, job))
            case "JobRemoved", (number, _, kind, result, details):
                # It ends with what it has changed.
                self._flush()
                self._tell(news.job_removed(number, kind, result, details))
            case _ if self._picture and self._picture.take(signal) and not self._due:
                self._due = asyncio.get_running_loop().call_later(_TOGETHER_S, self._flush)

    def _flush(self) -> None:
        """Tell what is different since the last time."""
        if self._due:
            self._due.cancel()
            self._due = None
        if self._picture and self._last:
            before, self._last = self._last, self._picture.node()
            for record in news.news(before, self._last):
                self._tell(record)

    def _tell(self, record: Record) -> None:
        self._queue.put_nowait(_timed(record))


class Shown:
    """Writes records: as JSON, or a line each; how a job gets on in one line, on a terminal."""

    def __init__(self, out: Terminal, host: str, *, as_json: bool) -> None:
        self._out = out
        self._host = host
        self._as_json = as_json
        self._progress = Progress(sys.stdout, out)

    def tell(self, record: Record) -> None:
        if self._as_json:
            print(json.dumps(record), flush=True)
        elif record["what"] == "job-step" and self._out.live:
            self._progress.update(as_job(record))
        else:
            for line in told(record, self._out, self._host):
                self._progress.say(f"{text.moment(record['time'])}  {line}")

    def clear(self) -> None:
        self._progress.clear()


def _timed(record: Record) -> Record:
    return {"time": time.time_ns() // 1000, **record}


@contextmanager
def _reader_gone(queue: "asyncio.Queue[Record | str | Exception]") -> Iterator[None]:
    """Notice that nobody reads our output any more when it is so, not at the next line."""
    loop, output, watched = asyncio.get_running_loop(), -1, False
    with suppress(OSError):
        output = sys.stdout.fileno()
        # Of other things it cannot be said, or only by reading them.
        watched = stat.S_ISFIFO(os.fstat(output).st_mode)

    def gone() -> None:
        loop.remove_reader(output)
        queue.put_nowait(BrokenPipeError())

    if watched:
        loop.add_reader(output, gone)
    try:
        yield
    finally:
        if watched:
            loop.remove_reader(output)
