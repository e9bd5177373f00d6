"""Completion of what the daemon knows, in a real bash and a real zsh, beside a real daemon."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.manager import H100, World, document, world

CHECKOUT = Path(__file__).parents[2]
BASH = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() { :; }
_migctl && printf '%s\\n' "${COMPREPLY[@]}"
"""
# A zsh on a terminal of its own, whose listing of what fits is read.
ZSH = """\
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "stty -echo; PS1=; fpath=($1 \\$fpath); autoload -Uz compinit; compinit -u -D"
zpty -w z "zstyle ':completion:*' list-prompt ''; LISTMAX=9999; COLUMNS=60; print -r BEGUN"
zpty -r z out '*BEGUN*'
zpty -w -n z "$2"$'\\t'
zpty -r -m z out "*$3*"
print -r -- "$out"
"""
# What a shell would act upon when it reads it as its own.
HOSTILE = ("$(touch owned)", "`touch owned`", "a;touch owned", "-x", "two words", "x*", "~root")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("one"), (H100, 1)) as made:
        names = {f'"{name}"' if "$" in name or "`" in name else f"'{name}'" for name in HOSTILE}
        made.daemon.configure(document({n: [("all", None)] for n in [*names, "train.2+me"]}))
        made.daemon.call("Reload")
        assert set(HOSTILE) < set(made.daemon.property("Configs"))
        yield made


def environment(folder: Path, bus: str) -> dict[str, str]:
    program = folder / "bin/migctl"
    program.parent.mkdir(exist_ok=True)
    run = f'PYTHONPATH={CHECKOUT} exec {sys.executable} -m migd.cli.main "$@"'
    program.write_text(f"#!/bin/sh\n{run}\n")
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "DBUS_SYSTEM_BUS_ADDRESS": bus,
    }


def generated(shell: str) -> str:
    command = [sys.executable, str(CHECKOUT / "packaging/generate"), shell]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def completed(folder: Path, bus: str, *words: str) -> set[str]:
    script = folder / "completion"
    script.write_text(generated("bash"))
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", script, "migctl", *words],
        env=environment(folder, bus), cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.stderr
    return {word for word in done.stdout.split("\n") if word}


def test_bash(one: World, tmp_path: Path) -> None:
    bus = one.bus.address
    offered = completed(tmp_path, bus, "apply", "")
    safe = set(one.daemon.property("Configs")) - set(HOSTILE)
    assert "train.2+me" in safe
    assert {word for word in offered if not word.startswith("-")} == safe
    assert completed(tmp_path, bus, "--json", "plan", "all-1g.10gb.") == {"all-1g.10gb.me"}
    assert completed(tmp_path, bus, "apply", "x", "-g", "") == {"0", one.uuid(0)}
    assert completed(tmp_path, bus, "apply", "-f", "") >= {"completion"}
    assert completed(tmp_path, bus, "cancel", "1") == set()
    # Of another host, and where there is no daemon, nothing is asked and nothing said.
    assert completed(tmp_path, bus, "-H", "gpu1", "apply", "all") == set()
    assert completed(tmp_path, "unix:path=/nonexistent", "apply", "all") == set()
    assert not (tmp_path / "owned").exists()


def test_zsh(one: World, tmp_path: Path) -> None:
    functions = tmp_path / "functions"
    functions.mkdir()
    (functions / "_migctl").write_text(generated("zsh"))
    done = subprocess.run(
        ["zsh", "-f", "-c", ZSH, "zsh", functions, "migctl apply all-", "all-enabled"],
        env=environment(tmp_path, one.bus.address) | {"TERM": "dumb"},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "all-1g.10gb" in done.stdout, done.stdout + done.stderr
    assert "all-disabled" in done.stdout
    assert not (tmp_path / "owned").exists()
