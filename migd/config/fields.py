"""Values of a file, read as the type that is due; what is of another type becomes a fault."""

from collections.abc import Collection
from dataclasses import dataclass

from migd.config.composer import Node
from migd.config.faults import Faults, Position, shortened


@dataclass(frozen=True)
class Field:
    """A value under its path. Each getter gives None after it added a fault.

    `right` says in each what to write instead.
    """

    node: Node
    path: str
    faults: Faults

    @property
    def position(self) -> Position:
        return self.node.position

    @property
    def empty(self) -> bool:
        """Nothing stands there, or null."""
        return self.node.value is None

    @property
    def is_list(self) -> bool:
        return isinstance(self.node.value, tuple)

    def wrong(self, sentence: str) -> None:
        self.faults.add(self.position, self.path, sentence)

    def wrong_key(self, key: str, sentence: str) -> None:
        """A fault of a key of this mapping."""
        self.faults.add(self.node.keys[key], self._below(key), sentence)

    def text(self, right: str) -> str | None:
        if isinstance(self.node.value, str):
            return self.node.value
        self._not("text", right)
        return None

    def integer(self, right: str) -> int | None:
        """An integer; 7.0 is one, and true is none."""
        value = self.node.value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        self._not("an integer", right)
        return None

    def boolean(self, right: str) -> bool | None:
        if isinstance(self.node.value, bool):
            return self.node.value
        self._not("true or false", right)
        return None

    def items(self, right: str) -> "list[Field] | None":
        if isinstance(self.node.value, tuple):
            return [
                Field(item, f"{self.path}[{n}]", self.faults)
                for n, item in enumerate(self.node.value)
            ]
        self._not("a list", right)
        return None

    def members(self, right: str) -> "dict[str, Field] | None":
        """The values of a mapping with any keys."""
        if isinstance(self.node.value, dict):
            return {
                key: Field(value, self._below(key), self.faults)
                for key, value in self.node.value.items()
            }
        self._not("a mapping", right)
        return None

    def record(self, allowed: Collection[str], right: str) -> "dict[str, Field] | None":
        """The values of a mapping with keys out of `allowed`; others are faults."""
        members = self.members(right)
        for key in [k for k in members or {} if k not in allowed]:
            self.wrong_key(key, f"is not a key that stands here; the keys are {', '.join(allowed)}")
        return members

    def _below(self, key: str) -> str:
        return f"{self.path}.{shortened(key)}" if self.path else shortened(key)

    def _not(self, kind: str, right: str) -> None:
        self.wrong(f"must be {kind}, not {self.shown}; {right}")

    @property
    def shown(self) -> str:
        """The value in a sentence."""
        value = self.node.value
        if isinstance(value, tuple):
            return "a list"
        if isinstance(value, dict):
            return "a mapping"
        if isinstance(value, str):
            return f'the text "{shortened(value)}"'
        return shortened(self.node.text) if self.node.text else "empty"
