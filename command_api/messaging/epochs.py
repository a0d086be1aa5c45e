"""Numbers the fillings of EVENTS, so that a consumer can tell a refilled stream from a continued one.

The numbers live in the database, because a stream that lost everything cannot know them. With each stands how
far the stream was filled under it, so that a stream which lost its end is noticed even by another relay.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg.rows import class_row

from command_api.connected import connected
from command_api.eventlog.errors import LogUnavailable

LOCK = 0x6B696E6F7261_05
"""Advisory lock under which an epoch begins."""

_SEQUENCES = 40
"""Bits of a stream sequence that count within an epoch: a trillion messages, and 8191 epochs below 2**53."""

_CURRENT: LiteralString = """
SELECT epoch, reason, sequence, position, broken_because
  FROM kinora_relay_epochs ORDER BY epoch DESC LIMIT 1
"""
_BEGIN: LiteralString = """
INSERT INTO kinora_relay_epochs (epoch, reason, sequence)
SELECT %(epoch)s, %(reason)s, %(sequence)s
 WHERE %(seen)s = (SELECT coalesce(max(epoch), 0) FROM kinora_relay_epochs)
ON CONFLICT (epoch) DO NOTHING
RETURNING epoch, reason, sequence, position, broken_because
"""
_MARK: LiteralString = """
UPDATE kinora_relay_epochs SET sequence = %(sequence)s, position = %(position)s
 WHERE epoch = %(epoch)s AND sequence < %(sequence)s
"""
_BREAK: LiteralString = """
UPDATE kinora_relay_epochs SET broken_because = %(why)s
 WHERE epoch = %(epoch)s AND broken_because IS NULL
"""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One filling of EVENTS."""

    epoch: int
    reason: str
    """Why the stream was filled anew."""
    sequence: int
    """Of the last message that is known to have been in the stream."""
    position: int
    """Of that message."""
    broken_because: str | None
    """Why it has to be filled anew again; None while nobody found a fault."""


def before_first(epoch: int) -> int:
    """The sequence below an epoch's first message.

    Sequences go on growing over refills, and name their epoch: whoever stopped at one of an earlier epoch is
    below every message of the next, and a relay of an earlier epoch can never hit a later one's fence.
    """
    return epoch << _SEQUENCES


def epoch_of(sequence: int) -> int:
    """The epoch that a stream sequence belongs to."""
    return sequence >> _SEQUENCES


class Epochs:
    """Every filling of EVENTS, oldest first."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    async def current(self) -> Epoch | None:
        """The last one; None before the first."""
        return await self._execute(_CURRENT, {})

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Nobody else who asks for this begins an epoch meanwhile."""
        try:
            async with connected(self._conninfo, autocommit=True, connect_timeout=3) as connection:
                await connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
                yield
        except psycopg.OperationalError as error:
            raise _unavailable(error) from error

    async def begin(self, epoch: int, reason: str, *, seen: Epoch | None) -> Epoch | None:
        """The epoch, begun; None when somebody else began one after `seen`."""
        values = {
            "epoch": epoch,
            "reason": reason,
            "sequence": before_first(epoch),
            "seen": seen.epoch if seen is not None else 0,
        }
        return await self._execute(_BEGIN, values)

    async def mark(self, epoch: int, sequence: int, position: int) -> None:
        """Note how far the stream was filled."""
        await self._execute(_MARK, {"epoch": epoch, "sequence": sequence, "position": position})

    async def declare_broken(self, epoch: int, why: str) -> None:
        """Have the relay fill the stream anew. Does nothing once a later epoch has begun."""
        await self._execute(_BREAK, {"epoch": epoch, "why": why})

    async def _execute(self, statement: LiteralString, values: dict[str, object]) -> Epoch | None:
        try:
            async with (
                connected(self._conninfo, connect_timeout=3) as connection,
                connection.cursor(row_factory=class_row(Epoch)) as cursor,
            ):
                await cursor.execute(statement, values)
                return await cursor.fetchone() if cursor.description else None
        except psycopg.OperationalError as error:
            raise _unavailable(error) from error


def _unavailable(error: psycopg.OperationalError) -> LogUnavailable:
    return LogUnavailable(f"the epochs of EVENTS cannot be read or written: {error}")
