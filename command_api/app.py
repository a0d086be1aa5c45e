"""The HTTP application: opens its parts, mounts the routes, closes everything again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from command_api import problems
from command_api.auth.accounts import Accounts
from command_api.auth.attempts import LoginAttempts
from command_api.auth.erased import ErasedUsers
from command_api.auth.erasure import Erasure
from command_api.auth.nodes import Nodes
from command_api.auth.tokens import AccessTokens
from command_api.credentials.secrets import SecretKey, Secrets
from command_api.credentials.store import Credentials
from command_api.credentials.subscriptions import WebhookSecrets
from command_api.cursors import Cursors
from command_api.eventlog.log import EventLog
from command_api.feed.encoding import EventTexts
from command_api.feed.frames import SCOPE
from command_api.feed.parts import FeedParts
from command_api.feed.rights import Rights
from command_api.feed.slots import FeedSlots
from command_api.feed.telemetry import TelemetryHub
from command_api.feed.tickets import Tickets
from command_api.handlers.bus import CommandBus
from command_api.handlers.registry import HANDLERS
from command_api.health import HealthCheck
from command_api.objects import ObjectStore
from command_api.pool import open_pool
from command_api.rates import Rates
from command_api.routes import (
    activity,
    agents,
    audit,
    auth,
    datasets,
    enrolment,
    events,
    following,
    health,
    jobs,
    metrics,
    models,
    problem_docs,
    problem_pages,
    projections,
    proving,
    reference,
    secrets,
    storage,
    subscriptions,
    users,
    webhooks,
)
from command_api.routes.answers import AnswerHeaders
from command_api.routes.middleware import BodyLimit, RequestStory
from command_api.routes.observing import Observed
from command_api.routes.origins import HostCheck, host_names, origins
from command_api.routes.parts import Parts
from command_api.settings import ApiSettings
from command_api.subscriptions.issuing import Subscriptions
from command_api.subscriptions.stream import EventsStream
from command_api.tables import create_tables
from command_api.uploads import Uploads
from projections.positions import ViewPositions
from projections.reader import LogReader
from projections.tail import LogTail
from schemas.ids import uuid7

_TAIL_BYTES = 16 * 2**20
"""Newest events kept for the feed, so that a hundred followers cost one query."""


_HEADERS_TAKEN = (
    "Authorization",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "X-Request-ID",
    "traceparent",
)
_HEADERS_SHOWN = (
    "ETag",
    "Idempotent-Replayed",
    "Link",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Event-Position",
    "X-Kinora-Last-Position",
    "X-Kinora-Log-Id",
    "X-Kinora-Until",
    "X-Projection-Position",
    "X-Request-ID",
)
"""Of answers, to pages of other origins that may call."""


class _Application(FastAPI):
    """FastAPI answers unexpected errors outside of every middleware that can be added to it."""

    def __init__(self, *, https: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._https = https

    def build_middleware_stack(self) -> ASGIApp:
        return AnswerHeaders(super().build_middleware_stack(), https=self._https)


def create_app(settings: ApiSettings) -> FastAPI:
    """The application; nothing is opened before it starts.

    Raises:
        StoreUnusable: the settings name a store of counts that cannot be used here.
    """

    rates = Rates(settings.rates)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _open_parts(settings, rates) as parts:
            app.state.parts = parts
            yield

    app = _Application(
        https=settings.public_url.startswith("https:"),
        title="Kinora",
        version=version("kinora"),
        summary="Event-sourced QLoRA fine-tuning of video-text models",
        lifespan=lifespan,
        # Requests are traced by `Observed`; FastAPI's own spans would hold queries, and thereby tokens.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        openapi_url=None,  # see `reference`
        # Its Location would be made of the Host header.
        redirect_slashes=False,
    )
    app.state.public_url = settings.public_url.rstrip("/")
    problems.install(app)
    problem_docs.describe(app)
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        max_seconds=settings.max_body_seconds,
        larger={
            ("POST", f"/api/v1/{kind}"): settings.max_declaration_bytes for kind in ("datasets", "models")
        },
    )
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "POST", "PATCH", "PUT", "DELETE"),
            allow_headers=_HEADERS_TAKEN,
            expose_headers=_HEADERS_SHOWN,
        )
    app.add_middleware(Observed)
    app.add_middleware(RequestStory)
    app.add_middleware(HostCheck, names=host_names(settings))
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(settings.trusted_proxies))
    api = APIRouter(prefix="/api/v1")
    api.include_router(following.ticketed)
    for module in (
        auth,
        datasets,
        models,
        jobs,
        agents,
        enrolment,
        following,
        events,
        proving,
        activity,
        audit,
        projections,
        secrets,
        subscriptions,
        webhooks,
        storage,
        users,
        health,
        problem_pages,
    ):
        api.include_router(module.router)
    api.include_router(auth.own)
    app.include_router(api)
    reference.install(app, settings)
    app.include_router(health.router, include_in_schema=False)
    app.include_router(metrics.router)
    return app


@asynccontextmanager
async def _open_parts(settings: ApiSettings, rates: Rates) -> AsyncIterator[Parts]:
    conninfo = settings.postgres.conninfo()
    index_key = bytes.fromhex(settings.secrets.index_key_hex.get_secret_value())
    async with AsyncExitStack() as stack:
        log = await asyncio.to_thread(EventLog.open, settings.postgres)
        stack.push_async_callback(asyncio.to_thread, log.close)
        pool = await stack.enter_async_context(open_pool(conninfo, application_name="kinora-api"))
        async with pool.connection() as connection:
            await create_tables(connection)
        store = await stack.enter_async_context(ObjectStore(settings.s3))
        await store.ensure_bucket()
        credentials = Credentials.from_secrets(pool, settings.secrets)
        bus = await stack.enter_async_context(CommandBus(log, HANDLERS))
        reader = LogReader(pool)
        tail = await stack.enter_async_context(LogTail(conninfo, keep_bytes=_TAIL_BYTES))
        erased = await stack.enter_async_context(ErasedUsers(reader, tail))
        tokens = AccessTokens.from_settings(settings, erased)
        telemetry = await stack.enter_async_context(TelemetryHub(settings.nats))
        rights = await stack.enter_async_context(Rights(pool, SCOPE))
        uploads = await stack.enter_async_context(
            Uploads(store, pool, part_bytes=settings.upload_part_bytes, max_bytes=settings.max_upload_bytes)
        )
        yield Parts(
            settings=settings,
            instance_id=f"api_{uuid7().hex}",
            log=log,
            bus=bus,
            pool=pool,
            positions=await stack.enter_async_context(ViewPositions(conninfo)),
            reader=reader,
            tail=tail,
            store=store,
            uploads=uploads,
            telemetry=telemetry,
            cursors=Cursors(index_key),
            index_key=index_key,
            tokens=tokens,
            accounts=Accounts(bus, credentials, tokens, refresh_token_seconds=settings.refresh_token_seconds),
            erasure=Erasure(bus, credentials, pool, erased),
            nodes=Nodes(bus, credentials, settings.nats),
            rates=rates,
            attempts=LoginAttempts(rates),
            feed_slots=FeedSlots(settings.rates.feeds),
            tickets=Tickets(pool),
            origins=origins(settings),
            secrets=Secrets(pool, SecretKey.from_secrets(settings.secrets)),
            events_stream=await stack.enter_async_context(EventsStream(settings.nats)),
            subscriptions=Subscriptions(
                bus,
                WebhookSecrets.from_secrets(settings.secrets),
                settings.nats,
                most=settings.max_subscriptions,
            ),
            feed=FeedParts(
                log_id=log.log_id,
                reader=reader,
                tail=tail,
                telemetry=telemetry,
                rights=rights,
                erased=erased,
                authenticate=tokens.verify,
                foreign=log.foreign,
                texts=EventTexts(log.log_id),
            ),
            health=HealthCheck(pool, store, telemetry, settings.disk_folder),
        )
