"""Our views kept by the `eventsourcing` library's own `ProjectionRunner`: a transaction for every event."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, StoredEvent, Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg import sql
from psycopg.rows import DictRow

from command_api.eventlog.mapper import EnvelopeMapper, LoggedEvent
from projections.documents import DocumentFold
from projections.view import Row, Table, View
from projections.views.loss_curve import CurveFold
from schemas.envelope import Recorded
from schemas.settings import PostgresSettings

LogRow = tuple[UUID, int, str, bytes]
_WAIT_SECONDS = 120.0
_AT_ONCE = 100
_VIEWS: list[View] = []
"""The library makes its view and projection by itself, from their classes."""


class StockApplication(Application[UUID]):
    """The library's recorder as it comes; our bytes, decoded and validated as everywhere."""

    name = "stock"

    def construct_mapper(self) -> Mapper[UUID]:
        return EnvelopeMapper()


class StockView(PostgresTrackingRecorder):
    """Rows and position in one transaction, an event at a time."""

    def fold(self, recorded: Recorded, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            for view in _VIEWS:
                if view.types is None or recorded.event.TYPE in view.types:
                    _apply(cursor, view, recorded)


class StockProjection(Projection[StockView]):
    name = "stockview"

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        logged: LoggedEvent = domain_event
        self.view.fold(
            Recorded(
                tracking.notification_id, logged.stream_id, logged.version, logged.metadata, logged.event
            ),
            tracking,
        )


def _apply(cursor: psycopg.Cursor[DictRow], view: View, recorded: Recorded) -> None:
    fold = view.begin()
    if isinstance(fold, DocumentFold):
        (table,) = [each for each in view.tables if each.key == "id"]
        query = sql.SQL("SELECT document FROM {} WHERE id = %s").format(sql.Identifier(table.name))
        found = cursor.execute(query, [recorded.stream_id]).fetchone()
        if found is not None:
            fold.document = fold.view.model.model_validate(found["document"])
    fold.add(recorded)
    if isinstance(fold, CurveFold):
        for step, attempt in fold.cuts:
            for name in ("points", "evaluations"):
                cut = sql.SQL("DELETE FROM {} WHERE job_id = %s AND step > %s AND attempt < %s")
                cursor.execute(cut.format(sql.Identifier(name)), [recorded.stream_id, step, attempt])
    for table in view.tables:
        for row in fold.rows().get(table.name, ()):
            _put(cursor, table, row)


def _put(cursor: psycopg.Cursor[DictRow], table: Table, row: Row) -> None:
    names = [sql.Identifier(name) for name in table.names]
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT ({}) DO UPDATE SET {}").format(
        sql.Identifier(table.name),
        sql.SQL(", ").join(names),
        sql.SQL(", ").join([sql.Placeholder()] * len(names)),
        sql.SQL(table.key),
        sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(name) for name in names),
    )
    cursor.execute(statement, row)


def fold_by_stock_runner(database: PostgresSettings, rows: Sequence[LogRow], views: Sequence[View]) -> float:
    """Events per second until the runner has seen them all."""
    _VIEWS[:] = views
    with psycopg.connect(database.conninfo(), autocommit=True) as connection:
        for table in (table for view in views for table in view.tables):
            for statement in (table.create, *table.finish):
                connection.execute(statement)
    environment = {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": database.dbname,
        "POSTGRES_HOST": database.host,
        "POSTGRES_PORT": str(database.port),
        "POSTGRES_USER": database.user,
        "POSTGRES_PASSWORD": database.password.get_secret_value(),
    }
    with StockApplication(env=environment) as application:
        # The library's pipeline stalls on megabytes at once.
        for begin in range(0, len(rows), _AT_ONCE):
            application.recorder.insert_events([StoredEvent(*row) for row in rows[begin : begin + _AT_ONCE]])
    begun = time.perf_counter()
    with ProjectionRunner(
        application_class=StockApplication,
        projection_class=StockProjection,
        view_class=StockView,
        env=environment,
    ) as runner:
        runner.wait(len(rows), timeout=_WAIT_SECONDS)
        return len(rows) / (time.perf_counter() - begun)
