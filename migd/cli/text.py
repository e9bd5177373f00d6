"""Text for people, safe to print whatever it came from: escaped, measured, cut, in columns."""

import json
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from migd.printable import printable

_GAP = "  "


def safe(text: str, *, ascii_only: bool = False) -> str:
    """`text` on one line, with all that a terminal could take for a command made visible."""
    shown = printable(text, None)
    return shown.encode("ascii", "backslashreplace").decode() if ascii_only else shown


def sentence(text: str, *, ascii_only: bool = False) -> str:
    """`text` with its line breaks; the lines after the first are indented."""
    lines = text.strip("\n").split("\n")
    return "\n  ".join(safe(line, ascii_only=ascii_only) for line in lines)


def width(text: str) -> int:
    """Columns that safe text takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, columns: int, mark: str = "~") -> str:
    """`text` in at most that many columns; `mark` ends what was cut."""
    if width(text) <= columns:
        return text
    kept, used = "", width(mark)
    if used > columns:
        return ""
    for char in text:
        used += _columns(char)
        if used > columns:
            break
        kept += char
    return kept + mark


def pad(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def table(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Rows of safe cells as lines, every column as wide as its widest cell."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = (
        _GAP.join(pad(cell, columns) for cell, columns in zip(row, widths, strict=True))
        for row in rows
    )
    return [(indent + line).rstrip() for line in lines]


def moment(microseconds: int) -> str:
    """A timestamp of the bus as local time."""
    try:
        instant = datetime.fromtimestamp(microseconds / 1e6, tz=UTC).astimezone()
    except (OverflowError, OSError, ValueError):
        return str(microseconds)
    return f"{instant:%Y-%m-%d %H:%M:%S}"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def gibibytes(size: int) -> str:
    return f"{size / 2**30:.0f} GiB"


def as_json(value: Any) -> str:
    """`value` for a program: ASCII only, so that it is harmless everywhere."""
    return json.dumps(value, indent=2)
