"""A resource as it was: its own stream, folded by its view's fold up to a position or a time.

The view's tables are not asked, so the answer is the same while they are behind, parked or being rebuilt.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from psycopg_pool import AsyncConnectionPool

from projections.documents import Document, DocumentFold, DocumentView
from projections.reader import LogRow, read_page

PAGE = 1000

D = TypeVar("D", bound=Document)


@dataclass(frozen=True, slots=True)
class Moment:
    """A place in the log, or in time: up to the last event recorded no later."""

    position: int | None = None
    at: datetime | None = None


async def as_of(
    pool: AsyncConnectionPool[Any],
    view: DocumentView[D],
    organization_id: str,
    stream_id: str,
    moment: Moment,
) -> DocumentFold[D]:
    """The stream folded up to `moment`; without a document when it had no event then.

    Only events of `organization_id` count. A clock that went back within a stream does not hide events: the
    fold ends before the first that was recorded after `moment.at`.
    """
    fold, after = view.begin(), 0
    while True:
        async with pool.connection() as connection:
            page = await read_page(
                connection,
                after,
                PAGE,
                organization_id=organization_id,
                stream_id=stream_id,
                until=moment.position,
            )
        # Off the loop: a long training's stream has thousands of events.
        ended = await asyncio.to_thread(_fold, view, fold, page, moment.at)
        if ended or len(page) < PAGE:
            return fold
        after = page[-1].position


def _fold(view: DocumentView[D], fold: DocumentFold[D], page: Sequence[LogRow], at: datetime | None) -> bool:
    """Whether the moment was reached within the page."""
    for row in page:
        recorded = row.recorded()
        if at is not None and recorded.metadata.recorded_at > at:
            return True
        if recorded.event.TYPE in view.types:
            fold.add(recorded)
    return False
