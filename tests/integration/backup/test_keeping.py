"""Deleting and copying objects exclude one another."""

from command_api.keeping import deleting, keeping
from schemas.settings import PostgresSettings


async def test_nothing_is_deleted_while_somebody_copies(database: PostgresSettings) -> None:
    conninfo = database.conninfo()
    async with keeping(conninfo), keeping(conninfo), deleting(conninfo) as allowed:
        assert not allowed
    async with deleting(conninfo) as allowed, deleting(conninfo) as another:
        assert (allowed, another) == (True, False)
    async with keeping(conninfo):
        pass
