"""NATS subjects, streams and durable names: the only place that spells them."""

from collections.abc import Sequence
from typing import Literal

EVENTS_STREAM = "EVENTS"
WORK_STREAM = "WORK"
REPORTS_STREAM = "REPORTS"
DEAD_LETTERS_STREAM = "DEAD_LETTERS"
HEADS_STREAM = "HEADS"

EVENTS_SUBJECTS = "kinora.v1.>"
ORGANIZATION_EVENTS = "kinora.v1.{organization_id}.>"
"""What one organization may ever see."""
WORK_SUBJECTS = "kinora.work.>"
REPORTS_SUBJECTS = "kinora.report.>"
DEAD_LETTERS_SUBJECTS = "kinora.dead_letters.>"
HEADS_SUBJECT = "kinora.head"
"""Signed heads of the log's Merkle trees, for every subscriber."""

INBOX_DURABLE = "inbox"
"""The one consumer of REPORTS."""

Lane = Literal["train", "validate"]
PriorityLevel = Literal["high", "normal", "low"]
LANES: tuple[Lane, ...] = ("train", "validate")
PRIORITIES: tuple[PriorityLevel, ...] = ("high", "normal", "low")
DEFAULT_POOL = "default"

POSITION_HEADER = "Kinora-Position"
PREVIOUS_POSITION_HEADER = "Kinora-Previous-Position"
LOG_ID_HEADER = "Kinora-Log-Id"
EPOCH_HEADER = "Kinora-Epoch"


def event_subject(organization_id: str | None, workspace_id: str | None, event_type: str) -> str:
    """``kinora.v1.<organization>.<workspace>.<aggregate>.<event>``; ``_`` where there is none."""
    aggregate, event = event_type.removeprefix("kinora.").split(".", 1)
    return f"kinora.v1.{organization_id or '_'}.{workspace_id or '_'}.{aggregate}.{event}"


def work_subject(organization_id: str, pool: str, lane: str, priority: str, item_id: str) -> str:
    """The one message of one queued item."""
    return f"kinora.work.{organization_id}.{pool}.{lane}.{priority}.{item_id}"


def work_durable(organization_id: str, pool: str, lane: str, priority: str) -> str:
    """The durable pull consumer that a pool's agents share."""
    return f"work-{organization_id}-{pool}-{lane}-{priority}"


def pool_durables(organization_id: str, pool: str) -> tuple[str, ...]:
    """All consumers that a pool's agents share: one per lane and priority."""
    return tuple(
        work_durable(organization_id, pool, lane, priority) for lane in LANES for priority in PRIORITIES
    )


def subscriber_durable(organization_id: str, subscriber_id: str) -> str:
    """The one consumer of EVENTS that was made for a subscriber."""
    return f"events-{organization_id}-{subscriber_id}"


def subscription_subjects(
    organization_id: str, workspace_id: str | None, event_types: Sequence[str]
) -> tuple[str, ...]:
    """What a subscriber's consumer delivers of an organization: a workspace or all, some types or all."""
    workspace = workspace_id or "*"
    if not event_types:
        everything = ORGANIZATION_EVENTS.format(organization_id=organization_id)
        return (everything if workspace_id is None else f"{everything.removesuffix('>')}{workspace_id}.>",)
    names = sorted({name.removeprefix("kinora.") for name in event_types})
    return tuple(f"kinora.v1.{organization_id}.{workspace}.{name}" for name in names)


SUBSCRIBER_API = "kinora.events.API"
"""Subscribers' prefix of the JetStream API, of which they have two calls."""


def subscriber_inbox(subscription_id: str) -> str:
    """Prefix of a subscriber's private inbox; it stays when the credentials change."""
    return f"_INBOX.{subscription_id}"


def claim_subject(organization_id: str, agent_id: str) -> str:
    return f"kinora.claim.{organization_id}.{agent_id}"


def heartbeat_subject(organization_id: str, agent_id: str) -> str:
    return f"kinora.heartbeat.{organization_id}.{agent_id}"


def presign_subject(organization_id: str, agent_id: str) -> str:
    """Requests for presigned URLs of one attempt's inputs and outputs."""
    return f"kinora.presign.{organization_id}.{agent_id}"


def hello_subject(organization_id: str, agent_id: str) -> str:
    """An agent's capabilities, once at its start and after each reconnect."""
    return f"kinora.hello.{organization_id}.{agent_id}"


def renew_subject(organization_id: str, agent_id: str) -> str:
    """Requests for the next user JWT, before the present one expires."""
    return f"kinora.renew.{organization_id}.{agent_id}"


def request_subjects(organization_id: str, agent_id: str) -> tuple[str, ...]:
    """Everything that an agent asks."""
    return tuple(
        subject(organization_id, agent_id)
        for subject in (claim_subject, heartbeat_subject, presign_subject, hello_subject, renew_subject)
    )


def agent_inbox(agent_id: str) -> str:
    """Prefix of an agent's private inbox: its answers and work arrive nowhere else."""
    return f"_INBOX.{agent_id}"


def report_subject(organization_id: str, agent_id: str, item_id: str) -> str:
    return f"kinora.report.{organization_id}.{agent_id}.{item_id}"


def dead_letter_subject(stream: str) -> str:
    """Where a message goes that nobody can read; `stream` is where it came from."""
    return f"kinora.dead_letters.{stream}"


def control_subject(organization_id: str, agent_id: str) -> str:
    """Control plane → agent: a changed desired state, ahead of the next heartbeat."""
    return f"kinora.control.{organization_id}.{agent_id}"


def telemetry_subject(organization_id: str, job_id: str) -> str:
    return f"kinora.telemetry.{organization_id}.{job_id}"
