"""What an agent needs to run; no database and no S3 keys among it."""

from pathlib import Path

from pydantic import Field

from schemas.base import Message
from schemas.events.agent import AgentProfile
from schemas.ids import AgentId, OrganizationId
from schemas.settings import MetricsSettings, NatsUser


class AgentSettings(Message):
    """One node."""

    agent_id: AgentId
    organization_id: OrganizationId
    pool: str
    name: str
    nats: NatsUser
    api_url: str | None = None
    """Where the right to speak on NATS is renewed when it ran out while the agent was off."""
    work_folder: Path
    """Staged inputs and outputs; emptied of finished attempts."""
    profile: AgentProfile | None = None
    """Found out by the probe when absent."""
    engine_threads: int | None = Field(None, ge=1)
    engine_processes: int | None = Field(None, ge=1)
    """Processes that one training may use at most, on a node with several CUDA devices or where jobs ask for
    them; no limit when absent."""
    memory_reserve_bytes: int = Field(256 * 2**20, ge=0)
    """What trainings leave to others of the memory that they take: a GPU's, or the node's without one."""
    shutdown_seconds: float = Field(20.0, gt=0)
    """How long a stop waits for a last checkpoint before the engine is killed."""
    engine_silence_seconds: float = Field(900.0, gt=0)
    """How long an engine may say nothing before it is killed as hung, unless its steps take longer;
    before its first step at least two minutes."""
    engine_stop_seconds: float = Field(300.0, gt=0)
    """How long a graceful stop may take until the engine has saved its last checkpoint; then it is killed."""
    cache_bytes: int = Field(20 * 10**9, ge=0)
    """Room for staged inputs that stay between attempts; the least recently used leave first."""
    frame_cache_bytes: int = Field(8 * 2**30, ge=0)
    """Room for decoded frames, so that neither a resumed job nor the next one decodes a clip again."""
    metrics: MetricsSettings | None = None
    """Without it nothing listens."""
