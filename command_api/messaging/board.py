"""What the orchestrator has to attend to right now: a fold of the log, kept in memory.

It holds the enrolled agents, and every item that is waiting, queued or held. Finished items leave it.
Everything is rebuilt from the log at start, so a restart forgets nothing and repeats nothing.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from command_api.domain.job_phases import KEPT_CHECKPOINTS
from command_api.messaging.leases import Held
from command_api.messaging.subscription_board import SUBSCRIPTION_EVENTS, SubscriptionBoard
from schemas.envelope import Recorded
from schemas.events import Event
from schemas.events import agent as agents
from schemas.events import dataset as datasets
from schemas.events import job as jobs
from schemas.events import model as models
from schemas.events.agent import Capabilities
from schemas.objects import StoredObject
from schemas.subjects import DEFAULT_POOL, Lane, PriorityLevel
from schemas.work import DesiredState

LIFECYCLE: tuple[type[Event], ...] = (
    agents.AgentEnrolled,
    agents.AgentJoined,
    agents.AgentProbed,
    agents.AgentRevoked,
    agents.AgentOnline,
    agents.AgentLost,
    datasets.DatasetImportRequested,
    datasets.DatasetImportFailed,
    datasets.DatasetImportRetried,
    datasets.DatasetRegistered,
    datasets.DatasetUploaded,
    datasets.DatasetValidationStarted,
    datasets.DatasetValidationInterrupted,
    datasets.DatasetValidated,
    datasets.DatasetRejected,
    datasets.DatasetDeleted,
    models.ModelImportRequested,
    models.ModelImportFailed,
    models.ModelImportRetried,
    models.ModelRegistered,
    models.ModelUploaded,
    models.ModelValidationStarted,
    models.ModelValidationInterrupted,
    models.ModelValidated,
    models.ModelRejected,
    models.ModelDeleted,
    jobs.JobRequested,
    jobs.JobValidationStarted,
    jobs.JobPlanned,
    jobs.JobQueued,
    jobs.JobAssigned,
    jobs.CheckpointSaved,
    jobs.JobStopRequested,
    jobs.TrainingFinished,
    jobs.AgentDeclined,
    jobs.AttemptReleased,
    jobs.LeaseExpired,
    jobs.AttemptFailed,
    jobs.JobSucceeded,
    jobs.JobFailed,
    jobs.JobStopped,
    *SUBSCRIPTION_EVENTS,
)
"""The events that move something on the board; measurements and logs do not."""

LIFECYCLE_TYPES = tuple(event.TYPE for event in LIFECYCLE)

VALIDATION_BACKOFF = timedelta(seconds=5)
LONGEST_VALIDATION_BACKOFF = timedelta(seconds=300)


@dataclass(frozen=True, slots=True)
class Agent:
    """An enrolled node."""

    agent_id: str
    organization_id: str
    workspace_id: str | None
    pool: str
    online: bool = False
    public_key: str | None = None
    """Of the node that joined as this agent."""
    revoked: bool = False
    capabilities: Capabilities | None = None
    """What its node said of itself; None before it first did."""


Phase = Literal[
    "importing", "import_failed", "declared", "requested", "validating", "queued", "held", "between"
]
"""``between``: an attempt ended and the event that says what follows stands next in the log."""
UNDECIDED: tuple[Phase, ...] = ("requested", "validating")


@dataclass(frozen=True, slots=True)
class Item:
    """A job to train, or a dataset or model to validate."""

    item_id: str
    organization_id: str
    workspace_id: str | None
    correlation_id: str
    phase: Phase
    lane: Lane
    since: datetime
    """When it came into this phase."""
    traceparent: str | None = None
    """Of the last decision about it; what follows belongs to the same trace."""
    last_event_id: str | None = None
    """What was recorded of it last; what is decided next follows from that."""
    listing: StoredObject | None = None
    """Of a dataset or model; a job's inputs stand in `request`."""
    import_of: datasets.DatasetImportRequested | models.ModelImportRequested | None = None
    request: jobs.JobRequested | None = None
    plan: jobs.JobPlanned | None = None
    attempt: int = 0
    """The queued, held or importing attempt; the last one otherwise."""
    not_before: datetime | None = None
    """When the pause of the queued attempt is over, by the clock of whoever recorded it."""
    pause: timedelta = timedelta(0)
    """How long that pause is, by any clock."""
    agent_id: str | None = None
    stopping: jobs.StopMode | None = None
    checkpoints: tuple[jobs.CheckpointSaved, ...] = ()
    """The newest ones, oldest first."""
    resume: jobs.CheckpointSaved | None = None
    """What the queued or held attempt goes on from; later checkpoints of that attempt do not change it."""

    @property
    def priority(self) -> PriorityLevel:
        return self.request.priority if self.request is not None else "normal"

    @property
    def held(self) -> Held | None:
        if self.phase != "held" or self.agent_id is None:
            return None
        return Held(self.item_id, self.attempt, self.agent_id)

    @property
    def desired(self) -> DesiredState:
        """What the agent that holds it should be doing."""
        match self.stopping:
            case None:
                return "run"
            case "graceful":
                return "stop"
            case "immediate":
                return "stop_immediately"


