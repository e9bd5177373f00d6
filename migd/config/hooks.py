"""Loads hooks in mig-parted's format. They are judged only: nothing runs them yet."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from migd.config.clients import VERSION, check_version
from migd.config.document import document
from migd.config.faults import Faults
from migd.config.fields import Field

KEYS = ("version", "hooks")
MOMENTS = ("apply-start", "pre-apply-mode", "pre-apply-config", "apply-exit")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Hook:
    """A command; a `workdir` of "" is none."""

    command: str
    args: tuple[str, ...] = ()
    envs: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""


@dataclass(frozen=True)
class Hooks:
    """By moment, in order."""

    hooks: Mapping[str, tuple[Hook, ...]] = field(default_factory=dict)


def load(text: str, source: str) -> Hooks:
    """The hooks that `text` defines; none where it is empty.

    source: the file's name, for the messages
    Raises ConfigRefused with every fault, one a line.
    """
    faults = Faults()
    root = document(text, source, faults)
    hooks = Hooks()
    if root is not None and root.value not in (None, {}):
        hooks = _root(Field(root, "", faults))
    faults.check()
    return hooks


def _root(root: Field) -> Hooks:
    right = f"write version: {VERSION} and hooks: with lists of commands below it"
    members = root.record(KEYS, right) or {}
    check_version(members.get("version"))
    named = members.get("hooks")
    if named is None or named.empty:
        return Hooks()
    moments = named.record(MOMENTS, f"write {', '.join(MOMENTS)}, each with a list") or {}
    return Hooks({moment: _list(value) for moment, value in moments.items()})


def _list(value: Field) -> tuple[Hook, ...]:
    if value.empty:
        return ()
    items = value.items("write a list: - {command: /usr/bin/true}") or ()
    return tuple(hook for item in items if (hook := _hook(item)))


def _hook(item: Field) -> Hook | None:
    right = "write command: and the program to run"
    members = item.record(("command", "args", "envs", "workdir"), right)
    if members is None:
        return None
    if "command" not in members:
        item.wrong(f"has no command; {right}")
        return None
    command = members["command"].text(right)
    if command == "" or (command and "/" in command and not command.startswith("/")):
        members["command"].wrong("must be the whole path of a program, or its name alone")
    return Hook(
        command or "",
        _args(members.get("args")),
        _envs(members.get("envs")),
        _workdir(members.get("workdir")),
    )


def _args(value: Field | None) -> tuple[str, ...]:
    if value is None or value.empty:
        return ()
    items = value.items('write a list of texts, such as ["-c", "true"]') or ()
    return tuple(text for item in items if (text := item.text("put it in quotes")) is not None)


def _envs(value: Field | None) -> dict[str, str]:
    if value is None or value.empty:
        return {}
    found = {}
    for name, member in (value.members("write variables and their values") or {}).items():
        if not _VARIABLE.fullmatch(name):
            value.wrong_key(
                name, "is not the name of a variable; write letters, digits and _, a letter first"
            )
        if (text := member.text("put it in quotes")) is not None:
            found[name] = text
    return found


def _workdir(value: Field | None) -> str:
    if value is None:
        return ""
    path = value.text("write the path of a folder")
    if path and not path.startswith("/"):
        value.wrong("must be a whole path, beginning with /: hooks are started from nowhere")
    return path or ""
