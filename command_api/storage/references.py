"""Which objects the log still needs: a fold of its events, without I/O, for collections and for backups.

A dataset or model needs its files until it is deleted. A job needs its inputs' files until it has ended, and
for good what its own events name: what it made, and the lists of what it was made from. What is let go of is
still needed for the grace period: somebody may be about to use it, on the word of a state that was read a
moment before.
"""

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from schemas.envelope import Recorded
from schemas.events import REGISTRY, Event
from schemas.events import dataset as datasets
from schemas.events import job as jobs
from schemas.events import model as models
from schemas.ids import Prefix, id_prefix
from schemas.objects import StoredObject

_MORTAL = frozenset({Prefix.DATASET, Prefix.MODEL})
"""Streams that can be deleted, and then need nothing any more."""

LISTING = "listing"
"""A `StoredObject` field of this name holds a `schemas.objects.Listing`: its files are needed with it."""

_RELEASES = (datasets.DatasetDeleted, models.ModelDeleted)
_UPLOADS = (datasets.DatasetUploaded, models.ModelUploaded)
_JOB_ENDS = (jobs.JobSucceeded, jobs.JobFailed, jobs.JobStopped)
_JUDGED = (
    datasets.DatasetValidated,
    datasets.DatasetRejected,
    models.ModelValidated,
    models.ModelRejected,
)


def named_objects(value: object) -> Iterator[tuple[str, StoredObject]]:
    """Every stored object inside an event, with the name of the field that holds it."""
    yield from _named("", value)


def _named(name: str, value: object) -> Iterator[tuple[str, StoredObject]]:
    if isinstance(value, StoredObject):
        yield name, value
    elif isinstance(value, BaseModel):
        for field_name in type(value).model_fields:
            yield from _named(field_name, getattr(value, field_name))
    elif isinstance(value, dict):
        for each in value.values():
            yield from _named(name, each)
    elif isinstance(value, (tuple, list, set, frozenset)):
        for each in value:
            yield from _named(name, each)


def names_objects(annotation: Any) -> bool:
    """Whether a value of this type can hold a stored object."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, StoredObject):
            return True
        if issubclass(annotation, BaseModel):
            return any(names_objects(each.annotation) for each in annotation.model_fields.values())
        return False
    if get_origin(annotation) is Annotated:
        return names_objects(get_args(annotation)[0])
    return any(names_objects(each) for each in get_args(annotation))


def _matters(event: type[Event]) -> bool:
    return (
        issubclass(event, (*_RELEASES, *_UPLOADS, *_JOB_ENDS, *_JUDGED))
        or event in (jobs.JobQueued, datasets.DatasetValidationStarted, models.ModelValidationStarted)
        or names_objects(event)
    )


TYPES: tuple[str, ...] = tuple(event.TYPE for event in REGISTRY.types if _matters(event))
"""The events to fold; measurements, by far the most, are not among them."""


@dataclass(frozen=True, slots=True)
class Needed:
    """What must stay."""

    keys: frozenset[str]
    listings: frozenset[str]
    """Keys of listings whose files are needed."""
    uploaded: frozenset[str]
    """Those of the listings whose files were all there once: where one is missing, it is lost."""
    attempts: frozenset[tuple[str, int]]
    """Items and attempts that may be writing now: what they have not reported yet is needed as well."""


@dataclass(slots=True)
class _Holder:
    """One stream's claims."""

    pinned: set[str] = field(default_factory=set)
    """Needed until `released_at`."""
    kept: set[str] = field(default_factory=set)
    """Needed for good."""
    listings: set[str] = field(default_factory=set)
    """Whose files are needed until `released_at`."""
    uploaded: bool = False
    base_model_id: str | None = None
    attempt: int = 0
    attempt_over_at: datetime | None = None
    released_at: datetime | None = None


@dataclass(slots=True)
class References:
    """Apply every event, of one organization or of all, whose type is in `TYPES`, in log order."""

    position: int = 0
    _holders: dict[str, _Holder] = field(default_factory=dict)

    def apply(self, recorded: Recorded) -> None:
        """Fold one event."""
        self.position = max(self.position, recorded.position)
        stream_id, event, at = recorded.stream_id, recorded.event, recorded.metadata.recorded_at
        holder = self._holders.setdefault(stream_id, _Holder())
        self._name(stream_id, holder, event)
        match event:
            case models.AdapterRegistered(base_model_id=base_model_id):
                holder.base_model_id = base_model_id
            case (
                jobs.JobQueued(attempt=attempt)
                | datasets.DatasetValidationStarted(attempt=attempt)
                | models.ModelValidationStarted(attempt=attempt)
            ):
                holder.attempt, holder.attempt_over_at, holder.released_at = attempt, None, None
            case _ if isinstance(event, _UPLOADS):
                holder.uploaded = True
            case _ if isinstance(event, _JUDGED):
                holder.attempt_over_at = at
            case _ if isinstance(event, (*_JOB_ENDS, *_RELEASES)):
                holder.attempt_over_at = holder.released_at = at

    def needed(self, released_before: datetime) -> Needed:
        """What must stay, if whatever was let go of before that moment may go."""

        def since(moment: datetime | None) -> bool:
            return moment is None or moment >= released_before

        held = {name for name, holder in self._holders.items() if since(holder.released_at)}
        # An adapter is of no use without the model that it was trained on.
        held |= {base for name in held if (base := self._holders[name].base_model_id) is not None}
        holders = [self._holders[name] for name in held if name in self._holders]
        return Needed(
            keys=frozenset(_all(holder.kept for holder in self._holders.values()))
            | frozenset(_all(holder.pinned for holder in holders)),
            listings=frozenset(_all(holder.listings for holder in holders)),
            uploaded=frozenset(_all(holder.listings for holder in holders if holder.uploaded)),
            attempts=frozenset(
                (name, holder.attempt)
                for name, holder in self._holders.items()
                if holder.attempt and since(holder.attempt_over_at)
            ),
        )

    def _name(self, stream_id: str, holder: _Holder, event: Event) -> None:
        pinned = id_prefix(stream_id) in _MORTAL
        # What a job names is there: it made it, or was asked for with inputs that were ready.
        holder.uploaded = holder.uploaded or not pinned
        for name, stored in named_objects(event):
            (holder.pinned if pinned else holder.kept).add(stored.key)
            if name == LISTING:
                holder.listings.add(stored.key)


def _all(sets: Iterable[set[str]]) -> Iterator[str]:
    for each in sets:
        yield from each
