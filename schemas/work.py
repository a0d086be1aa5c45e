"""What control plane and agents say to one another over NATS.

A piece of work is an `item`: a job to train, or a dataset or model to validate. (item, attempt) fences
everything: whoever holds an older attempt is answered ``gone`` and its reports are refused.
Every request is idempotent, and every reply may be lost and asked for again.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Message
from schemas.datasets import DatasetFacts, ModelFacts, Problem
from schemas.events.agent import Capabilities
from schemas.events.job import MOST_RANKS_TOLD, Evaluation, LayerRank, ProgressPoint, RankTrial
from schemas.footprint import Preflight
from schemas.ids import Sha256, WorkItemId
from schemas.objects import FileEntry, StoredObject
from schemas.training import AdapterFacts, Hyperparameters

# ---- WORK -------------------------------------------------------------------------------------


class WorkOffer(Message):
    """The one message of a queued item on the stream WORK."""

    item_id: WorkItemId
    attempt: int = Field(ge=1)
    traceparent: str | None = None
    """W3C trace context of the decision that queued it."""


def log_fields(item_id: str, attempt: int) -> dict[str, str | int]:
    """What a log line about an attempt carries, named alike in every process."""
    kind = {"job": "job_id", "ds": "dataset_id", "mdl": "model_id"}.get(item_id.partition("_")[0], "item_id")
    return {kind: item_id, "attempt": attempt}


# ---- claim ------------------------------------------------------------------------------------


class ClaimRequest(Message):
    """An idle agent asks for the item it just fetched."""

    item_id: WorkItemId
    attempt: int = Field(ge=1)


class TrainAssignment(Message):
    """All that an agent needs for a training attempt; URLs are asked for in batches."""

    kind: Literal["train"] = "train"
    dataset_id: str | None = None
    model_id: str | None = None
    model_listing: StoredObject
    dataset_listing: StoredObject
    manifest: StoredObject
    hyperparameters: Hyperparameters
    total_steps: int
    resume_step: int = 0
    resume_objects: tuple[StoredObject, ...] = ()


class DatasetAssignment(Message):
    """A dataset to validate."""

    kind: Literal["validate_dataset"] = "validate_dataset"
    listing: StoredObject


class ModelAssignment(Message):
    """A model to validate."""

    kind: Literal["validate_model"] = "validate_model"
    listing: StoredObject


Assignment = Annotated[TrainAssignment | DatasetAssignment | ModelAssignment, Field(discriminator="kind")]


class ClaimReply(Message):
    """``granted``: it is yours, also when asked again. ``gone``: forget it. ``later``: try again."""

    outcome: Literal["granted", "gone", "later"]
    assignment: Assignment | None = None
    lease_seconds: float = 30.0
    log_output_prefix: str | None = None
    traceparent: str | None = None
    """W3C trace context of the claim; everything that the attempt does belongs to it."""
    detail: str = ""


# ---- heartbeat, control, hello ------------------------------------------------------------------


class HeldItem(Message):
    """An attempt that the agent is working on."""

    item_id: WorkItemId
    attempt: int = Field(ge=1)


class Heartbeat(Message):
    """Every 5 s, also when idle (then `held` is None)."""

    held: HeldItem | None = None
    shutting_down: bool = False


DesiredState = Literal["run", "stop", "stop_immediately", "abandon"]
"""``abandon``: another attempt owns the item now; end the engine and report nothing more."""


class HeartbeatReply(Message):
    """When the lease ends, and what the agent should be doing."""

    lease_until: datetime
    desired: DesiredState = "run"


class Control(Message):
    """The same desired state as in the next heartbeat's reply, only sooner."""

    held: HeldItem
    desired: DesiredState


class Hello(Message):
    """An agent introduces itself."""

    name: str
    capabilities: Capabilities


class HelloReply(Message):
    """Where an agent stands."""

    accepted: bool
    pool: str
    heartbeat_seconds: float = 5.0
    lease_seconds: float = 30.0
    detail: str = ""


# ---- presigned URLs -----------------------------------------------------------------------------


class PresignRequest(Message):
    """URLs for one attempt: `download` names content by hash or key, `upload` names files to write.

    Downloads may name only what the attempt's assignment names (inputs, manifest, resume checkpoint);
    uploads go under the attempt's own prefix.
    """

    item_id: WorkItemId
    attempt: int = Field(ge=1)
    download: tuple[str, ...] = Field((), max_length=500)
    """Object keys."""
    upload: tuple["UploadRequest", ...] = Field((), max_length=500)


Purpose = Literal["checkpoint", "adapter", "log", "validation"]
"""What an attempt stores files for."""


class UploadRequest(Message):
    """A file that the attempt wants to store."""

    purpose: Purpose
    step: int = Field(0, ge=0)
    """For checkpoints."""
    file: FileEntry


class PresignReply(Message):
    """URLs in the order asked; `error` instead when the request was refused."""

    downloads: tuple[str, ...] = ()
    uploads: tuple["UploadTarget", ...] = ()
    expires_seconds: int = 900
    error: str | None = None
    retryable: bool = True


