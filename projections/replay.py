"""Taking parked streams up again, by command, once what broke them is put right."""

from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from projections import parking
from projections.catalogue import lock_active, use_schema
from projections.errors import ProjectionError
from projections.folding import try_event, wanted
from projections.listening import connect
from projections.parking import ParkedStream
from projections.reader import LogRow, read_page
from projections.view import View, active_schema

PAGE = 500


@dataclass(frozen=True)
class Replayed:
    """What a replay achieved."""

    view: str
    streams: tuple[str, ...]
    """Streams that the view follows again."""
    still_parked: tuple[str, ...]
    events: int
    """Events that were folded."""


async def replay_parked(conninfo: str, view: View, stream_id: str | None = None) -> Replayed:
    """Fold what waits in the parked streams of `view`, or in one of them; each stream in one transaction.

    May run while the projections process works: both hold the view's row while they write.
    """
    async with await connect(conninfo) as connection:
        names = [
            parked.stream_id
            for parked in await parking.parked_streams(connection, view.name)
            if stream_id in (None, parked.stream_id)
        ]
        followed: list[str] = []
        stuck: list[str] = []
        events = 0
        for name in names:
            folded, done = await _replay(connection, view, name)
            events += folded
            (followed if done else stuck).append(name)
    return Replayed(view.name, tuple(followed), tuple(stuck), events)


async def _replay(connection: AsyncConnection[Any], view: View, stream_id: str) -> tuple[int, bool]:
    async with connection.transaction():
        active = await lock_active(connection, view.name)
        if active is None or active.version != view.version:
            raise ProjectionError(
                f"view {view.name} is not built by this version of Kinora; start `kinora projections` first"
            )
        found = [p for p in await parking.parked_streams(connection, view.name) if p.stream_id == stream_id]
        if not found:
            return 0, True
        await use_schema(connection, active_schema(view.name))
        folded, failed = await _fold_stream(connection, view, found[0], active.position)
        await parking.unpark(connection, view.name, active.generation, stream_id)
        if failed is None:
            return folded, True
        row, error = failed
        await parking.park(
            connection,
            view.name,
            active.generation,
            row,
            error,
            last_position=found[0].last_position,
            events=found[0].events - folded,
        )
        return folded, False


async def _fold_stream(
    connection: AsyncConnection[Any], view: View, parked: ParkedStream, until: int
) -> tuple[int, tuple[LogRow, Exception] | None]:
    folded, after = 0, parked.first_position - 1
    while True:
        page = await read_page(connection, after, PAGE, stream_id=parked.stream_id, until=until)
        for row in wanted(view, page):
            error = await try_event(connection, view, row)
            if error is not None:
                return folded, (row, error)
            folded += 1
        if len(page) < PAGE:
            return folded, None
        after = page[-1].position
