"""What one process of the service runs: settings in, a ready file out, an orderly end on a signal."""

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, assert_never

import structlog

from command_api.settings import ApiSettings, OrchestratorSettings
from kinora.local.private_file import write_private
from kinora.logs import configure_logging
from kinora.settings import read_settings
from projections.settings import ProjectionsSettings
from trainer_agent.settings import AgentSettings

Role = Literal["api", "orchestrator", "projections", "agent"]
ROLES: tuple[Role, ...] = ("api", "orchestrator", "projections", "agent")

READY_VARIABLE = "KINORA_READY_FILE"
"""Where a role writes its process id once it works; a supervisor or a container's probe looks there."""

STOP_SECONDS = 15.0
"""How long a role other than the agent may take to stop."""

Ready = Callable[[], None]
Run = Callable[[asyncio.Event, Ready], Awaitable[None]]

log = structlog.get_logger(__name__)


def run_role(role: Role) -> None:
    """Run one role until a signal ends it.

    Raises:
        KinoraError: settings are wrong, or the role cannot work here.
    """
    os.umask(0o077)
    run, stop_seconds = _prepare(role)
    configure_logging(role)
    asyncio.run(_until_signalled(run, stop_seconds))


def _prepare(role: Role) -> tuple[Run, float]:
    """Import and configure only the picked role: an agent's node has no database driver to load."""
    match role:
        case "api":
            from kinora.http import serve_http

            api = read_settings(ApiSettings)
            return (lambda stop, ready: serve_http(api, stop, ready=ready)), STOP_SECONDS
        case "orchestrator":
            from command_api import orchestrator

            orchestration = read_settings(OrchestratorSettings)
            return (lambda stop, ready: orchestrator.run(orchestration, stop, ready=ready)), STOP_SECONDS
        case "projections":
            from projections import run as projecting

            projection = read_settings(ProjectionsSettings)
            return (lambda stop, ready: projecting.run(projection, stop, ready=ready)), STOP_SECONDS
        case "agent":
            from trainer_agent import run as agent

            node = read_settings(AgentSettings)
            return (lambda stop, ready: agent.run(node, stop, ready=ready)), agent_stop_seconds(node)
        case _:
            assert_never(role)


def agent_stop_seconds(settings: AgentSettings) -> float:
    """An agent saves a last checkpoint and gives its job back first."""
    return settings.shutdown_seconds + STOP_SECONDS


async def _until_signalled(run: Run, stop_seconds: float) -> None:
    stop = asyncio.Event()

    def stopping(number: signal.Signals) -> None:
        if stop.is_set():
            return
        log.info("stopping", signal=number.name)
        stop.set()
        _end_at_last(stop_seconds)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping, number)
    try:
        await run(stop, _say_ready)
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
