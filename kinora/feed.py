"""Follows the service's live feed: reconnects by position, so every event arrives once and in order."""

import json
import random
import time
from collections.abc import Iterator
from typing import Any, Literal

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import Close
from websockets.sync.client import connect

from kinora.client import ApiError, Client, Json, Unreachable
from schemas.errors import KinoraError

Start = int | Literal["earliest", "latest"]


class FeedRefused(KinoraError):
    """The feed answered with an error frame."""

    code = "feed_refused"


class LogChanged(KinoraError):
    """The service's log is another one now (restored or replaced); positions mean nothing there."""

    code = "log_changed"


def follow(
    client: Client,
    *,
    start: Start,
    event_filter: Json | None = None,
    log_id: str | None = None,
    patience_seconds: float = 60.0,
    quiet: bool = False,
    start_over: bool = False,
) -> Iterator[Json]:
    """Yield feed frames of type ``event``, ``telemetry`` and ``caught_up``, for ever.

    `log_id` is the log that the position `start` belongs to, where the caller knows it. With `start_over`
    a log that was replaced is followed from its beginning, after its ``reset`` frame was yielded.

    A lost connection is made again from the last position seen. With `quiet`, ``heartbeat`` frames are
    yielded too, so that a caller can redraw while nothing happens.

    Raises:
        Unreachable: when no connection could be had for `patience_seconds`.
        LogChanged: when the server asks for a reset, unless with `start_over`.
    """
    position: Start = start
    failing_since: float | None = None
    attempt = 0
    relogged = False
    while True:
        try:
            for frame in _frames(client, position, log_id, event_filter or {}):
                failing_since, attempt, relogged = None, 0, False
                match frame["type"]:
                    case "hello":
                        log_id = log_id or frame.get("log_id")
                        if position == "latest":
                            position = int(frame["head"])
                    case "event":
                        position = int(frame["position"])
                        yield frame
                    case "caught_up":
                        position = int(frame["position"])
                        yield frame
                    case "telemetry":
                        yield frame
                    case "heartbeat":
                        if quiet:
                            yield frame
                    case "reset" if start_over:
                        position, log_id = "earliest", str(frame["log_id"])
                        yield frame
                        break
                    case "reset":
                        raise LogChanged(_changed(frame))
                    case "error":
                        raise FeedRefused(str(frame.get("message") or frame.get("detail") or frame))
        except (ConnectionClosed, InvalidHandshake, OSError, TimeoutError, Unreachable) as error:
            status = _refusal(error)
            if status == 401 and not relogged:
                relogged = True
                client.forget_token()
                continue
            if status is not None:
                problem = {"detail": f"the feed refused the connection: {error}"}
                raise ApiError(status, problem) from error
            now = time.monotonic()
            failing_since = failing_since or now
            if now - failing_since > patience_seconds:
                raise Unreachable(f"the feed at {client.websocket_url} does not answer: {error}") from error
            attempt += 1
            time.sleep(min(5.0, 0.2 * 2**attempt) * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)


def _changed(frame: Json) -> str:
    restored = frame.get("reason") == "log_restored"
    how = "was restored from a backup" if restored else "is another one"
    return (
        f"the service's log {how} and is {frame['log_id']} now; begin again from position {frame['earliest']}"
    )


def _refusal(error: Exception) -> int | None:
    """The HTTP status that a refusal amounts to; None for a connection that is worth another try."""
    match error:
        case InvalidStatus() if error.response.status_code in (401, 403, 404):
            return error.response.status_code
        case ConnectionClosed(rcvd=Close(code=code)):
            return {4400: 400, 4401: 401, 4403: 403}.get(code)
        case _:
            return None


def _frames(client: Client, position: Start, log_id: str | None, event_filter: Json) -> Iterator[Json]:
    with connect(
        client.websocket_url,
        subprotocols=["kinora.events.v1"],  # type: ignore[list-item]
        additional_headers={"Authorization": f"Bearer {client.token()}"},
        proxy=None,
        # Whoever leaves in the middle of a backlog would wait so long for the server's goodbye behind it.
        close_timeout=0.5,
        max_size=16 * 2**20,
        open_timeout=10,
    ) as socket:
        begin: Any = position if isinstance(position, str) else {"position": position}
        subscribe: Json = {
            "type": "subscribe",
            "sub": "cli",
            "filter": event_filter,
            "from": begin,
            "mode": "lossless",
        }
        if log_id is not None:
            subscribe["log_id"] = log_id
        socket.send(json.dumps(subscribe))
        while True:
            yield json.loads(socket.recv(timeout=60))
