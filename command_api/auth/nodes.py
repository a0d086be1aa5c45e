"""How a machine becomes an agent: it spends a token that was issued for it, and renews its JWT from then on.

The node makes its key itself; the control plane only ever sees the public half of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from command_api.auth.errors import EnrolmentTokenExpired, EnrolmentTokenUnknown, ProofExpired, ProofInvalid
from command_api.credentials.enrolment import (
    Enrolment,
    EnrolmentRow,
    EnrolmentSpentRow,
    new_enrolment_token,
    used,
)
from command_api.credentials.store import Credentials
from command_api.domain import agent
from command_api.domain.errors import Conflict, Invalid
from command_api.handlers.base import Context, Loaded
from command_api.handlers.bus import CommandBus
from command_api.nats_auth.keys import NotAKey, is_signed_by, raw_public_key
from command_api.nats_auth.users import Signed, signed_agent
from schemas.api import JoinAgentBody, RenewAgentBody, joining_proof, renewal_proof
from schemas.commands.agent import IssueEnrolmentToken, JoinAgent
from schemas.settings import NatsSettings

PROOF_AGE = timedelta(minutes=10)
"""How far a node's clock may be off. A proof that a stranger repeats yields a JWT for the node's key only."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A fresh enrolment token: shown once, never logged."""

    token: str = field(repr=False)
    expires_at: datetime
    position: int
    """Of the event that tells of it."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Who a node has become."""

    enrolment: Enrolment
    name: str
    pool: str
    signed: Signed


class Nodes:
    """Everything about which machine is which agent, as routes call it."""

    def __init__(
        self,
        bus: CommandBus,
        credentials: Credentials,
        nats: NatsSettings,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._bus = bus
        self._credentials = credentials
        self._nats = nats
        self._clock = clock

    async def issue(self, agent_id: str, lifetime: timedelta, asked: Context) -> Issued:
        """A token with which one node may become this agent.

        Raises:
            NotFound: the organization has no such agent.
            Conflict: ``agent_revoked``, or ``secret_already_issued`` for a repeat.
        """
        token, expires_at = new_enrolment_token(), self._clock() + lifetime
        enrolment = Enrolment(agent_id, asked.organization_id or "", asked.workspace_id or "")
        command = IssueEnrolmentToken(agent_id=agent_id, expires_at=expires_at)
        outcome = await self._bus.execute(command, asked, [EnrolmentRow(enrolment, token, expires_at)])
        if outcome.replayed:
            raise Conflict(
                "this Idempotency-Key issued an enrolment token already and it was shown then;"
                " ask with a new key",
                code="secret_already_issued",
            )
        return Issued(token, expires_at, outcome.position)

    async def join(self, body: JoinAgentBody, asked: Context) -> Joined:
        """Make the node with this key the agent that the token was issued for. A repeat is answered alike.

        Raises:
            AuthError: the token is unknown here or has expired, or the key is not the node's own.
            Conflict: ``enrolment_token_used``, ``agent_revoked``.
            Invalid: the key is none.
        """
        _check_key(body.public_key)
        if not is_signed_by(body.public_key, joining_proof(body.token), body.signature_bytes):
            # Else whoever knows the public key of another's node could have it shut out as their own.
            raise ProofInvalid("the signature is not that of public_key; sign with the node's own key")
        standing, enrolment = await self._credentials.enrolment(body.token, body.public_key, self._clock())
        if enrolment is None:
            raise EnrolmentTokenUnknown(
                "the enrolment token is not known here; copy it whole, or issue a new one"
            )
        if standing == "used":
            raise used()
        if standing == "expired":
            raise EnrolmentTokenExpired("the enrolment token has expired; issue a new one")
        context = Context(
            actor=enrolment.agent_id,
            organization_id=enrolment.organization_id,
            workspace_id=enrolment.workspace_id,
            request_id=asked.request_id,
            correlation_id=asked.correlation_id,
            causation_id=asked.causation_id,
            traceparent=asked.traceparent,
        )
        command = JoinAgent(agent_id=enrolment.agent_id, public_key=body.public_key)
        spent = EnrolmentSpentRow(enrolment.agent_id, body.token, body.public_key)
        await self._bus.execute(command, context, [spent])
        node = agent.admitted((await self._bus.load(enrolment.agent_id)).state, enrolment.agent_id)
        signed = signed_agent(
            self._nats, body.public_key, enrolment.organization_id, enrolment.agent_id, node.pool
        )
        return Joined(enrolment, node.name, node.pool, signed)

    async def renew(self, agent_id: str, body: RenewAgentBody) -> Signed:
        """The next JWT of a node that could not renew over NATS in time.

        Raises:
            AuthError: the proof is not that of the agent's node, or not of now.
            Conflict: ``agent_revoked``.
        """
        loaded = await self._bus.load(agent_id)
        public_key = _public_key(loaded)
        if public_key is None or not is_signed_by(
            public_key, renewal_proof(agent_id, body.asked_at), body.signature_bytes
        ):
            raise ProofInvalid("the signature is not that of this agent's node; let the node join again")
        known = agent.admitted(loaded.state, agent_id)
        if abs(self._clock() - body.asked_at) > PROOF_AGE:
            raise ProofExpired(
                f"asked_at is {body.asked_at.isoformat()}, and here it is"
                f" {self._clock().isoformat(timespec='seconds')}; set the node's clock"
            )
        return signed_agent(self._nats, public_key, loaded.organization_id or "", agent_id, known.pool)


def _check_key(public: str) -> None:
    try:
        raw_public_key(public, "user")
    except NotAKey as error:
        raise Invalid.field(
            "/public_key",
            "invalid_request",
            f"public_key is no public key of a NATS user: {error}; send the one of the node's own key",
        ) from error


def _public_key(loaded: Loaded) -> str | None:
    return loaded.state.public_key if isinstance(loaded.state, agent.Node) else None
