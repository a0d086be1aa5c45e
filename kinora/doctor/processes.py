"""The data folder and the processes that belong to it: who runs, who is dead, who is left over."""

import base64
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from kinora.doctor.finding import Finding, bad, doubtful, fine
from kinora.local.child import Identity
from kinora.local.errors import LocalError
from kinora.local.folder import DataFolder
from kinora.local.ports import kept_ports, taken_by

_PROCESSES = ("postgres", "nats", "s3", "api", "orchestrator", "projections", "auditor", "agent")
_PRIVATE = ("secrets.json", "credentials.json", "agent.json", "ports.json")
_LOG_LINES = 3


def data_folder(folder: DataFolder) -> list[Finding]:
    """That only its owner gets at it."""
    if not folder.root.exists():
        return [doubtful("data folder", f"{folder.root} does not exist", "start the service: kinora up")]
    findings = []
    for path, allowed in [(folder.root, 0o700), *((folder.root / name, 0o600) for name in _PRIVATE)]:
        if path.exists() and (mode := path.stat().st_mode & 0o777) & ~allowed:
            findings.append(
                bad("modes", f"others can get at {path} (mode {mode:o})", f"chmod {allowed:o} {path}")
            )
    return [*findings, fine("data folder", str(folder.root))]


def processes(folder: DataFolder) -> list[Finding]:
    """Every server and role of a service that runs here, or what a dead one left behind."""
    if not folder.lock.exists():
        return []
    holder = _holder(folder.lock)
    alive = {name: _alive(folder, name) for name in _PROCESSES}
    if holder is None:
        left = [f"{name} (process {pid})" for name, pid in alive.items() if pid]
        if left:
            remedy = "start the service, which ends them first: kinora up"
            return [
                bad(
                    "left over", f"the service is not running, and these still are: {', '.join(left)}", remedy
                )
            ]
        return [bad("processes", "the service is not running", "start it: kinora up"), *_ports(folder)]
    dead = [name for name, pid in alive.items() if pid is None and (folder.logs / f"{name}.log").exists()]
    findings = [
        bad(
            name,
            f"{name} is not running; its log ends: {_log_end(folder, name) or '(nothing)'}",
            f"it is started again by itself; when it is not, see {folder.logs / f'{name}.log'}",
        )
        for name in dead
    ]
    if findings:
        return findings
    return [fine("processes", f"{len([pid for pid in alive.values() if pid])} run under process {holder}")]


def agent_credentials(folder: DataFolder) -> list[Finding]:
    """When the local agent's right to speak on NATS ends; it renews it while it runs."""
    try:
        text = (folder.agent_work / "nats.jwt").read_text()
        body = text.split(".")[1]
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        left = float(claims["exp"]) - time.time()
    except (OSError, IndexError, KeyError, ValueError):
        return []
    if left < 0:
        return [
            doubtful(
                "agent's credentials",
                f"ended {-left / 3600:.1f} h ago",
                "they are renewed at the agent's start: kinora up",
            )
        ]
    return [fine("agent's credentials", f"valid for {left / 3600:.1f} h, renewed while the agent runs")]


def _ports(folder: DataFolder) -> list[Finding]:
    if not folder.ports.exists():
        return []
    try:
        ports = kept_ports(folder)
    except LocalError as error:
        return [bad("ports", error.message, f"delete {folder.ports} to have new ports chosen")]
    taken = [
        f"{port} ({name}){holder}"
        for name, port in ports.model_dump().items()
        if (holder := taken_by(port)) is not None
    ]
    if not taken:
        return [fine("ports", "all of them are free")]
    remedy = f"end what listens there, or write other numbers into {folder.ports}"
    return [bad("ports", f"taken by other programs: {', '.join(taken)}", remedy)]


def _holder(lock: Path) -> int | None:
    """The process that holds the data folder; None when nobody does."""
    with lock.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(file.fileno(), 32).decode(errors="replace").strip()
            return int(text) if text.isdigit() else 0
    return None


def _alive(folder: DataFolder, name: str) -> int | None:
    identity = Identity.read(folder.run / f"{name}.pid")
    process = identity.process() if identity is not None else None
    return process.pid if process is not None else None


def _log_end(folder: DataFolder, name: str) -> str:
    try:
        lines = (folder.logs / f"{name}.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return " / ".join(_message(line) for line in lines[-_LOG_LINES:])


def _message(line: str) -> str:
    """The words of a line of JSON; another line as it is."""
    try:
        entry = json.loads(line)
        said = {name: entry[name] for name in ("level", "event", "exception") if name in entry}
        return " ".join(str(part).strip()[-300:] for part in said.values())
    except (ValueError, TypeError):
        return line[:300]
