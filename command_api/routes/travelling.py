"""Time travel on single resources: `?at_position=` or `?at=` answers what the resource was then."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Query
from pydantic import AwareDatetime

from command_api.domain.errors import Invalid, NotFound
from command_api.routes.reading import Reading
from projections.documents import DocumentFold, DocumentView
from projections.time_travel import Moment, as_of


def _moment(
    at_position: Annotated[
        int | None,
        Query(ge=1, le=2**62, description="As it was once the log had reached this position."),
    ] = None,
    at: Annotated[
        AwareDatetime | None,
        Query(description="As it was at this time (RFC 3339), such as 2026-01-31T12:00:00Z."),
    ] = None,
) -> Moment | None:
    if at_position is not None and at is not None:
        message = "at and at_position name two moments; send one of them"
        raise Invalid.field("/query/at", "two_moments", message)
    if at is not None and at > (now := datetime.now(UTC)):
        message = f"{at.isoformat()} is in the future; here it is {now.isoformat(timespec='seconds')}"
        raise Invalid.field("/query/at", "in_the_future", message)
    return None if at_position is None and at is None else Moment(at_position, at)


MomentOfRequest = Annotated[Moment | None, Depends(_moment)]
"""None: as it is now."""


async def then(
    reading: Reading, view: DocumentView[Any], stream_id: str, moment: Moment, min_position: int | None
) -> Any:
    """What queries would have answered at that moment, with the entity tag of then.

    `X-Event-Position` is the position of the last event that the answer holds.

    Raises:
        Invalid: when the log has not reached the position.
        NotFound: when the organization had no such thing then.
    """
    head = await reading.from_log(min_position)
    if moment.position is not None and moment.position > head:
        message = f"at_position {moment.position} is beyond the log's end {head}"
        raise Invalid.field("/query/at_position", "beyond_head", message)
    fold: DocumentFold[Any] = await as_of(
        reading.parts.pool, view, reading.organization_id, stream_id, moment
    )
    shown = fold.shown()
    if shown is None or fold.document is None or fold.document.status in view.hidden:
        when = moment.at.isoformat() if moment.at else f"position {moment.position}"
        raise NotFound(f"{stream_id} did not exist at {when}")
    reading.response.headers["X-Event-Position"] = str(fold.document.last_position)
    return reading.tagged(shown, fold.document.version)
