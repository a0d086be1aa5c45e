"""A sign of life every few seconds, also when idle; its answer says what to do with the held attempt.

An agent that gets no answer keeps training: only another agent's lease can take the attempt away, and
then the answer says `abandon`.
"""

import asyncio

import structlog

from schemas.subjects import heartbeat_subject
from schemas.work import Heartbeat, HeartbeatReply
from trainer_agent.connection import Connection
from trainer_agent.errors import NoAnswer
from trainer_agent.hello import Standing
from trainer_agent.orders import Orders
from trainer_agent.settings import AgentSettings

log = structlog.get_logger()

_DEFAULT_SECONDS = 5.0


async def beat(connection: Connection, settings: AgentSettings, orders: Orders, standing: Standing) -> None:
    """Send heartbeats for ever, from the first welcome on."""
    await standing.accepted.wait()
    subject = heartbeat_subject(settings.organization_id, settings.agent_id)
    loop = asyncio.get_running_loop()
    answered = True
    while True:
        seconds = standing.reply.heartbeat_seconds if standing.reply is not None else _DEFAULT_SECONDS
        next_beat = loop.time() + seconds
        held = orders.held
        try:
            reply = await connection.request(subject, Heartbeat(held=held), HeartbeatReply, timeout=seconds)
        except NoAnswer as error:
            if answered:
                log.warning("heartbeat_unanswered", error=error.message)
            answered = False
        else:
            if not answered:
                log.info("heartbeat_answered_again")
            answered = True
            await orders.desire(held, reply.desired)
        await asyncio.sleep(max(0.0, next_beat - loop.time()))


async def say_goodbye(connection: Connection, settings: AgentSettings) -> None:
    """Tell the control plane that this silence is meant; once, as nobody may be listening any more."""
    subject = heartbeat_subject(settings.organization_id, settings.agent_id)
    try:
        await connection.request(subject, Heartbeat(shutting_down=True), HeartbeatReply, timeout=2.0)
    except NoAnswer as error:
        log.info("goodbye_unanswered", error=error.message)
