"""The daemon from READY=1 to its end."""

import socket
from pathlib import Path

import pytest

from tests.bus.manager import H100
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon, no_process_left
from tests.support.node import Node

__all__ = ["no_process_left"]  # a fixture

TIMES = 6


def test_told_to_end_as_soon_as_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_process_left: None
) -> None:
    """What it has just begun then must not keep it; whether it is met at that is chance."""
    node = Node.new(tmp_path / "node", (H100, 2))
    with PrivateBus() as bus:
        for number in range(TIMES):
            path = tmp_path / f"notify{number}"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
                listener.bind(str(path))
                listener.settimeout(30)
                monkeypatch.setenv("NOTIFY_SOCKET", str(path))
                daemon = Daemon(node, bus.address, tmp_path / str(number))
                daemon.launch()
                while b"READY=1" not in listener.recv(4096):
                    pass
                assert daemon.stop() == 0, daemon.log
