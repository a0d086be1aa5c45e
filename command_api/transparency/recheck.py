"""Reads the log again, page by page and for ever, and compares it with the trees."""

import logging
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import LiteralString, NamedTuple

from psycopg import AsyncConnection

from command_api.transparency.trees import LEAVES, PAGE_EVENTS, unpacked
from schemas import merkle

logger = logging.getLogger(__name__)

_PLACE: LiteralString = "SELECT position, checked_position FROM kinora_merkle_checkpoint FOR SHARE"
_KEPT: LiteralString = """
SELECT organization, hashes, positions FROM kinora_merkle_tiles
 WHERE level = 0 AND last_position > %s AND first_position <= %s
"""
_SAVE: LiteralString = "UPDATE kinora_merkle_checkpoint SET checked_position = %s"


@dataclass(frozen=True, slots=True)
class Fault:
    """An event that is not what it was when it joined its tree."""

    position: int
    organization: str
    how: str
    """``altered``, ``dropped`` or ``inserted``."""

    def __str__(self) -> str:
        return f"the event at position {self.position} of {self.organization} was {self.how}"


class Rechecked(NamedTuple):
    """One page."""

    faults: tuple[Fault, ...]
    last: bool
    """Of a round: the next page begins at the beginning."""


async def recheck(connection: AsyncConnection) -> Rechecked:
    """Compare the next page; behind the last event it begins anew. Only events that are in trees count."""
    async with connection.transaction():
        row = await (await connection.execute(_PLACE)).fetchone()
        if row is None or row[0] == 0:
            return Rechecked((), last=True)
        reached, begin = int(row[0]), int(row[1]) if row[1] < row[0] else 0
        cursor = connection.cursor(binary=True)
        await cursor.execute(LEAVES, (begin, PAGE_EVENTS))
        rows = await cursor.fetchall()
        # Of a page that is not full, what follows in the trees must not be there: it is looked at, too.
        end = min(int(rows[-1][0]), reached) if len(rows) == PAGE_EVENTS else reached
        found = {
            (int(position), str(organization)): bytes(leaf)
            for position, organization, leaf in rows
            if position <= end
        }
        kept: dict[tuple[int, str], bytes] = {}
        await cursor.execute(_KEPT, (begin, end))
        for organization, hashes, packed in await cursor.fetchall():
            positions = unpacked(packed)
            leaves = merkle.split(bytes(hashes))
            for place in range(bisect_right(positions, begin), bisect_left(positions, end + 1)):
                kept[positions[place], str(organization)] = leaves[place]
        await connection.execute(_SAVE, (end,))
    faults = [Fault(*key, "dropped") for key in kept.keys() - found.keys()]
    faults += [Fault(*key, "inserted") for key in found.keys() - kept.keys()]
    faults += [Fault(*key, "altered") for key in kept.keys() & found.keys() if kept[key] != found[key]]
    return Rechecked(tuple(sorted(faults, key=lambda fault: fault.position)), last=end >= reached)
