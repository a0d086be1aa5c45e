"""What a job would come to, told before anyone requests it: `POST /jobs/plan`."""

from typing import Literal

from pydantic import Field

from schemas.adapters import ComputeDtype
from schemas.base import Message
from schemas.events.agent import AgentProfile
from schemas.footprint import Preflight
from schemas.ids import AgentId
from schemas.training import Hyperparameters

Verdict = Literal["fits", "may_fit", "does_not_fit", "unknown"]


class Range(Message):
    """An estimate between two bounds."""

    least: float
    likely: float
    most: float


class Caution(Message):
    """What people should know before they request the job."""

    code: str
    message: str


class AgentOutlook(Message):
    """The job on one agent of its pool."""

    agent_id: AgentId
    name: str
    online: bool
    verdict: Verdict = Field(
        description="fits: the likely peak, and a tenth more, is less than its room. may_fit: only the least"
        " is. does_not_fit: not even that. unknown: the agent was not probed, or the model's sizes are not"
        " known."
    )
    reason: str
    """The verdict in words."""
    profile: AgentProfile | None = None
    device: str | None = None
    room_bytes: int | None = None
    """What a training may take there: of the device, or of main memory beside the libraries."""
    processes: int = 1
    """That would share each step."""
    compute_dtype: ComputeDtype | None = None
    """What ``auto`` comes to there."""
    preflight: Preflight | None = None
    """The likely peak with the parts of its sum, and what all steps come to."""
    peak_bytes: Range | None = None
    seconds: Range | None = None
    """Of all steps, without evaluations."""
    watt_hours: Range | None = None


class JobPlan(Message):
    """What would happen if the job was requested now. Nothing was recorded; everything is an estimate."""

    hyperparameters: Hyperparameters = Field(description="All of them, defaults included.")
    pool: str
    total_steps: int
    training_examples: int
    held_out_examples: int
    epochs: float | None = Field(None, description="null where steps are counted in tokens.")
    tokens: Range = Field(description="Of all steps, text and clips together.")
    largest_pass_tokens: Range = Field(description="Tokens of the largest forward pass.")
    agents: tuple[AgentOutlook, ...] = Field(description="Every agent of the pool, the roomiest first.")
    refusal: Caution | None = Field(
        None, description="Why the job would be refused; null where it would be queued."
    )
    warnings: tuple[Caution, ...] = ()
    assumptions: tuple[str, ...] = Field((), description="What the figures rest on, in sentences.")
