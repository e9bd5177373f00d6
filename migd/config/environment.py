"""What Environment= of a systemd unit and its drop-ins sets, by systemd's own rules.

The rules are those of systemd.syntax(7) and systemd.exec(5), and where these are silent, of
systemd's parser: a line that ends in a backslash goes on, words may be quoted in any part, escapes
are C's, and what follows a word that cannot be read is ignored.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from migd.config.faults import Position, shortened

_SPACE = " \t\n\r"
_SIMPLE = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", '"': '"', "'": "'", "s": " ",
}  # fmt: skip
_CODE = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-7]{3})")
_SECTION = "Service"


@dataclass(frozen=True)
class Said:
    """The value of a variable, and where it is set.

    specifier: such as %h, which only systemd knows the meaning of; "" where there is none
    """

    value: str
    position: Position
    specifier: str = ""


@dataclass
class Environment:
    """What a unit sets.

    variables: by name; files: those of EnvironmentFile=, which set more; odd: what systemd ignores
    """

    variables: dict[str, Said] = field(default_factory=dict)
    files: list[Said] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


class _Unreadable(Exception):
    """A word that systemd cannot read."""


def environment(files: Iterable[tuple[str, str]]) -> Environment:
    """What the service is started with.

    files: name and text of the unit file and its drop-ins, in systemd's order; the last one wins
    """
    found = Environment()
    for source, text in files:
        for line, key, value in _assignments(text):
            position = Position(source, line, 1)
            if key == "Environment":
                _set(found, value, position)
            elif key == "EnvironmentFile":
                found.files = [*found.files, Said(value, position)] if value else []
    return found


def _set(found: Environment, value: str, position: Position) -> None:
    if not value:
        found.variables.clear()
    try:
        for word in words(value):
            name, equals, text = word.partition("=")
            if equals:
                found.variables[name] = Said(*_resolved(text, position))
    except _Unreadable as error:
        found.odd.append(f"{position}: Environment: systemd ignores this from a word on: {error}")


def _resolved(text: str, position: Position) -> tuple[str, Position, str]:
    """%% is %; any other specifier stays as it is."""
    other = next((s for s in re.findall("%.?", text) if s != "%%"), "")
    return (text if other else text.replace("%%", "%")), position, other


def _assignments(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, key and value of each assignment in the section of services."""
    section = ""
    for number, line in _lines(text.removeprefix("\ufeff")):
        if line.startswith("["):
            section = line.removeprefix("[").removesuffix("]")
        elif section == _SECTION and "=" in line:
            key, _, value = line.partition("=")
            yield number, key.strip(_SPACE), value.strip(_SPACE)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that go on as one, with the number of the first."""
    begun, first = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip(_SPACE)[:1] in ("#", ";"):
            continue  # also in the middle of one that goes on
        begun += line.rstrip("\r")
        first = first or number
        if (len(begun) - len(begun.rstrip("\\"))) % 2:
            begun = begun[:-1] + " "
            continue
        yield first, begun.strip(_SPACE)
        begun, first = "", 0
    if begun:
        yield first, begun.strip(_SPACE)


def words(value: str) -> Iterator[str]:
    """The words of a value, without their quotes. Raises _Unreadable."""
    at = 0
    while True:
        while at < len(value) and value[at] in _SPACE:
            at += 1
        if at == len(value):
            return
        word, at = _word(value, at)
        yield word


def _word(value: str, at: int) -> tuple[str, int]:
    """The word that begins there, and where it ends."""
    word, quote = b"", ""
    while at < len(value):
        char = value[at]
        at += 1
        if char == "\\":
            escaped, at = _escaped(value, at)
            word += escaped
        elif char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        elif not quote and char in _SPACE:
            break
        else:
            word += char.encode()
    if quote:
        raise _Unreadable(f"a quote ({quote}) is not closed")
    try:
        return word.decode(), at
    except UnicodeDecodeError as error:
        raise _Unreadable("it is not UTF-8") from error


def _escaped(value: str, at: int) -> tuple[bytes, int]:
    """What stands behind a backslash, and where it ends."""
    if value[at : at + 1] in _SIMPLE:
        return _SIMPLE[value[at]].encode(), at + 1
    code = _CODE.match(value, at)
    if not code:
        raise _Unreadable(f"\\{shortened(value[at : at + 1])} is no escape")
    byte, character, octal = code[1], code[2] or code[3], code[4]
    number = int(octal, 8) if octal else int(byte or character, 16)
    most = 0x10FFFF if character else 0xFF
    if not 0 < number <= most or (character and 0xD800 <= number <= 0xDFFF):
        raise _Unreadable(f"\\{code[0]} is no character")
    return (chr(number).encode() if character else bytes([number])), code.end()
