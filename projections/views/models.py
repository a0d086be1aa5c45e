"""Models: bases that people registered, and adapters that jobs produced."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal, LiteralString

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
from schemas.datasets import ModelFacts, Problem
from schemas.envelope import Recorded
from schemas.events import model as events
from schemas.objects import StoredObject
from schemas.training import AdapterFacts


class ModelView(Imported, Document):
    """A model as people see it."""

    status: Status
    kind: Literal["base", "adapter"]
    name: str
    description: str = ""
    owner_id: str
    file_count: int = 0
    size_bytes: int = 0
    listing: StoredObject | None = None
    """Of a base model: its files; known once they were declared or imported."""
    upload_id: str | None = None
    attempt: int = 0
    """Of the validation; 0 before the first."""
    agent_id: str | None = None
    """Who validates it now."""
    facts: ModelFacts | None = None
    """Of a base model."""
    family: str | None = None
    content_sha256: str | None = None
    problems: tuple[Problem, ...] = ()
    validated_at: datetime | None = None
    job_id: str | None = None
    """Of an adapter: the job that produced it."""
    base_model_id: str | None = None
    """Of an adapter: the model that it adapts."""
    objects: tuple[StoredObject, ...] = ()
    """Of an adapter: its files."""
    adapter: AdapterFacts | None = None


class Models(DocumentView[ModelView]):
    name = "models"
    version = 2
    table: ClassVar[LiteralString] = "models"
    hidden = ("deleted",)
    model = ModelView
    tables = (document_table("models"),)
    types = (
        events.ModelImportRequested.TYPE,
        events.ModelImportFailed.TYPE,
        events.ModelImportRetried.TYPE,
        events.ModelRegistered.TYPE,
        events.ModelUploadStarted.TYPE,
        events.ModelUploaded.TYPE,
        events.ModelValidationStarted.TYPE,
        events.ModelValidationInterrupted.TYPE,
        events.ModelValidated.TYPE,
        events.ModelRejected.TYPE,
        events.AdapterRegistered.TYPE,
        events.ModelDeleted.TYPE,
    )
    census = (
        (
            "models",
            (events.ModelRegistered.TYPE, events.ModelImportRequested.TYPE, events.AdapterRegistered.TYPE),
        ),
    )

    def fold(self, before: ModelView | None, recorded: Recorded) -> ModelView:
        match recorded.event:
            case events.ModelImportRequested() as event:
                return ModelView(
                    **beginning(recorded),
                    status="importing",
                    kind="base",
                    name=event.name,
                    description=event.description,
                    owner_id=event.owner_id,
                    source=event.source,
                    import_attempt=1,
                )
            case events.ModelRegistered() as event if before is None:
                return ModelView(
                    **beginning(recorded),
                    status="uploading",
                    kind="base",
                    name=event.name,
                    description=event.description,
                    owner_id=event.owner_id,
                    file_count=event.file_count,
                    size_bytes=event.size_bytes,
                    listing=event.listing,
                )
            case events.AdapterRegistered() as event:
                return _adapter(recorded, event)
        return evolved(begun(before, recorded), recorded, _changes(recorded))


def _adapter(recorded: Recorded, event: events.AdapterRegistered) -> ModelView:
    return ModelView(
        **beginning(recorded),
        status="ready",
        kind="adapter",
        name=event.name,
        owner_id=event.owner_id,
        file_count=len(event.objects),
        size_bytes=sum(each.size_bytes for each in event.objects),
        family=event.facts.family,
        content_sha256=event.content_sha256,
        validated_at=recorded.metadata.recorded_at,
        job_id=event.job_id,
        base_model_id=event.base_model_id,
        objects=event.objects,
        adapter=event.facts,
    )


def _changes(recorded: Recorded) -> dict[str, Any]:
    match recorded.event:
        case events.ModelImportFailed() | events.ModelImportRetried() as event:
            return imported_changes(event)
        case events.ModelRegistered() as event:
            return {
                "status": "uploading",
                "file_count": event.file_count,
                "size_bytes": event.size_bytes,
                "listing": event.listing,
            }
        case events.ModelUploadStarted(upload_id=upload_id):
            return {"status": "uploading", "upload_id": upload_id}
        case events.ModelUploaded(upload_id=upload_id):
            return {"status": "uploaded", "upload_id": upload_id}
        case events.ModelValidationStarted(agent_id=agent_id, attempt=attempt):
            return {"status": "validating", "agent_id": agent_id, "attempt": attempt}
        case events.ModelValidationInterrupted(attempt=attempt):
            return {"status": "uploaded", "agent_id": None, "attempt": attempt}
        case events.ModelValidated() as event:
            return {
                "status": "ready",
                "agent_id": None,
                "attempt": event.attempt,
                "facts": event.facts,
                "family": event.facts.family,
                "content_sha256": event.content_sha256,
                "problems": (),
                "validated_at": recorded.metadata.recorded_at,
            }
        case events.ModelRejected(attempt=attempt, problems=problems):
            return {"status": "rejected", "agent_id": None, "attempt": attempt, "problems": problems}
        case events.ModelDeleted():
            return {"status": "deleted", "agent_id": None}
        case _:
            return {}


_QUERIES = DocumentQueries("models", "models", ModelView, hidden=Models.hidden)


async def get(connection: AsyncConnection[Any], organization_id: str, model_id: str) -> ModelView | None:
    """The model, or None when the organization has none of that id or deleted it."""
    return await _QUERIES.get(connection, organization_id, model_id)


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


async def count_ready(connection: AsyncConnection[Any]) -> int:
    """Models of the whole installation that can be used."""
    cursor = await connection.execute("SELECT count(*) FROM view_models.models WHERE status = 'ready'")
    row = await cursor.fetchone()
    return int(row[0]) if row is not None else 0
