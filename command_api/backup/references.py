"""Which objects the log names: what a restored installation needs besides its rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from schemas.objects import Listing, StoredObject, content_key

_NAMES = frozenset(StoredObject.model_fields)


@dataclass(frozen=True, slots=True)
class Named:
    """An object as the log, or a listing in the store, names it."""

    key: str
    sha256: str
    size_bytes: int


@dataclass
class References:
    """A fold over the whole log: the objects that it names, by key, and which of them may be gone.

    Nothing is taken away when something is deleted: what is still in the store then is backed up too.
    """

    named: dict[str, Named] = field(default_factory=dict)
    listings: dict[str, set[str]] = field(default_factory=dict)
    """The streams whose file lists these keys hold."""
    _owners: dict[str, set[str]] = field(default_factory=dict)
    _uploaded: set[str] = field(default_factory=set)
    _deleted: set[str] = field(default_factory=set)

    def apply(self, envelope: dict[str, Any]) -> None:
        """Fold one event's envelope."""
        stream_id, event_type = envelope["stream_id"], str(envelope["type"])
        if event_type.endswith(".uploaded"):
            self._uploaded.add(stream_id)
        elif event_type.endswith(".deleted"):
            self._deleted.add(stream_id)
        for name, found in _objects(envelope["payload"], ""):
            self._add(Named(found["key"], found["sha256"], found["size_bytes"]), stream_id)
            if name == "listing" and event_type.endswith(".registered"):
                self.listings.setdefault(found["key"], set()).add(stream_id)

    def apply_listing(self, key: str, listing: Listing) -> None:
        """Fold the files that the list under `key` names."""
        organization_id = key.partition("/")[0]
        for stream_id in self.listings[key]:
            for file in listing.files:
                named = Named(content_key(organization_id, file.sha256), file.sha256, file.size_bytes)
                self._add(named, stream_id, of_upload=True)

    def needed(self, key: str) -> bool:
        """Whether something that is not deleted needs the object; what is not uploaded needs no files yet."""
        return not self._owners.get(key, set()) <= self._deleted

    def _add(self, named: Named, stream_id: str, *, of_upload: bool = False) -> None:
        self.named[named.key] = named
        owners = self._owners.setdefault(named.key, set())
        if not of_upload or stream_id in self._uploaded:
            owners.add(stream_id)


def _objects(value: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every stored object inside a payload, with the name of the field that holds it."""
    if isinstance(value, dict):
        if value.keys() == _NAMES:
            yield name, value
        else:
            for key, part in value.items():
                yield from _objects(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from _objects(part, name)
