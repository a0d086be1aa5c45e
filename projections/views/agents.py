"""Agents: which nodes there are, what they can do, whether they are heard, and what they work on."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal, LiteralString

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import class_row, dict_row
from pydantic import BaseModel, ConfigDict, computed_field

from projections.documents import (
    Cursor,
    Document,
    DocumentFold,
    DocumentQueries,
    DocumentView,
    ViewModel,
    beginning,
    begun,
    document_table,
    evolve,
)
from projections.view import Row, Table
from schemas.envelope import Recorded
from schemas.events import agent as events
from schemas.events import dataset, job, model
from schemas.ids import Prefix, id_prefix


class HeldItem(ViewModel):
    """A job, dataset or model that an agent works on."""

    item_id: str
    attempt: int
    since: datetime


class AgentDocument(Document):
    """What an agent's own stream tells."""

    status: Literal["online", "offline", "revoked"]
    name: str
    pool: str
    capabilities: events.Capabilities | None = None
    """None until the node was probed."""
    lost_reason: Literal["lease_expired", "shut_down"] | None = None
    joined_at: datetime | None = None
    """When its node brought its key; None while the agent waits for its node."""
    changed_at: datetime
    """When it was last enrolled, heard again, lost or revoked."""


class AgentView(AgentDocument):
    """An agent as people see it."""

    current: HeldItem | None = None
    """What it works on; not known of moments past."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def online(self) -> bool:
        return self.status == "online"


_TAKEN = (job.JobAssigned, dataset.DatasetValidationStarted, model.ModelValidationStarted)
# Whatever ends an attempt lets the item go; JobQueued alone would do for most, but not for all.
_LET_GO = (
    job.AgentDeclined,
    job.AttemptReleased,
    job.LeaseExpired,
    job.AttemptFailed,
    job.JobQueued,
    job.JobSucceeded,
    job.JobFailed,
    job.JobStopped,
    dataset.DatasetValidationInterrupted,
    dataset.DatasetValidated,
    dataset.DatasetRejected,
    dataset.DatasetDeleted,
    model.ModelValidationInterrupted,
    model.ModelValidated,
    model.ModelRejected,
    model.ModelDeleted,
)


class Agents(DocumentView[AgentDocument]):
    name = "agents"
    version = 2
    table: ClassVar[LiteralString] = "agents"
    model = AgentDocument
    tables = (
        document_table("agents"),
        # Keyed by item: these rows follow the item's stream, the agents' rows follow the agent's.
        Table(
            name="held_items",
            stream="item_id",
            columns=(
                "item_id text NOT NULL",
                "agent_id text NOT NULL",
                "attempt integer NOT NULL",
                "since timestamptz NOT NULL",
                "position bigint NOT NULL",
            ),
            key="item_id",
            indexes=("CREATE INDEX held_items_agent ON held_items (agent_id, position DESC)",),
        ),
    )
    types = (
        events.AgentEnrolled.TYPE,
        events.AgentJoined.TYPE,
        events.AgentRevoked.TYPE,
        events.AgentProbed.TYPE,
        events.AgentOnline.TYPE,
        events.AgentLost.TYPE,
        *(event.TYPE for event in _TAKEN),
        *(event.TYPE for event in _LET_GO),
    )
    census = (("agents", (events.AgentEnrolled.TYPE,)),)

    def fold(self, before: AgentDocument | None, recorded: Recorded) -> AgentDocument:
        event, at = recorded.event, recorded.metadata.recorded_at
        if isinstance(event, events.AgentEnrolled):
            return AgentDocument(
                **beginning(recorded), status="offline", name=event.name, pool=event.pool, changed_at=at
            )
        agent = begun(before, recorded)
        match event:
            case events.AgentProbed(capabilities=capabilities):
                return evolve(agent, recorded, capabilities=capabilities)
            case events.AgentJoined():
                return evolve(agent, recorded, joined_at=at)
            case events.AgentRevoked():
                return evolve(agent, recorded, status="revoked", changed_at=at)
            case events.AgentOnline():
                return evolve(agent, recorded, status="online", lost_reason=None, changed_at=at)
            case events.AgentLost(reason=reason):
                return evolve(agent, recorded, status="offline", lost_reason=reason, changed_at=at)
            case _:
                return evolve(agent, recorded)

    def begin(self) -> "AgentFold":
        return AgentFold(self)

    async def apply(self, cursor: AsyncCursor[Any], events_of_page: Sequence[Recorded]) -> None:
        own = [each for each in events_of_page if id_prefix(each.stream_id) is Prefix.AGENT]
        if own:
            await super().apply(cursor, own)
        for recorded in events_of_page:
            if isinstance(recorded.event, _TAKEN):
                await _take(cursor, _held_row(recorded, recorded.event))
            elif isinstance(recorded.event, _LET_GO):
                await cursor.execute("DELETE FROM held_items WHERE item_id = %s", [recorded.stream_id])


class AgentFold(DocumentFold[AgentDocument]):
    """An agent's stream, or that of an item which some agent may hold."""

    def __init__(self, view: Agents) -> None:
        super().__init__(view)
        self._held: list[Row] = []

    def add(self, recorded: Recorded) -> None:
        if id_prefix(recorded.stream_id) is Prefix.AGENT:
            super().add(recorded)
        elif isinstance(recorded.event, _TAKEN):
            self._held = [_held_row(recorded, recorded.event)]
        elif isinstance(recorded.event, _LET_GO):
            self._held = []

    def rows(self) -> dict[str, list[Row]]:
        return super().rows() | {"held_items": self._held}

    def shown(self) -> AgentView | None:
        """Without what it worked on, which is in the items' streams."""
        return None if self.document is None else AgentView(**dict(self.document))


