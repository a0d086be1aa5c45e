"""A log to append to and connections to read with."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from psycopg import AsyncConnection

from command_api.eventlog.log import EventLog
from projections.settings import ProjectionsSettings
from schemas.settings import PostgresSettings
from tests.integration.projections.world import Writer


@pytest.fixture
def conninfo(database: PostgresSettings) -> str:
    return database.conninfo()


@pytest.fixture
def settings(database: PostgresSettings) -> ProjectionsSettings:
    return ProjectionsSettings(postgres=database, page_size=50, poll_seconds=0.2)


@pytest.fixture
def writer(database: PostgresSettings) -> Iterator[Writer]:
    with EventLog.open(database) as log:
        yield Writer(log)


@pytest.fixture
async def connection(conninfo: str, writer: Writer) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(conninfo, autocommit=True) as opened:
        yield opened