class UploadTarget(Message):
    """Where one file goes: PUT its bytes to `url`, then report it as `object`."""

    url: str
    object: StoredObject


PresignRequest.model_rebuild()
PresignReply.model_rebuild()


# ---- reports -------------------------------------------------------------------------------------


class Accepted(Message):
    kind: Literal["accepted"] = "accepted"


class Declined(Message):
    kind: Literal["declined"] = "declined"
    reason: str


class Released(Message):
    kind: Literal["released"] = "released"
    reason: str


class Started(Message):
    kind: Literal["started"] = "started"
    start_step: int = Field(ge=0)
    total_steps: int = Field(ge=1)
    trainable_parameters: int
    total_parameters: int
    training_examples: int
    held_out_examples: int
    device: str
    preflight: Preflight | None = None


class Evaluated(Message):
    kind: Literal["evaluated"] = "evaluated"
    step: int = Field(ge=0)
    phase: Literal["before", "during", "after"]
    evaluation: Evaluation
    adapter_step: int | None = None
    """Step of the adapter that was measured, where early stopping kept an earlier one."""


class Reranked(Message):
    """Layers got more rank; see `RankChanged`."""

    kind: Literal["reranked"] = "reranked"
    step: int = Field(ge=0)
    kept: Literal["allocated", "uniform"]
    trial: RankTrial | None = None
    parameters_before: int
    parameters_after: int
    layers: tuple[LayerRank, ...] = Field(max_length=MOST_RANKS_TOLD)


class Progressed(Message):
    kind: Literal["progressed"] = "progressed"
    step: int = Field(ge=0)
    total_steps: int = Field(ge=1)
    epoch: float
    points: tuple[ProgressPoint, ...] = Field(max_length=64)
    eta_seconds: float | None = None
    peak_memory_bytes: int = 0
    preflight: Preflight | None = None
    """The forecast, where steps have corrected it since the last report."""


class CheckpointStored(Message):
    kind: Literal["checkpoint_stored"] = "checkpoint_stored"
    step: int = Field(ge=0)
    objects: tuple[StoredObject, ...]


class LogStored(Message):
    kind: Literal["log_stored"] = "log_stored"
    segment: int = Field(ge=1)
    content: Literal["log", "series"]
    lines: int
    object: StoredObject


class Warned(Message):
    kind: Literal["warned"] = "warned"
    code: str
    message: str


class Finished(Message):
    """The last step was taken; `AdapterUploaded` follows."""

    kind: Literal["finished"] = "finished"
    steps: int
    loss_first: float
    loss_last: float
    seconds: float
    stopped_early: bool = False
    adapter_step: int | None = None
    """Step whose adapter early stopping kept; the last one's when absent."""


class AdapterUploaded(Message):
    """Ends a training attempt well; with `partial` it precedes `Stopped`."""

    kind: Literal["adapter_uploaded"] = "adapter_uploaded"
    objects: tuple[StoredObject, ...]
    facts: AdapterFacts
    partial: bool = False


class Stopped(Message):
    kind: Literal["stopped"] = "stopped"
    step: int = Field(ge=0)


class Failed(Message):
    kind: Literal["failed"] = "failed"
    code: str
    message: str
    retryable: bool


class DatasetJudged(Message):
    """Ends a dataset validation: `facts` and `manifest`, or `problems`."""

    kind: Literal["dataset_judged"] = "dataset_judged"
    facts: DatasetFacts | None = None
    manifest: StoredObject | None = None
    problems: tuple[Problem, ...] = Field((), max_length=100)


class ModelJudged(Message):
    """Ends a model validation: `facts`, or `problems`."""

    kind: Literal["model_judged"] = "model_judged"
    facts: ModelFacts | None = None
    content_sha256: Sha256 | None = None
    problems: tuple[Problem, ...] = Field((), max_length=100)


ReportBody = Annotated[
    Accepted
    | Declined
    | Released
    | Started
    | Evaluated
    | Reranked
    | Progressed
    | CheckpointStored
    | LogStored
    | Warned
    | Finished
    | AdapterUploaded
    | Stopped
    | Failed
    | DatasetJudged
    | ModelJudged,
    Field(discriminator="kind"),
]


class RenewRequest(Message):
    """An agent asks for its next NATS JWT; who asks stands in the subject."""


class RenewReply(Message):
    """The JWT for the key that joined as this agent, or the reason why there is none."""

    jwt: str | None = None
    expires_at: datetime | None = None
    detail: str | None = None


class Report(Message):
    """One step of one attempt's story, numbered from 1 without holes."""

    item_id: WorkItemId
    attempt: int = Field(ge=1)
    sequence: int = Field(ge=1)
    occurred_at: datetime
    body: ReportBody


class TelemetryLine(Message):
    """Full-rate and unstored: a measured step or a log line."""

    job_id: str
    attempt: int
    points: tuple[ProgressPoint, ...] = ()
    log: tuple[str, ...] = ()
    phase: str | None = None
