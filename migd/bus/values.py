"""Makes plain Python values fit a D-Bus signature, as dbus-next wants them.

Nothing that passes here can make the bus hang up on us, as it does when a message is invalid.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dbus_next.signature import SignatureTree, SignatureType, Variant

_NUMBERS = frozenset("ybnqiuxtd")
# What D-Bus strings cannot hold, and what a program that prints one would be steered by: control
# characters but for tabs and line breaks, and marks that turn the direction of writing.
_NOT_IN_STRINGS = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def to_wire(signature: str, values: Sequence[Any]) -> list[Any]:
    """Copy values for a message body: tuples and mappings are welcome, text is made valid.

    Raises ValueError or TypeError, saying which value does not fit the signature.
    """
    tree = SignatureTree._get(signature)
    if len(values) != len(tree.types):
        raise ValueError(f"{len(values)} values for the signature {signature!r}")
    body = [_convert(kind, value) for kind, value in zip(tree.types, values, strict=True)]
    tree.verify(body)
    return body


def variant(signature: str, value: Any) -> Variant:
    return Variant(signature, *to_wire(signature, [value]))


def clean(text: str) -> str:
    """Replace what D-Bus strings cannot or should not hold, also bytes that were no UTF-8."""
    return _NOT_IN_STRINGS.sub("\ufffd", text)


def _convert(kind: SignatureType, value: Any) -> Any:
    match kind.token:
        case "s":
            return clean(value) if isinstance(value, str) else value
        case "o" | "g":
            return _strict(kind, value)
        case "v":
            if not isinstance(value, Variant):
                raise TypeError(f"a variant must say its type, {value!r} does not")
            # Most are numbers and plain text, which were checked when the variant was made.
            if value.signature in _NUMBERS:
                return value
            if value.signature == "s" and not _NOT_IN_STRINGS.search(value.value):
                return value
            return variant(value.signature, value.value)
        case "a":
            return _convert_array(kind.children[0], value)
        case "(":
            if not isinstance(value, list | tuple) or len(value) != len(kind.children):
                raise TypeError(f"{value!r} is not a structure {kind.signature}")
            return [_convert(child, item) for child, item in zip(kind.children, value, strict=True)]
    return value


def _convert_array(kind: SignatureType, value: Any) -> Any:
    if kind.token == "{":  # noqa: S105 - a type, not a password
        if not isinstance(value, Mapping):
            raise TypeError(f"{value!r} is not a dictionary a{kind.signature}")
        key, item = kind.children
        return {_convert(key, k): _convert(item, v) for k, v in value.items()}
    if kind.token == "y":  # noqa: S105
        return value
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is not an array of {kind.signature}")
    return [_convert(kind, item) for item in value]


def _strict(kind: SignatureType, value: Any) -> Any:
    """Refuse the object paths and signatures that dbus-next lets pass and the bus does not."""
    if isinstance(value, str):
        if kind.token == "g":  # noqa: S105
            SignatureTree._get(value)
        elif value.endswith("\n"):
            raise ValueError(f"{value!r} is not an object path")
    return value
