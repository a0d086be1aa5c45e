"""Agents: the nodes that train."""

from typing import ClassVar, Literal

from pydantic import AwareDatetime

from schemas.base import Message
from schemas.events.registry import REGISTRY, Event
from schemas.ids import NatsPublicKey

AgentProfile = Literal["cpu", "cuda", "jetson", "simulated-jetson"]


class Capabilities(Message):
    """What a node can do, measured by running a real 4-bit kernel on it."""

    profile: AgentProfile
    device: str
    """Human-readable, such as ``AMD EPYC (2 cores)`` or ``NVIDIA H200``."""
    cpu_cores: int
    memory_bytes: int
    gpu_memory_bytes: int = 0
    """Of one device."""
    reserved_bytes: int = 0
    """Of the memory that trainings take, what the node's operator keeps for others."""
    gpus: int = 0
    """CUDA devices; a training uses all of them unless it is told otherwise."""
    four_bit_kernel: bool
    """The probe quantised, multiplied and took an optimizer step."""
    versions: dict[str, str]
    """torch, transformers, peft, bitsandbytes, kinora."""


@REGISTRY.register
class AgentEnrolled(Event):
    """A node was admitted to an organization and a pool."""

    TYPE: ClassVar[str] = "kinora.agent.enrolled"
    name: str
    pool: str


@REGISTRY.register
class EnrolmentTokenIssued(Event):
    """Somebody was given a token with which one node may become this agent; the token stands nowhere."""

    TYPE: ClassVar[str] = "kinora.agent.enrolment_token_issued"
    expires_at: AwareDatetime


@REGISTRY.register
class AgentJoined(Event):
    """A node spent the token: whoever holds its key is this agent from now on, and nobody else."""

    TYPE: ClassVar[str] = "kinora.agent.joined"
    public_key: NatsPublicKey


@REGISTRY.register
class AgentRevoked(Event):
    """The agent is shut out for good: its node may neither speak nor join again under this id."""

    TYPE: ClassVar[str] = "kinora.agent.revoked"
    reason: str = ""


@REGISTRY.register
class AgentProbed(Event):
    """The node reported what it can do; repeated only when that changes."""

    TYPE: ClassVar[str] = "kinora.agent.probed"
    capabilities: Capabilities


@REGISTRY.register
class AgentOnline(Event):
    """The node was heard after silence."""

    TYPE: ClassVar[str] = "kinora.agent.online"


@REGISTRY.register
class AgentLost(Event):
    """The node was silent for a whole lease, or said goodbye."""

    TYPE: ClassVar[str] = "kinora.agent.lost"
    reason: Literal["lease_expired", "shut_down"]
