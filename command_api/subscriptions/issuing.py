"""Makes subscriptions and the secrets that belong to them: each is shown once, kept sealed or not at all."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from command_api.credentials.subscriptions import (
    SecretRotatedRow,
    SubscriptionRow,
    WebhookSecrets,
    new_signing_secret,
)
from command_api.domain.errors import Conflict
from command_api.handlers.base import Context
from command_api.handlers.bus import CommandBus, Outcome
from command_api.nats_auth.keys import new_seed, public_key
from command_api.nats_auth.users import credentials_text, signed_subscriber
from schemas.commands.subscription import (
    CreateSubscription,
    IssueSubscriptionCredentials,
    RotateSubscriptionSecret,
)
from schemas.ids import Prefix, new_id
from schemas.settings import NatsSettings
from schemas.subjects import (
    EVENTS_STREAM,
    SUBSCRIBER_API,
    subscriber_durable,
    subscriber_inbox,
    subscription_subjects,
)
from schemas.subscriptions import (
    CreateSubscriptionBody,
    CredentialsBody,
    EventFilter,
    NatsConnection,
    NatsCredentials,
    RotateSecretBody,
)


@dataclass(frozen=True, slots=True)
class Made:
    """A new subscription and what its subscriber needs."""

    subscription_id: str
    outcome: Outcome
    credentials: NatsCredentials | None = None
    signing_secret: str | None = field(default=None, repr=False)


class Subscriptions:
    """Everything about subscriptions that issues a secret, as routes call it."""

    def __init__(
        self,
        bus: CommandBus,
        secrets: WebhookSecrets,
        nats: NatsSettings,
        *,
        most: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._bus = bus
        self._secrets = secrets
        self._nats = nats
        self._most = most
        self._clock = clock

    async def create(self, body: CreateSubscriptionBody, after: int, asked: Context) -> Made:
        """A subscription to what stands behind `after`.

        Raises:
            Refused: it contradicts itself, or there may be no more; ``secret_already_issued`` for a repeat.
        """
        subscription_id, organization_id = new_id(Prefix.SUBSCRIPTION), asked.organization_id or ""
        credentials, secret, sealed = None, None, None
        if body.kind == "nats":
            credentials = self._credentials(organization_id, subscription_id, body.expires_in_seconds)
        else:
            secret = new_signing_secret()
            sealed = self._secrets.seal(subscription_id, secret)
        command = CreateSubscription(
            subscription_id=subscription_id,
            name=body.name,
            owner_id=asked.actor,
            kind=body.kind,
            filter=body.filter,
            after=after,
            pinned=body.pinned,
            url=body.url,
            public_key=None if credentials is None else credentials.public_key,
            expires_at=None if credentials is None else credentials.expires_at,
        )
        row = SubscriptionRow(subscription_id, organization_id, self._most, sealed)
        outcome = _first(await self._bus.execute(command, asked, [row]))
        return Made(subscription_id, outcome, credentials, secret)

    async def issue(
        self, subscription_id: str, body: CredentialsBody, asked: Context
    ) -> tuple[NatsCredentials, Outcome]:
        """New NATS credentials; those before are void at once unless the body keeps them.

        Raises:
            Refused: there is no such subscription, or it is a webhook; ``secret_already_issued``.
        """
        credentials = self._credentials(asked.organization_id or "", subscription_id, body.expires_in_seconds)
        command = IssueSubscriptionCredentials(
            subscription_id=subscription_id,
            public_key=credentials.public_key,
            expires_at=credentials.expires_at,
            keep_former=body.keep_former,
        )
        return credentials, _first(await self._bus.execute(command, asked))

    async def rotate(
        self, subscription_id: str, body: RotateSecretBody, asked: Context
    ) -> tuple[str, Outcome]:
        """A new signing secret for a webhook.

        Raises:
            Refused: there is no such subscription, or it is none of kind webhook; ``secret_already_issued``.
        """
        secret = new_signing_secret()
        until = self._clock() + timedelta(seconds=body.overlap_seconds)
        row = SecretRotatedRow(subscription_id, until, self._secrets.seal(subscription_id, secret))
        command = RotateSubscriptionSecret(subscription_id=subscription_id, former_until=until)
        return secret, _first(await self._bus.execute(command, asked, [row]))

    def _credentials(self, organization_id: str, subscription_id: str, seconds: int) -> NatsCredentials:
        seed = new_seed("user")
        user = public_key(seed)
        signed = signed_subscriber(self._nats, user, organization_id, subscription_id, seconds)
        return NatsCredentials(
            public_key=user, expires_at=signed.expires_at, credentials=credentials_text(signed.jwt, seed)
        )


def connection(
    nats: NatsSettings, organization_id: str, subscription_id: str, wanted: EventFilter
) -> NatsConnection:
    """Where a NATS subscriber reads."""
    return NatsConnection(
        url=nats.subscribers_url or nats.url,
        stream=EVENTS_STREAM,
        durable=subscriber_durable(organization_id, subscription_id),
        subjects=subscription_subjects(organization_id, wanted.workspace_id, wanted.types),
        api_prefix=SUBSCRIBER_API,
        inbox_prefix=subscriber_inbox(subscription_id),
    )


def _first(outcome: Outcome) -> Outcome:
    if outcome.replayed:
        raise Conflict(
            "this Idempotency-Key issued a secret already and it was shown then; ask with a new key",
            code="secret_already_issued",
        )
    return outcome
