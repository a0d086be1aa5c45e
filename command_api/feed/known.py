"""Whether what somebody wants to follow is there: a filter by anything else would stay silent for ever."""

from collections.abc import Iterable

from projections.reader import LogReader
from schemas.events.identity import PERSONAL, WorkspaceCreated

_MOST_WORKSPACES = 10_000


def never(types: Iterable[str], stream_id: str | None, user_id: str) -> str | None:
    """Why some of the types never happen in what the person asks for; None when all may.

    `stream_id` is the one stream that was asked for, or None for the organization's.
    """
    named = sorted(types)
    personal = [name for name in named if name.startswith(PERSONAL)]
    if personal and stream_id != user_id:
        return (
            f"{', '.join(personal)} happen in a person's own stream, of no organization; yours is had"
            f" with {user_id} as stream_id, and nobody else's can be followed"
        )
    if stream_id == user_id and len(personal) < len(named):
        others = ", ".join(name for name in named if name not in personal)
        return f"{others} never happen in {user_id}, your own stream; leave them out, or the stream_id"
    return None


async def is_stream(reader: LogReader, organization_id: str | None, stream_id: str) -> bool:
    """Whether the organization has that job, dataset, model …; None for what is of no organization."""
    return bool(await reader.page(0, 1, organization_id=organization_id, stream_id=stream_id))


async def is_workspace(reader: LogReader, organization_id: str, workspace_id: str) -> bool:
    """Whether the organization has it: its own stream tells of all that it ever had."""
    begun = await reader.page(
        0,
        _MOST_WORKSPACES,
        organization_id=organization_id,
        stream_id=organization_id,
        types=[WorkspaceCreated.TYPE],
    )
    events = [row.recorded().event for row in begun]
    return any(isinstance(event, WorkspaceCreated) and event.workspace_id == workspace_id for event in events)
