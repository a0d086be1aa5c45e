"""`kinora doctor`: looks at this machine and the running service, and says what to do about what is wrong."""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import httpx
import typer
from rich.markup import escape

from kinora.cli.datasets import AsJson
from kinora.cli.output import door, out, print_json, size, talk
from kinora.client import Client, Credentials
from kinora.settings import data_folder
from qlora_engine.updates import UPDATE, EngineFailed, ProbeResult
from schemas.errors import KinoraError

_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    verdict: Literal["ok", "warning", "failed"]
    detail: str
    remedy: str = ""


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", "ok", version)


def _disk(folder: Path) -> Finding:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{size(free)} free at {existing}"
    if free < _GIB:
        return Finding(
            "disk", "failed", detail, "free some space: the log and the object store need it to grow"
        )
    if free < 5 * _GIB:
        return Finding("disk", "warning", detail, "datasets and checkpoints soon fill this; free some space")
    return Finding("disk", "ok", detail)


def _folder(folder: Path) -> Finding:
    if not folder.exists():
        return Finding("data folder", "warning", f"{folder} does not exist", "start the service: kinora up")
    mode = folder.stat().st_mode & 0o777
    if mode & 0o077:
        return (
            Finding(
                "data folder", "failed", f"{folder} is open to others (mode {mode:o})", f"chmod 700 {folder}"
            )
            if mode & 0o022
            else Finding("data folder", "ok", f"{folder} (mode {mode:o})")
        )
    return Finding("data folder", "ok", str(folder))


def _engine() -> Finding:
    """Runs the engine's probe: a real 4-bit kernel and an optimizer step."""
    with tempfile.TemporaryFile() as updates:
        done = subprocess.run(
            [sys.executable, "-m", "qlora_engine", "--probe", "--updates-fd", str(updates.fileno())],
            pass_fds=(updates.fileno(),),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        updates.seek(0)
        lines = [UPDATE.validate_json(line) for line in updates.read().splitlines()]
    for update in lines:
        if isinstance(update, ProbeResult):
            found = update.capabilities
            detail = f"{found.profile} on {found.device}, {size(found.memory_bytes)} memory"
            if found.four_bit_kernel:
                return Finding("engine", "ok", detail + ", 4-bit kernel works")
            return Finding(
                "engine", "failed", detail, "bitsandbytes has no working 4-bit kernel for this device"
            )
        if isinstance(update, EngineFailed):
            return Finding("engine", "failed", f"{update.code}: {update.message}", "reinstall: make install")
    return Finding("engine", "failed", done.stderr.strip()[-300:], "reinstall: make install")


def _service(folder: Path) -> list[Finding]:
    try:
        credentials = Credentials.find(folder)
    except KinoraError as error:
        return [Finding("service", "warning", error.message, "start it: kinora up")]
    try:
        health = httpx.get(f"{credentials.url}/health", timeout=5, trust_env=False).json()
    except httpx.HTTPError as error:
        return [
            Finding(
                "service", "failed", f"{credentials.url} does not answer ({error})", "start it: kinora up"
            )
        ]
    findings = [Finding("service", "ok", f"{credentials.url}, log {health.get('log_id', '?')}")]
    for name, part in (health.get("parts") or {}).items():
        verdict: Literal["ok", "failed"] = "ok" if part.get("ok") else "failed"
        findings.append(
            Finding(
                name,
                verdict,
                str(part.get("detail", "")),
                f"see {folder / 'logs'}" if verdict == "failed" else "",
            )
        )
    try:
        with Client(credentials) as client:
            agents = list(client.pages("/agents"))
    except KinoraError as error:
        return [
            *findings,
            Finding("login", "failed", error.message, "check KINORA_USERNAME and KINORA_PASSWORD"),
        ]
    online = [agent for agent in agents if agent["status"] == "online"]
    detail = f"{len(online)} of {len(agents)} online"
    remedy = "" if online else f"jobs wait until one is there; see {folder / 'logs' / 'agent.log'}"
    return [*findings, Finding("agents", "ok" if online else "failed", detail, remedy)]


@door
def doctor(as_json: AsJson = False) -> None:
    """Look for what is wrong, and say what to do."""
    folder = data_folder()
    with talk.status("looking …"):
        findings = [_python(), _folder(folder), _disk(folder), _engine(), *_service(folder)]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        marks = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failed": "[red]✗[/]"}
        for finding in findings:
            out.print(
                f"{marks[finding.verdict]} [bold]{finding.name}[/]  {escape(finding.detail)}", highlight=False
            )
            if finding.remedy:
                out.print(f"    → {escape(finding.remedy)}", highlight=False)
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(1)
