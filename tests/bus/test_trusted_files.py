"""Files of the daemon while others can write them: not used, said, and used again once mended."""

from pathlib import Path

from migd import names
from tests.bus.manager import H100, World
from tests.bus.test_settings import becomes, is_wanted, put, two
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon
from tests.support.node import Node

__all__ = ["two"]  # a fixture

CLIENTS = "version: v1\nsystemd-services: [a.service]\n"


def test_a_file_that_others_can_write_is_not_used(two: World) -> None:
    """What was in force stays; what stands in the way is said, and mending it is seen."""
    daemon = two.daemon
    path = daemon.config_dir / names.SETTINGS_FILE
    put(two, "config: all-1g.10gb\n")
    is_wanted(two, "all-1g.10gb", "all-1g.10gb")
    for changed in (path, daemon.config_dir):
        mode = changed.stat().st_mode
        changed.chmod(0o777)
        becomes(two, "ConfigErrors", bool)
        path.write_text("config: all-balanced\n")
        name, text = daemon.refused("Reload")
        assert name == f"{names.ERROR}.Config"
        assert f"{path} is not used: {changed} can be written by others than root" in text
        assert f"`chown root: {changed} && chmod go-w {changed}`" in text
        assert set(daemon.property("Wanted").values()) == {"all-1g.10gb"}
        path.write_text("config: all-1g.10gb\n")
        changed.chmod(mode)
        becomes(two, "ConfigErrors", lambda errors: not errors)


def test_a_folder_that_others_can_empty(two: World) -> None:
    """clients.d as root left it cannot be told from what others made of it."""
    folder = two.daemon.config_dir / names.CLIENTS_DIR
    folder.mkdir()
    (folder / "a.yaml").write_text(CLIENTS)
    folder.chmod(0o777)
    becomes(two, "ConfigErrors", bool)
    (error,) = two.daemon.property("ConfigErrors")
    assert error.startswith(f"{folder} is not used: {folder} can be written")


def test_a_state_that_others_can_write(two: World) -> None:
    """Neither believed nor written, and so nothing is changed."""
    daemon = two.daemon
    two.put("all-1g.10gb")
    daemon.stop()
    daemon.state_dir.chmod(0o757)
    with daemon:
        assert f"{daemon.state} cannot be used ({daemon.state_dir} can be" in daemon.log
        assert daemon.property("Wanted") == {}
        calls = two.node.mutating_calls()
        name, text = daemon.refused("Apply", "sa{sv}", "all-balanced", {})
        assert name == f"{names.ERROR}.State"
        assert f"chmod go-w {daemon.state_dir}`" in text
        assert two.node.mutating_calls() == calls
        assert daemon.stop() == 0
        daemon.state_dir.chmod(0o700)
        daemon.start()
        assert set(daemon.property("Wanted").values()) == {"all-1g.10gb"}
        two.put("all-balanced")


def test_no_start_with_a_runtime_folder_of_everybody(tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", (H100, 1))
    with PrivateBus() as bus:
        daemon = Daemon(node, bus.address, tmp_path)
        daemon.runtime_dir.mkdir()
        daemon.runtime_dir.chmod(0o1777)
        daemon.launch()
        assert daemon.wait_exit() == 1
        assert f"migd ends: {daemon.runtime_dir} can be written into by everybody" in daemon.log
