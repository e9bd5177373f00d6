"""What migctl takes, and what it refuses before it speaks to anybody."""

import io
from pathlib import Path
from typing import Any

import pytest

from migd import __version__
from migd.cli.arguments import parser
from migd.cli.main import _VERBS, main
from migd.cli.outcome import Exit, Failure
from migd.cli.request import request


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["status", "--jsn"],
        ["status", "extra"],
        ["plan", "x", "--max-impact", "reboot"],
        ["plan", "x", "--mode"],
        ["cancel", "0"],
        ["cancel", "-1"],
        ["cancel", "4294967296"],
        ["cancel", "seven"],
        ["plan", "x", "--no-wait"],
        ["--timeout", "0", "status"],
        ["--timeout", "nan", "status"],
        ["--color", "maybe", "status"],
    ],
)
def test_wrong_use_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == Exit.WRONG_USE
    assert "migctl" in capsys.readouterr().err


def test_every_verb_has_its_function() -> None:
    (verbs,) = (a.choices for a in parser()._actions if a.dest == "verb")
    assert verbs is not None
    assert set(verbs) == {*_VERBS, "check", "import-mig-parted"}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"migctl {__version__}\n"


@pytest.mark.parametrize("before", [True, False])
def test_global_options_go_before_the_verb_and_after_it(before: bool) -> None:
    extra = ["--json", "--color", "never", "--timeout", "7"]
    found = parser().parse_args([*extra, "status"] if before else ["status", *extra])
    assert (found.json, found.color, found.timeout) == (True, "never", 7.0)


def asked(*arguments: str) -> tuple[str, dict[str, Any]]:
    config, options = request(parser().parse_args(arguments))
    return config, {k: (v.signature, v.value) for k, v in options.items()}


def test_options_become_those_of_the_bus() -> None:
    flags = ["-g", "0", "--gpu", "GPU-1", "--mode-only", "--max-impact", "reset", "--expect", "d"]
    assert asked("apply", "all-1g.10gb", *flags) == (
        "all-1g.10gb",
        {
            "gpus": ("as", ["0", "GPU-1"]),
            "mode-only": ("b", True),
            "max-impact": ("s", "reset"),
            "expect": ("s", "d"),
        },
    )
    assert asked("plan", "x") == ("x", {})


def test_a_file_is_sent_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("version: v1\n")
    assert asked("assert", "-f", str(file)) == ("", {"text": ("s", "version: v1\n")})
    assert asked("assert", "one", "-f", str(file)) == ("one", {"text": ("s", "version: v1\n")})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("ü: 1".encode())))
    assert asked("plan", "-f", "-") == ("", {"text": ("s", "ü: 1")})


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"\xff\xfe", "not UTF-8"), (b"a\0b", "not text"), (b"x" * (2**20 + 1), "longer than")],
)
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, content: bytes, why: str
) -> None:
    file = tmp_path / "bad"
    file.write_bytes(content)
    with pytest.raises(Failure, match=why) as failure:
        asked("plan", "-f", str(file))
    assert failure.value.exit_code == Exit.WRONG_USE


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="No such file") as failure:
        asked("plan", "-f", str(tmp_path / "none"))
    assert failure.value.exit_code == Exit.WRONG_USE


def test_a_configuration_must_be_named() -> None:
    with pytest.raises(Failure, match="say which") as failure:
        asked("plan")
    assert failure.value.exit_code == Exit.WRONG_USE
