"""The three accounts: the control plane with its streams, the agents, and the subscribers.

Rights alone would not do within one account: whoever pulls from a consumer names the subject that the
messages are delivered to, and the server checks no right there. So a pulled message could be made a claim in
another agent's name, or a purge of a stream. Agents and subscribers therefore live in accounts of their own,
where only the services below lead out; what they have delivered stays among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from command_api.nats_auth.jwts import account_jwt, operator_jwt
from command_api.nats_auth.keys import public_key
from schemas import subjects
from schemas.settings import NatsAccount, NatsSettings


@dataclass(frozen=True, slots=True)
class Service:
    """Something that the control plane's account answers."""

    subject: str
    many: bool = False
    """One request may have several answers."""
    called: str | None = None
    """What importers call it, where that is not its subject."""


def _consumers(stream: str) -> tuple[Service, ...]:
    return (
        Service(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*", many=True),
        Service(f"$JS.ACK.{stream}.>"),
    )


AGENT_SERVICES = (
    *(Service(subject) for subject in subjects.request_subjects("*", "*")),
    Service(subjects.report_subject("*", "*", "*")),
    Service(subjects.telemetry_subject("*", "*")),
    *_consumers(subjects.WORK_STREAM),
)
AGENT_STREAMS = (subjects.control_subject("*", "*"),)
SUBSCRIBER_STREAMS = (subjects.HEADS_SUBJECT,)
_EVENTS = subjects.EVENTS_STREAM
SUBSCRIBER_SERVICES = (
    # Official clients ask about a consumer before they read from it. Under a prefix of its own, because in an
    # account without streams the server answers $JS.API.CONSUMER.INFO itself, and says that it has none.
    Service(
        f"$JS.API.CONSUMER.INFO.{_EVENTS}.*", called=f"{subjects.SUBSCRIBER_API}.CONSUMER.INFO.{_EVENTS}.*"
    ),
    Service(
        f"$JS.API.CONSUMER.MSG.NEXT.{_EVENTS}.*",
        many=True,
        called=f"{subjects.SUBSCRIBER_API}.CONSUMER.MSG.NEXT.{_EVENTS}.*",
    ),
    Service(f"$JS.ACK.{_EVENTS}.>"),
)


def trust(
    nats: NatsSettings, operator_seed: SecretStr, system_seed: SecretStr, *, issued_at: int
) -> dict[str, object]:
    """Whom a server believes, as its configuration says it: the operator, and every account."""
    operator = operator_seed.get_secret_value()
    system = public_key(system_seed.get_secret_value())
    return {
        "operator": operator_jwt(operator, system_account=system, issued_at=issued_at),
        "system_account": system,
        "resolver_preload": {
            system: account_jwt(operator, system, name="system", issued_at=issued_at),
            nats.control.account: control_account(nats, operator, issued_at=issued_at),
            nats.agents.account: agents_account(nats, operator, issued_at=issued_at),
            nats.subscribers.account: subscribers_account(nats, operator, issued_at=issued_at),
        },
    }


def control_account(nats: NatsSettings, operator_seed: str, *, issued_at: int) -> str:
    """The JWT of the account that has the streams; it offers to the others what they may reach."""
    exports: list[dict[str, Any]] = [
        {
            "name": service.subject,
            "subject": service.subject,
            "type": "service",
            "response_type": "Stream" if service.many else "Singleton",
        }
        for service in (*AGENT_SERVICES, *SUBSCRIBER_SERVICES)
    ]
    exports += [
        {"name": subject, "subject": subject, "type": "stream"}
        for subject in (*AGENT_STREAMS, *SUBSCRIBER_STREAMS)
    ]
    return account_jwt(
        operator_seed,
        nats.control.account,
        name="control",
        issued_at=issued_at,
        signing_key=_public(nats.control),
        jetstream=True,
        body={"exports": exports},
    )


def agents_account(
    nats: NatsSettings, operator_seed: str, *, issued_at: int, revoked: Mapping[str, int] | None = None
) -> str:
    """The JWT of the agents' account. `revoked`: until which second a user's JWTs are void, by public key."""
    return account_jwt(
        operator_seed,
        nats.agents.account,
        name="agents",
        issued_at=issued_at,
        signing_key=_public(nats.agents),
        body={
            "imports": _imports(nats, AGENT_SERVICES, AGENT_STREAMS),
            "revocations": dict(revoked or {}),
        },
    )


def subscribers_account(
    nats: NatsSettings, operator_seed: str, *, issued_at: int, revoked: Mapping[str, int] | None = None
) -> str:
    """The JWT of the account of those who read events; `revoked` as for agents."""
    return account_jwt(
        operator_seed,
        nats.subscribers.account,
        name="subscribers",
        issued_at=issued_at,
        signing_key=_public(nats.subscribers),
        body={
            "imports": _imports(nats, SUBSCRIBER_SERVICES, SUBSCRIBER_STREAMS),
            "revocations": dict(revoked or {}),
        },
    )


def _imports(
    nats: NatsSettings, services: tuple[Service, ...], streams: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    offered: list[dict[str, Any]] = [
        {"name": service.called or service.subject, "subject": service.subject, "type": "service"}
        | ({"local_subject": service.called} if service.called else {})
        for service in services
    ]
    offered += [{"name": subject, "subject": subject, "type": "stream"} for subject in streams]
    return [each | {"account": nats.control.account} for each in offered]


def _public(account: NatsAccount) -> str:
    return public_key(account.signing_seed.get_secret_value())
