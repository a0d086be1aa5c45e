"""The error answers that every route documents."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from command_api.problems import PROBLEM_JSON, ProblemDetails

Responses = dict[int | str, dict[str, Any]]

_TEXTS = {
    400: "The request cannot be read, or names a position or cursor that does not exist.",
    401: "No valid access token.",
    403: "The token does not allow this.",
    404: "No such thing, or none of your organization.",
    408: "The body took too long to arrive.",
    409: "The present state forbids it; `code` names the rule.",
    413: "The body is too large; `detail` names the limit.",
    415: "The body is not sent as application/json.",
    422: "Body or query does not fit its description, or the idempotency key belongs to another request.",
    421: "The Host header names another service.",
    429: "Too many requests; Retry-After says when to try again.",
    503: "A part of the service is away; try again.",
    507: "The disk of the event log is full: nothing was stored.",
}


EVERYWHERE = (421, 422, 429)
"""What any route may answer, before it is asked."""
WITH_BODY = (408, 413, 415)
"""What any route that takes a body may answer, before it has read it."""


def problems(*statuses: int) -> Responses:
    """OpenAPI entries for these statuses."""
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {status: {"description": _TEXTS[status], "content": content} for status in statuses}


def describe(app: FastAPI) -> None:
    """Give the OpenAPI document the schema that every error refers to."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        _, definitions = models_json_schema(
            [(ProblemDetails, "serialization")], ref_template="#/components/schemas/{model}"
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(definitions["$defs"])
        for path in document["paths"].values():
            for operation in path.values():
                before = (*EVERYWHERE, *(WITH_BODY if "requestBody" in operation else ()))
                for status, entry in problems(*before).items():
                    operation["responses"].setdefault(str(status), entry)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


QUERY = (400, 401, 403, 404, 422, 503)
COMMAND = (400, 401, 403, 404, 409, 413, 415, 422, 503, 507)
