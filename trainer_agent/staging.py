"""An attempt's inputs, brought to this node: verified, cached, laid out as the engine reads them."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import httpx
import structlog
from pydantic import ValidationError

from schemas.objects import FileEntry, Listing, StoredObject, content_key
from trainer_agent.cache import ContentCache
from trainer_agent.errors import AgentError, InputUnreadable, TransferFailed, no_room
from trainer_agent.metrics import STAGED_BYTES
from trainer_agent.presign import BATCH, Presigner
from trainer_agent.transfer import download, persist
from trainer_agent.waiting import all_of

log = structlog.get_logger()

_DOWNLOADS_AT_ONCE = 6
_PATIENCE_SECONDS = 300.0


class Staging:
    """Stages for one attempt.

    Every method raises `InputUnreadable` when an input cannot be had, and an `AgentError` with code
    ``disk_full`` when it cannot be kept.
    """

    def __init__(
        self, client: httpx.AsyncClient, presigner: Presigner, cache: ContentCache, organization_id: str
    ) -> None:
        self._client = client
        self._presigner = presigner
        self._cache = cache
        self._organization_id = organization_id

    async def listing(self, stored: StoredObject, target: Path) -> Listing:
        """The files that `stored` lists."""
        await self.objects([stored], {stored.path: target})
        try:
            return Listing.model_validate_json(await asyncio.to_thread(target.read_bytes))
        except ValidationError as error:
            raise InputUnreadable(f"{stored.key} is no listing of files: {error}", retryable=False) from error

    async def files(self, files: Sequence[FileEntry], folder: Path) -> None:
        """Content-addressed inputs, at their paths inside `folder`."""
        await self.objects(
            [
                StoredObject(**file.model_dump(), key=content_key(self._organization_id, file.sha256))
                for file in files
            ],
            {file.path: folder / file.path for file in files},
        )

    async def objects(self, objects: Sequence[StoredObject], targets: Mapping[str, Path]) -> None:
        """Every object at the target that its path has in `targets`."""
        try:
            wanted = {stored.sha256: stored for stored in objects}
            missing = await asyncio.to_thread(self._missing, wanted.values())
            log.info("staging", files=len(objects), to_download=len(missing))
            to_download = sum(stored.size_bytes for stored in missing)
            STAGED_BYTES.labels("cache").inc(sum(each.size_bytes for each in wanted.values()) - to_download)
            STAGED_BYTES.labels("download").inc(to_download)
            for start in range(0, len(missing), BATCH):
                await self._fetch(missing[start : start + BATCH])
            await asyncio.to_thread(self._lay_out, objects, targets)
            await asyncio.to_thread(self._cache.trim, wanted)
        except OSError as error:
            raise _unkept(error) from error

    def _missing(self, objects: Iterable[StoredObject]) -> list[StoredObject]:
        return [stored for stored in objects if not self._cache.holds(stored.sha256, stored.size_bytes)]

    def _lay_out(self, objects: Sequence[StoredObject], targets: Mapping[str, Path]) -> None:
        for stored in objects:
            self._cache.lay_out(stored.sha256, targets[stored.path])

    async def _fetch(self, objects: Sequence[StoredObject]) -> None:
        try:
            urls = await persist(
                lambda: self._presigner.downloads([stored.key for stored in objects]),
                patience_seconds=_PATIENCE_SECONDS,
            )
        except TransferFailed as error:
            raise InputUnreadable(f"{objects[0].path}: {error.message}", retryable=error.retryable) from error
        places = asyncio.Semaphore(_DOWNLOADS_AT_ONCE)
        await all_of(self._fetch_one(stored, url, places) for stored, url in zip(objects, urls, strict=True))

    async def _fetch_one(self, stored: StoredObject, url: str, places: asyncio.Semaphore) -> None:
        arriving = self._cache.incoming(stored.sha256)
        first_url: list[str] = [url]

        async def attempt() -> None:
            # A repeat asks for a new URL: the old one may have expired while this file waited its turn.
            current = first_url.pop() if first_url else (await self._presigner.downloads([stored.key]))[0]
            await download(
                self._client, current, arriving, size_bytes=stored.size_bytes, sha256=stored.sha256
            )

        async with places:
            try:
                await persist(attempt, patience_seconds=_PATIENCE_SECONDS)
                await asyncio.to_thread(self._cache.admit, arriving, stored.sha256)
            except TransferFailed as error:
                raise InputUnreadable(f"{stored.path}: {error.message}", retryable=error.retryable) from error
            finally:
                arriving.unlink(missing_ok=True)


def _unkept(error: OSError) -> AgentError:
    return no_room(error, "the inputs") or InputUnreadable(
        f"an input cannot be written on this node: {error}"
    )
