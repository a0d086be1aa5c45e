"""Believes no agent that a file is stored: looks before the report becomes an event."""

from collections.abc import Sequence

from command_api.messaging.board import Item
from command_api.messaging.presigning import own_prefixes
from command_api.objects import ObjectStore
from schemas.objects import StoredObject
from schemas.work import (
    AdapterUploaded,
    CheckpointStored,
    DatasetJudged,
    Failed,
    LogStored,
    Report,
    ReportBody,
    Warned,
)


async def with_proven_artifacts(store: ObjectStore, item: Item, report: Report) -> Report:
    """The report itself when its files lie where they should, whole; otherwise what it amounts to then.

    Raises:
        ObjectStoreUnavailable: when the store cannot say.
    """
    wrong = await _first_wrong(store, item, named_objects(report.body))
    if wrong is None:
        return report
    body: ReportBody = Failed(code="artifact_missing", message=wrong, retryable=True)
    if isinstance(report.body, LogStored):
        # A lost log is no reason to lose a training.
        body = Warned(code="log_missing", message=wrong)
    return report.model_copy(update={"body": body})


async def _first_wrong(store: ObjectStore, item: Item, objects: Sequence[StoredObject]) -> str | None:
    prefixes = own_prefixes(item)
    for stored in objects:
        if not stored.key.startswith(prefixes):
            return f"{stored.key} is not under the attempt's own folders; upload it where the URL points"
        size = await store.head(stored.key)
        if size is None:
            return f"{stored.key} is not in the store; upload it before reporting it"
        if size != stored.size_bytes:
            return f"{stored.key} has {size} bytes in the store, not {stored.size_bytes}; upload it again"
    return None


def named_objects(body: ReportBody) -> Sequence[StoredObject]:
    """The files that a report says are stored."""
    match body:
        case AdapterUploaded(objects=objects) | CheckpointStored(objects=objects):
            return objects
        case LogStored(object=stored):
            return (stored,)
        case DatasetJudged(manifest=manifest) if manifest is not None:
            return (manifest,)
        case _:
            return ()
