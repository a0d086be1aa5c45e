"""Believes no agent that a file is stored: looks before the report becomes an event."""

from collections.abc import Sequence

from command_api.messaging.board import Item
from command_api.messaging.presigning import folder_of
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
    wrong = await _first_wrong(store, item, report.body)
    if wrong is None:
        return report
    body: ReportBody = Failed(code="artifact_missing", message=wrong, retryable=True)
    if isinstance(report.body, LogStored):
        # A lost log is no reason to lose a training.
        body = Warned(code="log_missing", message=wrong)
    return report.model_copy(update={"body": body})


async def _first_wrong(store: ObjectStore, item: Item, body: ReportBody) -> str | None:
    folder = _folder(item, body)
    for stored in named_objects(body):
        if stored.key != f"{folder}/{stored.path}":
            # Not even asked for: the store takes a key that climbs for a failure of its own.
            return f"{stored.key} is not under the attempt's own folders; upload it where the URL points"
        size = await store.head(stored.key)
        if size is None:
            return f"{stored.key} is not in the store; upload it before reporting it"
        if size != stored.size_bytes:
            return f"{stored.key} has {size} bytes in the store, not {stored.size_bytes}; upload it again"
    return None


def _folder(item: Item, body: ReportBody) -> str | None:
    match body:
        case CheckpointStored(step=step):
            return folder_of(item, "checkpoint", step)
        case AdapterUploaded():
            return folder_of(item, "adapter", 0)
        case LogStored():
            return folder_of(item, "log", 0)
        case DatasetJudged():
            return folder_of(item, "validation", 0)
        case _:
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
