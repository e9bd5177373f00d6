"""A message as it came: who sent it is read at once, the rest of its header and its body if wanted.

The bus has checked its form. To find the sender takes 1 us, to read the header 5; dbus-next takes
300 for the whole of a small message, and 2 more for each value that it carries.
"""

import io
import logging
import struct
from typing import Any

from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import SignatureTree

log = logging.getLogger(__name__)

CALL, RETURN, ERROR, SIGNAL = (
    kind.value
    for kind in (
        MessageType.METHOD_CALL,
        MessageType.METHOD_RETURN,
        MessageType.ERROR,
        MessageType.SIGNAL,
    )
)

_FIXED = 16  # bytes of a header up to its array of fields
_LITTLE_ENDIAN = ord("l")
_LITTLE, _BIG = struct.Struct("<I"), struct.Struct(">I")
_PATH, _INTERFACE, _MEMBER, _REPLY_SERIAL = 1, 2, 3, 5
_SENDER = b"\7\1s\0"  # how field 7 begins, a string
_MAX_SIGNATURES = 1024


class TooMuch(Exception):
    """A message carries more values than whoever reads it is ready to take."""


class Incoming:
    """`dropped` bytes of an oversized body were passed over and are not in `data`."""

    __slots__ = ("_fields", "data", "dropped", "kind", "sender")

    def __init__(self, data: bytes, dropped: int = 0) -> None:
        self.data = data
        self.dropped = dropped
        self.kind = data[1]
        self.sender = _sender(data)
        self._fields: dict[int, Any] | None = None

    @property
    def serial(self) -> int:
        (serial,) = _uint32(self.data).unpack_from(self.data, 8)
        return int(serial)

    @property
    def path(self) -> str:
        return str(self._field(_PATH, ""))

    @property
    def interface(self) -> str:
        return str(self._field(_INTERFACE, ""))

    @property
    def member(self) -> str:
        return str(self._field(_MEMBER, ""))

    @property
    def reply_serial(self) -> int:
        return int(self._field(_REPLY_SERIAL, 0))

    @property
    def text(self) -> str:
        """The first argument, of a message that has one and it is a string."""
        (length,) = _uint32(self.data).unpack_from(self.data, 12)
        at = _FIXED + length + -length % 8
        (size,) = _uint32(self.data).unpack_from(self.data, at)
        return self.data[at + 4 : at + 4 + size].decode(errors="replace")

    @property
    def wants_reply(self) -> bool:
        return self.kind == CALL and not self.data[2] & MessageFlag.NO_REPLY_EXPECTED.value

    def without_body(self) -> "Incoming":
        """The same as if its body had been too long to be read."""
        (body,) = _uint32(self.data).unpack_from(self.data, 4)
        header = bytearray(self.data[: len(self.data) - body])
        header[4:8] = bytes(4)
        return Incoming(bytes(header), self.dropped + body)

    def read(self, most_values: int | None = None) -> Message | None:
        """The whole message; None if dbus-next cannot read it. Raises TooMuch."""
        try:
            message: Message | None = _Reader(self.data, most_values).unmarshall()  # type: ignore[no-untyped-call]
        except TooMuch:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a peer wrote must not end the connection
            log.debug("cannot read a message (%s), ignoring it", error)
            return None
        finally:
            # Peers choose the signatures, and dbus-next remembers each of them for ever.
            if len(SignatureTree._cache) > _MAX_SIGNATURES:
                SignatureTree._cache.clear()
        return message

    def error(self, name: str, text: str) -> Message:
        """What refuses this call, without its having been read."""
        return Message(
            message_type=MessageType.ERROR,
            reply_serial=self.serial,
            destination=self.sender,
            error_name=name,
            signature="s",
            body=[text],
        )

    def _field(self, code: int, missing: Any) -> Any:
        if self._fields is None:
            try:
                self._fields = _fields(self.data)
            except (IndexError, ValueError, struct.error) as error:
                log.debug("cannot read a header (%s), ignoring it", error)
                self._fields = {}
        return self._fields.get(code, missing)


def _uint32(data: bytes) -> struct.Struct:
    return _LITTLE if data[0] == _LITTLE_ENDIAN else _BIG


def _sender(data: bytes) -> str:
    """The bus puts it there; "" where it did not.

    Fields begin at multiples of 8, and nothing else that stands at one can look like this: names
    and paths have no such characters, and numbers stand between.
    """
    (length,) = _uint32(data).unpack_from(data, 12)
    at = data.find(_SENDER, _FIXED, _FIXED + length)
    while at % 8:
        if at < 0:
            return ""
        at = data.find(_SENDER, at + 1, _FIXED + length)
    (size,) = _uint32(data).unpack_from(data, at + 4)
    return data[at + 8 : at + 8 + size].decode("ascii", "replace")


def _fields(data: bytes) -> dict[int, Any]:
    uint32 = _uint32(data).unpack_from
    (length,) = uint32(data, 12)
    fields: dict[int, Any] = {}
    at, end = _FIXED, _FIXED + length
    while at < end:
        code, kind = data[at], data[at + 1 : at + 4]
        at += 4
        match kind:
            case b"\1s\0" | b"\1o\0":
                (size,) = uint32(data, at)
                fields[code] = data[at + 4 : at + 4 + size].decode()
                at += 5 + size
            case b"\1g\0":
                size = data[at]
                fields[code] = data[at + 1 : at + 1 + size].decode()
                at += 2 + size
            case b"\1u\0":
                (fields[code],) = uint32(data, at)
                at += 4
            case _:
                raise ValueError(f"a header field {code} of type {kind!r}")
        at += -at % 8
    return fields


class _Reader(Unmarshaller):
    """Counts values, and a signature as many as it is long: reading takes time for each."""

    def __init__(self, data: bytes, most: int | None) -> None:
        super().__init__(io.BytesIO(data))  # type: ignore[no-untyped-call]
        self._left = len(data) if most is None else most

    def read_argument(self, type_: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise TooMuch
        return self.readers[type_.token](type_)  # type: ignore[no-untyped-call]

    def read_variant(self, _: Any = None) -> Any:
        self._left -= self.buf[self.offset]
        return super().read_variant()  # type: ignore[no-untyped-call]
