"""Runs in a test host, on migd as it is installed: does with units what it is told by lines.

Each line is [id, object, method, arguments, keywords] in JSON, and is answered, when it is done, by
[id, value, error class, message]. Lines are worked on side by side.
"""

import asyncio
import json
import os
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from migd.bus.connection import connect
from migd.bus.remote import RemoteBus
from migd.errors import MigdError
from migd.host.holding import Hold
from migd.host.manager import Manager
from migd.host.programs import Programs
from migd.host.units import Units


async def main(folder: Path, grace_s: float) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    connection = await connect(None, timeout_s=10)
    manager = Manager(RemoteBus(connection))
    programs = Programs(manager, folder)
    objects = {
        "units": Units(manager, programs),
        "hold": Hold(manager, folder, grace_s=grace_s),
        "programs": programs,
    }

    async def work(number: int, name: str, method: str, arguments: Any, keywords: Any) -> None:
        try:
            value = await getattr(objects[name], method)(*arguments, **keywords)
            answer = [number, plain(value), "", ""]
        except MigdError as error:
            answer = [number, None, type(error).__name__, str(error)]
        print(json.dumps(answer), flush=True)

    print(os.getpid(), flush=True)
    async with asyncio.TaskGroup() as tasks:
        while line := await asyncio.to_thread(sys.stdin.readline):
            tasks.create_task(work(*json.loads(line)))
    connection.close()


def plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        shown = {"active", "loaded", "returnable", "kills_all"} & set(dir(value))
        return {**asdict(value), **{name: getattr(value, name) for name in shown}}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2])))
