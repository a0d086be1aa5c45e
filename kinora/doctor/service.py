"""The running service as its API tells it: health part by part, agents, versions, clocks."""

import email.utils
import time
from importlib.metadata import version
from pathlib import Path

import httpx

from kinora.client import Client, Credentials, Json
from kinora.doctor.finding import Finding, bad, doubtful, fine
from schemas.errors import KinoraError

_SKEW_SECONDS = 5.0
_REMEDIES = {
    "postgres": "see logs/postgres.log; without the database nothing can be read or decided",
    "nats": "see logs/nats.log; trainings go on, and nothing new is given out meanwhile",
    "object_store": "see logs/s3.log; transfers are repeated until it is back",
    "projections": "see logs/projections.log; `kinora projections ls` shows each read model",
    "model_registry": "start the read side: kinora projections",
    "disk": "free some space: the log and the object store need it to grow",
    "agents": "jobs wait until an agent with a working 4-bit kernel is online; see logs/agent.log there",
}


def service(folder: Path) -> list[Finding]:
    """What the service at this folder's address says of itself."""
    try:
        credentials = Credentials.find(folder)
    except KinoraError as error:
        return [doubtful("service", error.message, "start it: kinora up")]
    try:
        answer = httpx.get(f"{credentials.url}/health", timeout=10, trust_env=False)
        health: Json = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        detail = f"{credentials.url} does not answer ({type(error).__name__})"
        return [bad("service", detail, "start it: kinora up")]
    return [
        fine("service", f"{credentials.url}, log {health.get('log_id', '?')}"),
        *_parts(health),
        _same_version("service", str(health.get("version"))),
        *_clock("service", answer.headers.get("date")),
        *_agents(credentials),
    ]


def clock_of(name: str, url: str) -> list[Finding]:
    """How far another server's clock is from ours, as its answers tell."""
    try:
        return _clock(name, httpx.head(url, timeout=5, trust_env=False).headers.get("date"))
    except httpx.HTTPError:
        return []  # that it is away is somebody else's finding


def _parts(health: Json) -> list[Finding]:
    findings = []
    for name, part in (health.get("parts") or {}).items():
        if part.get("ok"):
            findings.append(fine(name, str(part.get("detail", ""))))
        else:
            findings.append(bad(name, str(part.get("detail", "")), _REMEDIES.get(name, "see the logs")))
    return findings


def _same_version(name: str, found: str) -> Finding:
    ours = version("kinora")
    if found == ours:
        return fine("version", ours)
    return doubtful(
        "version", f"the {name} is of version {found}, this one of {ours}", "restart the older one"
    )


def _clock(name: str, date: str | None) -> list[Finding]:
    if date is None:
        return []
    skew = email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    if abs(skew) > _SKEW_SECONDS:
        detail = f"the {name}'s clock is {skew:+.0f} s from this machine's"
        return [bad("clock", detail, "set both by NTP: tokens and presigned URLs depend on the time")]
    return [fine("clock", f"as the {name}'s")]


def _agents(credentials: Credentials) -> list[Finding]:
    try:
        with Client(credentials) as client:
            agents = list(client.pages("/agents"))
    except KinoraError as error:
        return [bad("login", error.message, "check KINORA_USERNAME and KINORA_PASSWORD")]
    findings = []
    ours = version("kinora")
    for agent in agents:
        if agent["status"] == "revoked":
            continue  # somebody's decision, and no fault to mend
        name, can = f"agent {agent['name']}", agent.get("capabilities") or {}
        others = (can.get("versions") or {}).get("kinora", ours)
        if agent["status"] != "online":
            why = str(agent.get("lost_reason") or "never heard of").replace("_", " ")
            findings.append(
                doubtful(name, f"offline ({why}) since {agent['changed_at']}", "start it, or remove it")
            )
        elif not can.get("four_bit_kernel"):
            findings.append(
                bad(name, "no working 4-bit kernel: it takes no work", "run kinora doctor on that node")
            )
        elif others != ours:
            findings.append(
                doubtful(name, f"is of version {others}, the service of {ours}", "update that node")
            )
    return findings
