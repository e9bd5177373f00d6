"""Processes in a list of GPU clients: by what they are known, and how they are ended.

What they are known by are globs (*, ?, [...]) and not regular expressions: a glob cannot be made to
take long, and cannot match more than it seems to because of a dot.
"""

import re
from fnmatch import fnmatchcase

from migd.config.faults import shortened
from migd.config.fields import Field
from migd.config.settings import word
from migd.config.units import forbidden, runs_users, seconds, switch, wrong_name
from migd.core.listed import From, ListedProcess

TELLING = ("executable", "command-line", "user", "unit")
KEYS = (*TELLING, "stop-for", "grace", "kill", "tree")

_RIGHT = "write by what they are known: executable, command-line, user, unit"
_LONGEST = 1000
_MOST_UID = (1 << 32) - 2
_USER = re.compile(r"[A-Za-z0-9_][^\s*?\[\]:,/]*")
_WILD = re.compile(r"[*?\[]")
# No two processes are less alike: what means both means all.
_UNLIKE = {
    "executable": ("/sbin/init", "/home/Z_9/.x-7+", "/q"),
    "command-line": ("/sbin/init splash", "Q", "-x 7+"),
    "unit": ("init.scope", "a@Z_9.service", "q-7.scope"),
}


def process(item: Field) -> ListedProcess | None:
    """An entry, or None after a fault."""
    members = item.record(KEYS, _RIGHT)
    if members is None:
        return None
    made = ListedProcess(
        _executable(members.get("executable")),
        _glob(members.get("command-line"), "command-line", "'*train.py*'"),
        _user(members.get("user")),
        _unit(members.get("unit")),
        word(members.get("stop-for"), From.ANY),
        seconds(members.get("grace"), "client-grace"),
        switch(members.get("kill")),
        switch(members.get("tree")),
    )
    given = [key for key in TELLING if key in members]
    if not given:
        item.wrong(f"means every process; {_RIGHT}, at least one of them")
    elif given == ["user"] and made.user in ("root", "0"):
        item.wrong("means every process of root; add executable, command-line or unit")
    return made


def _executable(value: Field | None) -> str:
    glob = _glob(value, "executable", "/usr/bin/nvtop, or only nvtop")
    if value and glob and (("/" in glob and glob[0] not in "/*?[") or glob.endswith("/")):
        value.wrong(
            f'"{shortened(glob)}" is the path of no program; write the whole path, '
            "beginning with /, or only the name"
        )
    return glob


def _unit(value: Field | None) -> str:
    glob = _glob(value, "unit", "'jupyter-*.service'")
    if value is None or not glob or _WILD.search(glob):
        return glob
    why = "" if runs_users(glob) else forbidden(glob)
    if why:
        value.wrong(f'processes of "{shortened(glob)}" must not be ended: it is {why}; remove it')
    elif "is not the name" in (wrong := wrong_name(glob)):
        value.wrong(wrong)
    return glob


def _glob(value: Field | None, key: str, example: str) -> str:
    """A pattern that means some; "" if there is none, or after a fault."""
    if value is None:
        return ""
    right = f"write a pattern such as {example}"
    glob = value.text(right)
    if glob is None:
        return ""
    if not glob or len(glob) > _LONGEST:
        length = f"is longer than {_LONGEST} characters" if glob else "is empty"
        value.wrong(f"{length}; {right}, or leave the key out")
    elif all(fnmatchcase(one, glob) for one in _unlike(key, glob)):
        value.wrong(f'"{shortened(glob)}" means every process; {right}, or leave the key out')
    else:
        return glob
    return ""


def _unlike(key: str, glob: str) -> list[str]:
    bare = key == "executable" and "/" not in glob
    return [one.rpartition("/")[2] if bare else one for one in _UNLIKE[key]]


def _user(value: Field | None) -> str:
    """A name, or a number as text."""
    if value is None:
        return ""
    right = "write a user's name or number"
    plain = value.node.value
    if isinstance(plain, str) and not plain.isdecimal():
        if _USER.fullmatch(plain) and len(plain) <= _LONGEST:
            return plain
        value.wrong(f'"{shortened(plain)}" is not the name of a user; {right}')
        return ""
    number = int(plain[:_LONGEST]) if isinstance(plain, str) else value.integer(right)
    if number is not None and not 0 <= number <= _MOST_UID:
        value.wrong(f"{shortened(value.node.text)} is not the number of a user; {right}")
        return ""
    return "" if number is None else str(number)
