"""Everything that the application opened at its start, and how a route gets at it."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from starlette.requests import HTTPConnection

from command_api.auth.accounts import Accounts
from command_api.auth.attempts import LoginAttempts
from command_api.auth.erasure import Erasure
from command_api.auth.nodes import Nodes
from command_api.auth.tokens import AccessTokens
from command_api.credentials.secrets import Secrets
from command_api.cursors import Cursors
from command_api.eventlog.log import EventLog
from command_api.feed.parts import FeedParts
from command_api.feed.slots import FeedSlots
from command_api.feed.telemetry import TelemetryHub
from command_api.feed.tickets import Tickets
from command_api.handlers.bus import CommandBus
from command_api.health import HealthCheck
from command_api.objects import ObjectStore
from command_api.rates import Rates
from command_api.settings import ApiSettings
from command_api.subscriptions.issuing import Subscriptions
from command_api.subscriptions.stream import EventsStream
from command_api.uploads import Uploads
from projections.positions import ViewPositions
from projections.reader import LogReader
from projections.tail import LogTail


@dataclass(frozen=True, slots=True)
class Parts:
    """One of each, for as long as the application runs."""

    settings: ApiSettings
    instance_id: str
    log: EventLog
    bus: CommandBus
    pool: AsyncConnectionPool[AsyncConnection]
    positions: ViewPositions
    reader: LogReader
    tail: LogTail
    store: ObjectStore
    uploads: Uploads
    telemetry: TelemetryHub
    cursors: Cursors
    index_key: bytes
    tokens: AccessTokens
    accounts: Accounts
    erasure: Erasure
    secrets: Secrets
    nodes: Nodes
    subscriptions: Subscriptions
    events_stream: EventsStream
    rates: Rates
    attempts: LoginAttempts
    feed_slots: FeedSlots
    tickets: Tickets
    origins: frozenset[str]
    """Of web pages that may use the feed."""
    feed: FeedParts
    health: HealthCheck


def _parts(connection: HTTPConnection) -> Parts:
    parts: Parts = connection.app.state.parts
    return parts


PartsOfRequest = Annotated[Parts, Depends(_parts)]
