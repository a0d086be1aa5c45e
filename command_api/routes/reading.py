"""What every query route shares: reading your own writes, pages with signed cursors, and entity tags."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel

from command_api.domain.errors import Invalid
from command_api.problems import BadPosition, LogChanged, ProjectionBehind
from command_api.routes.calling import CallerOfRequest
from command_api.routes.parts import Parts, PartsOfRequest
from projections.documents import StoredDocument
from projections.reader import LogRow
from schemas.events import REGISTRY
from schemas.pins import Pins, UnknownVersion, pins_of

WAIT_SECONDS = 2.0

MinPosition = Annotated[
    int | None,
    Query(
        ge=0,
        le=2**62,
        description="Answer only from this position on (X-Event-Position of a command); waits up to 2 s.",
    ),
]
Limit = Annotated[int, Query(ge=1, le=200, description="Items per page.")]
CursorParameter = Annotated[
    str | None, Query(max_length=1024, description="`next_cursor` of the page before, unchanged.")
]

EVENT_TYPES = tuple(event.TYPE for event in REGISTRY.types)

Item = TypeVar("Item")
Place = tuple[datetime, str]


class Page(BaseModel, Generic[Item]):
    """One page of a list; go on with `next_cursor` while `has_more`."""

    data: list[Item]
    has_more: bool
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Reading:
    """One query request."""

    organization_id: str
    workspace_id: str
    parts: Parts
    request: Request
    response: Response

    async def fresh(self, view: str, min_position: int | None) -> int:
        """Wait until the view has read as far as the caller has written, and say how far it has.

        Raises:
            BadPosition: when the log has no such position.
            ProjectionBehind: when the view needs longer than 2 s.
        """
        positions = self.parts.positions
        current = positions.current(view)
        if min_position is not None and current < min_position:
            head = await self.parts.reader.head()
            if min_position > head:
                raise BadPosition(f"min_position {min_position} is beyond the log's end {head}")
            current = await positions.wait_for(view, min_position, WAIT_SECONDS)
            if current < min_position:
                raise ProjectionBehind(f"{view} has read to {current}, not yet to {min_position}; try again")
        self.response.headers["X-Projection-Position"] = str(current)
        return current

    async def from_log(self, min_position: int | None = None) -> int:
        """For answers read from the log itself, which is never behind."""
        head = await self.parts.reader.head()
        if min_position is not None and min_position > head:
            raise BadPosition(f"min_position {min_position} is beyond the log's end {head}")
        self.response.headers["X-Projection-Position"] = str(head)
        return head

    def in_log(self, log_id: str | None) -> None:
        """Refuse positions of another log.

        Raises:
            LogChanged: when `log_id` is not this log's.
        """
        foreign = self.parts.log.foreign(log_id)
        if foreign is not None:
            how = "was restored from a backup" if foreign == "log_restored" else "is another one"
            raise LogChanged(
                f"the log {how} and is {self.parts.log.log_id} now, not {log_id};"
                " begin again with after=0 and without cursor"
            )

    def log_place(self, cursor: str | None, filters: Sequence[str] = ()) -> int | None:
        """The position that a cursor of this list of events names.

        Raises:
            LogChanged: when it was given out for the log that this one was restored from.
        """
        place = self.place(cursor, filters)
        if place is None:
            return None
        position, log_id = place
        self.in_log(log_id)
        return int(position)

    def log_answer(self, rows: Sequence[LogRow], limit: int, filters: Sequence[str] = ()) -> dict[str, Any]:
        """A page of events; `rows` holds one more than `limit` when there is a next page."""
        log_id, shown = self.parts.log.log_id, rows[:limit]
        place = [shown[-1].position, log_id] if len(rows) > limit else None
        return self.answer([row.public(log_id) for row in shown], place, filters)

    async def page(
        self,
        items: Callable[[int, Place | None], Awaitable[Sequence[Any]]],
        *,
        limit: int,
        cursor: str | None,
        filters: Sequence[str] = (),
    ) -> dict[str, Any]:
        """A page in order of (created_at, id); one item more than `limit` is read, to know of the next."""
        found, place = await self._found(items, limit, cursor, filters)
        return self.answer(found, place, filters)

    async def stored_page(
        self,
        items: Callable[[int, Place | None], Awaitable[Sequence[StoredDocument]]],
        *,
        limit: int,
        cursor: str | None,
        filters: Sequence[str] = (),
    ) -> Response:
        """As `page`, of documents that are shown just as they are stored."""
        found, place = await self._found(items, limit, cursor, filters)
        around = self.answer([], place, filters)
        del around["data"]
        listed = ",".join(document.json for document in found)
        content = f'{{"data":[{listed}],{json.dumps(around)[1:]}'
        return Response(content, media_type="application/json", headers=dict(self.response.headers))

    async def _found(
        self,
        items: Callable[[int, Place | None], Awaitable[Sequence[Any]]],
        limit: int,
        cursor: str | None,
        filters: Sequence[str],
    ) -> tuple[list[Any], list[Any] | None]:
        scope = self._scope(filters)
        after: Place | None = None
        if cursor is not None:
            created_at, identifier = self.parts.cursors.read(scope, cursor)
            after = (datetime.fromisoformat(created_at), identifier)
        found = list(await items(limit + 1, after))
        last = found[limit - 1] if len(found) > limit else None
        return found[:limit], None if last is None else [last.created_at.isoformat(), last.id]

    def place(self, cursor: str | None, filters: Sequence[str] = ()) -> list[Any] | None:
        """The place that a cursor of this list names."""
        return None if cursor is None else self.parts.cursors.read(self._scope(filters), cursor)

    def answer(
        self, items: Sequence[Any], next_place: list[Any] | None, filters: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The page as its answer, with a Link header when there is a next one."""
        next_cursor = None
        if next_place is not None:
            next_cursor = self.parts.cursors.sign(self._scope(filters), next_place)
            following = self.request.url.include_query_params(cursor=next_cursor)
            self.response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
        return {"data": list(items), "has_more": next_cursor is not None, "next_cursor": next_cursor}

    def _scope(self, filters: Sequence[str]) -> str:
        return "\0".join((self.organization_id, self.request.url.path, *filters))

    def tagged(self, document: BaseModel, version: int) -> Any:
        """The document with its entity tag, or 304 when the caller holds this version already."""
        tag = f'"v{version}"'
        self.response.headers["ETag"] = tag
        known = [
            part.strip().removeprefix("W/")
            for part in self.request.headers.get("if-none-match", "").split(",")
        ]
        if tag in known:
            return Response(status_code=304, headers=dict(self.response.headers))
        return document


