"""The program of migd-boot.service: asks migd for the put-back of this boot, and tells of it.

It decides nothing. Beyond its own limits systemd has one for it (TimeoutStartSec=): a boot goes on.
"""

import asyncio
import sys

from migd import names
from migd.bus.connection import BusError, Connection, RemoteError, connect
from migd.host.notify import Notifier
from migd.printable import sentences

_CONNECT_S = 20.0
# The daemon has a limit of its own for all of it (time-limits: boot), of at most ten minutes.
_ANSWER_S = 800.0
# What the bus says where the daemon ended before it answered: the next one finishes what it began.
_ENDED = f"{names.DBUS_ERROR}.NoReply"
_TRIES = 5


def main() -> int:
    try:
        told, code = asyncio.run(_ask()), 0
    except RemoteError as error:
        told, code = error.message, 1
    except (BusError, OSError) as error:
        told, code = f"migd cannot be asked to put the configuration back: {error}", 1
    told = sentences(told, indent="  ")
    Notifier().status(told)
    print(told, file=sys.stderr if code else sys.stdout)
    return code


async def _ask() -> str:
    """Raises BusError, and RemoteError with what migd says."""
    connection = await connect(None, timeout_s=_CONNECT_S)
    try:
        for _ in range(_TRIES):
            try:
                return await _put_back(connection)
            except RemoteError as error:
                if error.name != _ENDED:
                    raise
        return await _put_back(connection)
    finally:
        connection.close()


async def _put_back(connection: Connection) -> str:
    (told,) = await connection.call(
        names.BUS_NAME, names.ROOT, names.MANAGER, "PutBack", "a{sv}", [{}], timeout_s=_ANSWER_S
    )
    return str(told)


if __name__ == "__main__":
    sys.exit(main())
