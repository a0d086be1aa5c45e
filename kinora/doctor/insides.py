"""The servers themselves, where this machine has the control plane's settings: database, streams, store."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import LiteralString

import httpx
import psycopg
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError
from pydantic import ValidationError

from command_api.audit.sweeps import STREAM, STREAMS, Sweep, sweeps
from command_api.messaging.connection import connect
from command_api.settings import OrchestratorSettings
from command_api.webhooks.delivery_log import FailingWebhook, failing_webhooks
from kinora.doctor.finding import Finding, bad, doubtful, fine
from kinora.doctor.service import clock_of
from kinora.local.folder import DataFolder
from projections.audit import comparable
from projections.catalogue import statuses
from projections.parking import ParkedStream, parked_streams
from projections.reader import read_head, read_log_id
from projections.registry import VIEWS
from projections.views.findings import Finding as OpenFinding
from projections.views.findings import findings
from schemas.settings import MetricsSettings
from schemas.subjects import (
    DEAD_LETTERS_STREAM,
    EPOCH_HEADER,
    EVENTS_STREAM,
    EVENTS_SUBJECTS,
    LOG_ID_HEADER,
    POSITION_HEADER,
    REPORTS_STREAM,
    WORK_STREAM,
)
from trainer_agent.settings import AgentSettings

_WAIT_SECONDS = 5.0
_LAG = 1000
_SKEW_SECONDS = 5.0
_AUDIT_SILENCE = timedelta(minutes=10)
_UNSIGNED_FOR = timedelta(minutes=1)
_UNSIGNED: LiteralString = """
SELECT coalesce(last.number, 0), coalesce(last.position, 0),
       (SELECT (convert_from(state, 'UTF8')::jsonb ->> 'time')::timestamptz FROM kinora_events
         WHERE notification_id > coalesce(last.position, 0) ORDER BY notification_id LIMIT 1)
  FROM (SELECT) AS always
  LEFT JOIN (SELECT number, position FROM kinora_heads ORDER BY number DESC LIMIT 1) AS last ON true
