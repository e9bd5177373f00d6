"""Draws a GPU as a bar of its memory slices: instances as boxes where they are. Does no I/O."""

import re
from collections.abc import Sequence

from migd.cli import text
from migd.cli.slices import Kind, Stretch
from migd.cli.terminal import Style, Terminal

# A slice wider than this shows no more; a box narrower than that shows nothing.
_WIDEST = 14
_NARROWEST = 6
# The lines that things are drawn with, in ASCII and beyond.
_EDGES = (("+-+", "+-+"), ("\u250c\u2500\u2510", "\u2514\u2500\u2518"))
_SIDE = ("|", "\u2502")
_DOT = (".", "\u00b7")
_MARK = ("*", "\u25cf")


def bar(parts: Sequence[Stretch], where: Terminal, indent: int = 2) -> list[str]:
    """The stretches as lines of text that fit the terminal; a pipe gets a single plain line."""
    if not parts:
        return []
    total = parts[-1].start + parts[-1].size
    each = min(((where.width or 0) - indent - 1) // total, _WIDEST)
    if where.width is None or each * min(p.size for p in parts) < _NARROWEST:
        return _listed(parts, where, indent)
    boxes = [(p, p.size * each) for p in parts]
    ruler = "".join(text.pad(f" {p.where}", w) for p, w in boxes).rstrip()
    top, bottom = _EDGES[where.unicode]
    rows = [
        [_edge(p, w, top, where) for p, w in boxes],
        [_inside(p, _label(p, w - 2, where), where) for p, w in boxes],
        [_inside(p, _detail(p, w - 2, where), where) for p, w in boxes],
        [_edge(p, w, bottom, where) for p, w in boxes],
    ]
    return [" " * indent + line for line in (where.paint(Style.FAINT, ruler), *map("".join, rows))]


def _edge(part: Stretch, columns: int, edge: str, where: Terminal) -> str:
    if not part.kind.boxed:
        return where.paint(part.kind.style, _DOT[where.unicode] * columns)
    return where.paint(part.kind.style, edge[0] + edge[1] * (columns - 2) + edge[2])


def _inside(part: Stretch, words: str, where: Terminal) -> str:
    side = (_SIDE if part.kind.boxed else _DOT)[where.unicode]
    return where.paint(part.kind.style, side + words + side)


def _listed(parts: Sequence[Stretch], where: Terminal, indent: int) -> list[str]:
    """One line, or as many as a narrow terminal needs: `slices: 0 1g.10gb, 1 free`."""
    lines, current = [], " " * indent + "slices:"
    for number, part in enumerate(parts):
        words = f" {part.where} {where.safe(part.label)}"
        if part.kind is Kind.MEMORY_ONLY:
            words += " only"
        words += f" ({part.holders} in use)" if part.holders else ""
        words += "," if number < len(parts) - 1 else ""
        if where.width is not None and text.width(current + words) > where.width:
            lines.append(current)
            current = " " * indent + "       "
        current += words
    return [where.fit(line) for line in (*lines, current)]


def _label(part: Stretch, columns: int, where: Terminal) -> str:
    name = where.safe(part.label)
    if text.width(name) > columns:
        # Short of room the memory goes first: 1g.10gb+me is still 1g+me.
        name = re.sub(r"(?<=[0-9]g)\.[0-9]+gb", "", name)
    name = where.cut(name, columns)
    return _centered(name, columns) if not part.kind.boxed else text.pad(name, columns)


def _detail(part: Stretch, columns: int, where: Terminal) -> str:
    if not part.kind.boxed:
        return _centered(where.cut(part.detail, columns), columns)
    mark = f"{_MARK[where.unicode]}{part.holders}" if part.holders else ""
    room = columns - text.width(mark)
    fits = text.width(part.detail) <= room
    words = part.detail if fits else part.detail.removeprefix("GI ")
    return text.pad(where.cut(words, room), room) + mark


def _centered(words: str, columns: int) -> str:
    return text.pad(" " * ((columns - text.width(words)) // 2) + words, columns)
