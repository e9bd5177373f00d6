"""`migctl check`: files are judged with no bus, no daemon and no GPU anywhere."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from migd.cli.main import main
from migd.cli.outcome import Exit
from tests.data import defaults

Captured = pytest.CaptureFixture[str]

GOOD = {
    "config.yaml": "version: v1\nmig-configs:\n  one: [{devices: all, mig-enabled: false}]\n",
    "clients.yaml": "version: v1\nsystemd-services: [nvidia-dcgm.service]\n",
    "migd.yaml": "config: one\n",
    "hooks.yaml": "version: v1\nhooks: {apply-exit: [{command: /bin/true}]}\n",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good file of each kind; whoever asks a bus fails."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    monkeypatch.chdir(tmp_path)
    for name, text in GOOD.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_good_files(capsys: Captured) -> None:
    assert main(["check", *GOOD]) == Exit.DONE
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "config.yaml: good (config, 1 config)",
        "clients.yaml: good (clients)",
        "migd.yaml: good (settings)",
        "hooks.yaml: good (hooks)",
    ]
    assert err == ""


def test_mig_parteds_default_file(folder: Path, capsys: Captured) -> None:
    (folder / "default").write_text(defaults.yaml_text())
    assert main(["check", "default", "-c", "all-1g.10gb"]) == Exit.DONE
    assert capsys.readouterr().out == "default: good (config, 81 configs)\n"


def test_every_fault_of_every_file(folder: Path, capsys: Captured) -> None:
    (folder / "config.yaml").write_text("version: v1\nmig-configs: {a: []}\nmore: 1\n")
    (folder / "migd.yaml").write_text("on-config-change: aply\n")
    assert main(["check", *GOOD, "none"]) == Exit.FAILED
    out, err = capsys.readouterr()
    assert [line.partition(": ")[0] for line in out.splitlines()] == [
        "config.yaml:2:18",
        "config.yaml:3:1",
        "clients.yaml",
        "migd.yaml:1:19",
        "hooks.yaml",
        "none",
    ]
    assert "migd.yaml:1:19: on-config-change: " in out
    assert "none: cannot be read: No such file or directory" in out
    assert err == ""


def test_as_json(folder: Path, capsys: Captured) -> None:
    (folder / "migd.yaml").write_text("\n  time-limits: {nvml-read: 0}\n")
    assert main(["check", "--json", "config.yaml", "migd.yaml"]) == Exit.FAILED
    assert json.loads(capsys.readouterr().out) == {
        "files": [
            {"file": "config.yaml", "kind": "config", "good": True, "configs": ["one"],
             "notes": [], "faults": []},
            {"file": "migd.yaml", "kind": "settings", "good": False, "configs": [],
             "notes": [],
             "faults": [{"line": 2, "column": 28, "key": "time-limits.nvml-read",
                         "message": "0 is out of range; write 1 to 600, in seconds"}]},
        ]
    }  # fmt: skip


def test_a_config_that_is_asked_for(capsys: Captured) -> None:
    assert main(["check", "config.yaml", "-c", "one"]) == Exit.DONE
    assert main(["check", "config.yaml", "migd.yaml", "-c", "two"]) == Exit.FAILED
    assert 'has no config "two"; there is one' in capsys.readouterr().out
    assert main(["check", "migd.yaml", "-c", "one"]) == Exit.FAILED


def test_a_kind_that_is_said(capsys: Captured) -> None:
    assert main(["check", "config.yaml", "--as", "hooks"]) == Exit.FAILED
    assert "the keys are version, hooks" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["check", "config.yaml", "--as", "other"])
    assert end.value.code == Exit.WRONG_USE
    with pytest.raises(SystemExit) as end:
        main(["check"])
    assert end.value.code == Exit.WRONG_USE


def test_stdin(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"config: 1")))
    assert main(["check", "-"]) == Exit.FAILED
    assert capsys.readouterr().out.startswith("stdin:1:9: config: must be text, not 1")


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\0", b"\x1b[31m: 1", b"a" * (2 << 20), b"config: \x9b", b"[" * 9999]
)
def test_hostile_files_cannot_steer_a_terminal(folder: Path, capsys: Captured, data: bytes) -> None:
    (folder / "\x1b]0;x\x07.yaml").write_bytes(data)
    assert main(["check", "\x1b]0;x\x07.yaml"]) == Exit.FAILED
    out = capsys.readouterr().out
    assert out
    assert all(c.isprintable() or c == "\n" for c in out)


def test_a_folder(folder: Path, capsys: Captured) -> None:
    assert main(["check", str(folder)]) == Exit.FAILED
    assert "Is a directory" in capsys.readouterr().out


def test_other_verbs_do_not_pay_for_it() -> None:
    script = (
        "import sys, migd.cli.main\n"
        "print([m for m in sys.modules if m == 'yaml' or m.startswith('migd.config')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
