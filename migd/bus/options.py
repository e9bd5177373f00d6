"""The options a{sv} of methods; unknown ones are refused."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from dbus_next.signature import Variant

from migd.config.export import Form
from migd.core.model import Impact
from migd.errors import InvalidRequest
from migd.service.request import InstanceRequest, Request

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
_OF_INSTANCES = {"start": "u", "compute": "as", "profile": "s", "uuid": "s"}
_TYPES = _SIGNATURES | _CHECKPOINT | _WRITING | _OF_INSTANCES
# Stage changes nothing on the node, so nothing can be allowed or expected of it.
STAGE = ("text", "gpus", "mode-only")
SET_MODE = ("max-impact", "expect", "terminate", "allow-reboot", "reset-peers", "no-reset")
CREATE = ("start", "compute", "expect", "terminate")
CREATE_COMPUTE = ("profile", "start", "expect")
DESTROY = ("profile", "start", "expect", "terminate")
DESTROY_COMPUTE = ("uuid", "expect", "terminate")
assert {k.replace("-", "_") for k in _TYPES.keys() - _WRITING.keys()} < {
    f.name for f in fields(InstanceRequest)
}


def request(
    config: str, options: Mapping[str, Variant], known: Collection[str] = tuple(_SIGNATURES)
) -> Request:
    """Those of Plan, Apply, Assert and Stage.

    Raises InvalidRequest with the key that is wrong, and the keys there are.
    """
    given = _given(options, known)
    if "checkpoint" in given and (config or given.get("text")):
        raise InvalidRequest("a checkpoint stands in place of a configuration: give one of them")
    return Request(config, **given)


def of_instance(options: Mapping[str, Variant], known: Collection[str]) -> InstanceRequest:
    """Those of a method of a GPU or an instance. Raises InvalidRequest, as `request` does."""
    return InstanceRequest("", **_given(options, known))


def writing(
    options: Mapping[str, Variant], known: Collection[str] = tuple(_WRITING)
) -> tuple[Form, bool]:
    """Those of Export and Generate: the form, and whether it is to be exact."""
    given = _given(options, known)
    form = _one_of("format", [*Form], given.get("format", Form.YAML))
    return Form(form), given.get("exact", False)


def none(options: Mapping[str, Variant]) -> None:
    """For a method whose options are yet to come."""
    if options:
        raise InvalidRequest(f"there are no options here, {_listed(options)} was given")


def _given(options: Mapping[str, Variant], known: Collection[str]) -> dict[str, Any]:
    given = {name.replace("-", "_"): _value(name, v, known) for name, v in options.items()}
    for name in given.keys() & {"gpus", "compute"}:
        given[name] = tuple(given[name])
    if "max_impact" in given:
        given["max_impact"] = _impact(given["max_impact"])
    if given.get("no_reset"):
        for other in ("allow-reboot", "reset-peers"):
            if given.get(other.replace("-", "_")):
                raise InvalidRequest(f"{other} is of no use with no-reset; leave one of them out")
    return given


def _value(name: str, value: Variant, known: Collection[str]) -> Any:
    if name not in known:
        raise InvalidRequest(f"unknown option {name!r}; there are {_listed(known)}")
    if value.signature != _TYPES[name]:
        raise InvalidRequest(
            f"option {name!r} has type {_TYPES[name]}, {value.signature} was given"
        )
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
