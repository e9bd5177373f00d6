"""Runs in a test host, as whoever it is run: makes the calls that it is given, one after the other.

usage: caller_inside.py CASES RESULTS [agent]

CASES: a file with JSON, a list of [object, interface, method, signature, arguments], where options
are [signature, value], and "checkpoint of all-enabled" is one of this node. RESULTS: where the name
and the text of each error go, "" for none. A job that was begun is waited for. agent: with an agent
of polkit, as migctl has it.
"""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from migd import names
from migd.bus.connection import Connection, RemoteError, connect
from migd.bus.values import variant
from migd.cli.agent import agent

_DIGEST = "digest of "
_CHECKPOINT = "checkpoint of "


async def main(cases: Path, results: Path, *, asking: bool) -> None:
    connection = await connect(None, timeout_s=30)
    found = []
    async with agent() if asking else contextlib.nullcontext():
        for case in json.loads(cases.read_text()):
            try:
                await one(connection, *case)
                found.append(["", ""])
            except RemoteError as error:
                found.append([error.name, error.message])
    results.write_text(json.dumps(found))


async def one(
    connection: Connection, path: str, interface: str, member: str, signature: str, given: list[Any]
) -> None:
    arguments = [
        await options(connection, a) if isinstance(a, dict) else await words(connection, a)
        for a in given
    ]
    reply = await connection.call(
        names.BUS_NAME, path, interface, member, signature, arguments,
        timeout_s=60, interactive=True,
    )  # fmt: skip
    if len(reply) == 2 and str(reply[1]).startswith(names.job_path(0)[:-1]):
        await manager(connection, "WaitJob", "u", [reply[0]])


async def words(connection: Connection, given: Any) -> Any:
    if not str(given).startswith(_CHECKPOINT):
        return given
    made = json.loads((await manager(connection, "Checkpoint", "a{sv}", [{}]))[0])
    for device in made["MigState"]["Devices"]:
        device |= {"MigMode": int(given.endswith("-enabled")), "GpuInstances": None}
    return json.dumps(made)


async def options(connection: Connection, given: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, (signature, value) in given.items():
        if signature == "s" and value.startswith(_DIGEST):
            config = value.removeprefix(_DIGEST)
            value = (await manager(connection, "Plan", "sa{sv}", [config, {}]))[0]["digest"].value
        found[key] = variant(signature, value)
    return found


async def manager(
    connection: Connection, member: str, signature: str, arguments: list[Any]
) -> list[Any]:
    where = (names.BUS_NAME, names.ROOT, names.MANAGER)
    return await connection.call(*where, member, signature, arguments, timeout_s=60)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), asking=len(sys.argv) > 3))
