"""The rows of webhooks, as their delivery reads and writes them; each method is one transaction."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from command_api.webhooks.receivers import Receiver
from command_api.webhooks.schedule import (
    Again,
    Answer,
    Delivered,
    GivenUp,
    Health,
    NoAnswer,
    Verdict,
    Waiting,
)
from schemas.ids import Prefix, new_id

Pool = AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]

KEPT_ATTEMPTS = 20
"""Of one delivery, the newest."""

_CURSORS: LiteralString = """
SELECT subscription_id, log_id, position, enabled_version, disabling, failing_since IS NOT NULL AS is_failing
  FROM kinora_webhooks
"""
_REDELIVERIES: LiteralString = """
SELECT redelivery_id, subscription_id, position, until_position
  FROM kinora_webhook_redeliveries WHERE finished_at IS NULL ORDER BY redelivery_id
"""
_BEGIN: LiteralString = """
INSERT INTO kinora_webhooks (subscription_id, organization_id, log_id, position, enabled_version)
VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
_EVENTS: LiteralString = """
SELECT notification_id AS position, event_id, topic AS event_type, stream_id, organization_id, workspace_id
  FROM kinora_events
 WHERE notification_id > %(after)s AND notification_id <= %(until)s
   AND organization_id = ANY(%(organizations)s) {types}
 ORDER BY notification_id LIMIT %(limit)s
"""
_ENQUEUE: LiteralString = """
INSERT INTO kinora_webhook_deliveries (delivery_id, subscription_id, organization_id, position, event_id,
       event_type, stream_id, status, due_at, created_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, 'pending', %s, %s)
"""
_ONCE: LiteralString = "ON CONFLICT (subscription_id, position) DO NOTHING"
_ANEW: LiteralString = """
ON CONFLICT (subscription_id, position) DO UPDATE
   SET status = 'pending', due_at = excluded.due_at, window_from = NULL, tries = 0, finished_at = NULL
"""
_PENDING: LiteralString = """
SELECT subscription_id, count(*) FROM kinora_webhook_deliveries
 WHERE status = 'pending' AND subscription_id = ANY(%s) GROUP BY subscription_id
"""
# The first one due of every stream; of a webhook that rests only tests, which belong to a person.
_DUE: LiteralString = """
SELECT first.delivery_id, first.subscription_id, first.stream_id AS lane
  FROM unnest(%(subscriptions)s::text[], %(active)s::boolean[]) AS wanted (subscription_id, active)
 CROSS JOIN LATERAL (
       SELECT DISTINCT ON (stream_id) delivery_id, subscription_id, stream_id, due_at, position
         FROM kinora_webhook_deliveries d
        WHERE d.subscription_id = wanted.subscription_id AND d.status = 'pending' AND d.due_at <= %(now)s
          AND (wanted.active OR d.position IS NULL)
        ORDER BY stream_id, due_at, position) AS first
 ORDER BY first.due_at, first.position
"""
_PARCELS: LiteralString = """
SELECT d.delivery_id, d.subscription_id, d.position, d.event_id, d.event_type, d.window_from, d.tries,
       d.body, e.state
  FROM kinora_webhook_deliveries d
  LEFT JOIN kinora_events e ON e.notification_id = d.position
 WHERE d.delivery_id = ANY(%s) AND d.status = 'pending'
"""
_OUTCOME: LiteralString = """
UPDATE kinora_webhook_deliveries
   SET status = %(status)s, due_at = coalesce(%(due_at)s, due_at), window_from = %(window_from)s,
       tries = %(tries)s, finished_at = %(finished_at)s,
       attempts = CASE WHEN jsonb_array_length(attempts) < %(kept)s THEN attempts ELSE attempts - 0 END
                  || %(attempt)s
 WHERE delivery_id = %(delivery_id)s AND status = 'pending'
"""
# A 4xx is about the event, everything else about the receiver, who is back now.
_BROUGHT_FORWARD: LiteralString = """
UPDATE kinora_webhook_deliveries SET due_at = %(now)s
 WHERE subscription_id = %(subscription_id)s AND status = 'pending' AND due_at > %(now)s
   AND coalesce((attempts -> -1 ->> 'status')::integer, 500) >= 500
"""


