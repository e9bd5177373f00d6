"""Cuts the byte stream of a bus connection into messages. Reads no bodies and does no I/O."""

import struct
from dataclasses import dataclass

# Longer messages are passed over without being read. dbus-next needs about 0.25 s a MiB for the
# worst of them (an array of numbers), and nothing else runs meanwhile; the longest honest message
# is systemd's list of all units, below 3 MiB with 10,000 of them.
MAX_MESSAGE = 4 * 2**20

# Whoever sends a longer header (an object path has no limit on the bus) wants nothing that we have:
# such a message is passed over as a whole, and gets no answer.
MAX_HEADER = 64 * 2**10

_FIXED = 16  # bytes of a header up to its array of fields
_UINT32 = {ord("l"): struct.Struct("<I"), ord("B"): struct.Struct(">I")}
_VERSION = 1


@dataclass(frozen=True)
class Frame:
    """One message as it came; `dropped` bytes of its body were too many and are not in `data`."""

    data: bytes
    dropped: int = 0


class Frames:
    """Takes what arrives, in any pieces, and gives whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._passing_over = 0

    def feed(self, data: bytes) -> None:
        if self._passing_over:
            passed = min(self._passing_over, len(data))
            self._passing_over -= passed
            data = data[passed:]
        self._buffer += data

    def next(self) -> Frame | None:
        """Give the next whole message, or None until more is fed.

        Raises ValueError when these are not D-Bus messages: where the next begins is not known.
        """
        while len(self._buffer) >= _FIXED:
            header, body = self._lengths()
            if header > MAX_HEADER:
                self._pass_over(header + body)
                continue
            if header + body <= MAX_MESSAGE:
                whole = len(self._buffer) >= header + body
                return Frame(self._take(header + body)) if whole else None
            if len(self._buffer) < header:
                return None
            data = bytearray(self._take(header))
            data[4:8] = bytes(4)
            self._pass_over(body)
            return Frame(bytes(data), body)
        return None

    def _lengths(self) -> tuple[int, int]:
        uint32 = _UINT32.get(self._buffer[0])
        if uint32 is None or self._buffer[3] != _VERSION:
            raise ValueError(f"not a D-Bus message: {bytes(self._buffer[:_FIXED])!r}")
        (body,) = uint32.unpack_from(self._buffer, 4)
        (fields,) = uint32.unpack_from(self._buffer, 12)
        return _FIXED + fields + -fields % 8, body

    def _pass_over(self, length: int) -> None:
        passed = min(length, len(self._buffer))
        del self._buffer[:passed]
        self._passing_over = length - passed

    def _take(self, length: int) -> bytes:
        with memoryview(self._buffer) as view:
            data = bytes(view[:length])
        del self._buffer[:length]
        return data
