"""How much a request message holds, told from its bytes before anything is made of it.

A parser makes an object of each entry of a list: 2 MB of empty messages are a million objects,
60 MB and 30 ms in which the process does nothing else. So what strangers send is counted first, and
the count ends at its bound. https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from plinth.shared.errors import InvalidArgument

_VARINT, _FIXED64, _DELIMITED, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_CONTINUED = bytes(range(128, 256))  # the bytes of a varint but for its last
_FIXED_TYPES = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
}


@dataclass(frozen=True)
class Bounds:
    """What one request message may hold. fields: known or not, those of the messages in it among
    them; each entry of a list is one. packed: numbers of packed lists, together."""

    fields: int
    packed: int


def check(data: bytes, kind: Descriptor, bounds: Bounds) -> None:
    """InvalidArgument for a `kind` that holds more than `bounds`. Bytes that are no message are
    left to the parser."""
    try:
        _Count(data, bounds).message(0, len(data), kind, "")
    except (IndexError, OverflowError):
        return  # it ends within a varint, or one is too long


class _Count:
    """Of one message, read once from the left."""

    def __init__(self, data: bytes, bounds: Bounds) -> None:
        self._data = data
        self._bounds = bounds
        self._fields = 0
        self._packed = 0

    def message(self, at: int, end: int, kind: Descriptor, path: str) -> bool:
        """Counts what lies from `at` to `end`. False: this is no message."""
        data, most, known = self._data, self._bounds.fields, kind.fields_by_number
        groups = 0  # that are open: nobody knows what is in them
        while at < end:
            key = data[at]
            at += 1
            if key > 127:
                key, at = self._varint(at - 1)
            self._fields += 1
            if self._fields > most:
                raise _too_many(_path(path, known.get(key >> 3)), most, "fields")
            wire = key & 7
            if wire == _DELIMITED:
                length = data[at]
                at += 1
                if length > 127:
                    length, at = self._varint(at - 1)
                if at + length > end:
                    return False
                field = known.get(key >> 3)
                if field is not None and not groups and not self._inside(at, length, field, path):
                    return False
                at += length
            elif wire in (_START_GROUP, _END_GROUP):
                groups += 1 if wire == _START_GROUP else -1
            elif (at := self._after_number(at, wire)) < 0:
                return False
        return True

    def _after_number(self, at: int, wire: int) -> int:
        """Where the number at `at` ends; -1: there is no such wire type."""
        if wire != _VARINT:
            return at + _FIXED_BYTES[wire] if wire in _FIXED_BYTES else -1
        data = self._data
        while data[at] > 127:
            at += 1
        return at + 1

    def _inside(self, at: int, length: int, field: FieldDescriptor, path: str) -> bool:
        """Counts what a field holds, unless that is text or bytes."""
        if field.message_type is not None:
            return self.message(at, at + length, field.message_type, _path(path, field))
        if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            size = _FIXED_TYPES.get(field.type)
            part = self._data[at : at + length]
            self._packed += length // size if size else len(part.translate(None, _CONTINUED))
            if self._packed > self._bounds.packed:
                raise _too_many(_path(path, field), self._bounds.packed, "numbers")
        return True

    def _varint(self, at: int) -> tuple[int, int]:
        """(its value, where it ends). OverflowError for one of more than 64 bits, which would be
        a number of as many bytes as there are."""
        value = shift = 0
        while shift < 70:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
        raise OverflowError


def _path(path: str, field: FieldDescriptor | None) -> str:
    if field is None:
        return path
    return f"{path}.{field.name}" if path else str(field.name)


def _too_many(path: str, most: int, what: str) -> InvalidArgument:
    where = f"{path}: " if path else ""
    return InvalidArgument(
        f"{where}the message has more than {most:,} {what}, each entry of a list being one; "
        "send fewer at once",
        reason="TOO_MANY_FIELDS",
        field=path,
    )