async def _reading(
    request: Request, response: Response, caller: CallerOfRequest, parts: PartsOfRequest
) -> Reading:
    return Reading(caller.organization_id, caller.workspace_id, parts, request, response)


ReadingOfRequest = Annotated[Reading, Depends(_reading)]


PinnedParameter = Annotated[
    str | None,
    Query(
        max_length=4000,
        description="Versions to be had whatever was stored, such as kinora.job.progressed.v1; with commas.",
    ),
]


def listed(values: str | None) -> list[str]:
    """``a,b`` as a list; empty when absent."""
    return [value for part in (values or "").split(",") if (value := part.strip())]


def pins_asked(values: str | None) -> Pins:
    """The versions that a reader pinned.

    Raises:
        Invalid: naming the versions that there are.
    """
    try:
        return pins_of(listed(values))
    except UnknownVersion as error:
        raise Invalid.field("/query/pinned", error.code, error.message) from None


def in_order(after: int, until: int | None) -> None:
    """Refuse an end before the beginning, which would only ever be answered with nothing."""
    if until is not None and until < after:
        message = f"until {until} is before after {after}; give {after} or more, or leave it out"
        raise Invalid.field("/query/until", "invalid_request", message)


def chosen(name: str, values: str | None, possible: Sequence[str]) -> list[str] | None:
    """The filter ``a,b`` as a list; None when absent.

    Raises:
        Invalid: nothing is named, or something unknown, which would only ever find nothing.
    """
    if values is None:
        return None
    named = listed(values)
    if not named:
        raise Invalid.field(f"/query/{name}", "invalid_request", f"{name} names none; leave it out for all")
    unknown = sorted(set(named) - set(possible))
    if unknown:
        given = ", ".join(ascii(value[:60]) for value in unknown[:5])
        message = f"{name} names {given}; there are {', '.join(possible)}"
        raise Invalid.field(f"/query/{name}", "unknown_value", message)
    return named
