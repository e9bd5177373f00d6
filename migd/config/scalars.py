"""What an unquoted word means in YAML 1.1, as mig-parted's reader has it.

It knows no base 60 and no dates: a PCI address such as 0000:03:00.0 stays what it is.
"""

import re

Scalar = str | int | float | bool | None

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES"), True),
    **dict.fromkeys(("true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO"), False),
    **dict.fromkeys(("false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}
_INTEGER = re.compile(r"[-+]?[0-9][0-9A-Za-z_]*")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_LONGEST_NUMBER = 64


def resolved(text: str) -> Scalar:
    """The value of a plain scalar."""
    if text in _WORDS:
        return _WORDS[text]
    number = integer(text)
    if number is not None:
        return number
    if len(text) <= _LONGEST_NUMBER and _FLOAT.fullmatch(text):
        return float(text)
    return text


def integer(text: str) -> int | None:
    """The integer that `text` is in any of Go's bases (0x, 0o, 0b, a leading 0), or None."""
    if len(text) > _LONGEST_NUMBER or not _INTEGER.fullmatch(text):
        return None
    digits = text.replace("_", "")
    for base in (0, 8):
        try:
            return int(digits, base)
        except ValueError:
            continue
    return None
