"""Every error leaves as RFC 9457 problem details: a stable code, a page that explains it, nothing leaked."""

from collections.abc import Mapping
from typing import Any

import psycopg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from command_api.auth.errors import AuthError
from command_api.domain.errors import Conflict, Forbidden, Invalid, NotFound, Refused
from command_api.problem_catalogue import CATALOGUE
from schemas.errors import FieldError, KinoraError

PROBLEM_JSON = "application/problem+json"
_log = structlog.get_logger(__name__)


class BadPosition(KinoraError):
    """A position that the log has not reached."""

    code = "bad_position"


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
    413: "body_too_large",
    415: "unsupported_media_type",
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
    return problem_response(
        request,
        status=status,
        code=error.code,
        detail=error.message,
        retryable=error.retryable,
        errors=error.errors,
    )


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (registered for this class only)
    found = error.errors()
    if any(item["loc"][0] == "path" for item in found):
        # A malformed id names nothing; telling it from an unknown one helps only those who guess.
        return problem_response(
            request, status=404, code="not_found", detail="nothing is here; check the id in the address"
        )
    if any(item["type"] == "json_invalid" for item in found):
        return problem_response(
            request, status=400, code="malformed_json", detail="the body is not a JSON document"
        )
    fields = tuple(_field_error(item) for item in found)
    named = ", ".join(dict.fromkeys(field.pointer or "the body" for field in fields))
    return problem_response(
        request,
        status=422,
        code="invalid_request",
        detail=f"the request does not fit its description at {named}; see `errors`",
        errors=fields,
    )


def _field_error(item: dict[str, Any]) -> FieldError:
    # `input` and `ctx` stay out: they would echo passwords.
    where, *path = item["loc"]
    steps = path if where == "body" else [where, *path]
    pointer = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)
    return FieldError(pointer=pointer, code=item["type"], message=item["msg"])


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for this class only)
    code = _BY_STATUS.get(error.status_code, "internal")
    detail = {
        400: "the body is not a JSON document",
        404: f"there is no {request.url.path}; GET /openapi.json lists what is",
        405: f"{request.method} is not possible here",
        413: "the body is larger than this service takes",
    }.get(error.status_code, str(error.detail))
    return problem_response(
        request, status=error.status_code, code=code, detail=detail, headers=error.headers
    )


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
