"""The API's own metrics, in Prometheus' text format, for a scraper or the installation's operator."""

import hmac

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from command_api.auth.tokens import OPERATE
from command_api.domain.errors import Forbidden
from command_api.metrics import FEED_LAG
from command_api.routes.parts import Parts, PartsOfRequest

router = APIRouter(tags=["health"], include_in_schema=False)


@router.get("/metrics")
async def metrics(request: Request, parts: PartsOfRequest) -> Response:
    _check(parts, request.headers.get("authorization", ""))
    FEED_LAG.set(parts.feed.lag())
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _check(parts: Parts, authorization: str) -> None:
    """
    Raises:
        TokenMissing, TokenInvalid: neither the metrics token nor an access token was sent.
        Forbidden: the access token is not the operator's.
    """
    scheme, _, given = authorization.partition(" ")
    token = parts.settings.metrics_token
    if token is not None and hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        return
    caller = parts.tokens.verify(given if scheme.lower() == "bearer" else None)
    if OPERATE not in caller.scopes:
        raise Forbidden(f"your access token lacks the scope {OPERATE}", code="missing_scope")
