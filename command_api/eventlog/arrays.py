"""PostgreSQL arrays in their binary form: psycopg's own lists take most of the time of a large append."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from psycopg import Cursor
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_HEAD = struct.Struct(">iiIii").pack
_LENGTH = struct.Struct(">i").pack
_LONG = struct.Struct(">q").pack
_NULL = _LENGTH(-1)


@dataclass(frozen=True, slots=True)
class Array:
    """A list without inner lists; the statement has to cast its place, for example ``%s::text[]``."""

    values: Sequence[Any]
    oid: int
    binary: Callable[[Any], bytes]


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> Buffer:
        binary = obj.binary
        if None in obj.values:
            items = [b"" if value is None else binary(value) for value in obj.values]
            lengths = [
                _NULL if value is None else _LENGTH(len(item))
                for value, item in zip(obj.values, items, strict=True)
            ]
        else:  # nearly always; a loop of Python's own would take twice as long
            items = list(map(binary, obj.values))
            lengths = list(map(_LENGTH, map(len, items)))
        parts = [b""] * (2 * len(items))
        parts[::2], parts[1::2] = lengths, items
        return _HEAD(1, 1, obj.oid, len(items), 1) + b"".join(parts)


def takes_arrays(cursor: Cursor[Any]) -> None:
    """Let this cursor's statements have them as parameters."""
    cursor.adapters.register_dumper(Array, _ArrayDumper)


def texts(values: Sequence[str | None]) -> Array:
    return Array(values, 25, str.encode)


def byteas(values: Sequence[bytes]) -> Array:
    return Array(values, 17, bytes)


def bigints(values: Sequence[int]) -> Array:
    return Array(values, 20, _LONG)


def uuids(values: Sequence[UUID | str]) -> Array:
    """The library types its ids as either; ours are always UUIDs."""
    return Array(values, 2950, _uuid)


def timestamps(values: Sequence[datetime]) -> Array:
    """`timestamptz`."""
    return Array(values, 1184, _microseconds)


def _uuid(value: UUID) -> bytes:
    return value.bytes


def _microseconds(value: datetime) -> bytes:
    passed = value - _EPOCH
    return _LONG((passed.days * 86400 + passed.seconds) * 1_000_000 + passed.microseconds)
