"""Pieces of a manual page in mdoc(7)."""

import os
import re
import textwrap
import time
from collections.abc import Iterable

_WIDTH = 78
# mdoc wants each sentence on a line of its own.
# The words of an enumeration, or the name of a file.
_LITERAL = re.compile(r"[a-z-]+(?:, | or [a-z-]+[:;.]|; |: |\.[a-z])")
_SENTENCE = re.compile(r"(?<=[A-Za-z0-9)\]\"'][.!?]) +(?=[A-Za-z@])")


def head(title: str, section: int) -> list[str]:
    moment = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()))
    date = f"{time.strftime('%B', moment)} {moment.tm_mday}, {moment.tm_year}"
    return [f".Dd {date}", f".Dt {title} {section}", ".Os"]


def prose(text: str) -> list[str]:
    """Flowing text as lines that are safe for roff."""
    lines = []
    for sentence in _SENTENCE.split(" ".join(text.split())):
        lines += textwrap.wrap(sentence, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [escaped(line) for line in lines]


def sentence(words: str) -> list[str]:
    """The same, of words that begin small and have no full stop."""
    return prose(f"{capital(words)}.")


def capital(words: str) -> str:
    """With the first letter of a sentence, unless what stands first is to be taken as it is."""
    return words if _LITERAL.match(words) else f"{words[:1].upper()}{words[1:]}"


def escaped(line: str) -> str:
    line = line.replace("\\", "\\e")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def word(text: str) -> str:
    """One argument of a macro: nothing in it is taken for another macro or for punctuation."""
    quoted = text.replace("\\", "\\e").replace('"', "\\(dq")
    return f'"{quoted}"' if " " in quoted else f"\\&{quoted}" if len(quoted) <= 3 else quoted


def items(rows: Iterable[tuple[str, list[str]]], *, width: str = "") -> list[str]:
    """A list of (what stands behind .It, body); nothing where there are no rows."""
    body = [line for tag, lines in rows for line in (f".It {tag}", *lines)]
    if not body:
        return []
    how = f"-tag -width {width}" if width else "-tag -width Ds"
    return [f".Bl {how}", *body, ".El"]


def finished(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