@dataclass(frozen=True, slots=True)
class Offer:
    """A queued attempt, as agents should find it."""

    item: Item
    pool: str


@dataclass
class Board:
    """Apply every lifecycle event in log order; the rest are questions."""

    position: int = 0
    agents: dict[str, Agent] = field(default_factory=dict)
    items: dict[str, Item] = field(default_factory=dict)
    _queued: dict[str, None] = field(default_factory=dict)
    _undecided: dict[str, None] = field(default_factory=dict)
    """Ids by phase, longest there first: thousands may be queued, and one event moves one of them."""
    _stirred: set[str] = field(default_factory=set)
    void_keys: dict[str, datetime] = field(default_factory=dict)
    """Public keys that stopped speaking for an agent, and when they last did."""
    subscriptions: SubscriptionBoard = field(default_factory=SubscriptionBoard)

    def apply(self, recorded: Recorded) -> None:
        """Fold one event."""
        self.position = max(self.position, recorded.position)
        match recorded.event:
            case (
                agents.AgentEnrolled()
                | agents.AgentJoined()
                | agents.AgentProbed()
                | agents.AgentRevoked()
                | agents.AgentOnline()
                | agents.AgentLost()
            ):
                self._apply_agent(recorded)
            case event if isinstance(event, SUBSCRIPTION_EVENTS):
                self.subscriptions.apply(recorded)
            case datasets.DatasetImportRequested() | models.ModelImportRequested() as request:
                self.items[recorded.stream_id] = replace(
                    _new(recorded, "importing", "validate"), import_of=request, attempt=1
                )
            case datasets.DatasetRegistered(listing=listing) | models.ModelRegistered(listing=listing):
                self._put(replace(_new(recorded, "declared", "validate"), listing=listing))
            case jobs.JobRequested() as request:
                self._put(replace(_new(recorded, "requested", "train"), request=request))
            case _:
                item = self.items.get(recorded.stream_id)
                if item is not None:
                    self._apply_item(item, recorded)

    def held(self) -> list[Held]:
        """Every attempt that some agent holds."""
        return [held for item in self.items.values() if (held := item.held) is not None]

    def online(self) -> list[str]:
        """Agents that count as present."""
        return [agent.agent_id for agent in self.agents.values() if agent.online]

    def holds(self, held: Held) -> Item | None:
        """The item, if that agent holds that attempt of it."""
        item = self.items.get(held.item_id)
        return item if item is not None and item.held == held else None

    def offer(self, item_id: str) -> Offer | None:
        """The item and the pool it is offered to, if it is queued."""
        if item_id not in self._queued:
            return None
        item = self.items[item_id]
        return Offer(item, self._pool(item))

    def queued(self) -> list[str]:
        """Ids of every queued item, longest there first."""
        return list(self._queued)

    def take_stirred(self) -> set[str]:
        """Ids of items whose offer may have changed since the last call; for one caller only."""
        stirred, self._stirred = self._stirred, set()
        return stirred

    def undecided(self) -> list[Item]:
        """Jobs that a policy has to admit or refuse, oldest first."""
        return [self.items[item_id] for item_id in self._undecided]

    def imports(self) -> list[Item]:
        """What has to be fetched, oldest first."""
        return [item for item in self.items.values() if item.phase == "importing"]

    def pools(self) -> set[tuple[str, str]]:
        """Every (organization, pool) that has agents."""
        return {(agent.organization_id, agent.pool) for agent in self.agents.values() if not agent.revoked}

    def pool_of(self, item: Item) -> str:
        """Where it trains, or the pool it was validated in."""
        agent = self.agents.get(item.agent_id or "")
        return agent.pool if agent is not None else self._pool(item)

    def nodes(self, organization_id: str, pool: str) -> list[Capabilities]:
        """What the nodes of a pool can do, as far as they said."""
        return [
            agent.capabilities
            for agent in self.agents.values()
            if (agent.organization_id, agent.pool) == (organization_id, pool)
            and not agent.revoked
            and agent.capabilities is not None
        ]

    def _pool(self, item: Item) -> str:
        if item.request is not None:
            return item.request.pool
        # A validation names no pool: any agent of the organization may do it, best one that is there.
        agents = [
            agent
            for agent in self.agents.values()
            if agent.organization_id == item.organization_id and not agent.revoked
        ]
        pools = {agent.pool for agent in agents if agent.online} or {agent.pool for agent in agents}
        return DEFAULT_POOL if not pools or DEFAULT_POOL in pools else min(pools)

    def _apply_agent(self, recorded: Recorded) -> None:
        # Which pool a validation is offered to follows from who is there.
        self._stirred |= {item_id for item_id in self._queued if self.items[item_id].lane == "validate"}
        agent_id, metadata = recorded.stream_id, recorded.metadata
        match recorded.event:
            case agents.AgentEnrolled(pool=pool):
                self.agents[agent_id] = Agent(
                    agent_id, metadata.organization_id or "", metadata.workspace_id, pool
                )
            case agents.AgentJoined(public_key=public_key):
                # A key that comes back stays void for what was signed before: only newer JWTs hold.
                self._void(self.agents[agent_id], recorded)
                self.agents[agent_id] = replace(self.agents[agent_id], public_key=public_key)
            case agents.AgentProbed(capabilities=capabilities):
                self.agents[agent_id] = replace(self.agents[agent_id], capabilities=capabilities)
            case agents.AgentRevoked():
                self._void(self.agents[agent_id], recorded)
                self.agents[agent_id] = replace(self.agents[agent_id], online=False, revoked=True)
            case agents.AgentOnline():
                self.agents[agent_id] = replace(self.agents[agent_id], online=True)
            case agents.AgentLost():
                self.agents[agent_id] = replace(self.agents[agent_id], online=False)

    def _void(self, agent: Agent, recorded: Recorded) -> None:
        if agent.public_key is not None:
            self.void_keys[agent.public_key] = recorded.metadata.recorded_at

    def _apply_item(self, item: Item, recorded: Recorded) -> None:
        after = _evolve(item, recorded)
        if after is None:
            self._drop(item.item_id)
            return
        metadata = recorded.metadata
        self._put(
            replace(
                after,
                since=item.since if after.phase == item.phase else metadata.recorded_at,
                traceparent=metadata.traceparent or item.traceparent,
                last_event_id=metadata.event_id,
            )
        )

    def _put(self, item: Item) -> None:
        self._drop(item.item_id, but_in=item.phase)
        self.items[item.item_id] = item
        if item.phase == "queued":
            self._queued[item.item_id] = None
        elif item.phase in UNDECIDED:
            self._undecided[item.item_id] = None

    def _drop(self, item_id: str, *, but_in: Phase | None = None) -> None:
        """Forget an item; `but_in` is the phase that it is in afterwards, whose place it keeps."""
        self._stirred.add(item_id)
        if but_in != "queued":
            self._queued.pop(item_id, None)
        if but_in not in UNDECIDED:
            self._undecided.pop(item_id, None)
        if but_in is None:
            self.items.pop(item_id, None)


