"""Builds values with positions from YAML, and stops where there are too many or too deep ones.

Whatever aliases and merge keys could expand without end is counted before it is expanded.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from migd.config.faults import Faults, Position, shortened
from migd.config.scalars import Scalar, resolved

_MOST_LEVELS = 20
_MOST_NODES = 50_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS: dict[str, tuple[type[Any], ...]] = {
    f"{_TAG}int": (int,),
    f"{_TAG}float": (float, int),
    f"{_TAG}bool": (bool,),
    f"{_TAG}null": (type(None),),
}


@dataclass(frozen=True)
class Node:
    """A value and where it stands; aliases to one anchor are one node.

    text: a scalar as it is written
    size: nodes in it, with every alias counted as what it stands for
    keys: where the keys of a mapping stand
    """

    position: Position
    value: "Scalar | tuple[Node, ...] | dict[str, Node]"
    text: str
    size: int
    keys: dict[str, Position]


class Composer:
    """Builds nodes from the parser's events, and stops at the first limit that is passed."""

    def __init__(self, text: str, source: str, faults: Faults) -> None:
        self._events = iter(yaml.parse(text, Loader=_LOADER))
        self._source = source
        self._faults = faults
        self._anchors: dict[str, Node | None] = {}
        self._nodes = 0
        self._path: list[str] = []

    def compose(self) -> Node | None:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                root = self._node(next(self._events))
                # The end of the document, and of the text or the start of the next one: any
                # other text there is no YAML, and the parser says so.
                next(self._events)
                next(self._events)
                return root
        return None

    def _node(self, event: Any) -> Node:
        position = self._position(event)
        self._count(1, position)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), position)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = Node(position, self._scalar(event, position), event.value, 1, {})
        elif len(self._path) == _MOST_LEVELS:
            self._refuse(position, f"is nested more than {_MOST_LEVELS} levels deep")
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event, "seq", position)
            node = self._sequence(position)
        else:
            self._check_tag(event, "map", position)
            node = self._mapping(position)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, anchor: str, position: Position) -> Node:
        known = self._anchors.get(anchor)
        if known is None:
            inside = anchor in self._anchors
            self._refuse(
                position,
                f"*{shortened(anchor)} stands inside what &{shortened(anchor)} names"
                if inside
                else f"*{shortened(anchor)} is used, but there is no &{shortened(anchor)} before",
            )
        self._count(known.size, position)
        return known

    def _scalar(self, event: Any, position: Position) -> Scalar:
        if event.tag in _SCALAR_TAGS:
            value = resolved(event.value)
            if type(value) not in _SCALAR_TAGS[event.tag]:
                kind = event.tag.removeprefix(_TAG)
                self._refuse(position, f"{shortened(event.value)!r} is not of the type !!{kind}")
            return value
        self._check_tag(event, "str", position)
        return resolved(event.value) if event.implicit[0] else str(event.value)

    def _sequence(self, position: Position) -> Node:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            self._path.append(f"[{len(items)}]")
            items.append(self._node(event))
            self._path.pop()
        return Node(position, tuple(items), "", 1 + sum(i.size for i in items), {})

    def _mapping(self, position: Position) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, Position] = {}
        merged: Node | None = None
        size = 1
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            self._path.append("(key)")
            key, where = self._node(event), self._position(event)
            name = self._key(key, where)
            self._path[-1] = shortened(name or "(key)")
            value = self._node(next(self._events))
            self._path.pop()
            size += key.size + value.size
            if name is None:
                continue
            if name in keys:
                self._faults.add(
                    where,
                    self._where(shortened(name)),
                    f"stands here and in line {keys[name].line}; keep one of the two",
                )
            elif name == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
                keys[name], merged = where, value
            else:
                keys[name], values[name] = where, value
        if merged is not None:
            del keys["<<"]
            self._merge(merged, values, keys)
        return Node(position, values, "", size, keys)

    def _position(self, event: Any) -> Position:
        mark = event.start_mark
        return Position(self._source, mark.line + 1, mark.column + 1)

    def _key(self, key: Node, position: Position) -> str | None:
        if isinstance(key.value, str):
            return key.value
        if type(key.value) is int and key.text == str(key.value):
            return key.text
        self._faults.add(
            position,
            self._where(),
            f"the key {shortened(key.text)} is read as a number or as yes or no; put it in quotes"
            if key.text
            else "a key must be a word",
        )
        return None

    def _merge(self, merged: Node, values: dict[str, Node], keys: dict[str, Position]) -> None:
        """Give the mapping what it has not from the mappings behind `<<`, the first wins."""
        for node in merged.value if isinstance(merged.value, tuple) else (merged,):
            if not isinstance(node.value, dict):
                self._faults.add(
                    merged.position, self._where("<<"), "must be a mapping or a list of mappings"
                )
                continue
            for name, value in node.value.items():
                if name not in values:
                    values[name] = value
                    keys[name] = node.keys[name]

    def _check_tag(self, event: Any, kind: str, position: Position) -> None:
        if event.tag not in (None, "!", f"{_TAG}{kind}"):
            tag = shortened(event.tag.replace(_TAG, "!!"))
            self._refuse(position, f"the tag {tag} means nothing here; remove it")

    def _count(self, nodes: int, position: Position) -> None:
        self._nodes += nodes
        if self._nodes > _MOST_NODES:
            self._refuse(
                position,
                f"there are more than {_MOST_NODES} values up to here, with every alias counted as "
                "what it stands for; no configuration needs as many",
            )

    def _where(self, *last: str) -> str:
        return "".join(
            part if part.startswith("[") or n == 0 else f".{part}"
            for n, part in enumerate((*self._path, *last))
        )

    def _refuse(self, position: Position, sentence: str) -> NoReturn:
        self._faults.refuse(position, self._where(), sentence)
