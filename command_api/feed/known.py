"""Whether what somebody wants to follow is there: a filter by anything else would stay silent for ever."""

from projections.reader import LogReader
from schemas.events.identity import WorkspaceCreated

_MOST_WORKSPACES = 10_000


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
