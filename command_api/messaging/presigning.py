"""Signs URLs for the holder of an attempt: its inputs to read, its own folder to write, nothing else."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence

from botocore.exceptions import BotoCoreError

from command_api.messaging.board import Item
from command_api.messaging.follower import Follower
from command_api.messaging.identity import find_item, identify
from command_api.messaging.leases import Held
from command_api.objects import ObjectStore
from schemas.errors import KinoraError
from schemas.objects import (
    Listing,
    StoredObject,
    adapter_prefix,
    checkpoint_prefix,
    content_key,
    log_prefix,
    validation_prefix,
)
from schemas.work import PresignReply, PresignRequest, Purpose, UploadRequest, UploadTarget

logger = logging.getLogger(__name__)

CACHED_LISTINGS = 32


class NotYours(KinoraError):
    """The request names something outside of what the attempt may touch."""

    code = "not_yours"


class Presigning:
    """Answers `kinora.presign.<organization>.<agent>`."""

    def __init__(self, follower: Follower, store: ObjectStore, *, expires_seconds: int) -> None:
        self._follower = follower
        self._store = store
        self._expires_seconds = expires_seconds
        self._listed: OrderedDict[str, frozenset[str]] = OrderedDict()

    async def presign(self, organization_id: str, agent_id: str, request: PresignRequest) -> PresignReply:
        """URLs in the order asked for, or the reason why there are none."""
        try:
            item = await self._held(organization_id, agent_id, request)
            await self._check_readable(item, request.download)
            targets = [_target(item, upload) for upload in request.upload]
            return PresignReply(
                downloads=tuple([await self._store.presign_get(key) for key in request.download]),
                uploads=tuple(
                    [
                        UploadTarget(
                            url=await self._store.presign_put(target.key, size_bytes=target.size_bytes),
                            object=target,
                        )
                        for target in targets
                    ]
                ),
                expires_seconds=self._expires_seconds,
            )
        except NotYours as error:
            logger.warning("presign for agent %s: %s; refused", agent_id, error)
            return PresignReply(error=error.message, retryable=False)
        except (KinoraError, BotoCoreError) as error:
            logger.warning("presign for agent %s: %s", agent_id, error)
            return PresignReply(error=str(error), retryable=True)

    async def _held(self, organization_id: str, agent_id: str, request: PresignRequest) -> Item:
        agent = await identify(self._follower, organization_id, agent_id)
        if agent is None or await find_item(self._follower, agent, request.item_id) is None:
            raise NotYours(f"{request.item_id} is not yours")
        held = Held(request.item_id, request.attempt, agent_id)
        item = self._follower.board.holds(held)
        if item is None:
            await self._follower.catch_up()
            item = self._follower.board.holds(held)
        if item is None:
            raise NotYours(f"you do not hold attempt {request.attempt} of {request.item_id}")
        return item

    async def _check_readable(self, item: Item, keys: Sequence[str]) -> None:
        readable = await self._readable(item) if keys else frozenset()
        for key in keys:
            if key not in readable:
                raise NotYours(f"{key} is no input of {item.item_id} attempt {item.attempt}")

    async def _readable(self, item: Item) -> frozenset[str]:
        """Every key that the attempt's assignment names."""
        if item.request is None:
            return await self._named_by(item, item.listing) if item.listing is not None else frozenset()
        resume = item.resume.objects if item.resume is not None else ()
        own = frozenset({item.request.manifest.key, *(stored.key for stored in resume)})
        dataset = await self._named_by(item, item.request.dataset.listing)
        return own | dataset | await self._named_by(item, item.request.model.listing)

    async def _named_by(self, item: Item, stored: StoredObject) -> frozenset[str]:
        """The listing's own key and those of the files that it names; a listing never changes."""
        keys = self._listed.get(stored.key)
        if keys is None:
            content = await self._store.get_bytes(stored.key)
            # Off the loop, which answers heartbeats meanwhile: a listing may name very many files.
            files = await asyncio.to_thread(_keys_of, item.organization_id, content)
            keys = self._listed[stored.key] = files | {stored.key}
        self._listed.move_to_end(stored.key)
        if len(self._listed) > CACHED_LISTINGS:
            self._listed.popitem(last=False)
        return keys


def _keys_of(organization_id: str, listing: bytes) -> frozenset[str]:
    files = Listing.model_validate_json(listing).files
    return frozenset(content_key(organization_id, file.sha256) for file in files)


def folder_of(item: Item, purpose: Purpose, step: int) -> str:
    """The one folder that the present attempt may write files of this purpose into."""
    place = item.organization_id, item.item_id, item.attempt
    match purpose:
        case "checkpoint":
            return checkpoint_prefix(*place, step)
        case "adapter":
            return adapter_prefix(*place)
        case "log":
            return log_prefix(*place)
        case "validation":
            return validation_prefix(*place)


def _target(item: Item, upload: UploadRequest) -> StoredObject:
    if (upload.purpose == "validation") != (item.lane == "validate"):
        raise NotYours(f"a {item.lane} attempt stores no {upload.purpose} files")
    file, folder = upload.file, folder_of(item, upload.purpose, upload.step)
    return StoredObject(
        path=file.path, key=f"{folder}/{file.path}", size_bytes=file.size_bytes, sha256=file.sha256
    )
