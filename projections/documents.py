"""Rows that are one JSON document per aggregate, folded a page at a time: one read and one write per page."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, Generic, LiteralString, TypeVar

from psycopg import AsyncConnection, AsyncCursor, sql
from psycopg.rows import class_row, scalar_row
from pydantic import BaseModel, ConfigDict

from projections.errors import MissingRow
from projections.view import Census, Row, Table, active_schema
from schemas.base import trusted
from schemas.envelope import Recorded

Cursor = tuple[datetime, str]
"""Where a page ended: (created_at, id) of its last row."""


class ViewModel(BaseModel):
    """What queries answer: frozen, and lenient towards fields of other versions while a rebuild runs."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")


class Document(ViewModel):
    """The part that every aggregate's document has."""

    id: str
    organization_id: str
    workspace_id: str | None
    status: str
    created_at: datetime
    updated_at: datetime
    version: int
    """Of the stream: the ETag."""
    last_position: int
    """Of the last event that touched the document."""


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as it lies in its table: a list shows it as it is, without reading and writing it again."""

    id: str
    created_at: datetime
    json: str


D = TypeVar("D", bound=Document)
M = TypeVar("M", bound=BaseModel)


def document_table(name: LiteralString) -> Table:
    """The table of a `DocumentView` and the index that its pages follow."""
    return Table(
        name=name,
        stream="id",
        columns=(
            "id text NOT NULL",
            "organization_id text NOT NULL",
            "status text NOT NULL",
            "created_at timestamptz NOT NULL",
            "document jsonb NOT NULL",
        ),
        key="id",
        indexes=(f"CREATE INDEX {name}_newest ON {name} (organization_id, created_at DESC, id DESC)",),
    )


def evolve(before: D, recorded: Recorded, **changes: Any) -> D:
    """`before` with `changes` and the marks of this event."""
    return evolved(before, recorded, changes)


def evolved(before: D, recorded: Recorded, changes: dict[str, Any]) -> D:
    """`evolve` for changes that are a dictionary already."""
    cls = type(before)
    after = trusted(cls, before.__dict__.copy(), _fields(cls))
    alter(after, recorded, changes)
    return after


def alter(document: Document, recorded: Recorded, changes: dict[str, Any]) -> None:
    """`evolved` in place, for a fold's own document: an event changes a few of dozens of fields."""
    changes["updated_at"] = recorded.metadata.recorded_at
    changes["version"] = recorded.version
    changes["last_position"] = recorded.position
    document.__dict__.update(changes)


@cache
def _fields(cls: type[Document]) -> frozenset[str]:
    # Nobody asks a document which of its fields were set: to keep count would take as long as the rest.
    return frozenset(cls.model_fields)


def beginning(recorded: Recorded) -> dict[str, Any]:
    """The marks of a document's first event.

    Raises:
        MissingRow: when the event belongs to no organization.
    """
    metadata = recorded.metadata
    if metadata.organization_id is None:
        raise MissingRow(f"event {metadata.event_id} of {recorded.stream_id} names no organization")
    return {
        "id": recorded.stream_id,
        "organization_id": metadata.organization_id,
        "workspace_id": metadata.workspace_id,
        "created_at": metadata.recorded_at,
        "updated_at": metadata.recorded_at,
        "version": recorded.version,
        "last_position": recorded.position,
    }


def begun(before: D | None, recorded: Recorded) -> D:
    """The document that an event changes.

    Raises:
        MissingRow: when no earlier event made it.
    """
    if before is None:
        raise MissingRow(
            f"{type(recorded.event).TYPE} v{recorded.version} of {recorded.stream_id} changes a document"
            " that no earlier event made"
        )
    return before


def storable(document: BaseModel) -> str:
    """JSON that jsonb takes: PostgreSQL has no NUL character, so U+FFFD stands for it."""
    text = document.model_dump_json()
    return json.dumps(without_nul(json.loads(text))) if "\\u0000" in text else text


def without_nul(value: Any) -> Any:
    """The same JSON value with U+FFFD for every NUL character."""
    match value:
        case str():
            return value.replace("\x00", "\ufffd")
        case list():
            return [without_nul(each) for each in value]
        case dict():
            return {without_nul(key): without_nul(each) for key, each in value.items()}
        case _:
            return value


class DocumentFold(Generic[D]):
    """A stream that comes to one document."""

    def __init__(self, view: "DocumentView[D]") -> None:
        self.view = view
        self.document: D | None = None

    def add(self, recorded: Recorded) -> None:
        self.document = self.view.fold(self.document, recorded)

    def rows(self) -> dict[str, list[Row]]:
        return {} if self.document is None else {self.view.table: [document_row(self.document)]}

    def shown(self) -> BaseModel | None:
        """What queries answer; None before the first event."""
        return self.document


