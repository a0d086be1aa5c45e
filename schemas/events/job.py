"""A job, from the request to its end, as facts. Every attempt-bound fact carries its attempt."""

from typing import ClassVar, Literal

from pydantic import Field

from schemas.adapters import Modality
from schemas.base import Message
from schemas.events.registry import REGISTRY, Event
from schemas.footprint import ModelShape, Preflight
from schemas.ids import AgentId, DatasetId, ModelId, Sha256, UserId
from schemas.objects import StoredObject
from schemas.training import AdapterFacts, Hyperparameters

Priority = Literal["high", "normal", "low"]
StopMode = Literal["graceful", "immediate"]


class PinnedInput(Message):
    """An input as it was when the job was requested; later deletion does not touch it."""

    listing: StoredObject
    """Names every file by hash, and content-addressed keys follow from the hashes."""
    content_sha256: Sha256


class ProgressPoint(Message):
    """One optimizer step, as measured."""

    step: int = Field(ge=1)
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Supervised and unsupervised tokens in this step's batch."""
    tokens_per_second: float
    step_seconds: float


class Evaluation(Message):
    """One pass over the held-out clips."""

    examples: int
    loss: float | None
    """Mean cross-entropy per token of every answer of a row; None when nothing is held out."""
    exact_match: float | None
    """Share of held-out rows whose last answer was given word for word; None below 8 clips."""
    token_accuracy: float | None = None
    """Share of response tokens that were the likeliest, given the right ones before them."""


MOST_RANKS_TOLD = 1000
"""Layers in one event: a model of 70 billion parameters has fewer."""


class LayerRank(Message):
    """An adapted layer before and after ranks were given out."""

    layer: str
    part: Modality
    before: int = Field(ge=1)
    after: int = Field(ge=1)


class RankTrial(Message):
    """Both ways, trained on the same batches from the same state and judged by the same held-out rows."""

    steps: int = Field(ge=1)
    examples: int = Field(ge=1)
    allocated_loss: float = Field(allow_inf_nan=False)
    """Nats per response token."""
    uniform_loss: float = Field(allow_inf_nan=False)

    @property
    def passed(self) -> bool:
        """Whether the allocation is not worse."""
        return self.allocated_loss <= self.uniform_loss


@REGISTRY.register
class JobRequested(Event):
    """Somebody asked for a training; dataset and model are pinned by content."""

    TYPE: ClassVar[str] = "kinora.job.requested"
    name: str
    owner_id: UserId
    dataset_id: DatasetId
    model_id: ModelId
    dataset: PinnedInput
    model: PinnedInput
    manifest: StoredObject
    """The dataset's validated `schemas.datasets.Manifest`."""
    hyperparameters: Hyperparameters
    pool: str
    priority: Priority
    labels: dict[str, str]
    max_attempts: int = Field(ge=1)
    model_shape: ModelShape | None = None
    """The base model's sizes, as its validation measured them."""


@REGISTRY.register
class JobValidationStarted(Event):
    """Inputs and parameters are being checked against each other."""

    TYPE: ClassVar[str] = "kinora.job.validation_started"


@REGISTRY.register
class JobPlanned(Event):
    """What the training will amount to."""

    TYPE: ClassVar[str] = "kinora.job.planned"
    total_steps: int = Field(ge=1)
    training_examples: int = Field(ge=1)
    held_out_examples: int = Field(ge=0)
    epochs: float | None
    """Passes over the training examples; None when only the training tells, because its steps are counted in
    tokens."""
    preflight: Preflight | None = None
    """The least that it can take, from the model's shape and the dataset's figures."""


@REGISTRY.register
class JobQueued(Event):
    """The job waits for an agent; the attempt number is new every time."""

    TYPE: ClassVar[str] = "kinora.job.queued"
    attempt: int = Field(ge=1)
    reason: Literal["requested", "declined", "lease_expired", "released", "retry"]
    not_before_seconds: float = Field(0.0, ge=0)
    """Back-off after this event's time."""
    resume_step: int = Field(0, ge=0)
    """Step of the checkpoint that the attempt goes on from; 0 for the beginning."""


@REGISTRY.register
class JobAssigned(Event):
    """An agent's claim was granted; from here its reports with this attempt count."""

    TYPE: ClassVar[str] = "kinora.job.assigned"
    attempt: int = Field(ge=1)
    agent_id: AgentId


@REGISTRY.register
class AgentAccepted(Event):
    """The agent began to prepare: it stages inputs and loads the model."""

    TYPE: ClassVar[str] = "kinora.job.agent_accepted"
    attempt: int = Field(ge=1)


@REGISTRY.register
class AgentDeclined(Event):
    """The agent cannot take the job."""

    TYPE: ClassVar[str] = "kinora.job.agent_declined"
    attempt: int = Field(ge=1)
    reason: str


@REGISTRY.register
class AttemptReleased(Event):
    """The agent gave the job back in order, for instance because it was shut down."""

    TYPE: ClassVar[str] = "kinora.job.attempt_released"
    attempt: int = Field(ge=1)
    reason: str


@REGISTRY.register
class LeaseExpired(Event):
    """Nothing was heard of the agent for a whole lease (node_lost)."""

    TYPE: ClassVar[str] = "kinora.job.lease_expired"
    attempt: int = Field(ge=1)
    agent_id: AgentId


