"""What each kind of user may do on NATS, exactly: the only place that grants anything.

Nobody but the control plane creates a stream or a consumer: whoever may make consumers can have any
event delivered anywhere. Every user has an inbox of its own, so that nobody reads another's answers.
"""

from dataclasses import dataclass

from schemas import subjects


@dataclass(frozen=True, slots=True)
class Rights:
    """Subjects that a user may publish to and subscribe to. None is everything, no subject is nothing."""

    publish: tuple[str, ...] | None
    subscribe: tuple[str, ...] | None


EVERYTHING = Rights(None, None)
"""Of the orchestrator."""


def agent_rights(organization_id: str, agent_id: str, pool: str) -> Rights:
    """Asks and reports in its own name, and fetches from its pool's six queues."""
    durables = subjects.pool_durables(organization_id, pool)
    return Rights(
        publish=(
            *subjects.request_subjects(organization_id, agent_id),
            subjects.report_subject(organization_id, agent_id, "*"),
            subjects.telemetry_subject(organization_id, "*"),
            *(f"$JS.API.CONSUMER.MSG.NEXT.{subjects.WORK_STREAM}.{durable}" for durable in durables),
            *(f"$JS.ACK.{subjects.WORK_STREAM}.{durable}.>" for durable in durables),
        ),
        subscribe=(
            f"{subjects.agent_inbox(agent_id)}.>",
            subjects.control_subject(organization_id, agent_id),
        ),
    )


def telemetry_rights(user: str) -> Rights:
    """Of the API process, which watches trainings and says nothing."""
    return Rights(publish=(), subscribe=(subjects.telemetry_subject("*", "*"), f"{inbox_of(user)}.>"))


def reading_rights(user: str) -> Rights:
    """Of the API process, where it shows how far subscribers have read: it looks, and changes nothing."""
    stream = subjects.EVENTS_STREAM
    return Rights(
        publish=(
            f"$JS.API.STREAM.INFO.{stream}",
            f"$JS.API.STREAM.MSG.GET.{stream}",
            f"$JS.API.CONSUMER.INFO.{stream}.*",
        ),
        subscribe=(f"{inbox_of(user)}.>",),
    )


def subscriber_rights(organization_id: str, subscription_id: str) -> Rights:
    """Reads the one pull consumer of EVENTS that was made for it, and hears every signed head."""
    durable = subjects.subscriber_durable(organization_id, subscription_id)
    return Rights(
        publish=(
            f"{subjects.SUBSCRIBER_API}.CONSUMER.INFO.{subjects.EVENTS_STREAM}.{durable}",
            f"{subjects.SUBSCRIBER_API}.CONSUMER.MSG.NEXT.{subjects.EVENTS_STREAM}.{durable}",
            f"$JS.ACK.{subjects.EVENTS_STREAM}.{durable}.>",
        ),
        subscribe=(f"{subjects.subscriber_inbox(subscription_id)}.>", subjects.HEADS_SUBJECT),
    )


def auditor_rights(user: str) -> Rights:
    """Of the auditor, which reads EVENTS and says nothing there."""
    stream = subjects.EVENTS_STREAM
    return Rights(
        publish=(f"$JS.API.STREAM.INFO.{stream}", f"$JS.API.DIRECT.GET.{stream}"),
        subscribe=(f"{inbox_of(user)}.>",),
    )


def inbox_of(user: str) -> str:
    """Prefix of the private inbox of a part of the control plane: its public key."""
    return f"_INBOX.{user}"