def _held_row(
    recorded: Recorded,
    event: job.JobAssigned | dataset.DatasetValidationStarted | model.ModelValidationStarted,
) -> Row:
    at = recorded.metadata.recorded_at
    return (recorded.stream_id, event.agent_id, event.attempt, at, recorded.position)


async def _take(cursor: AsyncCursor[Any], held: Row) -> None:
    await cursor.execute(
        """
        INSERT INTO held_items (item_id, agent_id, attempt, since, position) VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (item_id) DO UPDATE
           SET agent_id = excluded.agent_id, attempt = excluded.attempt,
               since = excluded.since, position = excluded.position
        """,
        held,
    )


_QUERIES = DocumentQueries("agents", "agents", AgentDocument)


async def get(connection: AsyncConnection[Any], organization_id: str, agent_id: str) -> AgentView | None:
    """The agent, or None when the organization has none of that id."""
    found = await _QUERIES.get(connection, organization_id, agent_id)
    return None if found is None else (await _with_items(connection, [found]))[0]


async def page(
    connection: AsyncConnection[Any],
    organization_id: str,
    *,
    limit: int,
    after: Cursor | None = None,
    statuses: Sequence[str] | None = None,
) -> list[AgentView]:
    """Newest first; `after` is (created_at, id) of the last row of the page before."""
    found = await _QUERIES.page(connection, organization_id, limit=limit, after=after, statuses=statuses)
    return await _with_items(connection, [_QUERIES.read(stored) for stored in found])


async def of_pool(connection: AsyncConnection[Any], organization_id: str, pool: str) -> list[AgentDocument]:
    """The agents of a pool, without the revoked ones, the oldest first."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT document
              FROM view_agents.agents
             WHERE organization_id = %s AND document->>'pool' = %s AND status <> 'revoked'
             ORDER BY created_at, id
            """,
            [organization_id, pool],
        )
        return [AgentDocument.model_validate(row["document"]) for row in await cursor.fetchall()]


class _Held(HeldItem):
    agent_id: str


async def _with_items(connection: AsyncConnection[Any], agents: Sequence[AgentDocument]) -> list[AgentView]:
    async with connection.cursor(row_factory=class_row(_Held)) as cursor:
        await cursor.execute(
            """
            SELECT DISTINCT ON (agent_id) agent_id, item_id, attempt, since
              FROM view_agents.held_items
             WHERE agent_id = ANY(%s)
             ORDER BY agent_id, position DESC
            """,
            [[agent.id for agent in agents]],
        )
        held = {row.agent_id: HeldItem(**dict(row)) for row in await cursor.fetchall()}
    return [AgentView(**dict(agent), current=held.get(agent.id)) for agent in agents]


class Node(BaseModel):
    """An agent of any organization, without its name: what the installation as a whole can count on."""

    model_config = ConfigDict(frozen=True)

    online: bool
    device: str = "not probed yet"
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    four_bit_kernel: bool = False


async def fleet(connection: AsyncConnection[Any]) -> tuple[Node, ...]:
    """Every agent of the installation, without the revoked ones."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT status = 'online' AS online, document->'capabilities' AS can
              FROM view_agents.agents
             WHERE status <> 'revoked'
            """
        )
        rows = await cursor.fetchall()
    known = {"device", "memory_bytes", "gpu_memory_bytes", "four_bit_kernel"}
    return tuple(
        Node(online=row["online"], **{name: row["can"][name] for name in known & set(row["can"] or ())})
        for row in rows
    )
