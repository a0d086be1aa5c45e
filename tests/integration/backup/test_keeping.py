"""Deleting and copying objects exclude one another."""

import psycopg
import pytest

from command_api.keeping import ObjectsUnguarded, deleting, keeping
from schemas.settings import PostgresSettings


async def test_nothing_is_deleted_while_somebody_copies(database: PostgresSettings) -> None:
    conninfo = database.conninfo()
    async with keeping(conninfo), keeping(conninfo), deleting(conninfo) as allowed:
        assert not allowed
    async with deleting(conninfo) as allowed, deleting(conninfo) as another:
        assert (allowed, another) == (True, False)
    async with keeping(conninfo):
        pass


async def test_whoever_copies_learns_that_the_lock_was_lost(database: PostgresSettings) -> None:
    conninfo = database.conninfo()
    async with keeping(conninfo) as kept:
        await kept.confirm()
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'kinora keeping objects'"
            )
        async with deleting(conninfo) as allowed:
            assert allowed
        with pytest.raises(ObjectsUnguarded):
            await kept.confirm()
