"""The orchestrator keeps, signs and publishes; killed at any moment, the next one goes on."""

import asyncio
import json

import psycopg
from nats.js import JetStreamContext

from command_api.messaging.connection import connect
from command_api.messaging.together import end
from command_api.objects import ObjectStore
from command_api.orchestrator import run
from command_api.storage.places import place_of
from command_api.transparency.publishing import head_key
from schemas.heads import NOBODY, SignedHead, key_id_of
from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from schemas.subjects import HEADS_STREAM, HEADS_SUBJECT
from tests.integration.messaging.world import eventually, settings_of
from tests.integration.transparency.conftest import Chronicle, new_key


async def newest(jetstream: JetStreamContext, position: int) -> SignedHead:
    """The last head on NATS, once it reaches a position."""

    async def look() -> SignedHead | None:
        try:
            message = await jetstream.get_last_msg(HEADS_STREAM, HEADS_SUBJECT)
        except Exception:  # not there yet
            return None
        signed = SignedHead.model_validate_json(message.data or b"")
        return signed if signed.head.position >= position else None

    return await eventually(look, f"a head of position {position}")


async def test_heads_reach_nats_and_the_store_over_kills_and_a_new_key(
    chronicle: Chronicle, database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> None:
    settings = settings_of(database, nats, s3).model_copy(
        update={"audit_key_pem": new_key(), "audit_head_seconds": 0.2}
    )
    async with ObjectStore(s3) as store:
        await store.ensure_bucket()
        signed: list[SignedHead] = []
        for round_ in range(3):
            told = chronicle.tell(chronicle.ada, None, chronicle.bob)
            if round_ == 2:
                settings = settings.model_copy(update={"audit_key_pem": new_key()})
            task = asyncio.create_task(run(settings, asyncio.Event(), ready=lambda: None))
            try:
                async with connect(nats, "listener") as client:
                    signed.append(await newest(client.jetstream(), told[-1]))
            finally:
                await end([task])  # without a word, as a kill
        assert len({each.key_id for each in signed}) == 2
        assert [each.head.log_id for each in signed] == [chronicle.log.log_id] * 3

        async def stored() -> list[bytes] | None:
            keys = [key async for key, _ in store.iterate("audit/heads/")]
            return [await store.get_bytes(key) for key in keys] if len(keys) >= 2 else None

        contents = await eventually(stored, "heads in the store")
        assert contents[0] == signed[0].published_bytes()
        assert place_of(head_key(signed[0])).purpose == "other"  # which no collection of objects takes
    with psycopg.connect(chronicle.conninfo) as connection:
        keys = connection.execute("SELECT key_id, public_key FROM kinora_audit_keys").fetchall()
        trees = connection.execute("SELECT organization, size FROM kinora_merkle_trees").fetchall()
    assert {key_id for key_id, _ in keys} == {each.key_id for each in signed}
    assert all(key_id_of(bytes(public)) == key_id for key_id, public in keys)
    assert dict(trees) == {chronicle.ada: 3, chronicle.bob: 3, NOBODY: 3}
    assert json.loads(contents[0])["head"]["type"] == "kinora.head.v1"
