"""Frozen dataclasses to plain JSON values and back, strictly."""

import reprlib
import types
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

# In the metadata of a field with a default: what an earlier version wrote may lack it.
LATER = "later"


@dataclass(frozen=True)
class Within:
    """The least and the most of an integer that is read, as Annotated[int, Within(0, 7)]."""

    least: int
    most: int


# What fits where it is shown: the bus has numbers of these sizes.
U32 = Annotated[int, Within(0, (1 << 32) - 1)]
U64 = Annotated[int, Within(0, (1 << 64) - 1)]
I32 = Annotated[int, Within(-(1 << 31), (1 << 31) - 1)]

# A misfit is told in a sentence, whatever it is: on one line, and not as long as itself.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = _LONGEST = 60
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxlevel = 2
_MOST_NAMES = 5

_PLAIN = frozenset({str, int, bool, float, type(None)})


def plain(value: Any) -> Any:
    """`value` as dictionaries, lists, strings, numbers, booleans and None."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    names = _field_names(kind)  # type: ignore[arg-type]
    if names is not None:
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value


@cache
def _field_names(kind: type[Any]) -> tuple[str, ...] | None:
    """Those of a dataclass; None for anything else."""
    return tuple(f.name for f in fields(kind)) if is_dataclass(kind) else None


def typed(kind: type[T], value: Any, where: str = "value") -> T:
    """`value` as a `kind`. Raises ValueError that says where it differs."""
    try:
        found: T = _reader(kind)(value)  # type: ignore[arg-type]
    except _Misfit as misfit:
        raise ValueError(f"{where}{misfit.path}: {misfit.text}") from None
    return found


class _Misfit(Exception):
    """What is wrong, and where; the path grows on the way out, so that what fits costs none."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path = ""
        self.text = text


Reader = Callable[[Any], Any]


@cache
def _reader(kind: Any) -> Reader:
    """What makes a `kind` of a plain value. Raises TypeError for a kind that has no plain form."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _optional(kind)
    if origin is Annotated:
        return _within(*get_args(kind))
    if origin is tuple:
        return _items(_reader(get_args(kind)[0]))
    if origin is dict:
        return _members(_reader(get_args(kind)[1]))
    if is_dataclass(kind):
        return _record(kind)  # type: ignore[arg-type]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _member(kind)
    return _exactly(kind)


def _optional(kind: Any) -> Reader:
    some = [k for k in get_args(kind) if k is not type(None)]
    if len(some) != 1:
        raise TypeError(f"{kind} does not say which of its kinds a value is")
    read = _reader(some[0])
    return lambda value: None if value is None else read(value)


def _items(read: Reader) -> Reader:
    check = _exactly(list)

    def items(value: Any) -> tuple[Any, ...]:
        found = []
        for number, item in enumerate(check(value)):
            try:
                found.append(read(item))
            except _Misfit as misfit:
                misfit.path = f"[{number}]{misfit.path}"
                raise
        return tuple(found)

    return items


def _members(read: Reader) -> Reader:
    check = _exactly(dict)

    def members(value: Any) -> dict[Any, Any]:
        return {name: _named(name, read, item) for name, item in check(value).items()}

    return members


def _record(kind: type[Any]) -> Reader:
    check = _exactly(dict)
    readers = {
        name: _reader(hint) for name, hint in get_type_hints(kind, include_extras=True).items()
    }
    later = {f.name for f in fields(kind) if LATER in f.metadata}

    def record(value: Any) -> Any:
        mapping = check(value)
        differ = mapping.keys() ^ readers.keys()
        if not differ <= later:
            odd = ", ".join(sorted(_word(str(k)) for k in differ - later)[:_MOST_NAMES])
            raise _Misfit(f"missing or unknown: {odd}")
        return kind(**{name: _named(name, readers[name], v) for name, v in mapping.items()})

    return record


def _word(name: str) -> str:
    return name if name.isprintable() and len(name) <= _LONGEST else _SHORT.repr(name)


def _named(name: Any, read: Reader, value: Any) -> Any:
    try:
        return read(value)
    except _Misfit as misfit:
        misfit.path = f".{_word(str(name))}{misfit.path}"
        raise


def _member(kind: type[Enum]) -> Reader:
    def member(value: Any) -> Enum:
        try:
            return kind(value)
        except ValueError:
            raise _Misfit(f"{_SHORT.repr(value)} is not a {kind.__name__}") from None

    return member


def _within(kind: type[Any], bounds: Within) -> Reader:
    check = _exactly(kind)

    def within(value: Any) -> Any:
        if not bounds.least <= check(value) <= bounds.most:
            raise _Misfit(f"{_SHORT.repr(value)} is not {bounds.least} to {bounds.most}")
        return value

    return within


def _exactly(kind: type[Any]) -> Reader:
    def exactly(value: Any) -> Any:
        # bool is an int to Python; nowhere is it one to us.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _Misfit(f"{_SHORT.repr(value)} is not {kind.__name__}")
        return value

    return exactly
