"""What an organization proves its events with: signed heads, proofs, leaf hashes and the public keys."""

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from command_api.domain.errors import Invalid, NotFound
from command_api.problems import BadPosition
from command_api.routes.calling import RATE_LIMIT, ClosedRoute, needs
from command_api.routes.problem_docs import QUERY, problems
from command_api.routes.reading import CursorParameter, Limit, ReadingOfRequest, in_order
from command_api.transparency import heads, proofs
from command_api.transparency.proofs import ConsistencyProof, InclusionProof
from schemas.heads import AuditKeys, HeadOfOrganization, SignedHead
from schemas.ids import EventId

router = APIRouter(
    prefix="/audit", tags=["audit"], dependencies=[needs("events:read")], route_class=ClosedRoute
)

LEAVES_MEDIA_TYPE = "text/plain; charset=us-ascii"

HeadNumber = Annotated[int, Path(ge=1, le=2**62)]
_Number = Annotated[int | None, Query(ge=1, le=2**62)]


class HeadPage(BaseModel):
    """Signed heads in the order of their numbers."""

    data: Sequence[SignedHead]
    has_more: bool
    next_cursor: str | None


@router.get(
    "/keys",
    operation_id="audit_keys_list",
    response_model=AuditKeys,
    responses=problems(*QUERY),
    summary="The public keys that sign heads or have signed some",
)
async def list_keys(reading: ReadingOfRequest) -> AuditKeys:
    async with reading.parts.pool.connection() as connection:
        return await heads.keys(connection)


@router.get(
    "/heads",
    operation_id="audit_heads_list",
    response_model=HeadPage,
    responses=problems(*QUERY),
    summary="Signed heads behind a number, as they were published",
)
async def list_heads(
    reading: ReadingOfRequest,
    after: Annotated[int, Query(ge=0, le=2**62, description="Begin behind this number.")] = 0,
    limit: Limit = 50,
    cursor: CursorParameter = None,
) -> dict[str, Any]:
    place = reading.place(cursor)
    begin = after if place is None else int(place[0])
    async with reading.parts.pool.connection() as connection:
        found = await heads.heads_behind(connection, begin, limit + 1)
    following = [found[limit - 1].head.number] if len(found) > limit else None
    return reading.answer(found[:limit], following)


@router.get(
    "/heads/latest",
    operation_id="audit_heads_latest",
    response_model=HeadOfOrganization,
    responses=problems(*QUERY),
    summary="The latest signed head, with the organization's own tree and the proof that it is below it",
)
async def latest_head(reading: ReadingOfRequest) -> HeadOfOrganization:
    async with reading.parts.pool.connection() as connection:
        return await heads.head_of(connection, reading.organization_id, None)


@router.get(
    "/heads/{number}",
    operation_id="audit_heads_get",
    response_model=HeadOfOrganization,
    responses=problems(*QUERY),
    summary="One signed head, with the organization's own tree and the proof that it is below it",
)
async def get_head(number: HeadNumber, reading: ReadingOfRequest) -> HeadOfOrganization:
    async with reading.parts.pool.connection() as connection:
        return await heads.head_of(connection, reading.organization_id, number)


@router.get(
    "/proofs/inclusion",
    operation_id="audit_proofs_inclusion",
    response_model=InclusionProof,
    responses=problems(*QUERY, 409),
    summary="The proof that an event is in the organization's tree below a head",
)
async def get_inclusion(
    reading: ReadingOfRequest,
    event_id: EventId | None = None,
    position: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    head: _Number = None,
) -> InclusionProof:
    if (event_id is None) == (position is None):
        message = "give either event_id or position, and not both"
        raise Invalid.field("/query/event_id", "not_exactly_one", message)
    async with reading.parts.pool.connection() as connection:
        if position is None:
            cursor = await connection.execute(
                "SELECT notification_id FROM kinora_events WHERE event_id = %s AND organization_id = %s",
                (event_id, reading.organization_id),
            )
            row = await cursor.fetchone()
            if row is None:
                raise NotFound(f"event {event_id} does not exist")
            position = int(row[0])
        proof = await proofs.prove_inclusion(connection, reading.organization_id, position, head)
    return proof.model_copy(update={"event_id": event_id})


@router.get(
    "/proofs/consistency",
    operation_id="audit_proofs_consistency",
    response_model=ConsistencyProof,
    responses=problems(*QUERY, 409),
    summary="The proof that the organization's tree below a head begins with the one below an earlier head",
)
async def get_consistency(
    reading: ReadingOfRequest,
    from_head: Annotated[int, Query(alias="from", ge=1, le=2**62, description="Number of the older head.")],
    to_head: Annotated[
        int | None,
        Query(alias="to", ge=1, le=2**62, description="Number of the newer; by default the latest."),
    ] = None,
) -> ConsistencyProof:
    async with reading.parts.pool.connection() as connection:
        return await proofs.prove_consistency(connection, reading.organization_id, from_head, to_head)


@router.get(
    "/leaves",
    operation_id="audit_leaves",
    response_class=StreamingResponse,
    responses={
        **problems(*QUERY, 409),
        200: {"content": {"text/plain": {}}, "description": "A line per event: its position, its leaf hash."},
    },
    summary="The leaf hashes of the organization's events between two positions, one a line",
    openapi_extra={RATE_LIMIT: "event_export"},
)
async def list_leaves(
    reading: ReadingOfRequest,
    after: Annotated[int, Query(ge=0, le=2**62, description="Begin behind this position.")] = 0,
    until: Annotated[
        int | None, Query(ge=0, le=2**62, description="End with this position; by default the latest head's.")
    ] = None,
) -> StreamingResponse:
    async with reading.parts.pool.connection() as connection:
        last = (await heads.find_head(connection, None)).head.position
        await proofs.need_trees(connection, last)
    for position in (after, until or 0):
        if position > last:
            raise BadPosition(f"position {position} is beyond the latest head, which was signed at {last}")
    in_order(after, until)
    end = last if until is None else until
    lines = _lines(reading, after, end)
    return StreamingResponse(
        lines, media_type=LEAVES_MEDIA_TYPE, headers={**reading.response.headers, "X-Kinora-Until": str(end)}
    )


async def _lines(reading: ReadingOfRequest, after: int, until: int) -> AsyncIterator[bytes]:
    # A connection per page: a slow reader holds none.
    position = after
    while True:
        async with reading.parts.pool.connection() as connection:
            page = await proofs.leaf_page(connection, reading.organization_id, position, until)
        if not page:
            return
        yield b"".join(b"%d %b\n" % (place, leaf.hex().encode()) for place, leaf in page)
        position = page[-1][0]
