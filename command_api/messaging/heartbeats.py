"""Answers heartbeats from memory: they extend leases, carry stops, and are never events."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from command_api.handlers.bus import CommandBus
from command_api.messaging.board import Agent
from command_api.messaging.follower import Follower
from command_api.messaging.identity import identify, presence_context
from command_api.messaging.leases import Held, Leases
from schemas.commands.agent import MarkAgentLost, MarkAgentOnline
from schemas.errors import KinoraError
from schemas.work import DesiredState, Heartbeat, HeartbeatReply

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heartbeats:
    """Answers `kinora.heartbeat.<organization>.<agent>`."""

    follower: Follower
    bus: CommandBus
    leases: Leases
    clock: Callable[[], float]

    async def beat(self, organization_id: str, agent_id: str, heartbeat: Heartbeat) -> HeartbeatReply:
        """When the lease ends and what the agent should be doing."""
        agent = await identify(self.follower, organization_id, agent_id)
        if agent is None:
            return HeartbeatReply(lease_until=datetime.now(UTC), desired="abandon")
        held: Held | None = None
        desired: DesiredState = "run"
        if heartbeat.held is not None:
            held = Held(heartbeat.held.item_id, heartbeat.held.attempt, agent_id)
            desired = await self._desired(held)
        self.leases.heard(agent_id, held if desired != "abandon" else None, self.clock())
        await self._note_presence(agent, gone=heartbeat.shutting_down and held is None)
        return HeartbeatReply(
            lease_until=datetime.now(UTC) + timedelta(seconds=self.leases.period), desired=desired
        )

    async def _desired(self, held: Held) -> DesiredState:
        item = self.follower.board.holds(held)
        if item is None:
            # The board may be behind the claim; an agent must never be told to abandon by mistake.
            await self.follower.catch_up()
            item = self.follower.board.holds(held)
        return "abandon" if item is None else item.desired

    async def _note_presence(self, agent: Agent, *, gone: bool) -> None:
        """Coming and going are events, because people want to see them; the heartbeat itself is not."""
        if agent.online != gone:
            return
        try:
            await note_presence(self.follower, self.bus, agent, "shut_down" if gone else None)
        except KinoraError as error:
            logger.warning("presence of %s: %s; noted with its next heartbeat", agent.agent_id, error)


async def note_presence(
    follower: Follower, bus: CommandBus, agent: Agent, lost: Literal["lease_expired", "shut_down"] | None
) -> None:
    """Record that an agent is there, or why it is not."""
    command: MarkAgentOnline | MarkAgentLost = MarkAgentOnline(agent_id=agent.agent_id)
    if lost is not None:
        command = MarkAgentLost(agent_id=agent.agent_id, reason=lost)
    outcome = await bus.execute(command, presence_context(agent))
    await follower.reach(outcome.position)
