"""Metrics and health of a role that has no HTTP interface of its own, on a port of its own."""

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kinora.http import serve_http
from schemas.settings import MetricsSettings


class Readiness:
    """Whether a role has said that it works."""

    def __init__(self) -> None:
        self.ready = False

    def say(self) -> None:
        self.ready = True


def create_app(role: str, settings: MetricsSettings, readiness: Readiness) -> Starlette:
    """The application; it knows nothing but this process."""

    async def metrics(request: Request) -> Response:
        if not _allowed(settings, request.headers.get("authorization", "")):
            return PlainTextResponse(
                "send the metrics token of this role's settings as Authorization: Bearer …\n",
                401,
                {"WWW-Authenticate": "Bearer"},
            )
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def live(_request: Request) -> Response:
        return JSONResponse({"status": "ok", "role": role})

    async def ready(_request: Request) -> Response:
        if readiness.ready:
            return JSONResponse({"status": "ok", "role": role})
        detail = "starting, or waiting while another process of this role is active; see its log"
        return JSONResponse({"status": "unready", "role": role, "detail": detail}, 503)

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/health/live", live),
            Route("/health/ready", ready),
        ]
    )


@asynccontextmanager
async def observable(
    role: str, settings: MetricsSettings | None, readiness: Readiness
) -> AsyncIterator[None]:
    """Serve as long as the block lasts; nothing without settings.

    Raises:
        PortTaken: somebody else listens there.
    """
    if settings is None:
        yield
        return
    stop, listening = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(
        serve_http(
            uvicorn.Config(
                create_app(role, settings, readiness),
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=20,
                timeout_graceful_shutdown=1,
            ),
            stop,
            what=f"the {role}'s metrics",
            ready=listening.set,
        )
    )
    listens = asyncio.create_task(listening.wait())
    try:
        await asyncio.wait({serving, listens}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        yield
    finally:
        listens.cancel()
        stop.set()
        if not serving.done():
            await serving


def _allowed(settings: MetricsSettings, authorization: str) -> bool:
    if settings.token is None:
        return True
    expected = f"Bearer {settings.token.get_secret_value()}"
    return hmac.compare_digest(authorization.encode(), expected.encode())
