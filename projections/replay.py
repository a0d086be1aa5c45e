"""Taking parked streams up again, by command, once what broke them is put right."""

import time
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from projections import parking
from projections.catalogue import lock_active, use_schema
from projections.errors import NotParked, ViewOutdated
from projections.folding import try_events, wanted
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
    """Streams that failed again, perhaps at a later event."""
    events: int
    """Events that were folded."""
    remaining: int
    """Streams that were not tried, because the time was up."""


async def replay_parked(
    conninfo: str, view: View, stream_id: str | None = None, *, seconds: float = float("inf")
) -> Replayed:
    """Fold what waits in the parked streams of `view`, or in one of them; each stream in one transaction.

    May run while the projections process works: both hold the view's row while they write. No stream is
    begun once `seconds` have passed.

    Raises:
        NotParked: when `stream_id` is named and the view does follow it.
        ViewOutdated: when the tables were made by another version of the view.
    """
    deadline = time.monotonic() + seconds
    async with await connect(conninfo) as connection:
        found = [
            parked
            for parked in await parking.parked_streams(connection, view.name)
            if stream_id in (None, parked.stream_id)
        ]
        # One that fails is parked anew: calls that run out of time one after the other get to all of them.
        names = [parked.stream_id for parked in sorted(found, key=lambda parked: parked.parked_at)]
        if stream_id is not None and not names:
            raise NotParked(
                f"{view.name} has not parked {stream_id}: it follows that stream, or there is none;"
                " `kinora projections parked` lists what waits"
            )
        followed: list[str] = []
        stuck: list[str] = []
        events = 0
        for name in names:
            if time.monotonic() > deadline:
                break
            folded, done = await _replay(connection, view, name)
            events += folded
            (followed if done else stuck).append(name)
    remaining = len(names) - len(followed) - len(stuck)
    return Replayed(view.name, tuple(followed), tuple(stuck), events, remaining)


async def _replay(connection: AsyncConnection[Any], view: View, stream_id: str) -> tuple[int, bool]:
    async with connection.transaction():
        active = await lock_active(connection, view.name)
        if active is None or active.version != view.version:
            raise ViewOutdated(
                f"view {view.name} is of version {active.version if active else 0}, this release folds"
                f" version {view.version}; wait until the projections process has rebuilt it"
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
        rows = wanted(view, page)
        if rows and await try_events(connection, view, rows) is not None:
            # One of them fails: those before it count.
            for row in rows:
                error = await try_events(connection, view, [row])
                if error is not None:
                    return folded, (row, error)
                folded += 1
        else:
            folded += len(rows)
        if len(page) < PAGE:
            return folded, None
        after = page[-1].position
