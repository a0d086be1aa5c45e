"""During a rolling upgrade a newer release may write what this one cannot read."""

import asyncio

import psycopg
import pytest

from command_api.eventlog.errors import LogTooNew
from command_api.messaging.activity import LOCK
from command_api.messaging.board import Board
from command_api.messaging.follower import Follower
from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from tests.integration.messaging.world import World, eventually, orchestrating, settings_of

ALL_NEW = """
    UPDATE kinora_events
       SET state = convert_to(replace(convert_from(state, 'UTF8'), '.v1"', %s), 'UTF8')
     WHERE topic = %s
"""


def rewritten(database: PostgresSettings, state: str) -> None:
    with psycopg.connect(database.conninfo()) as connection:
        connection.execute(ALL_NEW, (state, "kinora.dataset.registered"))


async def test_an_orchestrator_steps_aside_and_goes_on_when_it_can_read_again(
    world: World,
    database: PostgresSettings,
    nats: NatsSettings,
    s3: S3Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rewritten(database, '.v99"')

    async def said() -> bool:
        return "upgrade this orchestrator" in caplog.text

    async def free() -> bool:
        async with await psycopg.AsyncConnection.connect(database.conninfo()) as connection:
            row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,))).fetchone()
            return bool(row and row[0])

    async with orchestrating(settings_of(database, nats, s3)) as active:
        await eventually(said, "what is wrong to be said")
        await eventually(free, "the way to be free for a newer orchestrator")
        assert not active.is_set()
    assert "kinora.dataset.registered" in caplog.text


async def test_the_board_stops_before_what_it_cannot_read(world: World, database: PostgresSettings) -> None:
    rewritten(database, '.v1","from_the_future":"yes"')
    follower = Follower(world.log, Board(), asyncio.Event())
    for _ in range(2):
        with pytest.raises(LogTooNew, match="position"):
            await follower.catch_up()
    assert world.dataset_id not in follower.board.items
