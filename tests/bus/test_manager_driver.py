"""Without a driver the daemon lives, says so, and works once it is there."""

from pathlib import Path
from typing import Any

import pytest

from migd import names
from tests.bus.manager import DISABLED, H100, World, layouts, world
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon, no_process_left
from tests.support.node import Node, wait_for

__all__ = ["no_process_left"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_process_left")

NO_DRIVER = f"{names.ERROR}.NoDriver"


def no_driver(daemon: Daemon, *parts: str) -> None:
    calls: tuple[tuple[Any, ...], ...] = (
        ("Plan", "sa{sv}", "all-1g.10gb", {}),
        ("Apply", "sa{sv}", "all-1g.10gb", {}),
        ("Assert", "sa{sv}", "all-1g.10gb", {}),
        ("Export", "a{sv}", {}),
        ("Generate", "a{sv}", {}),
        ("Checkpoint", "a{sv}", {}),
        ("Restore", "sa{sv}", "{}", {}),
    )
    for call in calls:
        name, message = daemon.refused(*call)
        assert name == NO_DRIVER
        for part in parts:
            assert part in message


def works(made: World) -> None:
    made.put("all-1g.10gb")
    assert all(len(g["instances"]) == 7 for g in made.node.gpus())
    made.put("all-disabled")
    assert set(layouts(made.node).values()) == {DISABLED}


def test_driver_unloaded_and_loaded_again(tmp_path: Path) -> None:
    with world(tmp_path, (H100, 2)) as made:
        node, daemon = made.node, made.daemon
        works(made)
        driver = daemon.property("Driver")
        assert driver == node.show()["driver"]["version"]
        wait_for(lambda: not node.show()["sessions"], what="the idle session does not end")
        node.unload()
        no_driver(daemon, "not loaded")
        assert daemon.property("Driver") == ""
        assert daemon.property("Match") == "unknown"
        (objects,) = daemon.call(
            "GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager"
        )
        assert objects == {}
        assert daemon.refused("GetGpu", "s", "0")[0] == NO_DRIVER
        assert daemon.call("ListJobs", "a{sv}", {})[0]
        node.load()
        works(made)
        assert daemon.property("Driver") == driver


def test_driver_that_comes_after_the_daemon(tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", (H100, 1))
    node.unload()
    with PrivateBus() as bus, Daemon(node, bus.address, tmp_path) as daemon:
        no_driver(daemon, "not loaded")
        assert daemon.property("Match") == "none"
        node.load()
        works(World(node, bus, daemon))


def test_library_missing(tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", (H100, 1))
    aside = node.library.with_name("aside")
    node.library.rename(aside)
    with PrivateBus() as bus, Daemon(node, bus.address, tmp_path) as daemon:
        no_driver(daemon, "libnvidia-ml.so.1", "not installed")
        aside.rename(node.library)
        works(World(node, bus, daemon))


def test_library_newer_than_the_module(tmp_path: Path) -> None:
    with world(tmp_path, (H100, 1)) as made:
        made.node.upgrade("590.10")
        wait_for(lambda: not made.node.show()["sessions"], what="the idle session does not end")
        no_driver(made.daemon, "reload the driver")
        made.node.unload()
        made.node.load()
        works(made)
        assert made.daemon.property("Driver") == "590.10"
