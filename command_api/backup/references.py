"""Which objects the log names: what a restored installation needs besides its rows."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import ValidationError

from command_api.backup.errors import BackupDamaged, BackupTooNew
from command_api.backup.event_lines import EventLine
from command_api.storage import references as storage
from schemas.envelope import Recorded
from schemas.events import REGISTRY
from schemas.events.registry import UnknownEventType
from schemas.objects import Listing, content_key

_KNOWN = frozenset(event.TYPE for event in REGISTRY.types)
_FOLDED = frozenset(storage.TYPES)
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Named:
    """An object as the log, or a listing in the store, names it."""

    key: str
    sha256: str
    size_bytes: int


@dataclass
class References:
    """A fold over the whole log: the objects that it names, by key, and which of them must be there.

    Nothing is taken away when something is deleted: what is still in the store then is backed up too.
    """

    named: dict[str, Named] = field(default_factory=dict)
    listings: set[str] = field(default_factory=set)
    """Keys of the file lists among them."""
    _needs: storage.References = field(default_factory=storage.References)
    _files: dict[str, frozenset[str]] = field(default_factory=dict)

    def apply(self, line: EventLine) -> None:
        """Fold one event.

        Raises:
            BackupTooNew: when this Kinora does not know its type, and so not what it names.
            BackupDamaged: when it is none of its type.
        """
        if line.type not in _FOLDED and line.type in _KNOWN:
            return
        try:
            recorded = Recorded.from_state(line.position, line.state)
        except UnknownEventType as error:
            raise BackupTooNew(f"event {line.position} cannot be read: {error.message} first") from None
        except ValidationError as error:
            raise BackupDamaged(f"event {line.position} is none of its type: {error}") from None
        self._needs.apply(recorded)
        for name, stored in storage.named_objects(recorded.event):
            self.named[stored.key] = Named(stored.key, stored.sha256, stored.size_bytes)
            if name == storage.LISTING:
                self.listings.add(stored.key)

    def apply_listing(self, key: str, listing: Listing) -> None:
        """Fold the files that the list under `key` names."""
        organization_id = key.partition("/")[0]
        files = [
            Named(content_key(organization_id, file.sha256), file.sha256, file.size_bytes)
            for file in listing.files
        ]
        self.named |= {file.key: file for file in files}
        self._files[key] = frozenset(file.key for file in files)

    def required(self) -> frozenset[str]:
        """Keys that something needs which is not deleted; what is not uploaded needs no files yet."""
        needed = self._needs.needed(_NEVER)
        return needed.keys.union(*(self._files.get(key, frozenset()) for key in needed.uploaded))
