"""migd.yaml, watched files and Stage, on the real daemon; the node's state is the judge."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dbus_next.signature import Variant

from migd import names
from tests.bus.manager import DISABLED, H100, World, changing_calls, document, layouts, world
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon, no_process_left, options
from tests.support.node import Node, wait_for

__all__ = ["no_process_left"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_process_left")

ITSELF = 4294967295


@pytest.fixture
def two(tmp_path: Path) -> Any:
    with world(tmp_path, (H100, 2)) as made:
        yield made


def put(made: World, text: str, name: str = names.SETTINGS_FILE) -> None:
    """Replace a file as editors and package managers do."""
    path = made.daemon.config_dir / name
    path.with_name("new").write_text(text)
    path.with_name("new").replace(path)


def becomes(made: World, name: str, condition: Callable[[Any], object]) -> None:
    wait_for(lambda: condition(made.daemon.property(name)), what=f"{name}\n{made.daemon.log}")


def is_wanted(made: World, *configs: str) -> None:
    expected = {made.uuid(n): config for n, config in enumerate(configs) if config}
    becomes(made, "Wanted", lambda found: found == expected)


def instances(made: World) -> list[int]:
    return [len(gpu["instances"]) for gpu in made.node.gpus()]


def jobs(made: World) -> list[dict[str, Any]]:
    (found,) = made.daemon.call("ListJobs", "a{sv}", {})
    return list(found)


def is_done(made: World, counts: list[int]) -> None:
    wait_for(lambda: instances(made) == counts, what=made.daemon.log)
    becomes(made, "Match", lambda match: match == "yes")
    becomes(made, "Job", lambda job: job == "/")


# -- who decides -----------------------------------------------------------------------------


def test_the_file_is_wanted_until_somebody_chooses(tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", (H100, 2))
    with PrivateBus() as bus:
        daemon = Daemon(node, bus.address, tmp_path)
        (daemon.config_dir / names.SETTINGS_FILE).write_text("config: all-1g.10gb\n")
        with daemon:
            made = World(node, bus, daemon)
            is_wanted(made, "all-1g.10gb", "all-1g.10gb")
            assert daemon.property("Match") == "no"
            assert daemon.property("ConfigErrors") == []
            path = names.gpu_path(made.uuid(1))
            assert daemon.property("Wanted", path=path, interface=names.GPU) == "all-1g.10gb"
            assert not changing_calls(node)
            made.put("all-balanced", gpus=["1"])
            is_wanted(made, "all-1g.10gb", "all-balanced")
            assert daemon.property("Match") == "no"
            made.put("all-1g.10gb", gpus=["0"])
            assert daemon.property("Match") == "yes"
            daemon.restart()
            is_wanted(made, "all-1g.10gb", "all-balanced")


def test_whose_word_counts(two: World) -> None:
    two.put("all-balanced")
    before, calls = two.node.gpus(), changing_calls(two.node)
    put(two, "config: all-1g.10gb\n")
    put(two, "config: all-1g.10gb\nconfig-authority: file\n")
    is_wanted(two, "all-1g.10gb", "all-1g.10gb")
    assert two.daemon.property("Match") == "no"
    put(two, "config: all-1g.10gb\nconfig-authority: last-choice\n")
    is_wanted(two, "all-balanced", "all-balanced")
    assert two.daemon.property("Match") == "yes"
    put(two, "config-authority: file\n")
    becomes(two, "Match", lambda match: match == "yes")
    is_wanted(two, "all-balanced", "all-balanced")
    assert (two.node.gpus(), changing_calls(two.node)) == (before, calls)


def test_a_config_of_the_file_is_for_those_that_it_reaches(two: World) -> None:
    put(two, document({"half": [("[1]", {"1g.10gb": 1})]}), names.CONFIG_FILE)
    put(two, "config: half\nconfig-authority: file\n")
    is_wanted(two, "", "half")
    two.put("all-balanced")
    is_wanted(two, "all-balanced", "half")
    assert two.daemon.property("Match") == "no"


@pytest.mark.parametrize(
    ("config", "says"),
    [("nonsense", "there is no configuration 'nonsense'"), ("much", "do not fit on GPU 0")],
)
def test_a_config_that_this_node_cannot_have(two: World, config: str, says: str) -> None:
    put(two, document({"much": [("all", {"3g.40gb": 3})]}), names.CONFIG_FILE)
    put(two, f"config: {config}\n")
    becomes(two, "ConfigErrors", bool)
    (error,) = two.daemon.property("ConfigErrors")
    assert error.startswith(f"{two.daemon.config_dir / names.SETTINGS_FILE}: config: ")
    assert says in error
    assert two.daemon.property("Match") == "unknown"
    is_wanted(two, config, config)
    put(two, "config: all-disabled\n")
    becomes(two, "ConfigErrors", lambda errors: not errors)
    assert two.daemon.property("Match") == "yes"


# -- report and apply ------------------------------------------------------------------------


def test_a_change_is_reported_and_the_node_left_alone(two: World) -> None:
    two.put("all-1g.10gb")
    wait_for(lambda: not two.node.show()["sessions"], what="the idle session does not end")
    calls = two.node.calls()
    put(two, document({"mine": [("all", None)]}), names.CONFIG_FILE)
    becomes(two, "Configs", lambda configs: "mine" in configs)
    assert two.daemon.property("Match") == "yes"
    put(two, document({"all-1g.10gb": [("all", None)]}), names.CONFIG_FILE)
    becomes(two, "Match", lambda match: match == "no")
    assert "files have changed; does the node match: no" in two.daemon.log
    (two.daemon.config_dir / names.CONFIG_FILE).unlink()
    becomes(two, "Match", lambda match: match == "yes")
    assert two.node.calls() == calls
    assert len(jobs(two)) == 1


def test_a_change_is_applied(two: World) -> None:
    put(two, "config: all-1g.10gb\non-config-change: apply\n")
    is_done(two, [7, 7])
    (job,) = jobs(two)
    assert (job["uid"], job["config"], job["result"]) == (ITSELF, "all-1g.10gb", "done")
    # Nobody has chosen: the file goes on deciding.
    put(two, "config: all-balanced\non-config-change: apply\n")
    is_done(two, [4, 4])
    assert len(jobs(two)) == 2
    two.daemon.restart()
    is_wanted(two, "all-balanced", "all-balanced")
    # Somebody chooses, and the file does not any more; what the name means still counts.
    two.put("all-7g.80gb")
    done = len(jobs(two))
    put(two, "config: all-1g.10gb\non-config-change: apply\n")
    mine = document({"all-7g.80gb": [("all", {"1g.10gb": 2})]})
    put(two, mine, names.CONFIG_FILE)
    is_done(two, [2, 2])
    assert jobs(two)[0]["config"] == "all-7g.80gb"
    assert len(jobs(two)) == done + 1
    is_wanted(two, "all-7g.80gb", "all-7g.80gb")
    put(two, "config: all-1g.10gb\nconfig-authority: file\non-config-change: apply\n")
    is_done(two, [7, 7])


def test_a_change_that_changes_nothing_starts_no_job(two: World) -> None:
    put(two, "config: all-disabled\non-config-change: apply\n")
    becomes(two, "Match", lambda match: match == "yes")
    calls = changing_calls(two.node)
    put(two, "config: all-disabled\non-config-change: apply\n")
    wait_for(lambda: two.daemon.log.count("files have changed") == 2)
    is_wanted(two, "all-disabled", "all-disabled")
    assert jobs(two) == []
    assert changing_calls(two.node) == calls


def test_different_wishes_are_jobs_one_after_the_other(two: World) -> None:
    two.put("all-balanced", gpus=["1"])
    file = {"all-balanced": [("all", {"2g.20gb": 1})], "mine": [("all", {"3g.40gb": 2})]}
    put(two, document(file), names.CONFIG_FILE)
    put(two, "config: mine\non-config-change: apply\n")
    is_done(two, [2, 1])
    assert {(job["config"], job["uid"]) for job in jobs(two)[:2]} == {
        ("mine", ITSELF),
        ("all-balanced", ITSELF),
    }


def test_a_running_job_comes_first(two: World) -> None:
    two.node.latency("nvmlDeviceCreateGpuInstanceWithPlacement", 150)
    number, path = two.daemon.apply("all-1g.10gb")
    put(two, "config: all-balanced\nconfig-authority: file\non-config-change: apply\n")
    wait_for(lambda: "files have changed" in two.daemon.log)
    assert two.daemon.property("Job") == path
    assert two.daemon.wait(number)[0] == "done"
    is_done(two, [4, 4])
    assert [(job["config"], job["uid"]) for job in jobs(two)] == [
        ("all-balanced", ITSELF),
        ("all-1g.10gb", os.getuid()),
    ]


def test_what_is_refused_is_said_once_and_until_files_change(two: World) -> None:
    two.put("all-balanced")
    before = layouts(two.node)
    with two.node.hold(0) as holder:
        put(two, "config: all-disabled\nconfig-authority: file\non-config-change: apply\n")
        becomes(two, "ConfigErrors", bool)
        (error,) = two.daemon.property("ConfigErrors")
        assert error.startswith("all-disabled: ")
        assert f"pid {holder.pid}" in error
        two.daemon.plan("all-disabled")
        assert two.daemon.property("ConfigErrors") == [error]
        assert two.daemon.log.count("the node could not follow") == 1
        assert two.daemon.property("Match") == "no"
    assert layouts(two.node) == before
    subprocess.run(["touch", two.daemon.config_dir / names.SETTINGS_FILE], check=True)
    is_done(two, [0, 0])
    assert two.daemon.property("ConfigErrors") == []
    assert set(layouts(two.node).values()) == {DISABLED}


def test_what_was_refused_is_forgotten_once_the_node_matches(two: World) -> None:
    two.put("all-balanced")
    with two.node.hold(0):
        put(two, "config: all-disabled\nconfig-authority: file\non-config-change: apply\n")
        becomes(two, "ConfigErrors", bool)
    two.put("all-disabled")
    assert two.daemon.property("ConfigErrors") == []


def test_nothing_is_applied_at_the_start(tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", (H100, 2))
    with PrivateBus() as bus:
        daemon = Daemon(node, bus.address, tmp_path)
        text = "config: all-1g.10gb\non-config-change: apply\n"
        (daemon.config_dir / names.SETTINGS_FILE).write_text(text)
        with daemon:
            made = World(node, bus, daemon)
            assert daemon.property("Match") == "no"
            # Nor by a reload that somebody asks for.
            daemon.call("Reload")
            assert jobs(made) == []
            assert not changing_calls(node)


# -- broken files ----------------------------------------------------------------------------


def test_a_broken_file_leaves_its_old_one_in_force_and_the_other_counts(two: World) -> None:
    folder = two.daemon.config_dir
    put(two, document({"mine": [("all", {"1g.10gb": 2})]}), names.CONFIG_FILE)
    put(two, "config: mine\n")
    is_wanted(two, "mine", "mine")
    put(two, "config: mine\non-config-change: aply\n")
    becomes(two, "ConfigErrors", bool)
    (error,) = two.daemon.property("ConfigErrors")
    assert error.startswith(f"{folder / names.SETTINGS_FILE}:2:19: on-config-change: ")
    is_wanted(two, "mine", "mine")
    put(two, "version: v1\nmig-configs: {}\n", names.CONFIG_FILE)
    becomes(two, "ConfigErrors", lambda errors: len(errors) == 2)
    assert "mine" in two.daemon.property("Configs")
    name, message = two.daemon.refused("Reload")
    assert name == f"{names.ERROR}.Config"
    assert message.splitlines() == two.daemon.property("ConfigErrors")
    put(two, document({"new": [("all", None)]}), names.CONFIG_FILE)
    becomes(two, "ConfigErrors", lambda errors: len(errors) == 2)
    becomes(two, "Configs", lambda configs: "new" in configs and "mine" not in configs)
    put(two, "config: new\n")
    becomes(two, "ConfigErrors", lambda errors: not errors)
    is_wanted(two, "new", "new")


def test_nothing_is_applied_while_a_file_is_refused(two: World) -> None:
    put(two, "config: all-disabled\non-config-change: apply\n")
    becomes(two, "Match", lambda match: match == "yes")
    (two.daemon.config_dir / names.CONFIG_FILE).write_text("version: v1\nmig-configs: [\n")
    put(two, "config: all-1g.10gb\non-config-change: apply\n")
    becomes(two, "ConfigErrors", bool)
    is_wanted(two, "all-1g.10gb", "all-1g.10gb")
    assert jobs(two) == []
    assert "is refused" in two.daemon.log
    (two.daemon.config_dir / names.CONFIG_FILE).unlink()
    is_done(two, [7, 7])


def test_a_refused_list_of_clients_is_told(two: World) -> None:
    etc, packaged = two.daemon.config_dir, two.daemon.defaults_dir

    def told(*places: str) -> None:
        def same(errors: list[str]) -> bool:
            return len(errors) == len(places) and all(map(str.startswith, errors, places))

        becomes(two, "ConfigErrors", same)

    (etc / names.CLIENTS_DIR).mkdir()
    added = etc / names.CLIENTS_DIR / "site.yaml"
    added.write_text("systemd-services:\n- nvidia-fabricmanager.service\n")
    told(f"{added}:2:3: systemd-services[0]: ")
    (packaged / names.CLIENTS_FILE).write_text("unlisted: maybe\n")
    told(f"{packaged / names.CLIENTS_FILE}:1:11: unlisted: ", f"{added}:2:3: ")
    # It replaces the packaged one, which is judged no more.
    put(two, "systemd-services: [nvidia-dcgm.service]\n", names.CLIENTS_FILE)
    told(f"{added}:2:3: ")
    name, message = two.daemon.refused("Reload")
    assert name == f"{names.ERROR}.Config"
    assert message.splitlines() == two.daemon.property("ConfigErrors")
    added.unlink()
    told()
    two.daemon.call("Reload")
    assert (instances(two), jobs(two)) == ([0, 0], [])
    assert not changing_calls(two.node)


def test_a_changed_list_of_clients_applies_nothing(two: World) -> None:
    put(two, "config: all-disabled\non-config-change: apply\n")
    becomes(two, "Match", lambda match: match == "yes")
    two.daemon.call("Reload")
    put(two, "unlisted: no\n", names.CLIENTS_FILE)
    becomes(two, "ConfigErrors", bool)
    put(two, "unlisted: refuse\n", names.CLIENTS_FILE)
    becomes(two, "ConfigErrors", lambda errors: not errors)
    assert (two.daemon.property("Match"), jobs(two)) == ("yes", [])


@pytest.mark.parametrize("what", ["fifo", "folder", "device"])
def test_a_file_that_is_none_is_refused_at_once(two: World, what: str) -> None:
    path = two.daemon.config_dir / names.SETTINGS_FILE
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    becomes(two, "ConfigErrors", bool)
    (error,) = two.daemon.property("ConfigErrors")
    why = "cannot be read" if what == "folder" else "is not used"
    assert error.startswith(f"{path} {why}")


# -- where the files are ---------------------------------------------------------------------


def test_a_folder_that_comes_late_and_is_replaced(tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", (H100, 2))
    with PrivateBus() as bus:
        daemon = Daemon(node, bus.address, tmp_path)
        daemon.config_dir.rmdir()
        with daemon:
            made = World(node, bus, daemon)
            assert daemon.property("ConfigErrors") == []
            daemon.config_dir.mkdir()
            put(made, "config: all-1g.10gb\n")
            is_wanted(made, "all-1g.10gb", "all-1g.10gb")
            daemon.config_dir.rename(tmp_path / "old")
            is_wanted(made)
            new = tmp_path / "new"
            new.mkdir()
            (new / names.SETTINGS_FILE).write_text("config: all-balanced\n")
            daemon.config_dir.symlink_to("new")
            is_wanted(made, "all-balanced", "all-balanced")
            (new / names.SETTINGS_FILE).write_text("config: all-disabled\n")
            is_wanted(made, "all-disabled", "all-disabled")
            (tmp_path / "mine").write_text("config: all-1g.10gb\n")
            (new / names.SETTINGS_FILE).unlink()
            (new / names.SETTINGS_FILE).symlink_to(tmp_path / "mine")
            is_wanted(made, "all-1g.10gb", "all-1g.10gb")
            (tmp_path / "mine").write_text("config: all-balanced\n")
            is_wanted(made, "all-balanced", "all-balanced")


# -- limits ----------------------------------------------------------------------------------


def test_time_limits_count_from_the_next_request_on(two: World) -> None:
    put(two, "time-limits: {nvml-read: 1}\nconfig: all-disabled\n")
    is_wanted(two, "all-disabled", "all-disabled")
    two.node.fault("nvmlDeviceGetMigMode", hang=True, gpu=1)
    name, message = two.daemon.refused("Plan", "sa{sv}", "all-1g.10gb", {})
    assert name == f"{names.ERROR}.Hung"
    assert "GPU 1 did not answer within 1 s" in message
    two.node.clear_faults()


# -- Stage -----------------------------------------------------------------------------------


def stage(made: World, config: str, **given: Any) -> None:
    assert made.daemon.call("Stage", "sa{sv}", config, options(given)) == []


def test_stage_changes_what_is_wanted_and_nothing_else(two: World) -> None:
    two.put("all-balanced")
    before, calls, done = two.node.gpus(), changing_calls(two.node), jobs(two)
    stage(two, "all-1g.10gb", gpus=["1"])
    is_wanted(two, "all-balanced", "all-1g.10gb")
    assert two.daemon.property("Match") == "no"
    stage(two, "", text=document({"x": [("[0]", {"1g.10gb": 1})]}))
    is_wanted(two, "(text)", "all-1g.10gb")
    stage(two, "all-1g.10gb", gpus=["0"], mode_only=True)
    two.daemon.restart()
    is_wanted(two, "all-1g.10gb", "all-1g.10gb")
    assert (two.node.gpus(), changing_calls(two.node)) == (before, calls)
    assert jobs(two) == done
    # Of GPU 0 only the mode is asked for.
    two.put("all-1g.10gb", gpus=["1"])
    assert two.daemon.property("Match") == "yes"
    assert instances(two) == [4, 7]
    stage(two, "all-balanced")
    assert two.daemon.property("Match") == "no"
    before = two.node.gpus()
    stage(two, "all-balanced", gpus=["0"])
    assert two.node.gpus() == before


def test_stage_of_what_is_wanted_already_writes_nothing(two: World) -> None:
    stage(two, "all-1g.10gb")
    status = two.daemon.state.stat()
    stage(two, "all-1g.10gb")
    assert two.daemon.state.stat() == status


@pytest.mark.parametrize(
    ("config", "given", "error"),
    [
        ("nonsense", {}, "NoSuchConfig"),
        ("", {"text": document({"x": [("all", {"3g.40gb": 3})]})}, "NoSpace"),
        ("", {"text": document({"x": [("all", {"1g.5gb": 1})]})}, "NoSuchProfile"),
        ("", {"text": "version: v2"}, "Config"),
        ("all-1g.10gb", {"gpus": ["7"]}, "NoSuchGpu"),
        ("all-1g.10gb", {"max-impact": "gpu"}, "InvalidArgs"),
        ("all-1g.10gb", {"expect": "x"}, "InvalidArgs"),
        ("all-1g.10gb", {"text": Variant("b", True)}, "InvalidArgs"),
        ("", {}, "InvalidArgs"),
    ],
)
def test_what_stage_refuses(two: World, config: str, given: dict[str, Any], error: str) -> None:
    stage(two, "all-disabled")
    status = two.daemon.state.stat()
    name, _ = two.daemon.refused("Stage", "sa{sv}", config, options(given))
    assert name.rpartition(".")[2] == error
    is_wanted(two, "all-disabled", "all-disabled")
    assert two.daemon.state.stat() == status


def test_stage_is_refused_while_a_job_runs(two: World) -> None:
    two.node.latency("nvmlDeviceCreateGpuInstanceWithPlacement", 100)
    number, path = two.daemon.apply("all-1g.10gb")
    name, message = two.daemon.refused("Stage", "sa{sv}", "all-balanced", {})
    assert name == f"{names.ERROR}.Busy"
    assert path in message
    assert two.daemon.wait(number)[0] == "done"
    is_wanted(two, "all-1g.10gb", "all-1g.10gb")


def test_stage_is_refused_where_the_file_decides(two: World) -> None:
    put(two, document({"half": [("[1]", None)]}), names.CONFIG_FILE)
    put(two, "config: half\nconfig-authority: file\n")
    is_wanted(two, "", "half")
    name, message = two.daemon.refused("Stage", "sa{sv}", "all-1g.10gb", {})
    assert name == f"{names.ERROR}.Overruled"
    assert "GPU 1" in message
    assert "config-authority: file" in message
    stage(two, "all-1g.10gb", gpus=["0"])
    is_wanted(two, "all-1g.10gb", "half")
    put(two, "config: half\n")
    two.daemon.call("Reload")
    stage(two, "all-1g.10gb")
    is_wanted(two, "all-1g.10gb", "all-1g.10gb")
