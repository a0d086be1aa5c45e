"""A log, one organization and the real delivery, against a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr

from command_api.credentials.subscriptions import (
    SecretRotatedRow,
    SubscriptionRow,
    WebhookSecrets,
    new_signing_secret,
)
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Context
from command_api.handlers.bus import CommandBus, Outcome
from command_api.handlers.registry import HANDLERS
from command_api.settings import ControlSecrets, WebhookSettings
from command_api.tables import ensure_tables
from command_api.webhooks.delivery import Post, Webhooks
from command_api.webhooks.ledger import Ledger
from command_api.webhooks.sender import Sender
from schemas.commands import Command
from schemas.commands.agent import EnrollAgent
from schemas.commands.subscription import CreateSubscription, RotateSubscriptionSecret
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings
from schemas.subscriptions import EventFilter
from tests.integration.webhooks.receiver import Inbox, listening

_KEY = SecretStr("00" * 32)
CONTROL_SECRETS = ControlSecrets(token_private_key_pem=_KEY, personal_key_hex=_KEY, index_key_hex=_KEY)
LOCAL = WebhookSettings(allowed_networks=("127.0.0.0/8",), timeout_seconds=5)


@dataclass
class Desk:
    """Everything that a test of deliveries needs."""

    database: PostgresSettings
    log: EventLog
    bus: CommandBus
    pool: Any
    secrets: WebhookSecrets
    stack: AsyncExitStack
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    organization_id: str = field(default_factory=lambda: new_id(Prefix.ORGANIZATION))
    workspace_id: str = field(default_factory=lambda: new_id(Prefix.WORKSPACE))
    user_id: str = field(default_factory=lambda: new_id(Prefix.USER))

    def passed(self, **spans: float) -> None:
        """Let time pass."""
        self.now += timedelta(**spans)

    async def ask(
        self, command: Command, organization_id: str | None = None, rows: tuple[Any, ...] = ()
    ) -> Outcome:
        request = new_id(Prefix.REQUEST)
        context = Context(
            actor=self.user_id,
            organization_id=organization_id or self.organization_id,
            workspace_id=self.workspace_id,
            request_id=request,
            correlation_id=request,
            causation_id=request,
        )
        return await self.bus.execute(command, context, rows)

    async def happen(self, count: int = 1, organization_id: str | None = None) -> list[str]:
        """That many events, each of another stream; returns their ids."""
        ids = []
        for _ in range(count):
            command = EnrollAgent(agent_id=new_id(Prefix.AGENT), name="node", pool="default")
            outcome = await self.ask(command, organization_id)
            (raw,) = self.log.read_all(outcome.position - 1, 1)
            ids.append(raw.event_id)
        return ids

    async def subscribe(
        self, url: str, wanted: EventFilter | None = None, after: int | None = None, **more: Any
    ) -> tuple[str, str]:
        """A new webhook's id and its secret; it wants agents' events unless told otherwise."""
        subscription_id, secret = new_id(Prefix.SUBSCRIPTION), new_signing_secret()
        command = CreateSubscription(
            subscription_id=subscription_id,
            name="receiver",
            owner_id=self.user_id,
            kind="webhook",
            filter=wanted or EventFilter(types=("kinora.agent.enrolled", "kinora.agent.revoked")),
            after=self.log.head() if after is None else after,
            pinned={},
            url=url,
            **more,
        )
        sealed = self.secrets.seal(subscription_id, secret)
        row = SubscriptionRow(subscription_id, self.organization_id, 100, sealed)
        await self.ask(command, rows=(row,))
        return subscription_id, secret

    async def rotate(self, subscription_id: str, until: datetime) -> str:
        secret = new_signing_secret()
        row = SecretRotatedRow(subscription_id, until, self.secrets.seal(subscription_id, secret))
        await self.ask(
            RotateSubscriptionSecret(subscription_id=subscription_id, former_until=until), rows=(row,)
        )
        return secret

    async def webhooks(self, settings: WebhookSettings = LOCAL, post: Post | None = None) -> Webhooks:
        """As a starting orchestrator makes it."""
        if post is None:
            post = (await self.stack.enter_async_context(Sender(settings))).post
        return Webhooks(
            self.log,
            Ledger(self.pool),
            self.secrets,
            post,
            self.bus,
            settings,
            asyncio.Event(),
            clock=lambda: self.now,
            jitter=lambda: 0.5,
        )

    def rows(self, table: str = "deliveries") -> list[dict[str, Any]]:
        name = {
            "deliveries": "kinora_webhook_deliveries ORDER BY delivery_id",
            "redeliveries": "kinora_webhook_redeliveries",
            "places": "kinora_webhooks",
        }[table]
        with psycopg.connect(self.database.conninfo(), row_factory=dict_row) as connection:
            return connection.execute(f"SELECT * FROM {name}").fetchall()

    def execute(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.database.conninfo()) as connection:
            connection.execute(statement, values)  # type: ignore[arg-type]

    def statuses(self) -> list[str]:
        return [row["status"] for row in self.rows()]


async def delivered(webhooks: Webhooks) -> int:
    """Go on until nothing is due any more; returns how many requests were made."""
    made = 0
    while started := await webhooks.look():
        await webhooks.finish()
        made += started
    return made


@pytest.fixture
async def desk(database: PostgresSettings) -> AsyncIterator[Desk]:
    await ensure_tables(database.conninfo())
    pool: Any = AsyncConnectionPool(
        database.conninfo(), min_size=0, max_size=4, kwargs={"autocommit": True}, open=False
    )
    async with AsyncExitStack() as stack:
        log = await asyncio.to_thread(EventLog.open, database)
        stack.callback(log.close)
        bus = await stack.enter_async_context(CommandBus(log, HANDLERS))
        await stack.enter_async_context(pool)
        yield Desk(database, log, bus, pool, WebhookSecrets.from_secrets(CONTROL_SECRETS), stack)


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    async with listening() as inbox:
        yield inbox