def document_row(document: Document) -> Row:
    return (
        document.id,
        document.organization_id,
        document.status,
        document.created_at,
        storable(document),
    )


class DocumentView(ABC, Generic[D]):
    """A view whose table has one document per stream."""

    name: ClassVar[str]
    version: ClassVar[int]
    tables: ClassVar[Sequence[Table]]
    types: ClassVar[tuple[str, ...]]
    census: ClassVar[Census]
    table: ClassVar[LiteralString]
    model: ClassVar[type[Document]]
    hidden: ClassVar[tuple[str, ...]] = ()
    """Statuses that are as good as absent."""

    @abstractmethod
    def fold(self, before: D | None, recorded: Recorded) -> D:
        """The document after an event; pure."""

    def begin(self) -> DocumentFold[D]:
        return DocumentFold(self)

    async def apply(self, cursor: AsyncCursor[Any], events: Sequence[Recorded]) -> None:
        """Load the documents that the events touch, fold, and write each once."""
        loaded = await self._load(cursor, sorted({event.stream_id for event in events}))
        for event in events:
            loaded[event.stream_id] = self.fold(loaded.get(event.stream_id), event)
        await self._save(cursor, list(loaded.values()))

    async def _load(self, cursor: AsyncCursor[Any], ids: list[str]) -> dict[str, D]:
        query = sql.SQL("SELECT id, document FROM {} WHERE id = ANY(%s)").format(sql.Identifier(self.table))
        await cursor.execute(query, [ids])
        rows = await cursor.fetchall()
        return {identifier: self.model.model_validate(document) for identifier, document in rows}  # type: ignore[misc]

    async def _save(self, cursor: AsyncCursor[Any], documents: list[D]) -> None:
        query = sql.SQL(
            """
            INSERT INTO {table} (id, organization_id, status, created_at, document)
            SELECT id, organization_id, status, created_at, document::jsonb
              FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::text[])
                   AS fresh (id, organization_id, status, created_at, document)
            ON CONFLICT (id) DO UPDATE SET status = excluded.status, document = excluded.document
            """
        ).format(table=sql.Identifier(self.table))
        columns = zip(*(document_row(document) for document in documents), strict=True)
        await cursor.execute(query, [list(column) for column in columns])


class DocumentQueries(Generic[M]):
    """The reads that every document view offers; `hidden` statuses are as good as absent."""

    def __init__(self, view: str, table: str, model: type[M], *, hidden: Sequence[str] = ()) -> None:
        self._table = sql.Identifier(active_schema(view), table)
        self._model = model
        self._hidden = list(hidden)

    async def get(self, connection: AsyncConnection[Any], organization_id: str, identifier: str) -> M | None:
        """The document, or None when the organization has none of that id."""
        query = sql.SQL(
            "SELECT document FROM {} WHERE id = %s AND organization_id = %s AND NOT status = ANY(%s)"
        ).format(self._table)
        async with connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(query, [identifier, organization_id, self._hidden])
            document = await cursor.fetchone()
        return None if document is None else self._model.model_validate(document)

    async def page(
        self,
        connection: AsyncConnection[Any],
        organization_id: str,
        *,
        limit: int,
        after: Cursor | None = None,
        statuses: Sequence[str] | None = None,
    ) -> list[StoredDocument]:
        """Newest first; `after` is (created_at, id) of the last row of the page before."""
        query = sql.SQL(
            """
            SELECT id, created_at, document::text AS json FROM {}
             WHERE organization_id = %(organization_id)s
               AND NOT status = ANY(%(hidden)s)
               AND (%(statuses)s::text[] IS NULL OR status = ANY(%(statuses)s))
               AND (%(after_time)s::timestamptz IS NULL
                    OR (created_at, id) < (%(after_time)s::timestamptz, %(after_id)s::text))
             ORDER BY created_at DESC, id DESC
             LIMIT %(limit)s
            """
        ).format(self._table)
        values = {
            "organization_id": organization_id,
            "hidden": self._hidden,
            "statuses": None if statuses is None else list(statuses),
            "after_time": after[0] if after else None,
            "after_id": after[1] if after else None,
            "limit": limit,
        }
        async with connection.cursor(row_factory=class_row(StoredDocument)) as cursor:
            await cursor.execute(query, values)
            return await cursor.fetchall()

    def read(self, stored: StoredDocument) -> M:
        """The document behind a row of a page."""
        return self._model.model_validate_json(stored.json)
