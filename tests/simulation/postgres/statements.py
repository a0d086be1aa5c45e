"""Every statement that the simulated parts of our code send, and what the model does for it.

They are known by their text, so that a changed statement is an error until the model has followed it;
`test_models_true.py` compares what the model does with what PostgreSQL does for the same text.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from psycopg import errors as pg

from tests.simulation.postgres.engine import Row, Transaction, error
from tests.simulation.scheduler import ModelIncomplete, current_strand


@dataclass(frozen=True)
class Result:
    """What a statement answers; `columns` is None where it returns no rows."""

    columns: tuple[str, ...] | None = None
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    count: int = 0
    status: str = "OK"


Act = Callable[..., Result]
_EXACT: dict[str, Act] = {}
_PATTERNS: list[tuple[re.Pattern[str], Act]] = []


def _plain(text: str) -> str:
    return " ".join(text.split())


def statement(text: str) -> Callable[[Act], Act]:
    """`act(transaction, params)` stands for exactly this text, white space aside."""

    def register(act: Act) -> Act:
        _EXACT[_plain(text)] = act
        return act

    return register


def pattern(text: str) -> Callable[[Act], Act]:
    """`act(transaction, params, **groups)` stands for every text that matches."""

    def register(act: Act) -> Act:
        _PATTERNS.append((re.compile(text), act))
        return act

    return register


_found: dict[str, tuple[Act, dict[str, str]]] = {}


def execute(transaction: Transaction, text: str, params: Any) -> Result:
    """Run a statement inside a transaction.

    Raises:
        psycopg.Error: as PostgreSQL would.
        ModelIncomplete: nobody taught the model this statement.
    """
    if transaction.failed:
        raise error(
            pg.InFailedSqlTransaction,
            "current transaction is aborted, commands ignored until end of transaction block",
        )
    if text not in _found:
        _found[text] = _find(_plain(text))
    act, groups = _found[text]
    return act(transaction, params, **groups)


def _find(plain: str) -> tuple[Act, dict[str, str]]:
    if plain in _EXACT:
        return _EXACT[plain], {}
    for each, act in _PATTERNS:
        if match := each.fullmatch(plain):
            return act, match.groupdict()
    raise ModelIncomplete(
        "the model of PostgreSQL does not know this statement; teach it in"
        f" tests/simulation/postgres/statements.py, with a case in test_models_true.py:\n{plain}"
    )


def _rows(columns: str, rows: Sequence[Mapping[str, Any]]) -> Result:
    names = tuple(name.strip() for name in columns.split(","))
    return Result(
        names, [tuple(row[name] for name in names) for row in rows], len(rows), f"SELECT {len(rows)}"
    )


def _one(name: str, value: Any) -> Result:
    return Result((name,), [(value,)], 1, "SELECT 1")


def _done(verb: str, count: int) -> Result:
    return Result(None, [], count, f"{verb} {count}" if verb != "INSERT" else f"INSERT 0 {count}")


def unique(transaction: Transaction, table: str, index: str, value: Any, *, taken: bool) -> None:
    """Hold a key of a unique index; who else writes it is waited for.

    Raises:
        UniqueViolation: it is taken.
    """
    if taken:
        raise error(
            pg.UniqueViolation, f'duplicate key value violates unique constraint "{index}": {value}', index
        )


# ---- session ------------------------------------------------------------------------------------


@statement("SELECT 1")
def _ping(_: Transaction, _params: Any) -> Result:
    return _one("?column?", 1)


@pattern(r"SET LOCAL lock_timeout = '(?P<number>\d+)s'")
def _lock_timeout(transaction: Transaction, _params: Any, number: str) -> Result:
    transaction.session.lock_timeout = float(number)
    return Result(status="SET")


@pattern(r"(?P<verb>LISTEN|NOTIFY) \"?(?P<channel>\w+)\"?")
def _listen(transaction: Transaction, _params: Any, verb: str, channel: str) -> Result:
    if verb == "LISTEN":
        transaction.session.channels.add(channel)
    else:
        transaction.notes[channel, ""] = None
    return Result(status=verb)


@statement("SELECT pg_notify(%s, %s)")
def _pg_notify(transaction: Transaction, params: Any) -> Result:
    transaction.notes[params[0], params[1]] = None
    return _one("pg_notify", "")


@statement("SELECT pg_try_advisory_lock(%s)")
@statement("SELECT pg_try_advisory_lock(%s, %s)")
def _try_lock(transaction: Transaction, params: Any) -> Result:
    return _one("pg_try_advisory_lock", transaction.session.try_advisory(("advisory", *params)))


@statement("SELECT pg_advisory_xact_lock(%s)")
def _xact_lock(transaction: Transaction, params: Any) -> Result:
    transaction.lock(("advisory", *params))
    return _one("pg_advisory_xact_lock", "")


# ---- the log ------------------------------------------------------------------------------------

_EVENT = (
    "originator_id, originator_version, topic, state, event_id, stream_id,"
    " organization_id, workspace_id, actor, correlation_id, causation_id, recorded_at"
)
_EVENT_NAMES = tuple(_EVENT.replace(" ", "").split(","))


@statement('LOCK TABLE "public"."kinora_events" IN EXCLUSIVE MODE')
def _lock_events(transaction: Transaction, _params: Any) -> Result:
    transaction.lock(("table", "kinora_events"), "exclusive")
    return Result(status="LOCK TABLE")


@statement(
    f"""
    INSERT INTO kinora_events (
        originator_id, originator_version, topic, state, event_id, stream_id,
        organization_id, workspace_id, actor, correlation_id, causation_id, recorded_at
    )
    SELECT {_EVENT}
    FROM unnest(
        %s::uuid[], %s::bigint[], %s::text[], %s::bytea[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[]
    ) WITH ORDINALITY AS new (
        originator_id, originator_version, topic, state, event_id, stream_id,
        organization_id, workspace_id, actor, correlation_id, causation_id, recorded_at, place
    )
    ORDER BY place
    RETURNING notification_id
    """
)
def _insert_events(transaction: Transaction, params: Any) -> Result:
    events = transaction.events()
    transaction.lock(("table", events.name), "row")
    own = transaction.writes.get(events.name, {})
    own_ids = {row["event_id"] for row in own.values() if row is not None}
    positions: list[tuple[int]] = []
    for values in zip(*params, strict=True):
        row: Row = dict(zip(_EVENT_NAMES, values, strict=True))
        row["notification_id"] = transaction.server.next_value("kinora_events_notification_id_seq")
        key = (row["originator_id"], row["originator_version"])
        # Who inserts the same key in another transaction is waited for: only its end says who was first.
        transaction.lock(("row", events.name, key))
        unique(transaction, events.name, "kinora_events_pkey", key, taken=key in events.rows or key in own)
        transaction.lock(("row", "kinora_events_event_id_idx", row["event_id"]))
        taken = row["event_id"] in events.by_event_id or row["event_id"] in own_ids
        unique(transaction, events.name, "kinora_events_event_id_idx", row["event_id"], taken=taken)
        own_ids.add(row["event_id"])
        transaction.put(events.name, key, row)
        own = transaction.writes[events.name]
        positions.append((row["notification_id"],))
    return Result(("notification_id",), positions, len(positions), f"INSERT 0 {len(positions)}")


@statement(
    """
    INSERT INTO kinora_commands (
        principal, key, request_hmac, stream_id, first_position, position, event_count
    )
    SELECT principal, key, request_hmac, stream_id,
           head.position - first_back, head.position - last_back, event_count
    FROM unnest(
        %s::text[], %s::text[], %s::bytea[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[]
    ) AS new (principal, key, request_hmac, stream_id, first_back, last_back, event_count)
    CROSS JOIN (
        SELECT coalesce(%s::bigint, max(notification_id), 0) AS position FROM kinora_events
    ) AS head
    """
)
def _insert_commands(transaction: Transaction, params: Any) -> Result:
    names = ("principal", "key", "request_hmac", "stream_id", "first_position", "position", "event_count")
    *columns, given_head = params
    count, head = 0, (_head(transaction) or 0) if given_head is None else given_head
    for *given, first_back, last_back, events in zip(*columns, strict=True):
        key = tuple(given[:2])
        transaction.lock_row("kinora_commands", key)
        taken = transaction.get("kinora_commands", key) is not None
        unique(transaction, "kinora_commands", "kinora_commands_pkey", key, taken=taken)
        values = (*given, head - first_back, head - last_back, events)
        transaction.put("kinora_commands", key, dict(zip(names, values, strict=True)))
        count += 1
    return _done("INSERT", count)


def _own_events(transaction: Transaction) -> list[Row]:
    """What the transaction inserted and nobody else sees yet."""
    return [row for row in transaction.writes.get("kinora_events", {}).values() if row is not None]


def _stream_rows(transaction: Transaction, stream_id: str, after: int) -> list[Row]:
    rows = transaction.events().by_stream.get(stream_id, [])
    if own := [row for row in _own_events(transaction) if row["stream_id"] == stream_id]:
        rows = sorted([*rows, *own], key=lambda row: row["originator_version"])
    return [row for row in rows if row["originator_version"] > after]


def _head(transaction: Transaction) -> int | None:
    events = transaction.events()
    own = [row["notification_id"] for row in _own_events(transaction)]
    return max([*events.positions[-1:], *own], default=None)


@statement("SELECT coalesce(max(notification_id), 0) AS head FROM kinora_events")
def _read_head(transaction: Transaction, _params: Any) -> Result:
    return _one("head", _head(transaction) or 0)


@statement("SELECT max(notification_id) FROM public.kinora_events")
def _max_position(transaction: Transaction, _params: Any) -> Result:
    return _one("max", _head(transaction))


_RAW = "notification_id, stream_id, originator_version, topic, event_id, organization_id, workspace_id, state"


@statement(
    f"""
    SELECT {_RAW}
    FROM kinora_events
    WHERE originator_id = %s AND originator_version > %s AND stream_id = %s
    ORDER BY originator_version
    LIMIT %s
    """
)
def _stream(transaction: Transaction, params: Any) -> Result:
    _, after, stream_id, limit = params
    return _rows(_RAW, _stream_rows(transaction, stream_id, after)[:limit])


@statement(
    f"""
    SELECT tail.*
    FROM unnest(%s::uuid[], %s::bigint[], %s::text[]) AS known (originator_id, version, stream_id)
    CROSS JOIN LATERAL (
        SELECT {_RAW}
        FROM kinora_events
        WHERE originator_id = known.originator_id AND originator_version > known.version
          AND stream_id = known.stream_id
        ORDER BY originator_version
        LIMIT %s
    ) AS tail
    LIMIT %s
    """
)
def _tails(transaction: Transaction, params: Any) -> Result:
    *known, each, limit = params
    found: list[Row] = []
    for _, after, stream_id in zip(*known, strict=True):
        found += _stream_rows(transaction, stream_id, after)[:each]
    return _rows(_RAW, found[:limit])


_FILTERS: dict[str, Callable[[Row, Mapping[str, Any]], bool]] = {
    "topic = ANY(%(types)s)": lambda row, p: row["topic"] in p["types"],
    "topic <> ALL (ARRAY['kinora.job.progressed', 'kinora.job.log_segment_stored'])": (
        lambda row, _: row["topic"] not in ("kinora.job.progressed", "kinora.job.log_segment_stored")
    ),
    "organization_id = %(organization_id)s": lambda row, p: row["organization_id"] == p["organization_id"],
    "originator_id = %(originator_id)s": lambda row, p: row["originator_id"] == p["originator_id"],
    "stream_id = %(stream_id)s": lambda row, p: row["stream_id"] == p["stream_id"],
    "notification_id <= %(until)s": lambda row, p: row["notification_id"] <= p["until"],
}


def _page(transaction: Transaction, params: Mapping[str, Any], filters: str) -> list[Row]:
    wanted = [text.strip() for text in filters.split(" AND ") if text.strip()]
    for text in wanted:
        if text not in _FILTERS:
            raise ModelIncomplete(f"a page with an unknown filter: {text}")
    tests = [_FILTERS[text] for text in wanted]
    rows: list[Row] = []
    visible: Iterable[Row] = transaction.events().after(params["after"])
    if own := [row for row in _own_events(transaction) if row["notification_id"] > params["after"]]:
        visible = sorted([*visible, *own], key=lambda row: row["notification_id"])
    for row in visible:
        if len(rows) == params["limit"]:
            break
        if all(test(row, params) for test in tests):
            rows.append(row)
    return rows


@pattern(
    rf"SELECT {re.escape(_RAW)} FROM kinora_events"
    r" WHERE notification_id > %\(after\)s(?P<filters>.*) ORDER BY notification_id LIMIT %\(limit\)s"
)
def _read_page(transaction: Transaction, params: Any, filters: str) -> Result:
    return _rows(_RAW, _page(transaction, params, filters.removeprefix(" AND ")))


@statement(
    """
    SELECT principal, key, request_hmac, stream_id, first_position, position, event_count
    FROM kinora_commands
    JOIN unnest(%s::text[], %s::text[]) AS wanted (principal, key) USING (principal, key)
    """
)
def _read_commands(transaction: Transaction, params: Any) -> Result:
    found = {key: transaction.get("kinora_commands", key) for key in zip(*params, strict=True)}
    return _rows(
        "principal, key, request_hmac, stream_id, first_position, position, event_count",
        [row for row in found.values() if row is not None],
    )


@statement("SELECT event_id, notification_id, state FROM kinora_events WHERE event_id = ANY(%s)")
def _positions(transaction: Transaction, params: Any) -> Result:
    events = transaction.events()
    own = {row["event_id"]: row for row in _own_events(transaction)}
    found = [
        own.get(one) or events.by_position[events.by_event_id[one]]
        for one in params[0]
        if one in own or one in events.by_event_id
    ]
    return _rows("event_id, notification_id, state", found)


@statement("SELECT to_regclass('kinora_log') IS NOT NULL AS present")
def _has_log(transaction: Transaction, _params: Any) -> Result:
    return _one("present", True)


@statement(
    "SELECT seqcache = 1 AND seqincrement = 1 AND NOT seqcycle AS one_by_one FROM pg_sequence"
    " WHERE seqrelid = pg_get_serial_sequence('kinora_events', 'notification_id')::regclass"
)
def _sequence(_: Transaction, _params: Any) -> Result:
    return _one("one_by_one", True)


@statement("SELECT log_id FROM kinora_log")
@statement("SELECT log_id FROM public.kinora_log")
def _log_id(transaction: Transaction, _params: Any) -> Result:
    return _rows("log_id", transaction.all("kinora_log"))


@statement("SELECT log_id FROM kinora_log_predecessors")
def _predecessors(transaction: Transaction, _params: Any) -> Result:
    return _rows("log_id", transaction.all("kinora_log_predecessors"))


# ---- the orchestrator's rows --------------------------------------------------------------------


_EPOCH = "epoch, reason, sequence, position, broken_because"


def _epochs(transaction: Transaction) -> list[Row]:
    return sorted(transaction.all("kinora_relay_epochs"), key=lambda row: row["epoch"])


@statement(f"SELECT {_EPOCH} FROM kinora_relay_epochs ORDER BY epoch DESC LIMIT 1")
def _current_epoch(transaction: Transaction, _params: Any) -> Result:
    return _rows(_EPOCH, _epochs(transaction)[-1:])


@statement(
    f"""
    INSERT INTO kinora_relay_epochs (epoch, reason, sequence)
    SELECT %(epoch)s, %(reason)s, %(sequence)s
     WHERE %(seen)s = (SELECT coalesce(max(epoch), 0) FROM kinora_relay_epochs)
    ON CONFLICT (epoch) DO NOTHING
    RETURNING {_EPOCH}
    """
)
def _begin_epoch(transaction: Transaction, params: Any) -> Result:
    if params["seen"] != max((row["epoch"] for row in _epochs(transaction)), default=0):
        return _rows(_EPOCH, [])
    transaction.lock_row("kinora_relay_epochs", params["epoch"])
    if transaction.get("kinora_relay_epochs", params["epoch"]) is not None:
        return _rows(_EPOCH, [])
    row = {**{name: params[name] for name in ("epoch", "reason", "sequence")}, "position": 0}
    row["broken_because"] = None
    transaction.put("kinora_relay_epochs", params["epoch"], row)
    return _rows(_EPOCH, [row])


def _update_epoch(transaction: Transaction, epoch: int, fits: Callable[[Row], bool], change: Row) -> Result:
    row = transaction.get("kinora_relay_epochs", epoch)
    if row is None or not fits(row):
        return _done("UPDATE", 0)
    transaction.lock_row("kinora_relay_epochs", epoch)
    row = transaction.get("kinora_relay_epochs", epoch)
    if row is None or not fits(row):
        return _done("UPDATE", 0)
    transaction.put("kinora_relay_epochs", epoch, {**row, **change})
    return _done("UPDATE", 1)


@statement(
    """
    UPDATE kinora_relay_epochs SET sequence = %(sequence)s, position = %(position)s
     WHERE epoch = %(epoch)s AND sequence < %(sequence)s
    """
)
def _mark_epoch(transaction: Transaction, params: Any) -> Result:
    change = {"sequence": params["sequence"], "position": params["position"]}
    return _update_epoch(
        transaction, params["epoch"], lambda row: row["sequence"] < params["sequence"], change
    )


@statement(
    """
    UPDATE kinora_relay_epochs SET broken_because = %(why)s
     WHERE epoch = %(epoch)s AND broken_because IS NULL
    """
)
def _break_epoch(transaction: Transaction, params: Any) -> Result:
    change = {"broken_because": params["why"]}
    return _update_epoch(transaction, params["epoch"], lambda row: row["broken_because"] is None, change)


@statement("SELECT pg_advisory_lock(%s)")
def _advisory_lock(transaction: Transaction, params: Any) -> Result:
    while not transaction.session.try_advisory(("advisory", *params)):
        current_strand().block(0.005)
    return _one("pg_advisory_lock", "")


def _cursor(transaction: Transaction, key: tuple[str, int]) -> int | None:
    row = transaction.get("kinora_report_cursors", key)
    return None if row is None else int(row["sequence"])


def _set_cursor(transaction: Transaction, key: tuple[str, int], sequence: int) -> None:
    row = {"item_id": key[0], "attempt": key[1], "sequence": sequence}
    transaction.put("kinora_report_cursors", key, row)


@statement(
    "INSERT INTO kinora_report_cursors (item_id, attempt, sequence) VALUES (%s, %s, 1) ON CONFLICT DO NOTHING"
)
def _first_report(transaction: Transaction, params: Any) -> Result:
    key = (params[0], params[1])
    transaction.lock_row("kinora_report_cursors", key)
    if _cursor(transaction, key) is not None:
        return _done("INSERT", 0)
    _set_cursor(transaction, key, 1)
    return _done("INSERT", 1)


@statement(
    "UPDATE kinora_report_cursors SET sequence = %s WHERE item_id = %s AND attempt = %s AND sequence = %s"
)
def _next_report(transaction: Transaction, params: Any) -> Result:
    sequence, item_id, attempt, before = params
    key = (item_id, attempt)
    if _cursor(transaction, key) is not None:
        transaction.lock_row("kinora_report_cursors", key)
    if _cursor(transaction, key) != before:
        return _done("UPDATE", 0)
    _set_cursor(transaction, key, sequence)
    return _done("UPDATE", 1)


@statement(
    """
    INSERT INTO kinora_report_cursors (item_id, attempt, sequence) VALUES (%s, %s, %s)
    ON CONFLICT (item_id, attempt)
    DO UPDATE SET sequence = GREATEST(kinora_report_cursors.sequence, EXCLUDED.sequence)
    """
)
def _skip_report(transaction: Transaction, params: Any) -> Result:
    key = (params[0], params[1])
    transaction.lock_row("kinora_report_cursors", key)
    _set_cursor(transaction, key, max(params[2], _cursor(transaction, key) or 0))
    return _done("INSERT", 1)


@statement("SELECT sequence FROM kinora_report_cursors WHERE item_id = %s AND attempt = %s")
def _last_report(transaction: Transaction, params: Any) -> Result:
    sequence = _cursor(transaction, (params[0], params[1]))
    return Result(("sequence",), [] if sequence is None else [(sequence,)], int(sequence is not None))


# ---- projections: the books ---------------------------------------------------------------------

VIEWS = "projections.views"
PARKED = "projections.parked_streams"
REBUILDS = "projections.rebuilds"
SCHEMAS = "pg_namespace"

_POSITION = (
    "notification_id AS position, stream_id, originator_version AS version, topic AS type, event_id,"
    " organization_id, workspace_id"
)


def _log_row(row: Row, *, state: bool = True) -> tuple[Any, ...]:
    return (
        row["notification_id"],
        row["stream_id"],
        row["originator_version"],
        row["topic"],
        row["event_id"],
        row["organization_id"],
        row["workspace_id"],
        row["state"] if state else b"",
    )


_LOG_COLUMNS = (
    "position",
    "stream_id",
    "version",
    "type",
    "event_id",
    "organization_id",
    "workspace_id",
    "state",
)


@pattern(
    rf"SELECT {re.escape(_POSITION)}, state FROM public\.kinora_events"
    r" WHERE notification_id > %\(after\)s(?P<filters>.*) ORDER BY (?P<order>\w+) LIMIT %\(limit\)s"
)
def _log_page(transaction: Transaction, params: Any, filters: str, order: str) -> Result:
    if order not in ("notification_id", "originator_version"):
        raise ModelIncomplete(f"a page in the order of {order}")
    rows = [_log_row(row) for row in _page(transaction, params, filters.strip().removeprefix("AND "))]
    return Result(_LOG_COLUMNS, rows, len(rows))


@pattern(
    r"SELECT position, stream_id, version, type, event_id, organization_id, workspace_id, state FROM"
    r" \(SELECT \*, sum\(octet_length\(state\)\) OVER \(ORDER BY position ROWS UNBOUNDED PRECEDING\)"
    rf" - octet_length\(state\) AS bytes_before FROM \( SELECT {re.escape(_POSITION)}, state"
    r" FROM public\.kinora_events WHERE notification_id > %\(after\)s(?P<filters>.*)"
    r" ORDER BY (?P<order>\w+) LIMIT %\(limit\)s \) AS whole\) AS measured"
    r" WHERE bytes_before < %\(max_bytes\)s ORDER BY position"
)
def _bounded_log_page(transaction: Transaction, params: Any, filters: str, order: str) -> Result:
    whole = _log_page(transaction, params, filters, order)
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in whole.rows:
        if size >= params["max_bytes"]:
            break
        rows.append(row)
        size += len(row[-1])
    return Result(_LOG_COLUMNS, rows, len(rows))


@statement(
    f"""
    SELECT {_POSITION},
           CASE WHEN %(types)s::text[] IS NULL OR topic = ANY(%(types)s) THEN state
                ELSE ''::bytea END AS state
      FROM public.kinora_events
     WHERE notification_id > %(after)s
     ORDER BY notification_id
     LIMIT %(limit)s
    """
)
def _scan(transaction: Transaction, params: Any) -> Result:
    types = params["types"]
    rows = [
        _log_row(row, state=types is None or row["topic"] in types) for row in _page(transaction, params, "")
    ]
    return Result(_LOG_COLUMNS, rows, len(rows))


@pattern(r"CREATE SCHEMA IF NOT EXISTS projections; .*")
def _install(_: Transaction, _params: Any) -> Result:
    return Result(status="CREATE")


_ACTIVE = "view, generation, version, position, log_id"


@statement(f"SELECT {_ACTIVE} FROM projections.views WHERE view = %s FOR UPDATE")
def _lock_view(transaction: Transaction, params: Any) -> Result:
    if transaction.get(VIEWS, params[0]) is None:
        return _rows(_ACTIVE, [])
    transaction.lock_row(VIEWS, params[0])
    row = transaction.get(VIEWS, params[0])
    return _rows(_ACTIVE, [row] if row is not None else [])


def _update_view(transaction: Transaction, view: str, change: Row) -> Result:
    if transaction.get(VIEWS, view) is None:
        return _done("UPDATE", 0)
    transaction.lock_row(VIEWS, view)
    row = transaction.get(VIEWS, view)
    assert row is not None
    transaction.put(VIEWS, view, {**row, **change})
    return _done("UPDATE", 1)


@statement("UPDATE projections.views SET position = %s, updated_at = now() WHERE view = %s")
def _move_view(transaction: Transaction, params: Any) -> Result:
    return _update_view(transaction, params[1], {"position": params[0]})


@statement("UPDATE projections.views SET log_id = %s WHERE view = %s")
def _name_log_of_view(transaction: Transaction, params: Any) -> Result:
    return _update_view(transaction, params[1], {"log_id": params[0]})


@statement(
    """
    INSERT INTO projections.views (view, generation, version, position, log_id)
    VALUES (%s, 1, %s, 0, %s)
    """
)
def _insert_view(transaction: Transaction, params: Any) -> Result:
    view, version, log_id = params
    transaction.lock_row(VIEWS, view)
    unique(transaction, VIEWS, "views_pkey", view, taken=transaction.get(VIEWS, view) is not None)
    row = {"view": view, "generation": 1, "version": version, "position": 0, "log_id": log_id}
    transaction.put(VIEWS, view, row)
    return _done("INSERT", 1)


# ---- projections: schemas and tables ------------------------------------------------------------


@statement("SELECT to_regnamespace(%s) IS NOT NULL")
def _has_schema(transaction: Transaction, params: Any) -> Result:
    return _one("?column?", transaction.get(SCHEMAS, params[0]) is not None)


@pattern(r'CREATE SCHEMA "(?P<name>\w+)"')
def _create_schema(transaction: Transaction, _params: Any, name: str) -> Result:
    transaction.lock_row(SCHEMAS, name)
    if transaction.get(SCHEMAS, name) is not None:
        raise error(pg.DuplicateSchema, f'schema "{name}" already exists')
    transaction.put(SCHEMAS, name, {"id": transaction.server.next_value("oid"), "tables": ()})
    return Result(status="CREATE SCHEMA")


@pattern(r'DROP SCHEMA IF EXISTS "(?P<name>\w+)" CASCADE')
def _drop_schema(transaction: Transaction, _params: Any, name: str) -> Result:
    if transaction.get(SCHEMAS, name) is not None:
        transaction.lock_row(SCHEMAS, name)
        transaction.put(SCHEMAS, name, None)
    return Result(status="DROP SCHEMA")


@pattern(r'ALTER SCHEMA "(?P<old>\w+)" RENAME TO "(?P<new>\w+)"')
def _rename_schema(transaction: Transaction, _params: Any, old: str, new: str) -> Result:
    if transaction.get(SCHEMAS, old) is None:
        raise error(pg.InvalidSchemaName, f'schema "{old}" does not exist')
    if transaction.get(SCHEMAS, new) is not None:
        raise error(pg.DuplicateSchema, f'schema "{new}" already exists')
    for name in sorted((old, new)):
        transaction.lock_row(SCHEMAS, name)
    row = transaction.get(SCHEMAS, old)
    if row is None:
        raise error(pg.InvalidSchemaName, f'schema "{old}" does not exist')
    if transaction.get(SCHEMAS, new) is not None:
        raise error(pg.DuplicateSchema, f'schema "{new}" already exists')
    transaction.put(SCHEMAS, old, None)
    transaction.put(SCHEMAS, new, row)
    return Result(status="ALTER SCHEMA")


@statement("SELECT set_config('search_path', %s, true)")
def _search_path(transaction: Transaction, params: Any) -> Result:
    transaction.search_path = params[0]
    return _one("set_config", params[0])


@pattern(r"CREATE TABLE (?P<name>\w+) \(.*\)")
def _create_table(transaction: Transaction, _params: Any, name: str) -> Result:
    row = transaction.get(SCHEMAS, transaction.search_path)
    if row is None:
        raise error(pg.InvalidSchemaName, "no schema has been selected to create in")
    transaction.put(SCHEMAS, transaction.search_path, {**row, "tables": (*row["tables"], name)})
    return Result(status="CREATE TABLE")


@pattern(r"ALTER TABLE (?P<name>\w+) ADD PRIMARY KEY \(.*\)")
@pattern(r"CREATE INDEX \w+ ON (?P<name>\w+) .*")
@pattern(r'ANALYZE "\w+"\."(?P<name>\w+)"')
def _finish_table(transaction: Transaction, _params: Any, name: str) -> Result:
    table_of_view(transaction, name)
    return Result(status="ALTER TABLE")


def table_of_view(transaction: Transaction, name: str, schema: str | None = None) -> str:
    """Where the rows of an unqualified table lie: a renamed schema keeps its tables.

    Raises:
        UndefinedTable: the search path has no such table.
    """
    row = transaction.get(SCHEMAS, schema or transaction.search_path)
    if row is None or name not in row["tables"]:
        raise error(pg.UndefinedTable, f'relation "{name}" does not exist')
    return f"{row['id']}.{name}"


@pattern(r'SELECT id, document FROM "(?P<name>\w+)" WHERE id = ANY\(%s\)')
def _load_documents(transaction: Transaction, params: Any, name: str) -> Result:
    table = table_of_view(transaction, name)
    found = [row for one in params[0] if (row := transaction.get(table, one)) is not None]
    rows = [(row["id"], json.loads(row["document"])) for row in found]
    return Result(("id", "document"), rows, len(rows))


@pattern(
    r'INSERT INTO "(?P<name>\w+)" \(id, organization_id, status, created_at, document\)'
    r" SELECT id, organization_id, status, created_at, document::jsonb"
    r" FROM unnest\(%s::text\[\], %s::text\[\], %s::text\[\], %s::timestamptz\[\], %s::text\[\]\)"
    r" AS fresh \(id, organization_id, status, created_at, document\)"
    r" ON CONFLICT \(id\) DO UPDATE SET status = excluded\.status, document = excluded\.document"
)
def _save_documents(transaction: Transaction, params: Any, name: str) -> Result:
    table = table_of_view(transaction, name)
    count = 0
    for values in zip(*params, strict=True):
        row = dict(zip(("id", "organization_id", "status", "created_at", "document"), values, strict=True))
        transaction.lock_row(table, row["id"])
        before = transaction.get(table, row["id"])
        if before is not None:
            row = {**before, "status": row["status"], "document": row["document"]}
        transaction.put(table, row["id"], row)
        count += 1
    return _done("INSERT", count)


# ---- projections: parked streams ----------------------------------------------------------------


def _parked(transaction: Transaction, view: str, generation: int) -> list[Row]:
    return [row for row in transaction.all(PARKED) if row["view"] == view and row["generation"] == generation]


@statement("SELECT stream_id FROM projections.parked_streams WHERE view = %s AND generation = %s")
def _parked_ids(transaction: Transaction, params: Any) -> Result:
    return _rows("stream_id", _parked(transaction, *params))


@statement(
    """
    SELECT p.view, p.stream_id, p.first_position, p.last_position, p.events, p.error, p.parked_at
      FROM projections.parked_streams p
      JOIN projections.views v ON v.view = p.view AND v.generation = p.generation
     WHERE (%(view)s::text IS NULL OR p.view = %(view)s)
       AND (p.first_position, p.view) > (%(position)s, %(after)s)
     ORDER BY p.first_position, p.view
     LIMIT %(limit)s
    """
)
def _parked_streams(transaction: Transaction, params: Any) -> Result:
    rows = [
        row
        for view in transaction.all(VIEWS)
        if params["view"] in (None, view["view"])
        for row in _parked(transaction, view["view"], view["generation"])
        if (row["first_position"], row["view"]) > (params["position"], params["after"])
    ]
    rows.sort(key=lambda row: (row["first_position"], row["view"]))
    return _rows(
        "view, stream_id, first_position, last_position, events, error, parked_at", rows[: params["limit"]]
    )


@statement(
    """
    INSERT INTO projections.parked_streams
           (view, generation, stream_id, first_position, last_position, events, error)
    VALUES (%s, %s, %s, %s, %s, %s, %s)
    """
)
def _park(transaction: Transaction, params: Any) -> Result:
    names = ("view", "generation", "stream_id", "first_position", "last_position", "events", "error")
    row = dict(zip(names, params, strict=True))
    row["parked_at"] = datetime.fromtimestamp(transaction.server.now(), UTC)
    key = tuple(params[:3])
    transaction.lock_row(PARKED, key)
    unique(transaction, PARKED, "parked_streams_pkey", key, taken=transaction.get(PARKED, key) is not None)
    transaction.put(PARKED, key, row)
    return _done("INSERT", 1)


@statement(
    """
    UPDATE projections.parked_streams SET events = events + %s, last_position = %s
     WHERE view = %s AND generation = %s AND stream_id = %s
    """
)
def _count_parked(transaction: Transaction, params: Any) -> Result:
    key = tuple(params[2:])
    if transaction.get(PARKED, key) is None:
        return _done("UPDATE", 0)
    transaction.lock_row(PARKED, key)
    row = transaction.get(PARKED, key)
    if row is None:
        return _done("UPDATE", 0)
    change = {"events": row["events"] + params[0], "last_position": params[1]}
    transaction.put(PARKED, key, {**row, **change})
    return _done("UPDATE", 1)


@statement("DELETE FROM projections.parked_streams WHERE view = %s AND generation = %s AND stream_id = %s")
def _unpark(transaction: Transaction, params: Any) -> Result:
    key = tuple(params)
    if transaction.get(PARKED, key) is None:
        return _done("DELETE", 0)
    transaction.lock_row(PARKED, key)
    transaction.put(PARKED, key, None)
    return _done("DELETE", 1)


# ---- projections: rebuilds and how views stand ---------------------------------------------------

_REBUILD = (
    "id, view, reason, requested_by, state, version, generation, position, target, fill, filled, checked,"
    " error, requested_at, started_at, finished_at"
)


def _now(transaction: Transaction) -> datetime:
    return datetime.fromtimestamp(transaction.server.now(), UTC)


def _open_rebuilds(transaction: Transaction) -> list[Row]:
    rows = (row for row in transaction.all(REBUILDS) if row["state"] in ("requested", "running"))
    return sorted(rows, key=lambda row: row["id"])


@statement(f"SELECT {_REBUILD} FROM projections.rebuilds WHERE state IN ('requested', 'running') ORDER BY id")
def _select_open_rebuilds(transaction: Transaction, _params: Any) -> Result:
    return _rows(_REBUILD, _open_rebuilds(transaction))


@statement(f"SELECT {_REBUILD} FROM projections.rebuilds WHERE id = %s")
def _select_rebuild(transaction: Transaction, params: Any) -> Result:
    row = transaction.get(REBUILDS, params[0])
    return _rows(_REBUILD, [] if row is None else [row])


@statement(
    """
    INSERT INTO projections.rebuilds (view, reason, requested_by)
    SELECT %(view)s, %(reason)s, %(requested_by)s
     WHERE NOT EXISTS (
           SELECT FROM projections.rebuilds
            WHERE view = %(view)s AND state = 'failed'
              AND finished_at > now() - make_interval(secs => %(quiet)s))
    ON CONFLICT (view) WHERE state IN ('requested', 'running') DO UPDATE SET view = excluded.view
    RETURNING id
    """
)
def _request_rebuild(transaction: Transaction, params: Any) -> Result:
    now = _now(transaction)
    for row in transaction.all(REBUILDS):
        failed = row["view"] == params["view"] and row["state"] == "failed"
        if failed and (now - row["finished_at"]).total_seconds() < params["quiet"]:
            return Result(("id",), [], 0, "INSERT 0 0")
    number = transaction.server.next_value("rebuilds_id_seq")
    transaction.lock(("row", "rebuilds_open", params["view"]))
    for row in _open_rebuilds(transaction):
        if row["view"] == params["view"]:
            return Result(("id",), [(row["id"],)], 1, "INSERT 0 1")
    transaction.lock_row(REBUILDS, number)
    row = dict.fromkeys(_REBUILD.replace(" ", "").split(","))
    row |= {
        "id": number,
        "state": "requested",
        "position": 0,
        "target": 0,
        "filled": False,
        "requested_at": now,
    }
    row |= {name: params[name] for name in ("view", "reason", "requested_by")}
    transaction.put(REBUILDS, number, row)
    return Result(("id",), [(number,)], 1, "INSERT 0 1")


def _update_rebuild(transaction: Transaction, number: int, change: Row) -> Result:
    if transaction.get(REBUILDS, number) is None:
        return _done("UPDATE", 0)
    transaction.lock_row(REBUILDS, number)
    row = transaction.get(REBUILDS, number)
    assert row is not None
    transaction.put(REBUILDS, number, {**row, **change})
    return _done("UPDATE", 1)


@statement("UPDATE projections.rebuilds SET state = 'failed', error = %s, finished_at = now() WHERE id = %s")
def _fail_rebuild(transaction: Transaction, params: Any) -> Result:
    change = {"state": "failed", "error": params[0], "finished_at": _now(transaction)}
    return _update_rebuild(transaction, params[1], change)


@statement(
    """
    SELECT v.view, v.generation, v.version, v.position, v.log_id, v.updated_at,
           (SELECT count(*) FROM projections.parked_streams p
             WHERE p.view = v.view AND p.generation = v.generation) AS parked_streams,
           EXISTS (SELECT FROM projections.rebuilds r
                    WHERE r.view = v.view AND r.state IN ('requested', 'running')) AS rebuilding
      FROM projections.views v
     ORDER BY v.view
    """
)
def _statuses(transaction: Transaction, _params: Any) -> Result:
    rows = [
        {
            **row,
            "updated_at": _now(transaction),
            "parked_streams": len(_parked(transaction, row["view"], row["generation"])),
            "rebuilding": any(one["view"] == row["view"] for one in _open_rebuilds(transaction)),
        }
        for row in sorted(transaction.all(VIEWS), key=lambda row: row["view"])
    ]
    return _rows("view, generation, version, position, log_id, updated_at, parked_streams, rebuilding", rows)
