"""Makes new inputs of old ones: bytes, words of the format, lines, and what repeats."""

import random
import re
from collections.abc import Callable, Sequence

# Between the files of an input that is several.
PART = b"\xff\xfe\xff"
MOST_BYTES = 1 << 16
_FEW_BYTES = 1 << 12

_TOKEN = re.compile(rb"[A-Za-z0-9_.+-]+")
# What is odd in any format: numbers at limits, characters that steer a terminal or end a line
# for some readers only, bytes that are no UTF-8, and JSON's and YAML's own words.
WORDS = (
    b"0", b"-1", b"255", b"256", b"65536", b"2147483648", b"4294967296", b"18446744073709551616",
    b"9" * 400, b"9" * 4400, b"1e400", b"0x7f", b"0o17", b"1_0", b"NaN", b"true", b"null", b'""',
    b"\0", b"\n", b"\r", b"\t", b" ", b"\x1b[2J", b"\x0b", b"\x0c", b"\x1c", b"\xc2\x85",
    b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\\ud800",
    b"\xf0\x9f\x98\x80", b"\xd9\xa3", b"%", b"\\", b"'", b'"', b":", b",", b"..", b"/", PART,
)  # fmt: skip

Dice = random.Random


class Mutator:
    """words: of the format, so that changes get behind its first checks; most: bytes of an input"""

    def __init__(self, words: Sequence[bytes], dice: Dice, most: int = MOST_BYTES) -> None:
        self._most = most
        self._words = (*words, *words, *WORDS) if words else WORDS
        self._dice = dice

    def __call__(self, data: bytes, other: bytes) -> bytes:
        """`data` with a few changes; other: an input from which a piece may be taken."""
        for _ in range(1 << self._dice.randrange(4)):
            data = self._dice.choice(_CHANGES)(self, data, other)
        return data[: self._most]

    def _spot(self, data: bytes) -> int:
        return self._dice.randint(0, len(data))

    def _span(self, data: bytes, most: int = 64) -> tuple[int, int]:
        begin = self._spot(data)
        return begin, min(len(data), begin + self._dice.randint(1, most))

    def _word(self) -> bytes:
        return self._dice.choice(self._words)

    def _insert(self, data: bytes, _: bytes) -> bytes:
        at = self._spot(data)
        return data[:at] + self._word() + data[at:]

    def _overwrite(self, data: bytes, _: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:begin] + self._word() + data[end:]

    def _delete(self, data: bytes, _: bytes) -> bytes:
        begin, end = self._span(data)
        return data[:begin] + data[end:]

    def _copy(self, data: bytes, _: bytes) -> bytes:
        begin, end = self._span(data)
        at = self._spot(data)
        return data[:at] + data[begin:end] + data[at:]

    def _byte(self, data: bytes, _: bytes) -> bytes:
        if not data:
            return bytes([self._dice.randrange(256)])
        at = self._dice.randrange(len(data))
        changed = self._dice.choice(
            (data[at] ^ 1 << self._dice.randrange(8), self._dice.randrange(256), data[at] + 1 & 255)
        )
        return data[:at] + bytes([changed]) + data[at + 1 :]

    def _token(self, data: bytes, _: bytes) -> bytes:
        found = list(_TOKEN.finditer(data[:_FEW_BYTES]))
        if not found:
            return self._insert(data, _)
        begin, end = self._dice.choice(found).span()
        return data[:begin] + self._word() + data[end:]

    def _splice(self, data: bytes, other: bytes) -> bytes:
        begin, end = self._span(other, 512)
        at = self._spot(data)
        return data[:at] + other[begin:end] + data[at:]

    def _cross(self, data: bytes, other: bytes) -> bytes:
        return data[: self._spot(data)] + other[self._spot(other) :]

    def _cut(self, data: bytes, _: bytes) -> bytes:
        return data[: self._spot(data)]

    def _line(self, data: bytes, _: bytes) -> bytes:
        lines = data.splitlines(keepends=True) or [b""]
        one, two = self._dice.randrange(len(lines)), self._dice.randrange(len(lines))
        match self._dice.randrange(4):
            case 0:
                del lines[one]
            case 1:
                lines.insert(two, lines[one])
            case 2:
                lines[one], lines[two] = lines[two], lines[one]
            case _:
                lines[one] = self._dice.choice((b" ", b"  ", b"\t")) + lines[one]
        return b"".join(lines)

    def _repeat(self, data: bytes, _: bytes) -> bytes:
        begin, end = self._span(data, 16)
        piece = self._dice.choice((data[begin:end], self._word()))
        # Rarely, since what is long takes long.
        times = 1 << self._dice.randrange(6 if self._dice.randrange(16) else 15)
        return data[:begin] + (piece * times)[:MOST_BYTES] + data[begin:]


_CHANGES: tuple[Callable[[Mutator, bytes, bytes], bytes], ...] = (
    Mutator._insert, Mutator._insert, Mutator._overwrite, Mutator._delete, Mutator._delete,
    Mutator._copy, Mutator._byte, Mutator._byte, Mutator._token, Mutator._token, Mutator._token,
    Mutator._splice, Mutator._cross, Mutator._cut, Mutator._line, Mutator._line, Mutator._repeat,
)  # fmt: skip


def shrunk(data: bytes, still: Callable[[bytes], bool], tries: int = 500) -> bytes:
    """A shorter input that is `still` what it was, by leaving out what can be left out."""
    size = max(1, len(data) // 2)
    while size and tries > 0:
        at, before = 0, len(data)
        while at < len(data) and tries > 0:
            tries -= 1
            shorter = data[:at] + data[at + size :]
            if still(shorter):
                data = shorter
            else:
                at += size
        if len(data) == before or size > len(data):
            size //= 2
    return data