def _new(recorded: Recorded, phase: Phase, lane: Lane) -> Item:
    metadata = recorded.metadata
    return Item(
        item_id=recorded.stream_id,
        organization_id=metadata.organization_id or "",
        workspace_id=metadata.workspace_id,
        correlation_id=metadata.correlation_id,
        phase=phase,
        lane=lane,
        since=metadata.recorded_at,
        traceparent=metadata.traceparent,
        last_event_id=metadata.event_id,
    )


def _evolve(item: Item, recorded: Recorded) -> Item | None:
    """The item after an event; None when there is nothing left to attend to."""
    match recorded.event:
        case datasets.DatasetImportFailed() | models.ModelImportFailed():
            return replace(item, phase="import_failed")
        case datasets.DatasetImportRetried(attempt=attempt) | models.ModelImportRetried(attempt=attempt):
            return replace(item, phase="importing", attempt=attempt)
        case datasets.DatasetUploaded() | models.ModelUploaded():
            return replace(item, phase="queued", attempt=item.attempt + 1)
        case (
            datasets.DatasetValidationInterrupted(reason=reason)
            | models.ModelValidationInterrupted(reason=reason)
        ):
            # Whoever declined or failed would otherwise be offered it again at once.
            pause = _validation_pause(item.attempt) if reason in ("declined", "failed") else timedelta(0)
            not_before = recorded.metadata.recorded_at + pause
            return replace(
                item,
                phase="queued",
                attempt=item.attempt + 1,
                agent_id=None,
                not_before=not_before,
                pause=pause,
            )
        case (
            datasets.DatasetValidationStarted(attempt=attempt, agent_id=agent_id)
            | models.ModelValidationStarted(attempt=attempt, agent_id=agent_id)
            | jobs.JobAssigned(attempt=attempt, agent_id=agent_id)
        ):
            return replace(item, phase="held", attempt=attempt, agent_id=agent_id)
        case jobs.JobValidationStarted():
            return replace(item, phase="validating")
        case jobs.JobPlanned() as plan:
            return replace(item, plan=plan)
        case jobs.JobQueued() as queued:
            return _queued(item, queued, recorded.metadata.recorded_at)
        case jobs.CheckpointSaved() as checkpoint:
            return replace(item, checkpoints=(*item.checkpoints, checkpoint)[-KEPT_CHECKPOINTS:])
        case jobs.JobStopRequested(mode=mode):
            return replace(item, stopping=mode)
        case jobs.TrainingFinished():
            # A stop that came too late is not carried out: the result is paid for and kept.
            return replace(item, stopping=None)
        case jobs.AgentDeclined() | jobs.AttemptReleased() | jobs.LeaseExpired() | jobs.AttemptFailed():
            return replace(item, phase="between", agent_id=None)
        case (
            datasets.DatasetValidated()
            | datasets.DatasetRejected()
            | datasets.DatasetDeleted()
            | models.ModelValidated()
            | models.ModelRejected()
            | models.ModelDeleted()
            | jobs.JobSucceeded()
            | jobs.JobFailed()
            | jobs.JobStopped()
        ):
            return None
        case _:
            return item


def _validation_pause(attempt: int) -> timedelta:
    """Longer after every attempt, so that an input that nobody takes does not go round and round."""
    doubled: timedelta = VALIDATION_BACKOFF * 2 ** min(attempt - 1, 10)
    return min(LONGEST_VALIDATION_BACKOFF, doubled)


def _queued(item: Item, queued: jobs.JobQueued, at: datetime) -> Item:
    kept = tuple(checkpoint for checkpoint in item.checkpoints if checkpoint.step <= queued.resume_step)
    pause = timedelta(seconds=queued.not_before_seconds)
    return replace(
        item,
        checkpoints=kept,
        phase="queued",
        attempt=queued.attempt,
        agent_id=None,
        not_before=at + pause if pause else None,
        pause=pause,
        resume=next((each for each in reversed(kept) if each.step == queued.resume_step), None),
    )
