"""What an engine tells its parent, one JSON line each on a private pipe. Free of torch: agents import it."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from schemas.base import Message
from schemas.datasets import DatasetFacts, ModelFacts, Problem
from schemas.events.agent import Capabilities
from schemas.events.job import Evaluation, LayerRank, ProgressPoint, RankTrial
from schemas.footprint import Preflight
from schemas.training import AdapterFacts, EngineSpec


class Preparing(Message):
    kind: Literal["preparing"] = "preparing"
    phase: Literal["loading_model", "loading_data", "evaluating", "saving", "merging"]
    done: int = 0
    total: int = 0


class Alive(Message):
    """In the middle of a long step: nothing to tell, but not hung either."""

    kind: Literal["alive"] = "alive"


class TrainingBegan(Message):
    kind: Literal["training_began"] = "training_began"
    family: str
    quantized_linear_layers: int
    start_step: int
    total_steps: int
    trainable_parameters: int
    total_parameters: int
    training_examples: int
    held_out_examples: int
    device: str
    preflight: Preflight | None = None
    """What the rest is expected to take."""


class StepTaken(Message):
    kind: Literal["step_taken"] = "step_taken"
    total_steps: int
    epoch: float
    """Examples taken so far by training examples. Every batch is full, so the last one may take a few that
    the planned epochs do not ask for: less than a batch of them."""
    point: ProgressPoint
    eta_seconds: float | None = None
    peak_memory_bytes: int = 0


class Calibrated(Message):
    """What the training is expected to take, corrected by its first steps; goes before their `StepTaken`."""

    kind: Literal["calibrated"] = "calibrated"
    step: int
    preflight: Preflight


class EvaluationDone(Message):
    kind: Literal["evaluation_done"] = "evaluation_done"
    step: int
    phase: Literal["before", "during", "after"]
    evaluation: Evaluation
    adapter_step: int | None = None
    """Step of the adapter that was measured, where early stopping kept an earlier one."""


class RankChanged(Message):
    """Layers got more rank after `step` steps; the training goes on with these."""

    kind: Literal["rank_changed"] = "rank_changed"
    step: int
    kept: Literal["allocated", "uniform"]
    trial: RankTrial | None
    parameters_before: int
    parameters_after: int
    layers: tuple[LayerRank, ...]


class CheckpointWritten(Message):
    """`folder` is complete: it was renamed into place with its manifest."""

    kind: Literal["checkpoint_written"] = "checkpoint_written"
    step: int
    folder: str


class OomRecovered(Message):
    """Memory did not suffice; the same step goes on with less, and what follows does, too."""

    kind: Literal["oom_recovered"] = "oom_recovered"
    step: int
    """The step that was being taken; of an evaluation, the last one taken."""
    site: Literal["forward", "backward", "optimizer", "evaluation"]
    action: Literal[
        "split_micro_batch",
        "gradient_checkpointing",
        "smaller_loss_chunks",
        "fewer_frames",
        "smaller_optimizer_slices",
        "smaller_evaluation_batch",
    ]
    before: int
    """In the action's unit: tokens, off, tokens, frames, bytes, rows."""
    after: int


class Logged(Message):
    kind: Literal["logged"] = "logged"
    level: Literal["info", "warning", "error"]
    code: str
    message: str


class TrainingDone(Message):
    """All steps are taken, or early stopping ended them, and the adapter is in `adapter_folder`."""

    kind: Literal["training_done"] = "training_done"
    steps: int
    loss_first: float
    loss_last: float
    seconds: float
    adapter_folder: str
    series_file: str
    facts: AdapterFacts
    stopped_early: bool = False
    adapter_step: int | None = None
    """Step whose adapter early stopping kept; the last one's when absent."""


class TrainingStopped(Message):
    """A stop was honoured at an optimizer step; graceful stops leave checkpoint and adapter."""

    kind: Literal["training_stopped"] = "training_stopped"
    step: int
    adapter_folder: str | None
    series_file: str
    facts: AdapterFacts | None


class DatasetVerdict(Message):
    kind: Literal["dataset_verdict"] = "dataset_verdict"
    facts: DatasetFacts | None
    manifest_file: str | None
    problems: tuple[Problem, ...] = ()


class ModelVerdict(Message):
    kind: Literal["model_verdict"] = "model_verdict"
    facts: ModelFacts | None
    problems: tuple[Problem, ...] = ()


class ProbeResult(Message):
    kind: Literal["probe_result"] = "probe_result"
    capabilities: Capabilities


class SpanBegan(Message):
    """A stretch of the work begins, inside of those that have not ended; see `qlora_engine.spans`."""

    kind: Literal["span_began"] = "span_began"
    name: str
    at_ns: int
    """Nanoseconds since the epoch."""
    facts: dict[str, str | int | float | bool] = Field(default_factory=dict)


class SpanEnded(Message):
    """The youngest stretch that has not ended ends."""

    kind: Literal["span_ended"] = "span_ended"
    at_ns: int
    facts: dict[str, str | int | float | bool] = Field(default_factory=dict)
    error: str | None = None
    """What broke it off."""


class EngineFailed(Message):
    """The last update of a failed run; the exit code is 1."""

    kind: Literal["engine_failed"] = "engine_failed"
    code: str
    """``model_load_failed``, ``data_unreadable``, ``oom``, ``non_finite_loss``, ``internal`` …"""
    message: str
    retryable: bool


Update = Annotated[
    Preparing
    | Alive
    | TrainingBegan
    | Calibrated
    | StepTaken
    | EvaluationDone
    | RankChanged
    | CheckpointWritten
    | OomRecovered
    | Logged
    | TrainingDone
    | TrainingStopped
    | DatasetVerdict
    | ModelVerdict
    | ProbeResult
    | SpanBegan
    | SpanEnded
    | EngineFailed,
    Field(discriminator="kind"),
]
UPDATE: TypeAdapter[Update] = TypeAdapter(Update)


class Start(Message):
    """The first line on stdin."""

    kind: Literal["start"] = "start"
    spec: EngineSpec


class Stop(Message):
    """Honoured at the next optimizer step; graceful saves a checkpoint and the adapter first."""

    kind: Literal["stop"] = "stop"
    mode: Literal["graceful", "immediate"]


ControlLine = Annotated[Start | Stop, Field(discriminator="kind")]
CONTROL: TypeAdapter[ControlLine] = TypeAdapter(ControlLine)
