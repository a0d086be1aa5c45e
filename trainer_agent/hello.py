"""How an agent introduces itself: what its engine measured on this node, said again after each reconnect."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

import structlog

from qlora_engine.updates import EngineFailed, ProbeResult
from schemas.events.agent import Capabilities
from schemas.subjects import hello_subject
from schemas.work import Hello, HelloReply
from trainer_agent.connection import Connection
from trainer_agent.engine_process import EngineProcess
from trainer_agent.errors import NoAnswer, ProbeFailed
from trainer_agent.settings import AgentSettings
from trainer_agent.silence import Silence
from trainer_agent.waiting import Backoff

log = structlog.get_logger()

_PROBE_SECONDS = 300.0
_REFUSED_AGAIN_SECONDS = 15.0


class Standing:
    """What the control plane said of this agent."""

    def __init__(self) -> None:
        self.accepted = asyncio.Event()
        self.reply: HelloReply | None = None


async def probe(settings: AgentSettings) -> Capabilities:
    """What this node can do, measured by the engine in a child process.

    Raises:
        ProbeFailed: the engine could not say; its last words are in the message.
    """
    settings.work_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="probe-", dir=settings.work_folder) as name:
        folder = Path(name)
        async with EngineProcess(("--probe",), folder=folder, log_file=folder / "engine.log") as engine:
            try:
                async with asyncio.timeout(_PROBE_SECONDS):
                    async for update in engine.updates(Silence(_PROBE_SECONDS)):
                        if isinstance(update, ProbeResult):
                            return _as_configured(update.capabilities, settings)
                        if isinstance(update, EngineFailed):
                            raise ProbeFailed(
                                f"the engine's probe failed with {update.code}: {update.message}"
                            )
            except TimeoutError:
                raise ProbeFailed(f"the engine's probe gave no result in {_PROBE_SECONDS:.0f} s") from None
            raise ProbeFailed(f"the engine's probe ended without a result: {await engine.last_words()}")


def _as_configured(capabilities: Capabilities, settings: AgentSettings) -> Capabilities:
    return capabilities.model_copy(
        update={
            "profile": settings.profile or capabilities.profile,
            "reserved_bytes": settings.memory_reserve_bytes,
        }
    )


async def introduce(
    connection: Connection,
    settings: AgentSettings,
    capabilities: Capabilities,
    standing: Standing,
    ready: Callable[[], None],
) -> None:
    """Say hello on every new connection until it is answered; `ready` is called at the first welcome."""
    subject = hello_subject(settings.organization_id, settings.agent_id)
    hello = Hello(name=settings.name, capabilities=capabilities)
    session = 0
    while True:
        session = await connection.session_after(session)
        reply = await _welcome(connection, subject, hello)
        standing.reply = reply
        if not standing.accepted.is_set():
            standing.accepted.set()
            ready()
        log.info("welcomed", pool=reply.pool, heartbeat_seconds=reply.heartbeat_seconds)


async def _welcome(connection: Connection, subject: str, hello: Hello) -> HelloReply:
    backoff = Backoff(longest=3.0)
    silent = False
    while True:
        try:
            reply = await connection.request(subject, hello, HelloReply)
        except NoAnswer as error:
            if not silent:
                log.warning("hello_unanswered", error=error.message)
                silent = True
            await backoff.wait()
            continue
        if reply.accepted:
            return reply
        log.warning("hello_refused", detail=reply.detail, again_in_seconds=_REFUSED_AGAIN_SECONDS)
        await asyncio.sleep(_REFUSED_AGAIN_SECONDS)
