"""A failing event parks its own stream, and a replay takes it up again."""

from typing import Any, LiteralString

from psycopg import AsyncConnection

from projections.parking import parked_streams
from projections.replay import replay_parked
from projections.settings import ProjectionsSettings
from schemas.events.identity import UserLoggedIn
from tests.integration.projections.world import (
    Tally,
    Writer,
    caught_up,
    new_users,
    position_of,
    running,
    scalar,
    tallies,
)

CHANGED: LiteralString = "SELECT count(*) FROM kinora_events WHERE state LIKE '%%.v9%%'::bytea"


async def test_only_the_failing_stream_stops(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    good, bad = new_users(2)
    writer.logins(1, [bad])
    poison = writer.logins(1, [bad])
    last = writer.logins(6, [good, bad])
    async with running(settings, [Tally(fails_on=lambda event: event.position == poison)]):
        await caught_up(connection, ["tally"], last)
        last = writer.logins(2, [good, bad])
        await caught_up(connection, ["tally"], last)

    assert await tallies(connection) == {good: 4, bad: 1}, "the failing event's own rows are undone"
    assert await position_of(connection, "tally") == last
    (parked,) = await parked_streams(connection, "tally")
    assert (parked.stream_id, parked.first_position, parked.last_position) == (bad, poison, last)
    assert parked.events == 5
    assert parked.error == f"ValueError: cannot fold {poison}"

    replayed = await replay_parked(conninfo, Tally())
    assert (replayed.streams, replayed.still_parked, replayed.events) == ((bad,), (), 5)
    assert await tallies(connection) == {good: 4, bad: 6}
    assert await parked_streams(connection) == ()
    assert (await replay_parked(conninfo, Tally())).streams == ()


async def test_a_replay_that_fails_again_parks_where_it_stopped(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer, conninfo: str
) -> None:
    one, other = new_users(2)
    poison = writer.append(one, *_logins(1), organization_id=None)[0]
    later = writer.append(one, *_logins(3), organization_id=None)
    writer.append(other, *_logins(1), organization_id=None)
    last = writer.append(other, *_logins(1), organization_id=None)[0]
    async with running(settings, [Tally(fails_on=lambda event: event.position in (poison, last))]):
        await caught_up(connection, ["tally"], last)
        assert await tallies(connection) == {other: 1}

        # While the process runs on: both hold the view's row when they write.
        again = await replay_parked(conninfo, Tally(fails_on=lambda event: event.position == later[1]), one)
        assert (again.streams, again.still_parked, again.events) == ((), (one,), 2)
        assert await tallies(connection) == {one: 2, other: 1}
        parked = {each.stream_id: each for each in await parked_streams(connection)}
        assert set(parked) == {one, other}, "only the named stream was replayed"
        assert (parked[one].first_position, parked[one].last_position, parked[one].events) == (
            later[1],
            later[2],
            2,
        )
        await replay_parked(conninfo, Tally())
        await caught_up(connection, ["tally"], writer.logins(1, [one]))
    assert await tallies(connection) == {one: 5, other: 2}


async def test_an_event_that_cannot_be_decoded_parks_its_stream(
    settings: ProjectionsSettings, connection: AsyncConnection[Any], writer: Writer
) -> None:
    good, bad = new_users(2)
    writer.logins(1, [bad])
    last = writer.logins(1, [good])
    await connection.execute(
        "UPDATE kinora_events SET state = replace(encode(state, 'escape'), '.v1\"', '.v9\"')::bytea"
        " WHERE stream_id = %s",
        [bad],
    )
    assert await scalar(connection, CHANGED) == 1
    async with running(settings, [Tally()]):
        await caught_up(connection, ["tally"], last)
    (parked,) = await parked_streams(connection)
    assert parked.stream_id == bad
    assert parked.error.startswith("UnknownEventType: ")
    assert await tallies(connection) == {good: 1}


def _logins(count: int) -> list[Any]:
    return [UserLoggedIn() for _ in range(count)]
