"""What the output can show: a terminal's width, its characters and colours, or a plain pipe."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TextIO

from migd.cli import text

_FALLBACK = (80, 24)


class Style(StrEnum):
    """What a piece of text means, as the SGR parameters that show it."""

    TITLE = "1"
    FAINT = "2"
    GOOD = "32"
    WARNING = "33"
    BAD = "31"
    BUSY = "36"


@dataclass(frozen=True)
class Terminal:
    """Where the output goes.

    width: columns; None for a pipe, where no line is cut
    unicode: whether more than ASCII can be shown
    live: whether a line can be written over
    """

    width: int | None = None
    unicode: bool = False
    color: bool = False
    live: bool = False

    def paint(self, style: Style, words: str) -> str:
        return f"\x1b[{style}m{words}\x1b[0m" if self.color and words else words

    def safe(self, words: str) -> str:
        """`words` made harmless, in characters that can be shown here."""
        return text.safe(words, ascii_only=not self.unicode)

    def sentence(self, words: str) -> str:
        return text.sentence(words, ascii_only=not self.unicode)

    def cut(self, words: str, columns: int) -> str:
        return text.cut(words, columns, "\u2026" if self.unicode else "~")

    def fit(self, words: str, before: int = 0) -> str:
        """`words` cut to what is left of a line after `before` columns."""
        return words if self.width is None else self.cut(words, max(self.width - before, 1))


def terminal(stream: TextIO, color: str, environment: Mapping[str, str] = os.environ) -> Terminal:
    """What `stream` can show; `color` is auto, always or never."""
    tty = stream.isatty()
    dumb = environment.get("TERM") == "dumb"
    auto = tty and not dumb and not environment.get("NO_COLOR")
    return Terminal(
        width=shutil.get_terminal_size(_FALLBACK).columns if tty else None,
        unicode=tty and (stream.encoding or "").lower().replace("-", "") == "utf8",
        color=color == "always" or (color == "auto" and auto),
        live=tty and not dumb,
    )
