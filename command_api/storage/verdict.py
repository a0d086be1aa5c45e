"""Which of the objects that are there may go: a decision without I/O."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from command_api.objects import Entry
from command_api.storage.places import Purpose, place_of
from command_api.storage.references import Needed


@dataclass(frozen=True, slots=True)
class Knowledge:
    """All that decides about one organization's objects."""

    needed: Needed
    content: AbstractSet[str]
    """Keys of the files that needed listings name."""
    uploads: AbstractSet[str]
    """Upload sessions that are open or were completed lately."""
    before: datetime
    """What was written since then stays: its event may be on its way."""


def may_go(entry: Entry, known: Knowledge) -> Purpose | None:
    """What the object was there for, if nobody needs it; None when it stays."""
    place = place_of(entry.key)
    if entry.modified >= known.before or place.purpose == "other":
        return None
    if entry.key in known.needed.keys or entry.key in known.content:
        return None
    if place.upload_id is not None and place.upload_id in known.uploads:
        return None
    if place.attempt is not None and place.attempt in known.needed.attempts:
        return None
    return place.purpose
