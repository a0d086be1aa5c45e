"""Admits an agent that introduces itself: notes what it can do and makes sure that it has queues."""

from dataclasses import dataclass

from command_api.handlers.bus import CommandBus
from command_api.messaging.follower import Follower
from command_api.messaging.heartbeats import note_presence
from command_api.messaging.identity import identify, presence_context
from command_api.messaging.topology import Topology
from schemas.commands.agent import ReportCapabilities
from schemas.work import Hello, HelloReply


@dataclass(frozen=True)
class Introductions:
    """Answers `kinora.hello.<organization>.<agent>`."""

    follower: Follower
    bus: CommandBus
    topology: Topology
    heartbeat_seconds: float
    lease_seconds: float

    async def hello(self, organization_id: str, agent_id: str, hello: Hello) -> HelloReply:
        """Accepted, once the agent's queues exist and its capabilities are recorded."""
        agent = await identify(self.follower, organization_id, agent_id)
        if agent is None:
            return HelloReply(
                accepted=False,
                pool="",
                detail=f"agent {agent_id} is not enrolled in {organization_id}; enrol it first",
            )
        await self.topology.ensure_pool(organization_id, agent.pool)
        command = ReportCapabilities(agent_id=agent_id, capabilities=hello.capabilities)
        await self.bus.execute(command, presence_context(agent))
        if not agent.online:
            await note_presence(self.follower, self.bus, agent, None)
        return HelloReply(
            accepted=True,
            pool=agent.pool,
            heartbeat_seconds=self.heartbeat_seconds,
            lease_seconds=self.lease_seconds,
        )
