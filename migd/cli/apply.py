"""`migctl apply` and `restore`: start a job, follow it to its end, and say what came of it."""

import asyncio
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from migd.cli import plans, text
from migd.cli.client import Client
from migd.cli.outcome import GONE, UNKNOWN_OBJECT, Exit, Failure
from migd.cli.progress import Progress
from migd.cli.request import checkpoint, request, restoring
from migd.cli.terminal import Style, Terminal
from migd.names import JOB, MANAGER, ROOT

# How long a daemon that ended in the middle of a job may take to come back.
RETURN_S = 30.0
_RESTARTS = 5
_NONE = "/"
_CAME_OF = {
    "returned": "stopped and started again",
    "missing": "stopped, and did not come back",
    "ended": "ended for good",
    "survived": "was to end, and did not",
}


async def apply(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Apply a configuration; a job that is followed lives on when migctl does not."""
    return await _told(client, arguments, out, "Apply", *request(arguments))


async def restore(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Give GPUs back what a checkpoint has of them, or show what would be done."""
    words, options = restoring(arguments)
    if arguments.plan:
        return await plans.show(client, arguments, out, "", {**options, **checkpoint(words)})
    return await _told(client, arguments, out, "Restore", words, options)


async def _told(
    client: Client, arguments: Namespace, out: Terminal, member: str, words: str, options: Any
) -> Exit:
    ended = await job(client, arguments, out, member, "sa{sv}", words, options)
    return Exit.DONE if ended is None else tell(ended, arguments, out)


@dataclass(frozen=True)
class Ended:
    """A job that was followed to its end; what WaitJob said of it."""

    number: int
    result: str
    details: dict[str, Any]


async def job(
    client: Client,
    arguments: Namespace,
    out: Terminal,
    member: str,
    signature: str,
    *body: Any,
    path: str = ROOT,
    interface: str = MANAGER,
) -> Ended | None:
    """Start a job by a call, and follow it to its end; None if it is not waited for, and told."""
    followed = Followed(client, out, quiet=arguments.json)
    if not arguments.no_wait:
        await followed.watch()
    try:
        number, at = await client.change(member, signature, *body, path=path, interface=interface)
    except asyncio.CancelledError:
        _say("migctl: whether a job was started is not known; see: migctl jobs")
        raise
    if arguments.no_wait:
        started = {"id": number, "job": at}
        print(text.as_json(started) if arguments.json else f"job {number}")
        return None
    return Ended(number, *await followed.to_end(number, at))


def tell(
    ended: Ended, arguments: Namespace, out: Terminal, made: Sequence[Mapping[str, Any]] = ()
) -> Exit:
    """Say how a job ended; made: instances that it created, with a message each."""
    number, result, details = ended.number, ended.result, ended.details
    if arguments.json:
        more = {"created": made} if made else {}
        print(text.as_json({"id": number, "result": result, "details": details, **more}))
    else:
        print("\n".join(lines(number, result, details, out)))
        for one in made:
            print(f"  {out.safe(one['message'])}")
    return Exit.DONE if result == "done" else Exit.FAILED


class Followed:
    """The job that we wait for, from before it starts."""

    def __init__(self, client: Client, out: Terminal, *, quiet: bool) -> None:
        self._client = client
        self._progress = None if quiet else Progress(sys.stdout, out)
        self._path = ""
        self._changed: dict[str, dict[str, Any]] = {}

    async def watch(self) -> None:
        """Begin before the job does, so that nothing is missed."""
        await self._client.watch_job(self._take)

    async def to_end(self, number: int, path: str) -> tuple[str, dict[str, Any]]:
        """Wait for the end of the job, over a restart of the daemon too."""
        self._path = path
        try:
            await self._catch_up()
            return await self._end(number)
        except asyncio.CancelledError:
            self._clear()
            _say(f"migctl: job {number} goes on; to end it: migctl cancel {number}")
            raise
        except Failure as failure:
            # The job was started: whatever went wrong since then tells nothing about it.
            advice = f"what became of job {number} is not known; see: migctl jobs"
            message = f"{failure.message}\n{advice}"
            raise Failure(Exit.UNKNOWN, message, failure.name) from failure
        finally:
            self._clear()

    async def _end(self, number: int) -> tuple[str, dict[str, Any]]:
        for _ in range(_RESTARTS + 1):
            daemon = self._client.daemon
            try:
                return await self._client.wait_job(number)
            except Failure as failure:
                if failure.name not in GONE:
                    raise
            if self._progress:
                self._progress.say(f"job {number}: the daemon ended, waiting for the next")
            if not await self._client.wait_daemon(daemon, RETURN_S):
                raise Failure(Exit.UNKNOWN, f"the daemon did not come back in {RETURN_S:g} s")
        raise Failure(Exit.UNKNOWN, "the daemon ends again and again")

    async def _catch_up(self) -> None:
        """Show where the job is; it may have ended by now, and nothing may have been to do."""
        if self._path == _NONE or not self._progress:
            return
        try:
            now = await self._client.properties(self._path, JOB)
        except Failure as failure:
            if failure.name not in (UNKNOWN_OBJECT, *GONE):
                raise
            return
        # Signals and replies come in order: what a signal said is never older than this reply.
        self._progress.update({**now, **self._changed.get(self._path, {})})

    def _take(self, path: str, changed: dict[str, Any]) -> None:
        known = self._changed.setdefault(path, {})
        known |= changed
        if path == self._path and self._progress:
            self._progress.update(changed)

    def _clear(self) -> None:
        if self._progress:
            self._progress.clear()


def lines(number: int, result: str, details: dict[str, Any], out: Terminal) -> Iterator[str]:
    """The result of a job: as a whole, and of each GPU."""
    style = Style.GOOD if result == "done" else Style.BAD
    words = out.paint(style, out.safe(result))
    if result == "done" and not details.get("changed", True):
        words += ", nothing was to do"
    if message := details.get("message"):
        words += f": {out.sentence(message)}"
    yield f"job {number}: {words}"
    for gpu in details.get("gpus", ()):
        yield from _gpu(gpu, out)
    for one in details.get("clients", ()):
        yield _client(one, out)
    for sentence in details.get("after", ()):
        yield f"  {out.sentence(sentence)}"
    for hook in details.get("hooks", ()):
        yield from _hook(hook, out)
    kept = details.get("wanted")
    if kept is not None and kept != (result == "done"):
        yield f"the choice is {'' if kept else 'not '}kept for the next boot"


def _gpu(gpu: dict[str, Any], out: Terminal) -> Iterator[str]:
    result = gpu.get("result", "")
    style = Style.GOOD if result in ("done", "unchanged") else Style.BAD
    line = f"  GPU {gpu.get('index', '?')}  {out.paint(style, out.safe(result))}"
    if message := gpu.get("message"):
        line += f": {out.sentence(message)}"
    yield line
    if call := gpu.get("call"):
        yield out.safe(f"    {call} returned {gpu.get('code-name', '')} ({gpu.get('code', '?')})")
    if left := gpu.get("left"):
        yield f"    it has: {out.sentence(left)}"


def _client(one: dict[str, Any], out: Terminal) -> str:
    result = one.get("result", "")
    style = Style.BAD if result in ("missing", "survived") else Style.GOOD
    line = f"  {out.safe(one.get('what') or one.get('unit', ''))}  "
    line += out.paint(style, out.safe(_CAME_OF.get(result, result)))
    return f"{line}: {out.sentence(one['message'])}" if result == "missing" else line


def _hook(hook: dict[str, Any], out: Terminal) -> Iterator[str]:
    failed = hook.get("result") != "done"
    line = f"  hook {out.safe(hook.get('moment', ''))}: {out.safe(hook.get('command', ''))}  "
    word = f"failed: {out.sentence(hook.get('message', ''))}" if failed else "done"
    yield line + out.paint(Style.BAD if failed else Style.GOOD, word)
    yield from (f"    {out.safe(text)}" for text in hook.get("output", ()))


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
