"""Asks for the node's next JWT before the present one expires: over NATS, or else over HTTP.

When NATS refuses the present one, the API is asked why: it gives another, or says that this node is shut out.
"""

import asyncio
import base64
import random
from datetime import UTC, datetime

import httpx
import structlog
from pydantic import BaseModel, ValidationError

from schemas.api import NatsRight, RenewAgentBody, renewal_proof
from schemas.subjects import renew_subject
from schemas.work import RenewReply, RenewRequest
from trainer_agent.connection import Connection
from trainer_agent.credentials import NodeCredentials
from trainer_agent.errors import NoAnswer, ShutOut
from trainer_agent.settings import AgentSettings
from trainer_agent.waiting import Backoff, running

log = structlog.get_logger()

_RENEW_AT = 2 / 3
_JITTER = 0.05
"""So that nodes which started together do not renew together."""
_LONGEST_PAUSE_SECONDS = 60.0


_AGAIN = "run `kinora agents join` on this machine with it"
_SHUT_OUT = {
    "agent_revoked": (
        "was revoked for good; to train here again, enrol this machine as a new agent:"
        f" `kinora agents enroll NAME` prints a token, {_AGAIN}"
    ),
    "proof_invalid": (
        "is not known under this node's key: another node took its place, or it was never enrolled there;"
        f" issue a new token with `kinora agents token AGENT` and {_AGAIN}"
    ),
}
"""What the API's refusals that no repeat changes mean, by their codes."""


class Refused(NoAnswer):
    """The control plane answered, and gives this node no JWT."""


async def renew(
    connection: Connection, credentials: NodeCredentials, settings: AgentSettings, http: httpx.AsyncClient
) -> None:
    """Keep the credentials valid, for ever.

    Raises:
        ShutOut: the API says that this node is not the agent, or no longer.
    """
    async with running(_answer_refusals(connection, credentials, settings, http)):
        await _renew_in_time(connection, credentials, settings, http)


async def _answer_refusals(
    connection: Connection, credentials: NodeCredentials, settings: AgentSettings, http: httpx.AsyncClient
) -> None:
    if settings.api_url is None:
        return  # nobody can be asked: NATS may be in the wrong, so the agent goes on trying
    backoff = Backoff(first=0.5, longest=_LONGEST_PAUSE_SECONDS)
    session = connection.session
    while True:
        await connection.refused()
        if connection.session > session:
            session = connection.session
            backoff.reset()
        try:
            credentials.accept(await _over_http(settings.api_url, credentials, settings, http))
        except (NoAnswer, ValueError) as error:
            log.warning("nats_refusal_unexplained", error=str(error))
        await backoff.wait()


async def _renew_in_time(
    connection: Connection, credentials: NodeCredentials, settings: AgentSettings, http: httpx.AsyncClient
) -> None:
    backoff = Backoff(first=0.5, longest=_LONGEST_PAUSE_SECONDS)
    while True:
        part = _RENEW_AT + random.uniform(-_JITTER, _JITTER)  # noqa: S311 - spreading load, not secrecy
        await asyncio.sleep(max(0.0, credentials.seconds_until(part)))
        try:
            credentials.accept(await _next_jwt(connection, credentials, settings, http))
        except (NoAnswer, ValueError) as error:
            log.warning("nats_jwt_not_renewed", error=str(error), seconds_left=credentials.seconds_until(1.0))
            await backoff.wait()
            continue
        backoff.reset()
        log.info("nats_jwt_renewed", seconds=credentials.seconds_until(1.0))
        connection.renew()


async def _next_jwt(
    connection: Connection, credentials: NodeCredentials, settings: AgentSettings, http: httpx.AsyncClient
) -> str:
    try:
        return await _over_nats(connection, settings)
    except NoAnswer:  # also when it refused: the API then says in a way that binds why
        if settings.api_url is None:
            raise
        return await _over_http(settings.api_url, credentials, settings, http)


async def _over_nats(connection: Connection, settings: AgentSettings) -> str:
    subject = renew_subject(settings.organization_id, settings.agent_id)
    reply = await connection.request(subject, RenewRequest(), RenewReply)
    if reply.jwt is None:
        raise Refused(reply.detail or "no reason was given")
    return reply.jwt


async def _over_http(
    api_url: str, credentials: NodeCredentials, settings: AgentSettings, http: httpx.AsyncClient
) -> str:
    asked_at = datetime.now(UTC)
    signature = credentials.sign(renewal_proof(settings.agent_id, asked_at))
    body = RenewAgentBody(asked_at=asked_at, signature=base64.b64encode(signature).decode())
    url = f"{api_url.rstrip('/')}/api/v1/agents/{settings.agent_id}/renew"
    try:
        answer = await http.post(url, json=body.model_dump(mode="json"))
        if answer.is_success:
            return NatsRight.model_validate_json(answer.content).jwt
    except (httpx.TransportError, ValidationError) as error:
        raise NoAnswer(f"no answer from {url}: {error or type(error).__name__}") from error
    if (remedy := _SHUT_OUT.get(_problem_code(answer))) is not None:
        raise ShutOut(f"agent {settings.agent_id} {remedy}")
    raise NoAnswer(f"{url} answered {answer.status_code}: {answer.text[:500]}")


def _problem_code(answer: httpx.Response) -> str:
    """The code of a problem document; empty for whatever else stands in front of the API and answers."""
    try:
        return _Problem.model_validate_json(answer.content).code
    except ValidationError:
        return ""


class _Problem(BaseModel):
    code: str
