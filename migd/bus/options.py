"""The options a{sv} of methods; unknown ones are refused."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from dbus_next.signature import Variant

from migd.config.export import Form
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
# In place of a configuration, where nothing comes of it; else there is Restore.
_CHECKPOINT = {"checkpoint": "s"}
LOOKING = (*_SIGNATURES, *_CHECKPOINT)
# The checkpoint itself is no option of Restore.
RESTORE = tuple(name for name in _SIGNATURES if name != "text")
_WRITING = {"format": "s", "exact": "b"}
# Stage changes nothing on the node, so nothing can be allowed or expected of it.
STAGE = ("text", "gpus", "mode-only")
assert {k.replace("-", "_") for k in _SIGNATURES} < {f.name for f in fields(Request)}


def request(
    config: str, options: Mapping[str, Variant], known: Collection[str] = tuple(_SIGNATURES)
) -> Request:
    """Those of Plan, Apply, Assert and Stage.

    Raises InvalidRequest with the key that is wrong, and the keys there are.
    """
    kinds = {name: (_SIGNATURES | _CHECKPOINT)[name] for name in known}
    given = {name.replace("-", "_"): _value(name, v, kinds) for name, v in options.items()}
    if "gpus" in given:
        given["gpus"] = tuple(given["gpus"])
    if "max_impact" in given:
        given["max_impact"] = _impact(given["max_impact"])
    if given.get("no_reset"):
        for other in ("allow-reboot", "reset-peers"):
            if given.get(other.replace("-", "_")):
                raise InvalidRequest(f"{other} is of no use with no-reset; leave one of them out")
    if "checkpoint" in given and (config or given.get("text")):
        raise InvalidRequest("a checkpoint stands in place of a configuration: give one of them")
    return Request(config, **given)


def writing(
    options: Mapping[str, Variant], known: Collection[str] = tuple(_WRITING)
) -> tuple[Form, bool]:
    """Those of Export and Generate: the form, and whether it is to be exact."""
    kinds = {name: _WRITING[name] for name in known}
    given = {name: _value(name, value, kinds) for name, value in options.items()}
    form = _one_of("format", [*Form], given.get("format", Form.YAML))
    return Form(form), given.get("exact", False)


def none(options: Mapping[str, Variant]) -> None:
    """For a method whose options are yet to come."""
    if options:
        raise InvalidRequest(f"there are no options here, {_listed(options)} was given")


def _value(name: str, value: Variant, kinds: Mapping[str, str]) -> Any:
    if name not in kinds:
        raise InvalidRequest(f"unknown option {name!r}; there are {_listed(kinds)}")
    if value.signature != kinds[name]:
        raise InvalidRequest(f"option {name!r} has type {kinds[name]}, {value.signature} was given")
    return value.value


def _impact(text: str) -> Impact:
    # Nothing reboots the host yet, so nobody can allow it.
    return Impact(_one_of("max-impact", [i for i in Impact if i is not Impact.REBOOT], text))


def _one_of(name: str, known: Sequence[str], text: str) -> str:
    if text not in known:
        raise InvalidRequest(f"{name} is one of {_listed(known)}, {text!r} was given")
    return text


def _listed(words: Any) -> str:
    return ", ".join(words)
