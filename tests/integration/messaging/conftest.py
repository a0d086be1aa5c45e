"""A world per test: an own database and bucket, and one NATS server whose streams are gone afterwards."""

from collections.abc import AsyncIterator

import pytest

from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from tests.integration.messaging.world import (
    Agent,
    World,
    active_orchestrator,
    agent_of,
    make_world,
    settings_of,
)


@pytest.fixture
async def world(database: PostgresSettings, s3: S3Settings) -> AsyncIterator[World]:
    async with make_world(database, s3) as world:
        await world.make_inputs()
        yield world


@pytest.fixture
async def orchestrator(
    world: World, database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> AsyncIterator[None]:
    async with active_orchestrator(settings_of(database, nats, s3)):
        yield


@pytest.fixture
async def agent(world: World, nats: NatsSettings, orchestrator: None) -> AsyncIterator[Agent]:
    async with agent_of(world, nats) as agent:
        yield agent
