"""The options a{sv} of Plan, Apply, Assert and Stage, as a request; unknown ones are refused."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from dbus_next.signature import Variant

from migd.core.model import Impact
from migd.errors import InvalidRequest
from migd.service.request import Request

_SIGNATURES = {
    "text": "s",
    "gpus": "as",
    "mode-only": "b",
    "max-impact": "s",
    "expect": "s",
    "terminate": "b",
    "allow-reboot": "b",
    "reset-peers": "b",
    "no-reset": "b",
}
# Stage changes nothing on the node, so nothing can be allowed or expected of it.
STAGE = ("text", "gpus", "mode-only")
assert {k.replace("-", "_") for k in _SIGNATURES} < {f.name for f in fields(Request)}


def request(
    config: str, options: Mapping[str, Variant], known: Collection[str] = tuple(_SIGNATURES)
) -> Request:
    """Raises InvalidRequest with the key that is wrong, and the keys there are."""
    given = {name.replace("-", "_"): _value(name, v, known) for name, v in options.items()}
    if "gpus" in given:
        given["gpus"] = tuple(given["gpus"])
    if "max_impact" in given:
        given["max_impact"] = _impact(given["max_impact"])
    if given.get("no_reset"):
        for other in ("allow-reboot", "reset-peers"):
            if given.get(other.replace("-", "_")):
                raise InvalidRequest(f"{other} is of no use with no-reset; leave one of them out")
    return Request(config, **given)


def none(options: Mapping[str, Variant]) -> None:
    """For a method whose options are yet to come."""
    if options:
        raise InvalidRequest(f"there are no options here, {_listed(options)} was given")


def _value(name: str, value: Variant, known: Collection[str]) -> Any:
    if name not in known:
        raise InvalidRequest(f"unknown option {name!r}; there are {_listed(known)}")
    if value.signature != _SIGNATURES[name]:
        raise InvalidRequest(
            f"option {name!r} has type {_SIGNATURES[name]}, {value.signature} was given"
        )
    return value.value


def _impact(text: str) -> Impact:
    # Nothing reboots the host yet, so nobody can allow it.
    known = [i.value for i in Impact if i is not Impact.REBOOT]
    if text not in known:
        raise InvalidRequest(f"max-impact is one of {_listed(known)}, {text!r} was given")
    return Impact(text)


def _listed(words: Any) -> str:
    return ", ".join(words)