@REGISTRY.register
class AttemptFailed(Event):
    """An attempt failed in a way that another one may survive; JobQueued follows."""

    TYPE: ClassVar[str] = "kinora.job.attempt_failed"
    attempt: int = Field(ge=1)
    code: str
    message: str


@REGISTRY.register
class TrainingStarted(Event):
    """The model is loaded and the first batch is about to run."""

    TYPE: ClassVar[str] = "kinora.job.training_started"
    attempt: int = Field(ge=1)
    start_step: int = Field(ge=0)
    total_steps: int = Field(ge=1)
    trainable_parameters: int
    total_parameters: int
    training_examples: int
    held_out_examples: int
    device: str
    preflight: Preflight | None = None
    """What the engine expects it to take, from the tokens of all rows."""


@REGISTRY.register
class JobEvaluated(Event):
    """The held-out clips were answered."""

    TYPE: ClassVar[str] = "kinora.job.evaluated"
    attempt: int = Field(ge=1)
    step: int = Field(ge=0)
    phase: Literal["before", "during", "after"]
    evaluation: Evaluation
    adapter_step: int | None = None
    """Step of the adapter that was measured, where early stopping kept an earlier one."""


@REGISTRY.register
class JobProgressed(Event):
    """A bounded batch of steps; the full series is an object."""

    TYPE: ClassVar[str] = "kinora.job.progressed"
    attempt: int = Field(ge=1)
    step: int = Field(ge=0)
    total_steps: int = Field(ge=1)
    epoch: float
    points: tuple[ProgressPoint, ...]
    """Evenly thinned when there were more than 64 steps."""
    eta_seconds: float | None = None
    peak_memory_bytes: int = 0
    preflight: Preflight | None = None
    """What it is expected to take, where these steps have corrected that."""


@REGISTRY.register
class RankChanged(Event):
    """Layers got more rank; from here the training goes on with these."""

    TYPE: ClassVar[str] = "kinora.job.rank_changed"
    attempt: int = Field(ge=1)
    step: int = Field(ge=0)
    """Steps taken before."""
    kept: Literal["allocated", "uniform"]
    trial: RankTrial | None = None
    """None where uniform ranks were not tried beside it."""
    parameters_before: int
    parameters_after: int
    layers: tuple[LayerRank, ...] = Field(max_length=MOST_RANKS_TOLD)
    """Those that changed most, where there are more; `adapter_config.json` has all."""


@REGISTRY.register
class CheckpointSaved(Event):
    """A checkpoint is in the store, whole and verified."""

    TYPE: ClassVar[str] = "kinora.job.checkpoint_saved"
    attempt: int = Field(ge=1)
    step: int = Field(ge=0)
    objects: tuple[StoredObject, ...]


@REGISTRY.register
class LogSegmentStored(Event):
    """A piece of the job's log, or its full-resolution series, is in the store."""

    TYPE: ClassVar[str] = "kinora.job.log_segment_stored"
    attempt: int = Field(ge=1)
    segment: int = Field(ge=1)
    content: Literal["log", "series"]
    lines: int
    object: StoredObject


@REGISTRY.register
class WarningRaised(Event):
    """Something a person should know; the training goes on."""

    TYPE: ClassVar[str] = "kinora.job.warning_raised"
    attempt: int = Field(ge=1)
    code: str
    message: str


@REGISTRY.register
class JobStopRequested(Event):
    """Somebody wants the job to end; graceful keeps a checkpoint and the adapter."""

    TYPE: ClassVar[str] = "kinora.job.stop_requested"
    mode: StopMode
    reason: str


@REGISTRY.register
class TrainingFinished(Event):
    """The last step was taken, or early stopping ended them; artifacts are still to be stored."""

    TYPE: ClassVar[str] = "kinora.job.training_finished"
    attempt: int = Field(ge=1)
    steps: int
    loss_first: float
    loss_last: float
    seconds: float
    stopped_early: bool = False
    """Ended before the planned steps, because the held-out loss no longer fell."""
    adapter_step: int | None = None
    """Step whose adapter early stopping kept; the last one's when absent."""


@REGISTRY.register
class AdapterStored(Event):
    """The adapter is in the store, whole and verified."""

    TYPE: ClassVar[str] = "kinora.job.adapter_stored"
    attempt: int = Field(ge=1)
    objects: tuple[StoredObject, ...]
    facts: AdapterFacts
    partial: bool = False
    """True when it was kept from a stopped training."""


@REGISTRY.register
class JobSucceeded(Event):
    """Terminal: every artifact exists."""

    TYPE: ClassVar[str] = "kinora.job.succeeded"
    attempt: int = Field(ge=1)
    output_model_id: ModelId


@REGISTRY.register
class JobFailed(Event):
    """Terminal."""

    TYPE: ClassVar[str] = "kinora.job.failed"
    attempt: int = Field(ge=0)
    """0 when it failed before any attempt."""
    code: str
    message: str
    retryable: bool
    """True when the same job, asked again, may succeed."""


@REGISTRY.register
class JobStopped(Event):
    """Terminal: cancelled by intent."""

    TYPE: ClassVar[str] = "kinora.job.stopped"
    attempt: int = Field(ge=0)
    step: int = Field(ge=0)
    reason: str
