"""What every command route shares: whose request it is, its idempotency, and the headers of its answer."""

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel

from command_api.auth.tokens import Principal
from command_api.eventlog.recorder import SideRow
from command_api.handlers.base import Context, Idempotency
from command_api.handlers.bus import Outcome
from command_api.routes.calling import CallerOfRequest
from command_api.routes.parts import Parts, PartsOfRequest
from schemas.commands import Command
from schemas.ids import Prefix, new_id

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any unique text; the same key again answers with the first outcome, for good.",
    ),
]


@dataclass(frozen=True, slots=True)
class Asking:
    """One command request."""

    caller: Principal
    request: Request
    response: Response
    parts: Parts
    key: str | None
    command_id: str

    async def execute(
        self, command: Command, body: BaseModel | None = None, *, rows: Sequence[SideRow] = ()
    ) -> Outcome:
        """Carry `command` out on behalf of the caller; `body` is what a repeat must repeat."""
        outcome = await self.parts.bus.execute(command, self.context(body), rows)
        self.mark(outcome)
        return outcome

    def context(self, body: BaseModel | None) -> Context:
        """The context of the command; its events follow from the request."""
        caller = self.caller
        return Context(
            actor=caller.user_id,
            organization_id=caller.organization_id,
            workspace_id=caller.workspace_id,
            request_id=self.request.state.request_id,
            correlation_id=self.request.state.request_id,
            causation_id=self.command_id,
            traceparent=self.request.state.traceparent,
            idempotency=idempotency(
                self.request, self.parts, caller.user_id, self.key, body, caller.organization_id
            ),
        )

    def mark(self, outcome: Outcome) -> None:
        """Say where in the log the outcome stands, and whether it is an old one."""
        self.response.headers["X-Event-Position"] = str(outcome.position)
        if outcome.replayed:
            self.response.headers["Idempotent-Replayed"] = "true"

    def no_content(self) -> Response:
        """204, with the headers of the command."""
        return Response(status_code=204, headers=dict(self.response.headers))


def idempotency(
    request: Request,
    parts: Parts,
    principal: str,
    key: str | None,
    body: BaseModel | None,
    organization_id: str | None = None,
) -> Idempotency | None:
    """What makes a request with this key the same again: caller, organization, method, address and body.

    Of the key itself a keyed hash is kept: people put names into it, and rows leave traces in files.
    """
    if key is None:
        return None
    content: Any = None if body is None else body.model_dump(mode="json")
    text = json.dumps([organization_id, request.method, request.url.path, content], sort_keys=True)
    digest = hmac.digest(parts.index_key, b"request\0" + text.encode(), hashlib.sha256)
    return Idempotency(principal, _hashed(parts, principal, key), digest)


def _hashed(parts: Parts, principal: str, key: str) -> str:
    return hmac.digest(parts.index_key, f"key\0{principal}\0{key}".encode(), hashlib.sha256).hex()


async def _asking(
    request: Request,
    response: Response,
    caller: CallerOfRequest,
    parts: PartsOfRequest,
    idempotency_key: IdempotencyKey = None,
) -> Asking:
    if idempotency_key is None:
        command_id = new_id(Prefix.COMMAND)
    else:
        command_id = f"{Prefix.COMMAND}_{_hashed(parts, caller.user_id, idempotency_key)[:32]}"
    return Asking(caller, request, response, parts, idempotency_key, command_id)


AskingOfRequest = Annotated[Asking, Depends(_asking)]
