"""Changed orders as they are pushed, ahead of the next heartbeat; a lost one is repaired by that."""

import structlog
from nats.aio.msg import Msg
from pydantic import ValidationError

from schemas.subjects import control_subject
from schemas.work import Control
from trainer_agent.connection import Connection
from trainer_agent.orders import Orders
from trainer_agent.settings import AgentSettings

log = structlog.get_logger()


def listen(connection: Connection, settings: AgentSettings, orders: Orders) -> None:
    """Subscribe; before the connection is entered."""

    async def receive(message: Msg) -> None:
        try:
            control = Control.model_validate_json(message.data)
        except ValidationError as error:
            log.warning("control_unreadable", error=str(error))
            return
        await orders.desire(control.held, control.desired)

    connection.subscribe(control_subject(settings.organization_id, settings.agent_id), receive)
