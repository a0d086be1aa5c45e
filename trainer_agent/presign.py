"""Presigned URLs, asked for over NATS per attempt: the agent holds no keys of the store."""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import structlog

from schemas.subjects import presign_subject
from schemas.work import HeldItem, PresignReply, PresignRequest, UploadRequest, UploadTarget
from trainer_agent.connection import Connection
from trainer_agent.errors import NoAnswer, TransferFailed
from trainer_agent.settings import AgentSettings
from trainer_agent.waiting import Backoff

log = structlog.get_logger()

T = TypeVar("T")

BATCH = 100
"""URLs per request: a reply of more would near NATS's limit of 1 MiB."""
_PATIENCE_SECONDS = 120.0


class Presigner:
    """Asks for one attempt. Silence is waited out; a refusal is not."""

    def __init__(self, connection: Connection, settings: AgentSettings, held: HeldItem) -> None:
        self._connection = connection
        self._held = held
        self._subject = presign_subject(settings.organization_id, settings.agent_id)

    async def downloads(self, keys: Sequence[str]) -> tuple[str, ...]:
        """A URL per key, in order, for at most `BATCH` keys.

        Raises:
            TransferFailed: the control plane refuses.
        """
        reply = await self._ask(
            PresignRequest(item_id=self._held.item_id, attempt=self._held.attempt, download=tuple(keys))
        )
        return _as_many(reply.downloads, len(keys))

    async def uploads(self, requests: Sequence[UploadRequest]) -> tuple[UploadTarget, ...]:
        """A target per file, in order, for at most `BATCH` files.

        Raises:
            TransferFailed: the control plane refuses.
        """
        reply = await self._ask(
            PresignRequest(item_id=self._held.item_id, attempt=self._held.attempt, upload=tuple(requests))
        )
        return _as_many(reply.uploads, len(requests))

    async def _ask(self, request: PresignRequest) -> PresignReply:
        backoff = Backoff()
        give_up = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while True:
            try:
                reply = await self._connection.request(self._subject, request, PresignReply)
            except NoAnswer as error:
                log.info("presign_unanswered", error=error.message)
                await backoff.wait()
                continue
            if reply.error is None:
                return reply
            if not reply.retryable or asyncio.get_running_loop().time() > give_up:
                raise TransferFailed(f"no URL was given: {reply.error}", retryable=reply.retryable, tries=1)
            log.info("presign_refused_for_now", error=reply.error)
            await backoff.wait()


def _as_many(answers: tuple[T, ...], asked: int) -> tuple[T, ...]:
    if len(answers) != asked:
        raise TransferFailed(f"asked for {asked} URLs and was given {len(answers)}", tries=3)
    return answers
