# SPDX-License-Identifier: Apache-2.0
"""The command line, as tests, benchmarks and people call it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from migd.simulator import build
from migd.simulator.__main__ import main
from migd.simulator.errors import SimulatorError
from migd.simulator.node import python_command
from tests.simulator.nvml_help import create, enabled
from tests.support.node import Node, wait_for


def simulator(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*python_command(), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def show(node: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["show", str(node), "--json"]) == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    return shown


def test_mixed_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = tmp_path / "n"
    words = "--gpu h100-80gb-sxm5 --count 2 --gpu a30-24gb --gpu a100-40gb --count 1 --seed 3"
    assert main(["new", str(node), *words.split()]) == 0
    gpus = show(node, capsys)["gpus"]
    boards = ["h100-80gb-sxm5", "h100-80gb-sxm5", "a30-24gb", "a100-40gb"]
    assert [row["board"] for row in gpus] == boards
    assert [row["index"] for row in gpus] == [row["minor"] for row in gpus] == [0, 1, 2, 3]
    again = tmp_path / "again"
    assert main(["new", str(again), *words.split()]) == 0
    assert [row["uuid"] for row in show(again, capsys)["gpus"]] == [row["uuid"] for row in gpus]
    assert main(["show", str(node)]) == 0
    text = capsys.readouterr().out
    assert "2: NVIDIA A30 00000000:52:00.0" in text
    assert "h100-80gb-sxm5, left out, not known: compute profile 1c.3g.40gb id 7 in 3g." in text


def test_show_of_a_node_with_everything(
    h100: Node, nvml: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api = nvml(h100)
    api.nvmlGpuInstanceCreateComputeInstance(create(enabled(), 9), 2)
    h100.surprise("pending-sticks")
    with h100.hold(0, 1, hidden=True) as holder:
        assert main(["show", str(h100.path)]) == 0
        text = capsys.readouterr().out
        shown = show(h100.path, capsys)
    assert f"sessions: {os.getpid()}" in text
    assert "GPU instance 1: 3g.40gb (id 9) at 4:4" in text
    assert "compute instance 0: 3g.40gb MIG-" in text
    assert f"held by {holder.pid}: GPU instance 1, hidden" in text
    assert "surprises: pending-sticks" in text
    row = shown["gpus"][0]
    assert row["mode"] == {"current": "enabled", "pending": "enabled"}
    assert row["holders"] == [{"pid": holder.pid, "gi": 1, "hidden": True}]
    (instance,) = row["instances"]
    assert {key: instance[key] for key in ("gi", "profile", "profile_id", "placement")} == {
        "gi": 1,
        "profile": "3g.40gb",
        "profile_id": 9,
        "placement": {"start": 4, "size": 4},
    }
    assert instance["compute_instances"][0]["ci"] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("new {node} --gpu h100-80gb-sxm5", "is already a simulated node"),
        ("new {other} --gpu gtx-1080", "'gtx-1080' is not offered; there are a30-24gb"),
        ("new {other} --gpu a30-24gb --count 0", "a node has 1 to 32 GPUs"),
        ("show {other}", "is not a simulated node"),
        ("run {other} -- true", "is not a simulated node"),
        ("run {node} --no-view", "run needs a command after --"),
        ("run {node} --no-view -- /nonexistent/program", "cannot be run"),
        ("hold {node} --gpu 9 -- true", "there is no GPU 9"),
        ("fault {node} --call nvmlInit_v2", "a fault needs --call NAME and one of"),
        ("fault {node} --call nvmlInit_v2 --hang --return IN_USE", "one of"),
        ("fault {node} --call nvmlX --hang", "no function nvmlX"),
        ("latency {node} --ms 3", "go together"),
        ("surprise {node} nonsense on", "there is no surprise 'nonsense'"),
        ("surprise {node} passthrough maybe", "neither on, off nor a number"),
        ("reset {node} --gpu 7", "there is no GPU 7"),
        ("load {node}", "already loaded"),
        ("upgrade {node} --driver 1;rm", "is not a driver version"),
    ],
)
def test_refusals_are_one_sentence(
    words: str, sentence: str, h100: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words.format(node=h100.path, other=tmp_path / "other").split()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", ["", "dance", "new x", "new x --count 2", "reset x"])
def test_wrong_use(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_run_keeps_the_pid_and_finds_the_library(h100: Node) -> None:
    script = (
        "import os, pynvml; pynvml.nvmlInit();"
        "print(os.getpid(), pynvml.nvmlDeviceGetCount(), os.environ['LD_LIBRARY_PATH'])"
    )
    for flags in ([], ["--no-view"]):
        command = [*python_command(), "run", str(h100.path), *flags, "--", sys.executable]
        with subprocess.Popen([*command, "-c", script], stdout=subprocess.PIPE, text=True) as child:
            out, _ = child.communicate()
        pid, count, path = out.split()
        assert (int(pid), count) == (child.pid, "2")
        assert path.split(":")[0] == str(h100.path / "lib")


def test_run_passes_on_the_exit_status_and_arguments(h100: Node) -> None:
    done = simulator(
        "run", h100.path, "--no-view", "--", "sh", "-c", "echo -- $1; exit 7", "x", "y"
    )
    assert (done.returncode, done.stdout) == (7, "-- y\n")


def test_verbs(h100: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node = str(h100.path)

    def run(*words: str) -> str:
        assert main([words[0], node, *words[1:]]) == 0
        return capsys.readouterr().out

    run("fault", "--call", "nvmlDeviceCreateGpuInstance...", "--nth", "3", "--return", "IN_USE")
    run("fault", "--call", "nvmlDeviceSetMigMode", "--no-effect", "--gpu", "0")
    run("fault", "--call", "nvmlDeviceGetMigMode", "--hang")
    faults = h100.show()["faults"]
    assert [(f["call"], f["action"], f["nth"], f["gpu"]) for f in faults] == [
        ("nvmlDeviceCreateGpuInstance*", "return", 3, None),
        ("nvmlDeviceSetMigMode", "no-effect", 0, 0),
        ("nvmlDeviceGetMigMode", "hang", 0, None),
    ]
    run("fault", "--clear")
    assert h100.show()["faults"] == []
    out = run("latency", "--profile", "default")
    assert "4500.000 ms  nvmlDeviceSetMigMode@reset\n" in out
    assert "300.000 ms  nvmlDeviceSetMigMode@resetless  (assumed)\n" in out
    assert "lock node (modelled" in run("latency", "--lock", "node")
    assert "7.500 ms  nvmlInit_v2" in run("latency", "--call", "nvmlInit_v2", "--ms", "7.5")
    run("surprise", "destroyed-stay-visible", "3", "--gpu", "1")
    run("surprise", "pending-sticks", "on")
    run("surprise", "pending-sticks", "off", "--gpu", "1")
    assert [row["surprises"] for row in h100.gpus()] == [
        {"pending-sticks": True},
        {"destroyed-stay-visible": 3},
    ]
    listed = run("surprise", "--list").splitlines()
    assert [line.split()[0] for line in listed] == list(h100.simulated.surprises())
    run("reset", "--gpu", "0")
    run("reboot")
    run("unload")
    run("load", "--driver", "590.10.01")
    assert h100.show()["driver"] == {"loaded": True, "version": "590.10.01"}
    assert h100.show()["boot"] == 2


def test_hold_is_the_command_itself(h100: Node) -> None:
    with h100.hold(1, command=["sleep", "infinity"]) as holder:
        wait_for(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n")
        assert h100.gpus()[1]["holders"] == [{"pid": holder.pid, "gi": None, "hidden": False}]


def test_a_missing_compiler_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(SimulatorError, match="apt install gcc"):
        build.build()


def test_parallel_builds_do_not_meet(tmp_path: Path) -> None:
    script = "from migd.simulator import build; print(build.build())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    paths = {process.communicate()[0].strip() for process in running}
    assert len(paths) == 1
    folder = Path(paths.pop()).parent
    assert [entry.name for entry in folder.iterdir()] == [build.LIBRARY]