@dataclass(frozen=True, slots=True)
class Place:
    """How far one webhook is."""

    subscription_id: str
    log_id: str
    position: int
    enabled_version: int
    disabling: str | None
    is_failing: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Events to be delivered again."""

    redelivery_id: str
    subscription_id: str
    position: int
    until_position: int


@dataclass(frozen=True, slots=True)
class Noted:
    """An event of the log without its content."""

    position: int
    event_id: str
    event_type: str
    stream_id: str
    organization_id: str
    workspace_id: str | None


@dataclass(frozen=True, slots=True)
class Enqueued:
    """Events of one webhook that become deliveries, and how far it is then."""

    receiver: Receiver
    events: Sequence[Noted]
    position: int
    span: Span | None = None
    """Of a redelivery: what was delivered or given up goes again, too."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A delivery and what it needs to be sent."""

    delivery_id: str
    subscription_id: str
    position: int | None
    event_id: str
    event_type: str
    window_from: datetime | None
    tries: int
    body: bytes | None
    """Of a test; others are in the log."""
    state: bytes | None

    @property
    def is_test(self) -> bool:
        return self.position is None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request and what came of it."""

    attempted_at: datetime
    ended_at: datetime
    answer: Answer | NoAnswer
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        seconds = round((self.ended_at - self.attempted_at).total_seconds(), 3)
        told: dict[str, Any] = {"attempted_at": self.attempted_at.isoformat(), "seconds": seconds}
        if isinstance(self.answer, Answer):
            return told | {"status": self.answer.status, "answer": self.answer.text}
        return told | {"error": self.answer.code, "message": self.answer.message}


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits, of all webhooks together."""

    pending: int = 0
    oldest: datetime | None = None
    failing: int = 0
    """Webhooks whose last attempt failed."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Borrows its caller's pool of autocommit connections."""

    pool: Pool = field(repr=False)

    async def places(self) -> dict[str, Place]:
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Place))
            await cursor.execute(_CURSORS)
            return {place.subscription_id: place for place in await cursor.fetchall()}

    async def spans(self) -> list[Span]:
        """Redeliveries that are not all enqueued yet, in the order in which they were asked for."""
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Span))
            await cursor.execute(_REDELIVERIES)
            return await cursor.fetchall()

    async def begin(self, receiver: Receiver, log_id: str) -> None:
        """A webhook that nothing was delivered to yet."""
        async with self.pool.connection() as connection:
            await connection.execute(
                _BEGIN,
                (
                    receiver.subscription_id,
                    receiver.organization_id,
                    log_id,
                    receiver.after,
                    receiver.enabled_version,
                ),
            )

    async def forget(self, subscription_ids: Collection[str]) -> None:
        """Webhooks that were deleted, with their deliveries."""
        named = (list(subscription_ids),)
        async with self.pool.connection() as connection, connection.transaction():
            await connection.execute(
                "DELETE FROM kinora_webhook_deliveries WHERE subscription_id = ANY(%s)", named
            )
            await connection.execute(
                "DELETE FROM kinora_webhook_redeliveries WHERE subscription_id = ANY(%s)", named
            )
            await connection.execute("DELETE FROM kinora_webhooks WHERE subscription_id = ANY(%s)", named)

    async def go_on(self, receiver: Receiver, now: datetime) -> None:
        """After it was enabled again: what waits is due, and has its three days before it."""
        async with self.pool.connection() as connection, connection.transaction():
            await connection.execute(
                "UPDATE kinora_webhooks SET enabled_version = %s, failing_since = NULL, failures = 0,"
                " disabling = NULL WHERE subscription_id = %s",
                (receiver.enabled_version, receiver.subscription_id),
            )
            await connection.execute(
                "UPDATE kinora_webhook_deliveries SET due_at = %s, window_from = NULL, tries = 0"
                " WHERE subscription_id = %s AND status = 'pending'",
                (now, receiver.subscription_id),
            )

    async def rest(self, subscription_id: str) -> None:
        """It is disabled: nobody waits for its receiver any more."""
        async with self.pool.connection() as connection:
            await connection.execute(
                "UPDATE kinora_webhooks SET disabling = NULL, failing_since = NULL, failures = 0"
                " WHERE subscription_id = %s",
                (subscription_id,),
            )

    async def start_behind(self, log_id: str, head: int, now: datetime) -> int:
        """The log was restored: nothing that was there before is sent again; returns how many webhooks moved.

        Deliveries that waited are given up with the code ``log_restored``, because nobody knows which of them
        arrived after the backup was made.
        """
        told = {
            "attempted_at": now.isoformat(),
            "seconds": 0,
            "error": "log_restored",
            "message": "the log was restored from a backup, and this may have arrived before; redeliver it"
            " when it did not",
        }
        async with self.pool.connection() as connection, connection.transaction():
            await connection.execute(
                "UPDATE kinora_webhook_deliveries d"
                "   SET status = 'failed', finished_at = %s, attempts = attempts || %s"
                "  FROM kinora_webhooks w"
                " WHERE w.subscription_id = d.subscription_id AND w.log_id <> %s AND d.status = 'pending'",
                (now, Jsonb([told]), log_id),
            )
            await connection.execute(
                "UPDATE kinora_webhook_redeliveries r SET finished_at = %s FROM kinora_webhooks w"
                " WHERE w.subscription_id = r.subscription_id AND w.log_id <> %s AND r.finished_at IS NULL",
                (now, log_id),
            )
            cursor = await connection.execute(
                "UPDATE kinora_webhooks"
                "   SET log_id = %s, failing_since = NULL, failures = 0, disabling = NULL,"
                "       position = coalesce((SELECT max(head) FROM kinora_log_predecessors), %s)"
                " WHERE log_id <> %s",
                (log_id, head, log_id),
            )
            return cursor.rowcount

    async def events(
        self,
        after: int,
        until: int,
        organizations: Collection[str],
        types: Collection[str] | None,
        limit: int,
    ) -> list[Noted]:
        """What the log holds of these organizations; of all types when `types` is None."""
        text: LiteralString = "" if types is None else "AND topic = ANY(%(types)s)"
        values: dict[str, object] = {
            "after": after,
            "until": until,
            "organizations": list(organizations),
            "types": None if types is None else list(types),
            "limit": limit,
        }
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Noted))
            await cursor.execute(_EVENTS.format(types=text), values)
            return await cursor.fetchall()

    async def pending(self, subscription_ids: Collection[str]) -> dict[str, int]:
        """How many deliveries of each webhook wait."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(_PENDING, (list(subscription_ids),))
            rows: list[tuple[str, int]] = await cursor.fetchall()
        return dict(rows)

    async def enqueue(self, shares: Sequence[Enqueued], now: datetime) -> None:
        """Deliveries and positions together: whatever is interrupted, nothing is left out or made twice."""
        async with self.pool.connection() as connection, connection.transaction():
            for share in shares:
                await self._enqueue(connection, share, now)

    async def _enqueue(self, connection: AsyncConnection[Any], share: Enqueued, now: datetime) -> None:
        to, span = share.receiver, share.span
        rows = [
            (
                *(new_id(Prefix.DELIVERY), to.subscription_id, to.organization_id),
                *(event.position, event.event_id, event.event_type, event.stream_id),
                *(now, now),
            )
            for event in share.events
        ]
        if rows:
            async with connection.cursor() as cursor:
                await cursor.executemany(_ENQUEUE + (_ONCE if span is None else _ANEW), rows)
        if span is None:
            await connection.execute(
                "UPDATE kinora_webhooks SET position = %s WHERE subscription_id = %s",
                (share.position, to.subscription_id),
            )
        else:
            await connection.execute(
                "UPDATE kinora_webhook_redeliveries SET position = %s, finished_at = %s"
                " WHERE redelivery_id = %s",
                (
                    share.position,
                    now if share.position >= span.until_position else None,
                    span.redelivery_id,
                ),
            )

    async def due(self, receivers: Collection[Receiver], now: datetime) -> dict[str, list[Waiting]]:
        """By webhook, the first delivery due of every stream, most urgent first."""
        values = {
            "subscriptions": [receiver.subscription_id for receiver in receivers],
            "active": [receiver.is_active for receiver in receivers],
            "now": now,
        }
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Waiting))
            await cursor.execute(_DUE, values)
            found: dict[str, list[Waiting]] = {}
            for waiting in await cursor.fetchall():
                found.setdefault(waiting.subscription_id, []).append(waiting)
            return found

    async def parcels(self, delivery_ids: Sequence[str]) -> list[Parcel]:
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Parcel))
            await cursor.execute(_PARCELS, (list(delivery_ids),))
            return await cursor.fetchall()

    async def record(self, parcel: Parcel, attempt: Attempt) -> None:
        """What came of an attempt, for the delivery and for its receiver."""
        async with self.pool.connection() as connection, connection.transaction():
            await connection.execute(_OUTCOME, _outcome(parcel, attempt))
            if not parcel.is_test:
                await self._note_health(connection, parcel, attempt)

    async def _note_health(self, connection: AsyncConnection[Any], parcel: Parcel, attempt: Attempt) -> None:
        cursor = connection.cursor(row_factory=class_row(Health))
        await cursor.execute(
            "SELECT failing_since, failures FROM kinora_webhooks WHERE subscription_id = %s FOR UPDATE",
            (parcel.subscription_id,),
        )
        before = await cursor.fetchone()
        if before is None:
            return  # deleted meanwhile
        delivered = isinstance(attempt.verdict, Delivered)
        health = before.after(delivered=delivered, attempted_at=attempt.attempted_at)
        await connection.execute(
            "UPDATE kinora_webhooks SET failing_since = %s, failures = %s,"
            " last_delivered_at = coalesce(%s, last_delivered_at), disabling = coalesce(%s, disabling)"
            " WHERE subscription_id = %s",
            (
                health.failing_since,
                health.failures,
                attempt.ended_at if delivered else None,
                _why_given_up(attempt, health),
                parcel.subscription_id,
            ),
        )
        if delivered and before.was_away():
            await connection.execute(
                _BROUGHT_FORWARD, {"now": attempt.ended_at, "subscription_id": parcel.subscription_id}
            )

    async def backlog(self) -> Backlog:
        async with self.pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Backlog))
            await cursor.execute(
                "SELECT count(*) AS pending, min(created_at) AS oldest,"
                " (SELECT count(*) FROM kinora_webhooks WHERE failing_since IS NOT NULL) AS failing"
                " FROM kinora_webhook_deliveries WHERE status = 'pending'"
            )
            return await cursor.fetchone() or Backlog()


def _outcome(parcel: Parcel, attempt: Attempt) -> Mapping[str, object]:
    verdict = attempt.verdict
    again = isinstance(verdict, Again)
    status = "pending" if again else "delivered" if isinstance(verdict, Delivered) else "failed"
    return {
        "delivery_id": parcel.delivery_id,
        "status": status,
        "due_at": verdict.due_at if isinstance(verdict, Again) else None,
        "window_from": parcel.window_from or attempt.attempted_at,
        "tries": parcel.tries + 1,
        "finished_at": None if again else attempt.ended_at,
        "attempt": Jsonb([attempt.as_json()]),
        "kept": KEPT_ATTEMPTS,
    }


def _why_given_up(attempt: Attempt, health: Health) -> str | None:
    if isinstance(attempt.verdict, GivenUp) and attempt.verdict.gone:
        return "gone"
    return "failing" if health.is_dead(attempt.attempted_at) else None
