"""Changes one key of migd.yaml and leaves all else as people wrote it."""

import json
import re
from dataclasses import replace

from migd.config import settings
from migd.config.document import document
from migd.config.faults import Faults, Position
from migd.config.scalars import resolved
from migd.errors import ConfigRefused

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._+-]*")
# A whole line: key, a value on the same line, perhaps a comment.
_LINE = re.compile(
    r"(config:[ \t]+)"
    r"(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^']|'')*'|[^\s\"'#][^#]*?)"
    r"([ \t]+#.*|[ \t]*)"
)


def config_line(name: str) -> str:
    """The line of migd.yaml that makes `name` its config."""
    return f"config: {_scalar(name)}"


def with_config(text: str, source: str, name: str) -> str:
    """`text` with the config of that name, and otherwise as it was.

    source: the file's name, for the messages
    Raises ConfigRefused where the text is refused, or where this cannot be done safely.
    """
    before = settings.load(text, source)
    if before.config == name:
        return text
    after = _replaced(text, source, name)
    wanted = replace(before, config=name)
    if after is None or not _says(after, source, wanted):
        sentence = (
            f'is written so that it is not changed here; write the line "{config_line(name)}"'
        )
        Faults().refuse(Position(source), "config", sentence)
    return after


def _says(text: str, source: str, wanted: settings.Settings) -> bool:
    try:
        return settings.load(text, source) == wanted
    except ConfigRefused:
        return False


def _replaced(text: str, source: str, name: str) -> str | None:
    """The key's own line with another value, or with the line at the end where there is no key."""
    root = document(text, source, Faults())
    place = root.keys.get("config") if root is not None else None
    if place is None:
        begun = text if not text or text.endswith("\n") else f"{text}\n"
        return f"{begun}{config_line(name)}\n"
    lines = text.splitlines(keepends=True)
    line = lines[place.line - 1].rstrip("\r\n")
    end = lines[place.line - 1][len(line) :]
    found = _LINE.fullmatch(line)
    if not found:
        return None
    lines[place.line - 1] = f"{found[1]}{_scalar(name)}{found[2]}{end}"
    return "".join(lines)


def _scalar(name: str) -> str:
    """`name` as YAML text; in quotes, unless nothing else can be meant."""
    return name if _PLAIN.fullmatch(name) and resolved(name) == name else json.dumps(name)
