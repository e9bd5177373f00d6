"""Hooks in mig-parted's format: the form of those that it ships, and every fault."""

import pytest

from migd.config.hooks import FOLDER, load, packaged, skipped, to_be_run
from migd.core.hooks import Hook, Hooks, Moment
from migd.errors import ConfigRefused

DEFAULT = """\
version: v1
hooks:
  apply-start:
  - workdir: "/etc/nvidia-mig-manager"
    command: "/bin/bash"
    args: ["-x", "-c", "source hooks.sh; apply-start"]
  pre-apply-mode:
  - workdir: "/etc/nvidia-mig-manager"
    command: "/bin/bash"
    args: ["-x", "-c", "source hooks.sh; stop_k8s_services"]
    envs:
      PATH: /usr/bin
      EMPTY: ""
  - command: true-program
  apply-exit: []
"""


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigRefused) as caught:
        load(text, "h.yaml")
    return str(caught.value).splitlines()


def test_hooks_as_mig_parted_ships_them() -> None:
    found = load(DEFAULT, "h.yaml").hooks
    assert list(found) == ["apply-start", "pre-apply-mode", "apply-exit"]
    assert found[Moment.MODE] == (
        Hook(
            "/bin/bash",
            ("-x", "-c", "source hooks.sh; stop_k8s_services"),
            {"PATH": "/usr/bin", "EMPTY": ""},
            "/etc/nvidia-mig-manager",
        ),
        Hook("true-program"),
    )
    assert found[Moment.EXIT] == ()


@pytest.mark.parametrize("text", ["", "{}", "version: v1", "hooks:", "hooks: {}"])
def test_none(text: str) -> None:
    assert load(text, "h.yaml") == Hooks()


def test_what_is_null_is_none() -> None:
    text = "hooks: {apply-exit: ~, apply-start: [{command: a, args: ~, envs: ~}]}"
    assert load(text, "h.yaml") == Hooks({Moment.EXIT: (), Moment.START: (Hook("a"),)})


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("{}", "[0]: has no command; write command: and"),
        ("x", "[0]: must be a mapping"),
        ("{command: }", "command: must be text, not empty"),
        ("{command: ''}", "command: must be the whole path of a program, or its name alone"),
        ("{command: /opt/a=b}", "command: must not have = in it"),
        ("{command: bin/x}", "command: must be the whole path of a program"),
        ("{command: [x]}", "command: must be text, not a list"),
        ("{command: x, arg: []}", "arg: is not a key that stands here; the keys are command, args"),
        ("{command: x, args: -c}", "args: must be a list"),
        ("{command: x, args: [1]}", "args[0]: must be text, not 1; put it in quotes"),
        ("{command: x, envs: [A=1]}", "envs: must be a mapping"),
        ("{command: x, envs: {A: 1}}", "envs.A: must be text, not 1; put it in quotes"),
        ("{command: x, envs: {A=: a}}", "envs.A=: is not the name of a variable"),
        ("{command: x, envs: {1A: a}}", "envs.1A: is not the name of a variable"),
        ("{command: x, workdir: here}", "workdir: must be a whole path"),
        ("{command: x, workdir: 1}", "workdir: must be text"),
    ],
)
def test_faults_of_a_hook(hook: str, expected: str) -> None:
    (line,) = refused(f"hooks:\n  apply-start:\n  - {hook}")
    assert line.startswith("h.yaml:3:")
    assert f"hooks.apply-start[0]{'' if expected[0] == '[' else '.'}" in line
    assert expected.removeprefix("[0]") in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: v2", '"v2" is not known'),
        ("hooks: []", "hooks: must be a mapping"),
        ("hooks: {post-apply: []}", "hooks.post-apply: is not a key that stands here; the keys"),
        ("hooks: {apply-start: {}}", "hooks.apply-start: must be a list"),
        (f"hooks: {{apply-exit: [{'{command: a}, ' * 33}]}}", "has 33 hooks; write at most 32"),
        ("hook: {}", "the keys are version, hooks"),
        ("hooks: {apply-start: [], apply-start: []}", "hooks.apply-start: stands here and in"),
    ],
)
def test_form(text: str, expected: str) -> None:
    (line,) = refused(text)
    assert expected in line


def shipped(call: str, **given: object) -> Hook:
    hook = {"command": "/bin/bash", "args": ("-x", "-c", call), "workdir": FOLDER}
    return Hook(**(hook | given))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "hook",
    [
        shipped("source hooks.sh; apply-start ${MIG_PARTED_SELECTED_CONFIG}"),
        shipped("source hooks.sh; refresh-cdi"),
        shipped("source hooks.sh; stop_k8s_services; stop_k8s_pods && stop_driver_services;"),
        shipped(". ./hooks.sh && apply-exit", command="bash", args=("-c", ". hooks.sh;apply-exit")),
    ],
)
def test_what_migd_does_itself(hook: Hook) -> None:
    own = Hook("/bin/tell")
    hooks = Hooks({Moment.START: (hook,), Moment.EXIT: (hook, own)})
    assert packaged(hook)
    assert to_be_run(hooks) == Hooks({Moment.EXIT: (own,)})
    assert skipped(hooks, "h.yaml").startswith("2 of 3 hooks in h.yaml are mig-parted's own")
    assert skipped(to_be_run(hooks), "h.yaml") == ""


@pytest.mark.parametrize(
    "hook",
    [
        shipped("source hooks.sh; apply-exit; reboot"),
        shipped("source hooks.sh; apply-exit $(reboot)"),
        shipped("source hooks.sh; apply-start other"),
        shipped("source hooks.sh"),
        shipped("apply-exit"),
        shipped("source mine.sh; apply-exit"),
        shipped("source hooks.sh; apply-exit", workdir="/opt"),
        shipped("source hooks.sh; apply-exit", command="/bin/dash"),
        shipped("source hooks.sh; apply-exit", envs={"PATH": "/opt"}),
        shipped("", args=()),
    ],
)
def test_what_is_somebodys_own(hook: Hook) -> None:
    assert not packaged(hook)
