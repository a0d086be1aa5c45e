"""Publishes signed heads where the service cannot take them back: the object store and NATS.

Whoever keeps what was published can show later that history was rewritten. Objects are never overwritten: a
key that holds another head is a fault to be told, not corrected.
"""

import asyncio
import logging
from typing import LiteralString

import psycopg
from nats.js import JetStreamContext
from nats.js.api import Header
from nats.js.errors import APIError

from command_api.connected import connected
from command_api.messaging.connection import UNREACHABLE
from command_api.metrics import MERKLE_FAULTS
from command_api.objects import ObjectMissing, ObjectStore, ObjectStoreUnavailable
from command_api.transparency.heads import heads_behind
from schemas.heads import SignedHead
from schemas.subjects import HEADS_STREAM, HEADS_SUBJECT

logger = logging.getLogger(__name__)

PAGE = 100
RETRY_SECONDS = 2.0
_MARKS: LiteralString = """
SELECT stored_head, announced_head, (SELECT coalesce(max(number), 0) FROM kinora_heads)
  FROM kinora_merkle_checkpoint
"""
_STORED: LiteralString = "UPDATE kinora_merkle_checkpoint SET stored_head = %s WHERE stored_head < %s"
_ANNOUNCED: LiteralString = (
    "UPDATE kinora_merkle_checkpoint SET announced_head = %s WHERE announced_head < %s"
)


def head_key(signed: SignedHead) -> str:
    """Where a head is stored; below no organization, so that no collection of objects looks at it."""
    return f"audit/heads/{signed.head.log_id}/{signed.head.number:012d}.json"


class Publisher:
    """Brings every head to both places, in order, each at its own pace."""

    def __init__(
        self, conninfo: str, store: ObjectStore, jetstream: JetStreamContext, signed: asyncio.Event
    ) -> None:
        self._conninfo = conninfo
        self._store = store
        self._jetstream = jetstream
        self._signed = signed

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._signed.wait()
            self._signed.clear()
            try:
                await self._publish()
            except (psycopg.OperationalError, ObjectStoreUnavailable, APIError, *UNREACHABLE) as error:
                logger.warning(
                    "heads: not published yet (%s); trying again", str(error) or type(error).__name__
                )
                self._signed.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def _publish(self) -> None:
        async with connected(
            self._conninfo, autocommit=True, connect_timeout=5, application_name="kinora heads"
        ) as connection:
            row = await (await connection.execute(_MARKS)).fetchone()
            stored, announced, last = row if row is not None else (0, 0, 0)
            # What is older than this may be read elsewhere; nobody listens for it any more.
            announced = max(announced, last - PAGE)
            while heads := await heads_behind(connection, announced, PAGE):
                for signed in heads:
                    await self._announce(signed)
                    announced = signed.head.number
                await connection.execute(_ANNOUNCED, (announced, announced))
            while heads := await heads_behind(connection, stored, PAGE):
                for signed in heads:
                    await self._file(signed)
                    stored = signed.head.number
                await connection.execute(_STORED, (stored, stored))

    async def _announce(self, signed: SignedHead) -> None:
        await self._jetstream.publish(
            HEADS_SUBJECT,
            signed.published_bytes(),
            stream=HEADS_STREAM,
            headers={Header.MSG_ID: f"{signed.head.log_id}-{signed.head.number}"},
            timeout=5,
        )

    async def _file(self, signed: SignedHead) -> None:
        key, content = head_key(signed), signed.published_bytes()
        try:
            there = await self._store.get_bytes(key, limit=2**20)
        except ObjectMissing:
            await self._store.put_bytes(key, content)
            return
        if there != content:
            MERKLE_FAULTS.labels("head").inc()
            logger.error(
                "heads: %s holds another head than number %d of the database; one of the two was replaced",
                key,
                signed.head.number,
            )
