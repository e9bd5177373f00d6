"""YAML files to values with positions; no text can make it take long, or much memory.

Only the first document of a text is read.
"""

import re

import yaml

from migd.config.composer import Composer, Node
from migd.config.faults import Faults, Position, shortened

MOST_BYTES = 1 << 20
_MOST_DIRECTIVES = 8

_ODD = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DIRECTIVE = re.compile(r"^%", re.MULTILINE)


def decoded(data: bytes, source: str) -> str:
    """The text of a file. Raises ConfigRefused where it is not UTF-8, or too long."""
    faults = Faults()
    if len(data) > MOST_BYTES:
        _refuse_length(source, faults)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[:2].count(0) == 1:
        faults.refuse(Position(source), "", "is UTF-16 or UTF-32; save the file as UTF-8")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        faults.refuse(
            _position_after(source, before),
            "",
            f"is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8",
        )


def document(text: str, source: str, faults: Faults) -> Node | None:
    """The first document of `text`, or None when there is none.

    Adds duplicate keys and keys that are no strings to `faults`. Raises ConfigRefused with all
    that is in `faults` where the text cannot be read to its end.
    """
    if len(text) > MOST_BYTES:
        _refuse_length(source, faults)
    text = text.removeprefix("\ufeff")
    if odd := _ODD.search(text):
        faults.refuse(
            _position_after(source, text[: odd.start()]),
            "",
            f"the character U+{ord(odd[0]):04X} may not stand in YAML; remove it",
        )
    # Each directive is compared with all before it, so a text full of them takes very long.
    if len(_DIRECTIVE.findall(text)) > _MOST_DIRECTIVES:
        faults.refuse(Position(source), "", "has too many lines that begin with %; remove them")
    try:
        return Composer(text, source, faults).compose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        faults.refuse(
            Position(source, mark.line + 1, mark.column + 1) if mark else Position(source),
            "",
            f"is not YAML: {shortened(str(problem))}; "
            "look at the indentation (spaces, no tabs), colons, quotes and brackets up to here",
        )


def _refuse_length(source: str, faults: Faults) -> None:
    faults.refuse(
        Position(source), "", f"is longer than {MOST_BYTES >> 20} MiB; no configuration needs that"
    )


def _position_after(source: str, before: str) -> Position:
    return Position(source, before.count("\n") + 1, len(before) - before.rfind("\n"))