"""


def insides(folder: DataFolder) -> list[Finding]:
    """Nothing where the settings of `kinora up` are not at hand."""
    try:
        text = (folder.run / "orchestrator.settings.json").read_text()
        settings = OrchestratorSettings.model_validate_json(text)
    except (OSError, ValidationError):
        return []
    return asyncio.run(_look(folder, settings))


async def _look(folder: DataFolder, settings: OrchestratorSettings) -> list[Finding]:
    head, log_id, of_database = await _database(settings)
    return [
        *of_database,
        *await _streams(settings, head, log_id),
        *clock_of("object store", settings.s3.endpoint_url),
        *await _roles(folder, settings),
    ]


async def _database(settings: OrchestratorSettings) -> tuple[int, str, list[Finding]]:
    try:
        async with (
            asyncio.timeout(_WAIT_SECONDS),
            await psycopg.AsyncConnection.connect(
                settings.postgres.conninfo(), autocommit=True, connect_timeout=3
            ) as connection,
        ):
            row = await (await connection.execute("SELECT extract(epoch FROM clock_timestamp())")).fetchone()
            skew = float(row[0]) - time.time() if row is not None else 0.0
            head, log_id = await read_head(connection), await read_log_id(connection)
            told = []
            for view in await statuses(connection):
                lag = head - view.position
                if lag > _LAG and not view.rebuilding:
                    remedy = "wait, and see logs/projections.log when it does not fall"
                    told.append(doubtful("projections", f"{view.view} is {lag} events behind", remedy))
            told += [_parked(parked) for parked in await parked_streams(connection)]
            told += [_failing(webhook) for webhook in await failing_webhooks(connection)]
            found = await _open_findings(connection)
            told += _subscribers(found)
            told += await _audit(connection, found)
            told += await _proofs(connection, settings, head, found)
    except (psycopg.Error, TimeoutError) as error:
        detail = f"does not answer ({type(error).__name__})"
        return 0, "", [bad("database", detail, "see logs/postgres.log; start the service: kinora up")]
    if abs(skew) > _SKEW_SECONDS:
        detail = f"the database's clock is {skew:+.0f} s from this machine's"
        told.append(bad("clock", detail, "set both by NTP"))
    return head, log_id or "", [fine("database", f"{head} is the newest position"), *told]


def _failing(webhook: FailingWebhook) -> Finding:
    since = f"{webhook.failing_since:%Y-%m-%d %H:%M}"
    detail = (
        f"the receiver of {webhook.subscription_id} has taken nothing since {since} UTC, in"
        f" {webhook.failures} attempts; {webhook.pending} deliveries wait. The last one: {webhook.last[:200]}"
    )
    remedy = (
        f"see kinora subscriptions deliveries {webhook.subscription_id}, and try the receiver with"
        f" kinora subscriptions test {webhook.subscription_id}; after three days it is disabled"
    )
    return doubtful("webhooks", detail, remedy)


def _parked(parked: ParkedStream) -> Finding:
    stopped = f"{parked.view} could not follow {parked.stream_id} from position {parked.first_position}"
    remedy = (
        f"everything else goes on; update to a version that can fold this event, start it, then"
        f" kinora projections rebuild {parked.view}"
    )
    return bad("parked", f"{stopped}: {parked.error[:200]}", remedy)


async def _open_findings(connection: psycopg.AsyncConnection) -> Sequence[OpenFinding]:
    try:
        return await findings(connection, status="open")
    except psycopg.errors.UndefinedTable:
        return ()  # the read side was never started, which is said elsewhere


def _subscribers(found: Sequence[OpenFinding]) -> list[Finding]:
    return [
        bad("subscribers", f"{each.about} has missed events: {each.detail}", each.remedy)
        for each in found
        if each.check == "subscriber"
    ]


async def _audit(connection: psycopg.AsyncConnection, found: Sequence[OpenFinding]) -> list[Finding]:
    """What the auditor found, and how far its walks through everything are."""
    walks = {each.sweep: each for each in await sweeps(connection)}
    told = [
        bad("auditor", f"{each.subject} differs from the log for {each.about}: {each.detail}", each.remedy)
        for each in found
        if each.check in ("stream", "read_model")
    ]
    told += [
        doubtful(
            "auditor",
            f"nobody knows whether {view.name} is right, for it cannot be compared with the log: {reason}",
            f"start kinora projections of this release; when that does not help: kinora projections rebuild"
            f" {view.name}",
        )
        for view in VIEWS
        if (reason := await comparable(connection, view)) is not None
    ]
    if STREAM not in walks or STREAMS not in walks:
        return [*told, doubtful("auditor", "has compared nothing yet", "start it: kinora auditor")]
    quiet = datetime.now(UTC) - max(each.updated_at for each in walks.values())
    if quiet > _AUDIT_SILENCE:
        detail = f"last compared anything {quiet.total_seconds() / 60:.0f} minutes ago"
        return [*told, doubtful("auditor", detail, "see logs/auditor.log; start it: kinora auditor")]
    return told or [
        fine("auditor", f"{_walk('stream', walks[STREAM])}; {_walk('aggregates', walks[STREAMS])}")
    ]


async def _proofs(
    connection: psycopg.AsyncConnection,
    settings: OrchestratorSettings,
    head: int,
    found: Sequence[OpenFinding],
) -> list[Finding]:
    """Whether the log is what was signed, and how far it is signed."""
    told = [bad("proofs", each.detail, each.remedy) for each in found if each.check == "log"]
    if settings.audit_key_pem is None:
        remedy = "set audit_key_pem of the orchestrator: openssl genpkey -algorithm ed25519"
        return [*told, doubtful("proofs", "no head of the log is signed: there is no key", remedy)]
    row = await (await connection.execute(_UNSIGNED)).fetchone()
    number, position, since = row if row is not None else (0, 0, None)
    late = timedelta(seconds=settings.audit_head_seconds) + _UNSIGNED_FOR
    if since is not None and datetime.now(UTC) - since > late:
        detail = (
            f"head {number} vouches up to position {position} of {head}; what happened at"
            f" {since:%Y-%m-%d %H:%M} UTC is not signed yet"
        )
        return [*told, doubtful("proofs", detail, "see logs/orchestrator.log: its keeper should sign on")]
    return told or [fine("proofs", f"head {number} vouches up to position {position}")]


def _walk(what: str, sweep: Sweep) -> str:
    ended = f"whole at {sweep.finished_at:%Y-%m-%d %H:%M}" if sweep.finished_at else "never whole yet"
    return f"{what}: {ended}, {sweep.compared} compared since" if sweep.compared else f"{what}: {ended}"


async def _streams(settings: OrchestratorSettings, head: int, log_id: str) -> list[Finding]:
    try:
        async with asyncio.timeout(_WAIT_SECONDS), connect(settings.nats, "kinora-doctor") as client:
            return [
                *await _exists(client, WORK_STREAM),
                *await _exists(client, REPORTS_STREAM),
                await _events(client, head, log_id),
                *await _dead_letters(client),
            ]
    except (NatsError, APIError, TimeoutError, OSError) as error:
        detail = f"NATS does not answer ({type(error).__name__})"
        return [bad("streams", detail, "see logs/nats.log; start the service: kinora up")]


async def _exists(client: Client, name: str) -> list[Finding]:
    try:
        await client.jetstream().stream_info(name)
    except NotFoundError:
        remedy = "the orchestrator makes it again within seconds; see logs/orchestrator.log when it does not"
        return [bad("streams", f"the stream {name} is missing", remedy)]
    return []


async def _events(client: Client, head: int, log_id: str) -> Finding:
    try:
        last = await client.jetstream().get_last_msg(EVENTS_STREAM, EVENTS_SUBJECTS)
    except NotFoundError:
        remedy = "the orchestrator fills it from the log; see logs/orchestrator.log when it does not"
        if head == 0:
            return fine("streams", "nothing has happened yet")
        return bad("streams", f"the stream {EVENTS_STREAM} is missing or empty", remedy)
    headers = last.headers or {}
    position, epoch = int(headers.get(POSITION_HEADER, "0")), headers.get(EPOCH_HEADER, "1")
    if log_id and headers.get(LOG_ID_HEADER) != log_id:
        detail = (
            f"{EVENTS_STREAM} holds events of the log {headers.get(LOG_ID_HEADER)}, and this is log {log_id}"
        )
        return bad("streams", detail, "start the orchestrator: it fills the stream anew, under a new epoch")
    if head - position > _LAG:
        detail = f"{EVENTS_STREAM} is {head - position} positions behind the log (epoch {epoch})"
        return doubtful("streams", detail, "see logs/orchestrator.log: its relay should catch up")
    return fine("streams", f"{EVENTS_STREAM} ends at position {position}, epoch {epoch}")


async def _dead_letters(client: Client) -> list[Finding]:
    js = client.jetstream()
    try:
        state = (await js.stream_info(DEAD_LETTERS_STREAM)).state
    except NotFoundError:
        return []
    if not state.messages:
        return []
    last = await js.get_msg(DEAD_LETTERS_STREAM, seq=state.last_seq)
    reason = (last.headers or {}).get("Kinora-Reason", "no reason given")
    return [
        doubtful(
            "dead letters",
            f"{state.messages} messages could not be read; the newest: {reason[:200]}",
            "update the agent that sent it; then purge the stream DEAD_LETTERS",
        )
    ]


async def _roles(folder: DataFolder, settings: OrchestratorSettings) -> list[Finding]:
    """Roles that run and do not answer, or wait for something."""
    findings = []
    async with httpx.AsyncClient(trust_env=False, timeout=3) as http:
        for role, metrics in _ports_of(folder, settings).items():
            address = f"http://{metrics.host}:{metrics.port}/health/ready"
            try:
                answer = await http.get(address)
            except httpx.HTTPError as error:
                detail = f"does not answer on {address} ({type(error).__name__})"
                findings.append(bad(f"{role} health", detail, f"see {folder.logs / f'{role}.log'}"))
                continue
            if answer.status_code != 200:
                detail = str(answer.json().get("detail", answer.status_code))
                findings.append(doubtful(f"{role} health", detail, f"see {folder.logs / f'{role}.log'}"))
    return findings


def _ports_of(folder: DataFolder, settings: OrchestratorSettings) -> dict[str, MetricsSettings]:
    found = {} if settings.metrics is None else {"orchestrator": settings.metrics}
    agent = _agent_settings(folder.run / "agent.settings.json")
    if agent is not None and agent.metrics is not None:
        found["agent"] = agent.metrics
    return found


def _agent_settings(file: Path) -> AgentSettings | None:
    try:
        return AgentSettings.model_validate_json(file.read_text())
    except (OSError, ValidationError):
        return None
