"""`migctl jobs` and `migctl cancel`: the jobs there were, and an end to the one there is."""

import pwd
from argparse import Namespace
from typing import Any

from migd.cli import text
from migd.cli.client import Client
from migd.cli.outcome import UNKNOWN_OBJECT, Exit, Failure
from migd.cli.terminal import Style, Terminal
from migd.names import JOB, MANAGER, ROOT

_HEAD = ("ID", "STARTED", "TOOK", "TYPE", "CONFIG", "BY", "RESULT", "MESSAGE")
_RESULT = _HEAD.index("RESULT")
_DAEMON = 2**32 - 1


async def jobs(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """List the running job and the last ones, newest first."""
    (found,) = await client.call("ListJobs", "a{sv}", {})
    if arguments.json:
        print(text.as_json(found))
    elif found:
        print("\n".join(lines(found, out, arguments.host)))
    else:
        print("no jobs yet")
    return Exit.DONE


def lines(found: list[dict[str, Any]], out: Terminal, host: str = "") -> list[str]:
    rows = [_HEAD, *(tuple(map(out.safe, _row(job, host))) for job in found)]
    head, *rest = map(out.fit, text.table(rows))
    told = [_painted(line, row[_RESULT], out) for line, row in zip(rest, rows[1:], strict=True)]
    return [out.paint(Style.FAINT, head), *told]


def _painted(line: str, result: str, out: Terminal) -> str:
    if result == "running":
        return out.paint(Style.BUSY, line)
    return line if result == "done" else out.paint(Style.WARNING, line)


def _row(job: dict[str, Any], host: str) -> tuple[str, ...]:
    start, end = job.get("start", 0), job.get("end", 0)
    return (
        str(job.get("id", "?")),
        text.moment(start) if start else "-",
        f"{(end - start) / 1e6:.1f} s" if end >= start > 0 else "-",
        job.get("type", ""),
        job.get("config", ""),
        user(job.get("uid", _DAEMON), host),
        job.get("result") or "running",
        job.get("message", ""),
    )


def user(uid: int, host: str = "") -> str:
    """Who that is, by name; users of another host go by number."""
    if uid == _DAEMON:
        return "migd"
    if host and uid:
        return f"uid {uid}"
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


async def cancel(client: Client, arguments: Namespace, _out: Terminal) -> Exit:
    """Have the running job end; with an id, only if it is that one."""
    path = (await client.properties(ROOT, MANAGER)).get("Job", "/")
    number = await _number(client, path)
    if number is None or arguments.id not in (None, number):
        wrong = (
            "no job is running" if arguments.id is None else f"job {arguments.id} is not running"
        )
        raise Failure(Exit.FAILED, wrong)
    await client.change("Cancel", path=path, interface=JOB)
    print(f"job {number} ends between two steps, and puts back what it has not finished")
    return Exit.DONE


async def _number(client: Client, path: str) -> int | None:
    if path == "/":
        return None
    try:
        return int((await client.properties(path, JOB))["Id"])
    except Failure as failure:
        if failure.name != UNKNOWN_OBJECT:
            raise
        return None
