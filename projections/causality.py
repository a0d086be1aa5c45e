"""What led to an event, and what it led to: events name the command or event that they follow from."""

from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import AsyncConnection

MOST_CAUSES = 100
MOST_EFFECTS = 2000
"""Of one event; a tree beyond that is shown in part, and its events can be asked about."""

_OWN: LiteralString = "(organization_id = %(organization_id)s OR stream_id = %(user_id)s)"

CAUSES = f"""
WITH RECURSIVE chain AS (
    SELECT notification_id, event_id, causation_id, correlation_id, 0 AS distance
      FROM public.kinora_events
     WHERE event_id = %(event_id)s AND {_OWN}
    UNION ALL
    SELECT cause.notification_id, cause.event_id, cause.causation_id, cause.correlation_id, distance + 1
      FROM chain
      JOIN public.kinora_events AS cause ON cause.event_id = chain.causation_id
     WHERE distance < %(most)s
       AND (cause.organization_id = %(organization_id)s OR cause.stream_id = %(user_id)s)
)
SELECT notification_id, causation_id, correlation_id FROM chain ORDER BY distance
"""  # noqa: S608 - only constants are put in

# Only causes that are events are indexed: by far most events follow from a report or a request.
EFFECTS = f"""
WITH RECURSIVE tree AS (
    SELECT notification_id, event_id
      FROM public.kinora_events
     WHERE event_id = %(event_id)s AND {_OWN}
    UNION ALL
    SELECT effect.notification_id, effect.event_id
      FROM tree
      JOIN public.kinora_events AS effect ON effect.causation_id = tree.event_id
     WHERE left(effect.causation_id, 4) = 'evt_'
       AND (effect.organization_id = %(organization_id)s OR effect.stream_id = %(user_id)s)
)
SELECT notification_id FROM tree LIMIT %(most)s
"""  # noqa: S608 - only constants are put in


@dataclass(frozen=True, slots=True)
class Causes:
    """The way back from an event."""

    positions: tuple[int, ...]
    """Of the events that led to it, the nearest first."""
    began_with: str
    """The command, report or request that the first of them follows from."""
    correlation_id: str
    """Of the whole story."""
    complete: bool
    """False when there are more than `MOST_CAUSES`."""


@dataclass(frozen=True, slots=True)
class Effects:
    """Everything that came of an event."""

    positions: tuple[int, ...]
    """In the order of the log."""
    complete: bool
    """False when there are more than `MOST_EFFECTS`."""


async def causes(
    connection: AsyncConnection[Any], event_id: str, *, organization_id: str, user_id: str
) -> Causes | None:
    """None when the event is not one of the organization's or of the person's own."""
    values = {
        "event_id": event_id,
        "organization_id": organization_id,
        "user_id": user_id,
        "most": MOST_CAUSES + 1,
    }
    rows = await (await connection.execute(CAUSES, values)).fetchall()
    if not rows:
        return None
    shown = rows[: MOST_CAUSES + 1]
    return Causes(
        positions=tuple(int(row[0]) for row in shown[1:]),
        began_with=shown[-1][1],
        correlation_id=shown[-1][2],
        complete=len(shown) == len(rows),
    )


async def effects(
    connection: AsyncConnection[Any], event_id: str, *, organization_id: str, user_id: str
) -> Effects | None:
    """None when the event is not one of the organization's or of the person's own."""
    values = {
        "event_id": event_id,
        "organization_id": organization_id,
        "user_id": user_id,
        "most": MOST_EFFECTS + 2,
    }
    rows = await (await connection.execute(EFFECTS, values)).fetchall()
    if not rows:
        return None
    found = [int(row[0]) for row in rows[1:]]
    return Effects(tuple(sorted(found[:MOST_EFFECTS])), complete=len(found) <= MOST_EFFECTS)
