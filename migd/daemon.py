"""The daemon: arguments, wiring, life and end. The only file that wires."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path

from migd import __version__, names
from migd.bus.connection import BusError, Connection, connect
from migd.bus.front import Front
from migd.bus.remote import RemoteBus
from migd.errors import MigdError
from migd.host import files, trusted
from migd.host import log as journal
from migd.host.capabilities import Capabilities
from migd.host.cdi import Cdi
from migd.host.holding import Hold
from migd.host.logind import Logind
from migd.host.manager import Manager
from migd.host.notify import Notifier
from migd.host.programs import Programs
from migd.host.reset import Smi
from migd.host.units import Units
from migd.host.watch import Watch
from migd.nvml.client import NvmlClient
from migd.service.after import After
from migd.service.clients import Clients
from migd.service.configuration import Configuration
from migd.service.follow import Follower
from migd.service.hooks import Hooks
from migd.service.journal import Journal
from migd.service.lookout import Lookout
from migd.service.putback import PutBack
from migd.service.service import Service
from migd.service.state import StateStore

log = logging.getLogger(__name__)

# A driver that hangs must not keep the bus from being answered.
_FIRST_LOOK_S = 10.0
_CONNECT_S = 20.0
# A thread that computes (a long text is read in one) hands over when the loop has something to do.
# Python's own 5 ms would count for each system call of the loop.
_SWITCH_S = 0.0005


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    journal.start()
    sys.setswitchinterval(_SWITCH_S)
    try:
        asyncio.run(
            _run(
                arguments.config_dir,
                arguments.defaults_dir,
                arguments.state_dir,
                arguments.runtime_dir,
            )
        )
    except (BusError, OSError) as error:
        log.error("migd ends: %s", error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="migd", description="Keeps the MIG configuration of this host; answers on D-Bus."
    )
    parser.add_argument("--config-dir", type=Path, default=Path(names.CONFIG_DIR))
    parser.add_argument("--defaults-dir", type=Path, default=Path(names.DEFAULTS_DIR))
    parser.add_argument("--state-dir", type=Path, default=Path(names.STATE_DIR))
    parser.add_argument("--runtime-dir", type=Path, default=Path(names.RUNTIME_DIR))
    parser.add_argument("--version", action="version", version=f"migd {__version__}")
    return parser


async def _run(config_dir: Path, defaults_dir: Path, state_dir: Path, runtime_dir: Path) -> None:
    # Before anybody knows that we are there and can tell us.
    told = _told_to_end()
    for folder in (state_dir, runtime_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What lies there is believed and passed to systemd. The state has refusals of its own.
    with trusted.folder(runtime_dir):
        pass
    # Until this process ends: two would each write what the other has not read.
    files.own_folder(state_dir)
    notifier = Notifier()
    connection = await connect(None, timeout_s=_CONNECT_S)
    front = Front(connection)
    configuration = Configuration(config_dir, defaults_dir)
    bus = RemoteBus(connection)
    manager = Manager(bus)
    programs = Programs(manager, runtime_dir)
    units = Units(manager, programs)
    service = Service(
        NvmlClient(runtime_dir / "worker.lock"),
        Clients(units, Hold(manager, runtime_dir)),
        After(
            units,
            Capabilities(programs),
            Cdi(units, programs),
            lambda: configuration.settings.cdi_output,
        ),
        Hooks(
            Programs(manager, runtime_dir, "migd-hook-"),
            configuration,
            runtime_dir / names.JOB_CONFIG_FILE,
        ),
        configuration,
        StateStore(state_dir / names.STATE_FILE),
        Journal(state_dir / names.JOURNAL_FILE),
        front,
        Logind(bus),
        Smi(programs),
    )
    follower = Follower(service)
    watch = Watch(configuration.files, follower.changed)
    # Before they are read, so that no change is missed in between.
    _start(watch)
    service.load()
    boot = PutBack(service, runtime_dir / names.PUT_BACK_FILE)
    lookout = Lookout(service, boot)
    await lookout.note()
    first = asyncio.create_task(_first_look(service))
    await asyncio.wait([first], timeout=_FIRST_LOOK_S)
    service.jobs.recover()
    await front.open(service, boot)
    follower.begin()
    lookout.begin()
    notifier.ready()
    try:
        await _until(told, connection, notifier)
    finally:
        notifier.stopping()
        watch.close()
        first.cancel()
        await follower.stop()
        await lookout.stop()
        await service.stop()
        await front.close()
        connection.close()


def _start(watch: Watch) -> None:
    try:
        watch.start()
    except OSError as error:
        log.warning("changes of files are not seen, only Reload() reads them: %s", error)


async def _first_look(service: Service) -> None:
    """See the node before the first caller does; without a driver there is nothing to see yet."""
    await asyncio.gather(_tried(service.look()), _tried(service.conflicts.look()))


async def _tried(look: Awaitable[object]) -> None:
    try:
        await look
    except MigdError as error:
        log.warning("%s", error)


def _told_to_end() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    return told


async def _until(told: asyncio.Event, connection: Connection, notifier: Notifier) -> None:
    """Wait until told to end, or for the end of the bus, which is ours too. Raises BusError."""
    watchdog = asyncio.create_task(notifier.feed_watchdog())
    ends = [asyncio.create_task(told.wait()), asyncio.create_task(connection.wait_closed())]
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (watchdog, *ends):
            task.cancel()
        await asyncio.gather(watchdog, *ends, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
