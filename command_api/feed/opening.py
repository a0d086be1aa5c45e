"""From what a client asks for to a subscription, or to the reason why there is none."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from command_api.auth.tokens import Principal
from command_api.feed.frames import EventFilter, From, Subscribe
from command_api.feed.known import is_stream, is_workspace, never
from command_api.feed.parts import FeedParts
from command_api.feed.subscription import Selection, Subscription
from projections.sentences import types_from
from schemas.events import REGISTRY
from schemas.pins import UnknownVersion, pins_of

_CLOCKS_DIFFER = timedelta(minutes=1)
"""By so much a client's "now" may lie ahead of the service's."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a subscription cannot be had."""

    code: str
    message: str
    field: str | None = None
    """JSON pointer to what is wrong in the frame that asked."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """The position is one of another log."""

    reason: str
    """``log_restored`` when that log was restored from a backup, else ``log_changed``."""


async def open_subscription(
    parts: FeedParts, caller: Principal, asked: Subscribe
) -> Subscription | Fault | Foreign:
    """The subscription, not yet running."""
    # First of all: whatever else is wrong with positions and ids of another log does not matter.
    reason = parts.foreign(asked.log_id)
    if reason is not None:
        return Foreign(reason)
    head = await parts.reader.head()
    wanted = asked.filter
    fault = _fault(asked, head, caller.user_id)
    if fault is not None:
        return fault
    try:
        pins = pins_of(asked.pinned)
    except UnknownVersion as error:
        return Fault(error.code, error.message, "/pinned")
    stream_id = wanted.job_id or wanted.stream_id
    selection = Selection(
        # A person's own stream is of no organization, and nobody else's to read.
        organization_id=None if stream_id == caller.user_id else caller.organization_id,
        types=_types(wanted),
        stream_id=stream_id,
        workspace_id=wanted.workspace_id,
    )
    if stream_id is not None and not await is_stream(parts.reader, selection.organization_id, stream_id):
        return Fault("not_found", f"{stream_id} does not exist", "/filter")
    if wanted.workspace_id is not None and not await is_workspace(
        parts.reader, caller.organization_id, wanted.workspace_id
    ):
        return Fault("not_found", f"{wanted.workspace_id} does not exist", "/filter/workspace_id")
    return Subscription(
        name=asked.sub,
        selection=selection,
        position=await _start(parts, asked, head),
        reader=parts.reader,
        tail=parts.tail,
        head=head,
        conflated=asked.mode == "conflated",
        pins=pins,
    )


async def _start(parts: FeedParts, asked: Subscribe, head: int) -> int:
    match asked.start:
        case From(position=int(position)):
            return position
        case From(time=time) if time is not None:
            return await parts.reader.place_of(time)
        case "earliest":
            return 0
        case _:
            return head


def _types(wanted: EventFilter) -> frozenset[str] | None:
    named = None if wanted.types is None else frozenset(wanted.types)
    if wanted.min_level in (None, "detail"):
        return named
    levelled = types_from(wanted.min_level)
    return levelled if named is None else levelled & named


def _fault(asked: Subscribe, head: int, user_id: str) -> Fault | None:
    wanted = asked.filter
    known = {event_type.TYPE for event_type in REGISTRY.types}
    unknown = sorted(set(wanted.types or ()) - known)
    if unknown:
        named = ", ".join(name[:100] for name in unknown[:5])
        return Fault(
            "unknown_type",
            f"there are no events of type {named}; give names without the version, such as"
            " kinora.job.succeeded; /asyncapi.json has all of them",
            "/filter/types",
        )
    why = never(wanted.types or (), wanted.job_id or wanted.stream_id, user_id)
    if why is not None:
        return Fault("bad_filter", why, "/filter/types")
    if _types(wanted) == frozenset():
        return Fault("bad_filter", f"none of the types is of level {wanted.min_level} or above", "/filter")
    if wanted.job_id and wanted.stream_id not in (None, wanted.job_id):
        return Fault("bad_filter", "job_id and stream_id name different streams; give one of them", "/filter")
    if wanted.telemetry and wanted.job_id is None:
        return Fault("bad_filter", "telemetry is a job's; name it in job_id", "/filter/job_id")
    if isinstance(asked.start, From) and (asked.start.position or 0) > head:
        message = f"position {asked.start.position} is beyond the log's end {head}"
        return Fault("bad_position", message, "/from/position")
    now = datetime.now(UTC)
    if isinstance(asked.start, From) and (asked.start.time or now) > now + _CLOCKS_DIFFER:
        return Fault(
            "in_the_future",
            f"{asked.start.time} is in the future; here it is {now.isoformat(timespec='seconds')}."
            " For what comes next, begin with latest",
            "/from/time",
        )
    return None
