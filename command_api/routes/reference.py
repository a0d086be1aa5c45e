"""The OpenAPI and AsyncAPI documents, the events' JSON Schemas, and the page `/docs`.

The page is Swagger UI, allowed to run nothing but itself.
"""

import base64
import hashlib
import json
from functools import cache

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

from command_api.domain.errors import NotFound
from command_api.settings import ApiSettings
from command_api.subscriptions import asyncapi
from schemas.generate import FOLDER

_DOCUMENT = "/openapi.json"
_SWAGGER_UI = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0"
_SCRIPT, _STYLE = f"{_SWAGGER_UI}/swagger-ui-bundle.js", f"{_SWAGGER_UI}/swagger-ui.css"
_SCRIPT_HASH = "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"
_STYLE_HASH = "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I"
"""Of these files in the package on npm, which the CDN serves: a browser loads nothing else from there."""

_START = (
    f"SwaggerUIBundle({{url: '{_DOCUMENT}', dom_id: '#swagger-ui', deepLinking: true, showExtensions: true}})"
)
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1.0">
<title>Kinora</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{_STYLE}" integrity="{_STYLE_HASH}" crossorigin="anonymous">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{_SCRIPT}" integrity="{_SCRIPT_HASH}" crossorigin="anonymous"></script>
<script>{_START}</script>
</body>
</html>
"""
_START_HASH = base64.b64encode(hashlib.sha256(_START.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; script-src 'sha256-{_START_HASH}' {_SCRIPT}; style-src 'unsafe-inline' {_STYLE};"
    " img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def install(app: FastAPI, settings: ApiSettings) -> None:
    """Serve them, to anybody."""

    @cache
    def document() -> bytes:
        # Anybody may ask for it, and making it takes longer than most requests.
        return json.dumps(app.openapi(), separators=(",", ":"), ensure_ascii=False).encode()

    async def openapi() -> Response:
        return Response(document(), media_type="application/json")

    async def docs() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    app.add_api_route("/docs", docs, include_in_schema=False)
    for path in (_DOCUMENT, f"/api/v1{_DOCUMENT}"):
        app.add_api_route(path, openapi, include_in_schema=False)

    @cache
    def events() -> bytes:
        nats = settings.nats.subscribers_url or settings.nats.url
        described = asyncapi.document(settings.public_url, nats)
        return json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()

    async def asyncapi_document() -> Response:
        return Response(events(), media_type="application/json")

    async def event_schema(name: str) -> Response:
        if name not in asyncapi.event_schemas():
            raise NotFound(f"there is no event version {name[:80]!a}; /asyncapi.json names all of them")
        content = (FOLDER / f"{name}.json").read_bytes()
        return Response(content, media_type="application/schema+json")

    for path in ("/asyncapi.json", "/api/v1/asyncapi.json"):
        app.add_api_route(path, asyncapi_document, include_in_schema=False)
    app.add_api_route("/schemas/events/{name}.json", event_schema, include_in_schema=False)
