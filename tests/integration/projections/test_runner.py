"""A page's rows and its position are one commit."""

from typing import Any

import pytest
from psycopg import AsyncConnection

from command_api.eventlog.log import EventLog
from projections import catalogue
from projections.runner import Step, advance
from projections.settings import ProjectionsSettings
from projections.view import Table
from schemas.events.identity import UserRegistered
from schemas.settings import PostgresSettings
from tests.integration.projections.world import (
    Tally,
    Writer,
    caught_up,
    cut_connections,
    eventually,
    new_users,
    position_of,
    running,
    tallies,
)


async def prepared(connection: AsyncConnection[Any], *views: Tally) -> None:
    await catalogue.install(connection)
    for view in views:
        await catalogue.ensure(connection, view)


async def test_pages_move_rows_and_position_together(
    connection: AsyncConnection[Any], writer: Writer
) -> None:
    users, view = new_users(2), Tally()
    last = writer.logins(5, users)
    await prepared(connection, view)
    seen = []
    for _ in range(4):
        step = await advance(connection, view, 2)
        assert step is not None
        seen.append(
            (step.events, sum((await tallies(connection)).values()), await position_of(connection, "tally"))
        )
    assert seen == [(2, 2, last - 3), (2, 4, last - 1), (1, 5, last), (0, 5, last)]


async def test_a_page_that_is_cut_off_leaves_nothing(
    connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    users = new_users(1)
    writer.logins(3, users)

    def cut(_: object) -> bool:
        cut_connections(conninfo)
        return False

    async with await AsyncConnection.connect(
        conninfo, autocommit=True, application_name="kinora-projections"
    ) as doomed:
        view = Tally(fails_on=cut)
        await prepared(connection, view)
        with pytest.raises(Exception, match=r"terminat|closed|lost"):
            await advance(doomed, view, 10)
    assert (await tallies(connection), await position_of(connection, "tally")) == ({}, 0)
    step = await advance(connection, Tally(), 10)
    assert step is not None
    assert await tallies(connection) == {users[0]: 3}


async def test_events_of_no_interest_move_the_position(
    connection: AsyncConnection[Any], writer: Writer
) -> None:
    view, (user,) = Tally(), new_users(1)
    registered = UserRegistered(username_ciphertext="x", email_ciphertext="y")
    (position,) = writer.append(user, registered, organization_id=None)
    await prepared(connection, view)
    assert await advance(connection, view, 10) == Step(position, 1)
    assert await tallies(connection) == {}


async def test_tables_of_other_code_are_left_alone(connection: AsyncConnection[Any], writer: Writer) -> None:
    writer.logins(1, new_users(1))
    await prepared(connection, Tally(version=1))
    assert await advance(connection, Tally(version=2), 10) is None
    assert await catalogue.ensure(connection, Tally(version=2)) == (
        "the view's version is 2, its tables are of version 1"
    )


async def test_a_restored_log_is_noticed(connection: AsyncConnection[Any], writer: Writer) -> None:
    view = Tally()
    writer.logins(2, new_users(1))
    await prepared(connection, view)
    await advance(connection, view, 10)
    assert await catalogue.ensure(connection, view) is None
    await connection.execute("DELETE FROM kinora_events WHERE notification_id = 2")
    assert "the log ends at" in str(await catalogue.ensure(connection, view))
    await connection.execute("UPDATE kinora_log SET log_id = 'log_other'")
    assert "the log is log_other" in str(await catalogue.ensure(connection, view))


async def test_views_go_on_after_their_connections_are_cut(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    users = new_users(3)
    async with running(settings, [Tally()]):
        for round_ in range(1, 4):
            await caught_up(connection, ["tally"], writer.logins(30, users))
            assert sum((await tallies(connection)).values()) == 30 * round_

            async def connected() -> bool:
                return cut_connections(conninfo) >= 1

            await eventually(connected, "a connection to cut")
    assert await tallies(connection) == dict.fromkeys(users, 30)


async def test_a_failing_view_holds_up_no_other(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer
) -> None:
    class Broken(Tally):
        tables = (Table(name="unrelated", stream="id", columns=("id integer",), key="id"),)

    users = new_users(2)
    async with running(settings, [Tally(), Broken(name="broken")]):
        await caught_up(connection, ["tally"], writer.logins(10, users))
        assert await position_of(connection, "broken") == 0
    assert await tallies(connection) == dict.fromkeys(users, 5)


async def test_a_view_may_be_older_than_the_log(
    settings: ProjectionsSettings, database: PostgresSettings
) -> None:
    async with (
        running(settings, [Tally()]),
        await AsyncConnection.connect(database.conninfo(), autocommit=True) as connection,
    ):
        with EventLog.open(database) as log:
            users = new_users(1)
            await caught_up(connection, ["tally"], Writer(log).logins(3, users))
        assert await tallies(connection) == {users[0]: 3}
