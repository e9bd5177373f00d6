"""What systemd is told: ready, stopping, a status line, and that the daemon is alive."""

import asyncio
import os

import sdnotify

from migd.printable import printable


class Notifier:
    """Speaks to systemd where NOTIFY_SOCKET says it listens; says nothing elsewhere."""

    def __init__(self) -> None:
        self._systemd = sdnotify.SystemdNotifier()

    def ready(self) -> None:
        self._systemd.notify("READY=1")

    def stopping(self) -> None:
        self._systemd.notify("STOPPING=1")

    def status(self, text: str) -> None:
        # One line: another could tell systemd another thing, such as which process we are.
        self._systemd.notify(f"STATUS={printable('; '.join(text.splitlines()))}")

    async def feed_watchdog(self) -> None:
        """Tell systemd, from the loop that serves the bus, that this loop still turns."""
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
        while microseconds:
            self._systemd.notify("WATCHDOG=1")
            await asyncio.sleep(microseconds / 2 / 1_000_000)
