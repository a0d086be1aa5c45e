"""Every error leaves as RFC 9457 problem details: a stable code, a page that explains it, nothing leaked."""

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from command_api.auth.errors import AuthError
from command_api.domain.errors import Conflict, Forbidden, Invalid, NotFound, Refused
from command_api.problem_catalogue import CATALOGUE
from command_api.rates import TooManyRequests
from command_api.wrong_fields import malformed_id, wrong_fields
from schemas.errors import FieldError, KinoraError

PROBLEM_JSON = "application/problem+json"
_NAMED_PLACES = 5
_log = structlog.get_logger(__name__)


class BadPosition(KinoraError):
    """A position that the log has not reached."""

    code = "bad_position"


class LogChanged(KinoraError):
    """A position of another log: that one was replaced, or restored from a backup."""

    code = "log_changed"


class ProjectionBehind(KinoraError):
    """A read model did not reach the position asked for in time."""

    code = "projection_behind"
    retryable = True


class ProblemDetails(BaseModel):
    """The body of every error (RFC 9457), `application/problem+json`."""

    type: str
    """Address of the page that explains the code."""
    title: str
    status: int
    detail: str
    instance: str
    code: str
    """Stable; decide by this, never by the text."""
    request_id: str
    retryable: bool
    """True when the same request may succeed later."""
    errors: list[FieldError] = []


_BY_CLASS: tuple[tuple[type[KinoraError], int], ...] = (
    (AuthError, 401),
    (NotFound, 404),
    (Conflict, 409),
    (Invalid, 422),
    (Forbidden, 403),
    (Refused, 409),
)

_BY_STATUS: Mapping[int, str] = {
    400: "malformed_json",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_too_slow",
    413: "body_too_large",
    415: "unsupported_media_type",
    421: "misdirected_request",
    429: "too_many_requests",
    503: "unavailable",
}


def status_of(error: KinoraError) -> int:
    """The HTTP status of an error: by its code where the catalogue knows it, else by its class."""
    known = CATALOGUE.get(error.code)
    if known is not None:
        return known.status
    for kind, status in _BY_CLASS:
        if isinstance(error, kind):
            return status
    return 503 if error.retryable else 500


def problem_response(
    request: Request,
    *,
    status: int,
    code: str,
    detail: str,
    retryable: bool = False,
    errors: tuple[FieldError, ...] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The one way in which an error is written."""
    known = CATALOGUE.get(code)
    extra = dict(headers or {})
    if status == 401:
        extra.setdefault("WWW-Authenticate", "Bearer")
    if status in (429, 503):
        extra.setdefault("Retry-After", "2")
    request_id = getattr(request.state, "request_id", "")
    if request_id:
        extra.setdefault("X-Request-ID", request_id)
    body = ProblemDetails(
        type=f"{request.app.state.public_url}/api/v1/problems/{code}",
        title=known.title if known else code.replace("_", " ").capitalize(),
        status=status,
        detail=detail,
        instance=request.url.path,
        code=code,
        request_id=request_id,
        retryable=retryable,
        errors=list(errors),
    )
    return JSONResponse(body.model_dump(mode="json"), status, headers=extra, media_type=PROBLEM_JSON)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document, those of the framework too."""
    app.add_exception_handler(KinoraError, _kinora_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    for away in (psycopg.OperationalError, psycopg.errors.UndefinedTable):
        app.add_exception_handler(away, _database_away)
    app.add_exception_handler(Exception, _unexpected)


async def _kinora_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, KinoraError)  # noqa: S101 (registered for this class only)
    status = status_of(error)
    if status >= 500:
        _log.error("request.failed", code=error.code, path=request.url.path, exc_info=error)
    if status == 500:
        return await _unexpected(request, error)
    headers: dict[str, str] = {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(error.retry_seconds)
        request.state.standings = [*getattr(request.state, "standings", ()), *error.standings]
    detail = error.message
    if any(field.message == detail for field in error.errors):
        # One sentence, in one place: the field's own.
        detail = f"the request is refused at {_places(error.errors)}; see `errors`"
    return problem_response(
        request,
        status=status,
        code=error.code,
        detail=detail,
        retryable=error.retryable,
        errors=error.errors,
        headers=headers,
    )


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (registered for this class only)
    found = error.errors()
    in_address = next((item for item in found if item["loc"][0] == "path"), None)
    if in_address is not None and request.url.path in request.app.openapi()["paths"]:
        # An operation's name (/agents/join) in the place of an id, by a method that it does not have.
        return await _http_exception(request, HTTPException(405))
    if in_address is not None:
        # A malformed id names nothing, as an unknown one: both are 404.
        return problem_response(request, status=404, code="not_found", detail=malformed_id(in_address))
    for item in found:
        if item["type"] == "json_invalid":
            detail = f"the body is not a JSON document: {item['ctx']['error']} at character {item['loc'][1]}"
            return problem_response(request, status=400, code="malformed_json", detail=detail)
    if isinstance(error.body, bytes):
        # FastAPI decodes JSON only, and hands on every other body as it came.
        given = request.headers.get("content-type")
        sent = "has no Content-Type" if given is None else f"is {given[:100]!r}"
        detail = f"the body {sent}; send it as application/json"
        return problem_response(request, status=415, code="unsupported_media_type", detail=detail)
    fields = wrong_fields(found, _body_type(request), error.body)
    return problem_response(
        request,
        status=422,
        code="invalid_request",
        detail=f"the request does not fit its description at {_places(fields)}; see `errors`",
        errors=fields,
    )


def _body_type(request: Request) -> Any:
    field = getattr(request.scope.get("route"), "body_field", None)
    return None if field is None else field.field_info.annotation


def _places(fields: Sequence[FieldError]) -> str:
    named = list(dict.fromkeys(field.pointer or "the body" for field in fields))
    more = len(named) - _NAMED_PLACES
    return ", ".join(named[:_NAMED_PLACES]) + (f" and {more} more" if more > 0 else "")


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for this class only)
    code = _BY_STATUS.get(error.status_code, "internal")
    detail = {
        400: "the body is not a JSON document",
        404: f"there is no {request.url.path}; GET /openapi.json lists what is",
        405: f"{request.method} is not possible here",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # Starlette names the methods of one route; a path can have several.
        headers["Allow"] = ", ".join(_methods(request)) or headers.get("Allow", "")
    return problem_response(request, status=error.status_code, code=code, detail=detail, headers=headers)


def _methods(request: Request) -> list[str]:
    paths: dict[str, dict[str, object]] = request.app.openapi()["paths"]
    here = request.url.path
    # A path without parameters is itself, even where it looks like one with them.
    fitting = [here] if here in paths else [path for path in paths if compile_path(path)[0].match(here)]
    return sorted({method.upper() for path in fitting for method in paths[path]})


async def _database_away(request: Request, error: Exception) -> JSONResponse:
    # A missing table means that `kinora projections` never ran on this database.
    _log.warning("request.database_away", path=request.url.path, reason=str(error))
    return problem_response(
        request,
        status=503,
        code="unavailable",
        detail="the database, or a read model in it, is not there at the moment; try again",
        retryable=True,
    )


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return problem_response(
        request,
        status=500,
        code="internal",
        detail="something went wrong here; the request id finds the cause in the service's log",
    )
