"""Opaque list cursors: a place in a list, signed, so that nobody can ask for a place of their own making."""

import base64
import hashlib
import hmac
import json
from typing import Any

from schemas.errors import KinoraError

_TAG_BYTES = 16


class BadCursor(KinoraError):
    """The cursor was not given out here, or for another list."""

    code = "bad_cursor"


class Cursors:
    """Signs and reads cursors; `scope` binds one to its list and filters."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, scope: str, place: list[Any]) -> str:
        body = json.dumps(place, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._tag(scope, body) + body).rstrip(b"=").decode()

    def read(self, scope: str, cursor: str) -> list[Any]:
        """The place that `cursor` names.

        Raises:
            BadCursor: when it was not signed here for this scope.
        """
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except ValueError:
            raw = b""
        tag, body = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if not body or not hmac.compare_digest(tag, self._tag(scope, body)):
            raise BadCursor("the cursor is not one of this list; start again without it")
        place: list[Any] = json.loads(body)
        return place

    def _tag(self, scope: str, body: bytes) -> bytes:
        return hmac.digest(self._key, b"cursor\0" + scope.encode() + b"\0" + body, hashlib.sha256)[
            :_TAG_BYTES
        ]
