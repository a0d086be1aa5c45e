"""The log's queries; each takes a cursor and returns plain rows."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from psycopg import Cursor
from psycopg.rows import DictRow

from command_api.eventlog.arrays import Array, bigints, takes_arrays, texts, uuids
from command_api.eventlog.tables import MEASUREMENTS, NO_MEASUREMENT
from schemas.envelope import Recorded
from schemas.ids import id_uuid


@dataclass(frozen=True, slots=True)
class RawEvent:
    """A row of the log; `state` is decoded only when somebody asks."""

    position: int
    stream_id: str
    version: int
    type: str
    event_id: str
    organization_id: str | None
    workspace_id: str | None
    state: bytes

    def recorded(self) -> Recorded:
        return Recorded.from_state(self.position, self.state)


@dataclass(frozen=True, slots=True)
class StoredCommand:
    """A command that was carried out, and where its events are."""

    principal: str
    key: str
    request_hmac: bytes
    stream_id: str | None
    first_position: int
    position: int
    event_count: int


HEAD = "SELECT coalesce(max(notification_id), 0) AS head FROM kinora_events"

# originator_id leads the primary key; stream_id keeps streams apart whose ids share their digits.
STREAM = """
    SELECT notification_id, stream_id, originator_version, topic, event_id,
           organization_id, workspace_id, state
    FROM kinora_events
    WHERE originator_id = %s AND originator_version > %s AND stream_id = %s
    ORDER BY originator_version
    LIMIT %s
"""

# The inner ORDER BY keeps the planner from anything but one index probe for each stream.
TAILS = """
    SELECT tail.*
    FROM unnest(%s::uuid[], %s::bigint[], %s::text[]) AS known (originator_id, version, stream_id)
    CROSS JOIN LATERAL (
        SELECT notification_id, stream_id, originator_version, topic, event_id,
               organization_id, workspace_id, state
        FROM kinora_events
        WHERE originator_id = known.originator_id AND originator_version > known.version
          AND stream_id = known.stream_id
        ORDER BY originator_version
        LIMIT %s
    ) AS tail
    LIMIT %s
"""

PAGE = """
    SELECT notification_id, stream_id, originator_version, topic, event_id,
           organization_id, workspace_id, state
    FROM kinora_events
    WHERE notification_id > %(after)s {filters}
    ORDER BY notification_id
    LIMIT %(limit)s
"""

COMMANDS = """
    SELECT principal, key, request_hmac, stream_id, first_position, position, event_count
    FROM kinora_commands
    JOIN unnest(%s::text[], %s::text[]) AS wanted (principal, key) USING (principal, key)
