"""Frozen dataclasses to plain JSON values and back, strictly."""

import types
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def plain(value: Any) -> Any:
    """`value` as dictionaries, lists, strings, numbers, booleans and None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


def typed(kind: type[T], value: Any, where: str = "value") -> T:
    """`value` as a `kind`. Raises ValueError that says where it differs."""
    return _typed(kind, value, where)  # type: ignore[no-any-return]


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _typed(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _optional(kind, value, where)
    if origin is tuple:
        item, _ = get_args(kind)
        items = _exactly(list, value, where)
        return tuple(_typed(item, v, f"{where}[{n}]") for n, v in enumerate(items))
    if origin is dict:
        _, item = get_args(kind)
        mapping = _exactly(dict, value, where)
        return {k: _typed(item, v, f"{where}.{k}") for k, v in mapping.items()}
    if is_dataclass(kind):
        return _record(kind, value, where)  # type: ignore[arg-type]
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise ValueError(f"{where}: {value!r} is not a {kind.__name__}") from None
    return _exactly(kind, value, where)


def _optional(kind: Any, value: Any, where: str) -> Any:
    some = [k for k in get_args(kind) if k is not type(None)]
    return None if value is None else _typed(some[0], value, where)


def _record(kind: type[Any], value: Any, where: str) -> Any:
    mapping = _exactly(dict, value, where)
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]
    if mapping.keys() != hints.keys():
        odd = ", ".join(sorted(str(k) for k in mapping.keys() ^ hints.keys()))
        raise ValueError(f"{where}: missing or unknown: {odd}")
    return kind(**{k: _typed(hints[k], v, f"{where}.{k}") for k, v in mapping.items()})


def _exactly(kind: type[Any], value: Any, where: str) -> Any:
    # bool is an int to Python; nowhere is it one to us.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where}: {value!r} is not {kind.__name__}")
    return value
