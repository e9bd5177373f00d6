"""Reads decisions from bytes, so that what is mutated as bytes makes structured inputs."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Bytes that decide; when they have all been read, each decision is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def number(self, below: int) -> int:
        size = (max(1, below - 1).bit_length() + 7) // 8
        return int.from_bytes(self.bytes(size), "little") % below

    def one(self, of: Sequence[T]) -> T:
        return of[self.number(len(of))]

    def bytes(self, most: int) -> bytes:
        taken = self._data[self._at : self._at + most]
        self._at += len(taken)
        return taken

    def text(self, words: Sequence[str]) -> str:
        """One of these words, or anything that D-Bus holds; at times very long."""
        match self.number(8):
            case 0 | 1 | 2 | 3 | 4:
                return self.one(words)
            case 5 | 6:
                return self.bytes(self.number(24)).decode(errors="replace").replace("\0", "")
        return self.one(words) * (1 << self.number(6 if self.number(16) else 17))