"""

POSITIONS = "SELECT event_id, notification_id, state FROM kinora_events WHERE event_id = ANY(%s)"


def head(cursor: Cursor[DictRow]) -> int:
    row = cursor.execute(HEAD).fetchone()
    return int(row["head"]) if row else 0


def stream(
    cursor: Cursor[DictRow], stream_id: str, after_version: int, limit: int | None = None
) -> list[RawEvent]:
    cursor.execute(STREAM, (id_uuid(stream_id), after_version, stream_id, limit), prepare=True)
    return [_raw(row) for row in cursor.fetchall()]


def page(
    cursor: Cursor[DictRow],
    after: int,
    limit: int,
    *,
    types: Sequence[str] | None = None,
    organization_id: str | None = None,
    stream_id: str | None = None,
) -> list[RawEvent]:
    params: dict[str, object] = {"after": after, "limit": limit}
    if types is not None:
        params["types"] = list(types)
    if organization_id is not None:
        params["organization_id"] = organization_id
    if stream_id is not None:
        params |= {"originator_id": id_uuid(stream_id), "stream_id": stream_id}
    cursor.execute(page_query(types, params.keys()), params, prepare=True)
    return [_raw(row) for row in cursor.fetchall()]


def page_query(types: Sequence[str] | None, filters: Container[str]) -> str:
    """Holds only the filters asked for: a plan that must also fit their absence can use no index."""
    text = ""
    if types is not None:
        text += " AND topic = ANY(%(types)s)"
        if not set(types) & set(MEASUREMENTS):
            text += f" AND {NO_MEASUREMENT}"  # excludes nothing more, but lets the planner use its index
    if "organization_id" in filters:
        text += " AND organization_id = %(organization_id)s"
    if "stream_id" in filters:
        text += " AND originator_id = %(originator_id)s AND stream_id = %(stream_id)s"
    return PAGE.format(filters=text)


def commands(
    cursor: Cursor[DictRow], keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], StoredCommand]:
    cursor.execute(COMMANDS, ([principal for principal, _ in keys], [key for _, key in keys]), prepare=True)
    return _by_key(cursor.fetchall())


@dataclass(frozen=True, slots=True)
class LookedUp:
    """Commands that were carried out, and what streams hold after the versions that are known."""

    commands: dict[tuple[str, str], StoredCommand]
    tails: dict[str, list[RawEvent]]
    """Of every stream that was asked for, in order. Not decoded: one that cannot be spoils no other."""
    unread: frozenset[str]
    """Streams of which more remains to be read."""


def look_up(
    cursor: Cursor[DictRow], keys: Sequence[tuple[str, str]], streams: Mapping[str, int], limit: int
) -> LookedUp:
    """`commands` and at most `limit` events of all streams' tails, in one round trip; in two at the limit."""
    found, raws = _look_up(cursor, keys, streams, limit)
    tails: dict[str, list[RawEvent]] = {stream_id: [] for stream_id in streams}
    for raw in raws:
        tails[raw.stream_id].append(raw)
    unread: frozenset[str] = frozenset()
    if len(raws) == limit:
        reached = {one: tail[-1].version if tail else streams[one] for one, tail in tails.items()}
        with cursor.connection.cursor() as other:
            takes_arrays(other)
            other.execute(TAILS, (*_known(reached), 1, None), prepare=True)
            unread = frozenset(row["stream_id"] for row in other.fetchall())
    return LookedUp(found, tails, unread)


def _known(streams: Mapping[str, int]) -> tuple[Array, Array, Array]:
    ids = uuids([id_uuid(one) for one in streams])
    return ids, bigints(list(streams.values())), texts(list(streams))


def _look_up(
    cursor: Cursor[DictRow], keys: Sequence[tuple[str, str]], streams: Mapping[str, int], limit: int
) -> tuple[dict[tuple[str, str], StoredCommand], list[RawEvent]]:
    found: dict[tuple[str, str], StoredCommand] = {}
    raws: list[RawEvent] = []
    with cursor.connection.cursor() as other:
        takes_arrays(cursor)
        takes_arrays(other)
        with cursor.connection.pipeline():
            if streams:
                other.execute(TAILS, (*_known(streams), limit, limit), prepare=True)
            if keys:
                pairs = texts([principal for principal, _ in keys]), texts([key for _, key in keys])
                cursor.execute(COMMANDS, pairs, prepare=True)
        if streams:
            raws = [_raw(row) for row in other.fetchall()]
        if keys:
            found = _by_key(cursor.fetchall())
    return found, raws


def positions_of(cursor: Cursor[DictRow], events: Mapping[str, bytes]) -> dict[str, int]:
    """The positions of those events, given by id, that the log holds with these very bytes."""
    cursor.execute(POSITIONS, (list(events),))
    return {
        row["event_id"]: int(row["notification_id"])
        for row in cursor.fetchall()
        if bytes(row["state"]) == events[row["event_id"]]
    }


def _raw(row: DictRow) -> RawEvent:
    return RawEvent(
        position=row["notification_id"],
        stream_id=row["stream_id"],
        version=row["originator_version"],
        type=row["topic"],
        event_id=row["event_id"],
        organization_id=row["organization_id"],
        workspace_id=row["workspace_id"],
        state=bytes(row["state"]),
    )


def _by_key(rows: Sequence[DictRow]) -> dict[tuple[str, str], StoredCommand]:
    found = [StoredCommand(**{**row, "request_hmac": bytes(row["request_hmac"])}) for row in rows]
    return {(command.principal, command.key): command for command in found}
