"""Loads hooks in mig-parted's format, and knows those that mig-parted itself ships."""

import re

from migd.config.clients import VERSION, check_version
from migd.config.document import document
from migd.config.faults import Faults
from migd.config.fields import Field
from migd.core.hooks import Hook, Hooks, Moment

KEYS = ("version", "hooks")
HOOK_KEYS = ("command", "args", "envs", "workdir")
MOMENTS = tuple(moment.value for moment in Moment)

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What came of each is kept with the last jobs.
_MOST = 32

# Where mig-parted's hooks.sh is, and the functions in it that do what migd does itself: they keep
# the choice for the next boot, stop GPU clients and start them again, and have CDI written anew.
FOLDER = "/etc/nvidia-mig-manager"
_SOURCE = re.compile(r"(?:source|\.) (?:\./)?hooks\.sh")
_OURS = re.compile(
    r"apply-start(?: [\"']?\$\{?MIG_PARTED_SELECTED_CONFIG\}?[\"']?)?|pre-apply-mode"
    r"|pre-apply-config|apply-exit|refresh-cdi|(?:stop|start)_(?:driver|k8s)_services|stop_k8s_pods"
)
_SHELLS = ("bash", "/bin/bash", "/usr/bin/bash")


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
    found = {moment: _list(value) for moment, value in moments.items() if moment in MOMENTS}
    return Hooks({Moment(moment): hooks for moment, hooks in found.items()})


def _list(value: Field) -> tuple[Hook, ...]:
    if value.empty:
        return ()
    items = value.items("write a list: - {command: /usr/bin/true}") or ()
    if len(items) > _MOST:
        value.wrong(f"has {len(items)} hooks; write at most {_MOST}, or a script that runs them")
        return ()
    return tuple(hook for item in items if (hook := _hook(item)))


def _hook(item: Field) -> Hook | None:
    right = "write command: and the program to run"
    members = item.record(HOOK_KEYS, right)
    if members is None:
        return None
    if "command" not in members:
        item.wrong(f"has no command; {right}")
        return None
    command = members["command"].text(right)
    if command == "" or (command and "/" in command and not command.startswith("/")):
        members["command"].wrong("must be the whole path of a program, or its name alone")
    elif command and "=" in command:
        members["command"].wrong("must not have = in it: env(1) would take it for a variable")
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


# -- mig-parted's own ------------------------------------------------------------------------


def packaged(hook: Hook) -> bool:
    """Whether all that it calls is functions of mig-parted's hooks.sh that migd does itself."""
    if hook.command not in _SHELLS or hook.workdir.rstrip("/") != FOLDER or hook.envs:
        return False
    if hook.args[:-1] not in (("-x", "-c"), ("-c",), ("-xc",)):
        return False
    source, *calls = (part.strip() for part in re.split(r";|&&", hook.args[-1].rstrip("; ")))
    return bool(_SOURCE.fullmatch(source) and calls and all(map(_OURS.fullmatch, calls)))


def skipped(hooks: Hooks, source: str) -> str:
    """What is to be said of those that are not run, in a sentence; "" if all are."""
    count = sum(packaged(hook) for _, hook in hooks.all)
    if not count:
        return ""
    return (
        f"{count} of {len(hooks.all)} hooks in {source} are mig-parted's own and are not run, "
        "since migd does itself what they do: keep the choice, stop GPU clients and start them "
        "again, have CDI written anew"
    )


def to_be_run(hooks: Hooks) -> Hooks:
    """All but mig-parted's own."""
    left = {
        moment: tuple(hook for hook in some if not packaged(hook))
        for moment, some in hooks.hooks.items()
    }
    return Hooks({moment: some for moment, some in left.items() if some})
