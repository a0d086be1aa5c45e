"""Gives agents their next JWT while the present one still holds."""

from dataclasses import dataclass

from command_api.messaging.follower import Follower
from command_api.messaging.identity import identify
from command_api.nats_auth.users import signed_agent
from schemas.settings import NatsSettings
from schemas.work import RenewReply, RenewRequest


@dataclass(frozen=True)
class Renewals:
    """Answers `kinora.renew.<organization>.<agent>`."""

    follower: Follower
    nats: NatsSettings

    async def renew(self, organization_id: str, agent_id: str, _request: RenewRequest) -> RenewReply:
        """A JWT for the key that joined as this agent: of no use to anybody else who asks."""
        # A right outlives this process: never from memory that may be behind a revocation.
        await self.follower.catch_up()
        agent = await identify(self.follower, organization_id, agent_id)
        if agent is None or agent.public_key is None:
            return RenewReply(detail=f"agent {agent_id} is not enrolled in {organization_id}, or was revoked")
        signed = signed_agent(self.nats, agent.public_key, organization_id, agent_id, agent.pool)
        return RenewReply(jwt=signed.jwt, expires_at=signed.expires_at)
