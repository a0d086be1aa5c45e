"""What one process of the service runs: settings in, a ready file out, an orderly end on a signal."""

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

import structlog
from pydantic import BaseModel

from command_api.settings import ApiSettings, AuditorSettings, OrchestratorSettings
from kinora import collector
from kinora.http import configuration, serve_http
from kinora.local.private_file import write_private
from kinora.logs import configure_logging
from kinora.observation import Readiness, observable
from kinora.redaction import secret_values
from kinora.roles import READY_VARIABLE, STOP_SECONDS, Role, agent_stop_seconds
from kinora.settings import read_settings, telemetry_settings
from kinora.telemetry import exported_traces
from projections.settings import ProjectionsSettings
from schemas.settings import MetricsSettings
from trainer_agent.settings import AgentSettings

Ready = Callable[[], None]
Run = Callable[[asyncio.Event, Ready], Awaitable[None]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Prepared:
    """A role, ready to run in this process."""

    run: Run
    settings: BaseModel
    metrics: MetricsSettings | None
    """None: it has none, or shows them itself."""
    stop_seconds: float = STOP_SECONDS


def run_role(role: Role) -> None:
    """Run one role until a signal ends it.

    Raises:
        KinoraError: settings are wrong, or the role cannot work here.
    """
    os.umask(0o077)
    prepared, telemetry = _prepare(role), telemetry_settings()
    configure_logging(role, secrets=secret_values(prepared.settings) | secret_values(telemetry))
    with exported_traces(role, telemetry):
        asyncio.run(_until_signalled(role, prepared))


def _prepare(role: Role) -> _Prepared:
    """Import and configure only the picked role: an agent's node has no database driver to load."""
    match role:
        case "api":
            from command_api.app import create_app
            from command_api.prerequisites import wait_for_servers

            api = read_settings(ApiSettings)
            serve = partial(serve_http, configuration(api, create_app(api)), what="the API")

            async def serve_when_possible(stop: asyncio.Event, ready: Ready) -> None:
                if await wait_for_servers(api, stop):
                    await serve(stop, ready=ready)

            return _Prepared(serve_when_possible, api, None)
        case "orchestrator":
            from command_api import orchestrator

            orchestration = read_settings(OrchestratorSettings)
            return _Prepared(
                lambda stop, ready: orchestrator.run(orchestration, stop, ready=ready),
                orchestration,
                orchestration.metrics,
            )
        case "projections":
            from projections import run as projecting

            projection = read_settings(ProjectionsSettings)
            return _Prepared(
                lambda stop, ready: projecting.run(projection, stop, ready=ready),
                projection,
                projection.metrics,
            )
        case "auditor":
            from command_api import auditor

            audit = read_settings(AuditorSettings)
            return _Prepared(lambda stop, ready: auditor.run(audit, stop, ready=ready), audit, audit.metrics)
        case "agent":
            from trainer_agent import run as agent

            node = read_settings(AgentSettings)
            return _Prepared(
                lambda stop, ready: agent.run(node, stop, ready=ready),
                node,
                node.metrics,
                agent_stop_seconds(node),
            )
        case _:
            assert_never(role)


async def _until_signalled(role: Role, prepared: _Prepared) -> None:
    stop, readiness = asyncio.Event(), Readiness()

    def ready() -> None:
        collector.settle()
        readiness.say()
        _say_ready()

    def stopping(number: signal.Signals) -> None:
        if stop.is_set():
            return
        log.info("stopping", signal=number.name)
        stop.set()
        _end_at_last(prepared.stop_seconds)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping, number)
    try:
        async with observable(role, prepared.metrics, readiness):
            await prepared.run(stop, ready)
    finally:
        if path := _ready_file():
            path.unlink(missing_ok=True)
    log.info("stopped")


def _end_at_last(seconds: float) -> None:
    """End this process even when its servers are gone and its clients retry for ever."""

    def end() -> None:
        log.error("did not stop in time", seconds=seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _ready_file() -> Path | None:
    named = os.environ.get(READY_VARIABLE)
    return Path(named) if named else None


def _say_ready() -> None:
    log.info("ready")
    if path := _ready_file():
        write_private(path, f"{os.getpid()}\n")
