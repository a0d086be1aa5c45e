"""What the imports of datasets and models have in common; each of both has event types of its own."""

from pydantic import Field

from schemas.events.registry import Event
from schemas.ids import UserId
from schemas.imports import ImportSource


class ImportRequested(Event):
    """Somebody asked for files from elsewhere; what they are is known once they are here."""

    name: str
    description: str
    owner_id: UserId
    source: ImportSource


class ImportFailed(Event):
    """The files could not be had or are not usable; nothing of them was kept."""

    attempt: int = Field(ge=1)
    code: str
    message: str
    retryable: bool


class ImportRetried(Event):
    """Somebody asked for another try."""

    attempt: int = Field(ge=1)
    """The one that begins."""
