"""What one organization needs in the store, read from the log and from the listings that the log names."""

import asyncio
from datetime import datetime

from command_api.eventlog.log import EventLog
from command_api.objects import ObjectMissing, ObjectStore
from command_api.storage.references import TYPES, Needed, References
from command_api.storage.verdict import Knowledge
from schemas.errors import KinoraError
from schemas.objects import Listing, content_key

PAGE_EVENTS = 1000


class ListingLost(KinoraError):
    """A listing that is needed cannot be read, so nobody can say which files are."""

    code = "listing_lost"


class Ledger:
    """Read it again at any time: only what is new is read from log and store."""

    def __init__(self, log: EventLog, store: ObjectStore, organization_id: str, before: datetime) -> None:
        self._log = log
        self._store = store
        self._organization_id = organization_id
        self._before = before
        self._references = References()
        self._listed: dict[str, frozenset[str]] = {}
        self._needed: Needed | None = None
        self._content: frozenset[str] = frozenset()

    async def read(self, uploads: frozenset[str]) -> Knowledge:
        """All that the log holds when this is called, together with the upload sessions given.

        Raises:
            ListingLost: when files cannot be told.
            LogUnavailable, ObjectStoreUnavailable: when log or store do not answer.
        """
        if await asyncio.to_thread(self._catch_up) or self._needed is None:
            needed = await asyncio.to_thread(self._references.needed, self._before)
            for key in needed.listings - self._listed.keys():
                self._listed[key] = await self._files(key)
            self._content = await asyncio.to_thread(
                lambda: frozenset().union(*(self._listed[key] for key in needed.listings))
            )
            self._needed = needed
        return Knowledge(self._needed, self._content, uploads, self._before)

    def _catch_up(self) -> bool:
        """Fold what is new; whether there was anything."""
        moved = False
        while True:
            page = self._log.read_all(
                self._references.position, PAGE_EVENTS, types=TYPES, organization_id=self._organization_id
            )
            for raw in page:
                self._references.apply(raw.recorded())
            moved = moved or bool(page)
            if len(page) < PAGE_EVENTS:
                return moved

    async def _files(self, key: str) -> frozenset[str]:
        try:
            content = await self._store.get_bytes(key)
            return await asyncio.to_thread(self._keys, content)
        except (ObjectMissing, ValueError) as error:
            raise ListingLost(
                f"the listing {key} cannot be read ({error}); restore it from a backup,"
                " or delete the datasets and models that it belongs to"
            ) from error

    def _keys(self, content: bytes) -> frozenset[str]:
        files = Listing.model_validate_json(content).files
        return frozenset(content_key(self._organization_id, file.sha256) for file in files)
