"""Datasets from their declaration to their verdict."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, LiteralString

from psycopg import AsyncConnection

from projections.documents import (
    Cursor,
    Document,
    DocumentQueries,
    DocumentView,
    StoredDocument,
    beginning,
    begun,
    document_table,
    evolved,
)
from projections.imports import Imported, imported_changes
from schemas.api import Status
from schemas.datasets import DatasetFacts, Problem
from schemas.envelope import Recorded
from schemas.events import dataset as events
from schemas.objects import StoredObject


class DatasetView(Imported, Document):
    """A dataset as people see it."""

    status: Status
    name: str
    description: str
    format: str
    owner_id: str
    file_count: int = 0
    size_bytes: int = 0
    listing: StoredObject | None = None
    """Its files; known once they were declared or imported."""
    upload_id: str | None = None
    attempt: int = 0
    """Of the validation; 0 before the first."""
    agent_id: str | None = None
    """Who validates it now."""
    facts: DatasetFacts | None = None
    manifest: StoredObject | None = None
    content_sha256: str | None = None
    problems: tuple[Problem, ...] = ()
    validated_at: datetime | None = None


class Datasets(DocumentView[DatasetView]):
    name = "datasets"
    version = 2
    table: ClassVar[LiteralString] = "datasets"
    hidden = ("deleted",)
    model = DatasetView
    tables = (document_table("datasets"),)
    types = (
        events.DatasetImportRequested.TYPE,
        events.DatasetImportFailed.TYPE,
        events.DatasetImportRetried.TYPE,
        events.DatasetRegistered.TYPE,
        events.DatasetUploadStarted.TYPE,
        events.DatasetUploaded.TYPE,
        events.DatasetValidationStarted.TYPE,
        events.DatasetValidationInterrupted.TYPE,
        events.DatasetValidated.TYPE,
        events.DatasetRejected.TYPE,
        events.DatasetDeleted.TYPE,
    )
    census = (("datasets", (events.DatasetRegistered.TYPE, events.DatasetImportRequested.TYPE)),)

    def fold(self, before: DatasetView | None, recorded: Recorded) -> DatasetView:
        match recorded.event:
            case events.DatasetImportRequested() as event:
                return DatasetView(
                    **beginning(recorded),
                    status="importing",
                    name=event.name,
                    description=event.description,
                    format="video_text",
                    owner_id=event.owner_id,
                    source=event.source,
                    import_attempt=1,
                )
            case events.DatasetRegistered() as event if before is None:
                return DatasetView(
                    **beginning(recorded),
                    status="uploading",
                    name=event.name,
                    description=event.description,
                    format=event.format,
                    owner_id=event.owner_id,
                    file_count=event.file_count,
                    size_bytes=event.size_bytes,
                    listing=event.listing,
                )
        return evolved(begun(before, recorded), recorded, _changes(recorded))


def _changes(recorded: Recorded) -> dict[str, Any]:
    match recorded.event:
        case events.DatasetImportFailed() | events.DatasetImportRetried() as event:
            return imported_changes(event)
        case events.DatasetRegistered() as event:
            return {
                "status": "uploading",
                "file_count": event.file_count,
                "size_bytes": event.size_bytes,
                "listing": event.listing,
            }
        case events.DatasetUploadStarted(upload_id=upload_id):
            return {"status": "uploading", "upload_id": upload_id}
        case events.DatasetUploaded(upload_id=upload_id):
            return {"status": "uploaded", "upload_id": upload_id}
        case events.DatasetValidationStarted(agent_id=agent_id, attempt=attempt):
            return {"status": "validating", "agent_id": agent_id, "attempt": attempt}
        case events.DatasetValidationInterrupted(attempt=attempt):
            return {"status": "uploaded", "agent_id": None, "attempt": attempt}
        case events.DatasetValidated() as event:
            return {
                "status": "ready",
                "agent_id": None,
                "attempt": event.attempt,
                "facts": event.facts,
                "manifest": event.manifest,
                "content_sha256": event.content_sha256,
                "problems": (),
                "validated_at": recorded.metadata.recorded_at,
            }
        case events.DatasetRejected(attempt=attempt, problems=problems):
            return {"status": "rejected", "agent_id": None, "attempt": attempt, "problems": problems}
        case events.DatasetDeleted():
            return {"status": "deleted", "agent_id": None}
        case _:
            return {}


_QUERIES = DocumentQueries("datasets", "datasets", DatasetView, hidden=Datasets.hidden)


async def get(connection: AsyncConnection[Any], organization_id: str, dataset_id: str) -> DatasetView | None:
    """The dataset, or None when the organization has none of that id or deleted it."""
    return await _QUERIES.get(connection, organization_id, dataset_id)


async def page(
    connection: AsyncConnection[Any],
    organization_id: str,
    *,
    limit: int,
    after: Cursor | None = None,
    statuses: Sequence[str] | None = None,
) -> list[StoredDocument]:
    """Newest first; `after` is (created_at, id) of the last row of the page before."""
    return await _QUERIES.page(connection, organization_id, limit=limit, after=after, statuses=statuses)
