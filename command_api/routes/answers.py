"""What every answer says to browsers and caches, whatever made it, and what is left of one's quotas."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from command_api import rates

API_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Answers are data: a browser that takes one for a page loads and runs nothing."""

_YEAR = 365 * 86400


class AnswerHeaders:
    """Outermost, so that an unexpected error's answer has them too."""

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self._app = app
        self._always = {
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if https:
            self._always["Strict-Transport-Security"] = f"max-age={_YEAR}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._always)
                headers.update(rates.fields(state.get("standings", ())))
                headers.setdefault("Content-Security-Policy", API_POLICY)
                # Answers hold tokens and presigned URLs. What has an entity tag holds neither, and may be
                # kept by its reader, who asks whether it is still so.
                headers.setdefault("Cache-Control", "private, no-cache" if "etag" in headers else "no-store")
            await send(message)

        await self._app(scope, receive, complete)
