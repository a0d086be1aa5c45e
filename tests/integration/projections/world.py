"""What the tests of the read side share: a writer of stories, a view that counts, waiting for conditions."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor, sql
from psycopg.rows import scalar_row

from command_api.eventlog.log import Append, EventLog
from command_api.eventlog.mapper import LoggedEvent
from projections import catalogue
from projections.run import run
from projections.settings import ProjectionsSettings
from projections.view import Census, Rows, Table, View
from schemas.envelope import Recorded
from schemas.events import Event
from schemas.events.identity import UserLoggedIn
from schemas.ids import Prefix, new_id
from tests.stories import ORGANIZATION, metadata_at

T = TypeVar("T")


class Writer:
    """Appends events to the real log, one transaction a call."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self._versions: Counter[str] = Counter()

    def append(
        self, stream_id: str, *events: Event, organization_id: str | None = ORGANIZATION
    ) -> tuple[int, ...]:
        logged = []
        for event in events:
            self._versions[stream_id] += 1
            logged.append(
                LoggedEvent(
                    stream_id,
                    self._versions[stream_id],
                    metadata_at(datetime.now(UTC), organization_id),
                    event,
                )
            )
        (positions,) = self.log.append([Append(tuple(logged))])
        return positions

    def logins(self, count: int, users: Sequence[str]) -> int:
        """`count` logins, the users in turn; returns the last position."""
        positions: tuple[int, ...] = (0,)
        for number in range(count):
            positions = self.append(users[number % len(users)], UserLoggedIn(), organization_id=None)
        return positions[-1]


def new_users(count: int) -> list[str]:
    return [new_id(Prefix.USER) for _ in range(count)]


class Tally:
    """Counts logins by user: an event that is lost or folded twice shows. Can be told to fail on streams."""

    name = "tally"
    types: tuple[str, ...] | None = (UserLoggedIn.TYPE,)
    census: Census = (("tallies", (UserLoggedIn.TYPE,)),)
    tables: tuple[Table, ...] = (
        Table(
            name="tallies",
            stream="user_id",
            columns=("user_id text NOT NULL", "logins integer NOT NULL"),
            key="user_id",
        ),
    )

    def __init__(
        self, version: int = 1, *, name: str = "tally", fails_on: Callable[[Recorded], bool] | None = None
    ):
        self.name = name
        self.version = version
        self.fails_on = fails_on

    def begin(self) -> "TallyFold":
        return TallyFold(self)

    async def apply(self, cursor: AsyncCursor[Any], events: Sequence[Recorded]) -> None:
        for event in events:
            await cursor.execute(
                """
                INSERT INTO tallies (user_id, logins) VALUES (%s, 1)
                ON CONFLICT (user_id) DO UPDATE SET logins = tallies.logins + 1
                """,
                [event.stream_id],
            )
            if self.fails_on is not None and self.fails_on(event):
                raise ValueError(f"cannot fold {event.position}")


class TallyFold:
    def __init__(self, view: Tally) -> None:
        self._view = view
        self._tally: tuple[str, int] | None = None

    def add(self, recorded: Recorded) -> None:
        if self._view.fails_on is not None and self._view.fails_on(recorded):
            raise ValueError(f"cannot fold {recorded.position}")
        logins = self._tally[1] if self._tally else 0
        self._tally = (recorded.stream_id, logins + 1)

    def rows(self) -> Rows:
        return {} if self._tally is None else {"tallies": [self._tally]}


async def tallies(connection: AsyncConnection[Any], view: str = "tally") -> dict[str, int]:
    query = sql.SQL("SELECT user_id, logins FROM {}").format(sql.Identifier(f"view_{view}", "tallies"))
    return dict(await (await connection.execute(query)).fetchall())


async def position_of(connection: AsyncConnection[Any], view: str) -> int:
    for status in await catalogue.statuses(connection):
        if status.view == view:
            return status.position
    return -1


async def scalar(connection: AsyncConnection[Any], query: LiteralString, *values: Any) -> Any:
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchone()


async def eventually(
    condition: Callable[[], Awaitable[T]], what: str, *, seconds: float = 20.0, every: float = 0.02
) -> T:
    """The first truthy result of `condition`."""
    deadline = time.monotonic() + seconds
    while not (result := await condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        await asyncio.sleep(every)
    return result


async def caught_up(connection: AsyncConnection[Any], views: Sequence[str], position: int) -> None:
    async def reached() -> bool:
        places = {status.view: status.position for status in await catalogue.statuses(connection)}
        return all(places.get(view, -1) >= position for view in views)

    await eventually(reached, f"{', '.join(views)} to reach position {position}")


@asynccontextmanager
async def running(settings: ProjectionsSettings, views: Sequence[View]) -> AsyncIterator[asyncio.Task[None]]:
    """The projections process in this one, from its readiness to its orderly end."""
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(run(settings, stop, ready=ready.set, views=views))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    assert ready.is_set(), "run() ended before it was ready"
    try:
        yield task
    finally:
        stop.set()
        await task


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    begin = time.monotonic()
    yield lambda: time.monotonic() - begin


def cut_connections(conninfo: str) -> int:
    """End every connection of the read side from the server's side; returns how many there were."""
    with psycopg.connect(conninfo, autocommit=True) as admin:
        cut = admin.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name = 'kinora-projections' AND datname = current_database()
            """
        ).fetchall()
    return len(cut)
