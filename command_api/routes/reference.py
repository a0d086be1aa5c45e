"""The page `/docs`: Swagger UI over the OpenAPI document, allowed to run nothing but itself."""

import base64
import hashlib
import re

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

_ASSETS = "https://cdn.jsdelivr.net"
_ICON = "data:,"
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def install(app: FastAPI) -> None:
    """Serve the page."""
    page = get_swagger_ui_html(openapi_url="/openapi.json", title="Kinora", swagger_favicon_url=_ICON)
    html = bytes(page.body).decode()
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in _INLINE.findall(html))
    policy = (
        f"default-src 'none'; script-src {hashes} {_ASSETS}; style-src 'unsafe-inline' {_ASSETS};"
        f" img-src data: {_ASSETS}; connect-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )

    async def docs() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    app.add_api_route("/docs", docs, include_in_schema=False)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
