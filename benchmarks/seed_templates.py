"""The kinds of event that benchmarks fill a log with, as formats: only what differs is filled in.

Each is written once by the log's own mapper, with signs in the places that differ, and then cut up at them.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from command_api.eventlog.mapper import LoggedEvent, canonical_state
from schemas.datasets import DatasetFacts, ModelFacts
from schemas.envelope import Metadata
from schemas.events import Event, agent, dataset, identity, job, model
from schemas.ids import Prefix
from schemas.objects import StoredObject
from schemas.training import AdapterFacts, Hyperparameters

TOTAL_STEPS = 10_000_000
"""Of every job, so that the long one never gets there."""

ID_NAMES = (
    *("event", "stream", "organization", "workspace", "user", "dataset", "model", "agent", "job"),
    *("output", "upload", "story", "cause"),
)
_DIGITS = {name: str(number) * 16 for number, name in enumerate(ID_NAMES, start=40)}
_TIME = datetime(2001, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)
_VERSION, _STEP, _STEP_BEFORE, _NUMBER = 1_900_000_001, 1_900_000_002, 1_900_000_003, 1_900_000_004
_EPOCHS, _LOSS, _LOSS_BEFORE = 1_900_000_005.5, 1_900_000_006.5, 1_900_000_007.5
_SHA256 = "f0" * 32
_SIGNS = {digits: name for name, digits in _DIGITS.items()} | {
    "2001-02-03T04:05:06.789012Z": "time",
    str(_VERSION): "version",
    str(_STEP): "step",
    str(_STEP_BEFORE): "step_before",
    str(_NUMBER): "number",
    str(_EPOCHS): "epochs",
    str(_LOSS): "loss",
    str(_LOSS_BEFORE): "loss_before",
    _SHA256: "sha256",
}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))


def _id(prefix: Prefix, name: str) -> str:
    return f"{prefix}_{_DIGITS[name]}"


_USER, _AGENT, _ORGANIZATION = (
    _id(Prefix.USER, "user"),
    _id(Prefix.AGENT, "agent"),
    _id(Prefix.ORGANIZATION, "organization"),
)
SYSTEM = "system:policies"
UNPLACED = (Prefix.USER, Prefix.ORGANIZATION)
"""Their events belong to no workspace."""


def _to_fill_in(text: str) -> str:
    return _SIGN.sub(lambda found: f"%({_SIGNS[found[0]]})s", text.replace("%", "%%"))


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of event; `state` and `actor` are formats."""

    prefix: Prefix
    topic: str
    actor: str
    state: str

    @classmethod
    def of(cls, prefix: Prefix, actor: str, event: Event) -> "Template":
        metadata = Metadata(
            event_id=_id(Prefix.EVENT, "event"),
            recorded_at=_TIME,
            organization_id=None if prefix is Prefix.USER else _ORGANIZATION,
            workspace_id=_id(Prefix.WORKSPACE, "workspace") if prefix not in UNPLACED else None,
            actor=actor,
            correlation_id=_id(Prefix.REQUEST, "story"),
            causation_id=_id(Prefix.EVENT if actor == SYSTEM else Prefix.REQUEST, "cause"),
            traceparent=f"00-{_DIGITS['story']}-{_DIGITS['cause'][:16]}-01",
        )
        state = canonical_state(LoggedEvent(_id(prefix, "stream"), _VERSION, metadata, event))
        return cls(prefix, event.TYPE, _to_fill_in(actor), _to_fill_in(state.decode()))


def _stored(path: str) -> StoredObject:
    key = f"{_ORGANIZATION}/jobs/{_id(Prefix.JOB, 'job')}/{path}"
    return StoredObject(path=path, key=key, size_bytes=_NUMBER, sha256=_SHA256)


def _point(step: int, loss: float) -> job.ProgressPoint:
    return job.ProgressPoint(
        step=step,
        loss=loss,
        learning_rate=0.0002,
        grad_norm=0.731,
        tokens=384,
        tokens_per_second=191.25,
        step_seconds=2.0078,
    )


_LISTING, _MANIFEST = _stored("listing.json"), _stored("manifest.json")
_ADAPTER = (_stored("adapter_config.json"), _stored("adapter_model.safetensors"))
_FACTS = AdapterFacts(
    family="smolvlm", base_model_sha256=_SHA256, rank=8, alpha=16.0, trainable_parameters=4096, steps=_STEP
)
_EVALUATION = job.Evaluation(examples=8, loss=_LOSS, exact_match=0.25)
_REQUESTED = job.JobRequested(
    name="shapes 100% by hand",
    owner_id=_USER,
    dataset_id=_id(Prefix.DATASET, "dataset"),
    model_id=_id(Prefix.MODEL, "model"),
    dataset=job.PinnedInput(listing=_LISTING, content_sha256=_SHA256),
    model=job.PinnedInput(listing=_LISTING, content_sha256=_SHA256),
    manifest=_MANIFEST,
    hyperparameters=Hyperparameters(),
    pool="default",
    priority="normal",
    labels={"team": "vision"},
    max_attempts=3,
)
_STARTED = job.TrainingStarted(
    attempt=1,
    start_step=0,
    total_steps=TOTAL_STEPS,
    trainable_parameters=4096,
    total_parameters=500_000,
    training_examples=32,
    held_out_examples=8,
    device="cpu",
)
_UPLOAD = f"upl_{_DIGITS['upload']}"
_ADAPTER_REGISTERED = model.AdapterRegistered(
    name="shapes",
    owner_id=_USER,
    job_id=_id(Prefix.JOB, "job"),
    base_model_id=_id(Prefix.MODEL, "model"),
    objects=_ADAPTER,
    facts=_FACTS,
    content_sha256=_SHA256,
)


def templates() -> dict[str, Template]:
    j, d, m, a, o = Prefix.JOB, Prefix.DATASET, Prefix.MODEL, Prefix.AGENT, Prefix.ORGANIZATION
    what: dict[str, tuple[Prefix, str, Event]] = {
        "user": (
            Prefix.USER, _USER, identity.UserRegistered(username_ciphertext="AA", email_ciphertext="BB")
        ),
        "organization": (
            o, _USER, identity.OrganizationCreated(organization_id=_ORGANIZATION, personal=True)
        ),
        "workspace": (
            o, _USER, identity.WorkspaceCreated(workspace_id=_id(Prefix.WORKSPACE, "workspace"), name="Home")
        ),
        "member": (o, _USER, identity.MemberAdded(user_id=_USER, role="owner")),
        "enrolled": (a, _USER, agent.AgentEnrolled(name="node", pool="default")),
        "online": (a, SYSTEM, agent.AgentOnline()),
        "dataset": (
            d,
            _USER,
            dataset.DatasetRegistered(
                name="shapes", description="", format="video_text", owner_id=_USER, listing=_LISTING,
                file_count=41, size_bytes=400_000,
            ),
        ),
        "dataset_upload": (d, _USER, dataset.DatasetUploadStarted(upload_id=_UPLOAD)),
        "dataset_uploaded": (d, _USER, dataset.DatasetUploaded(upload_id=_UPLOAD)),
        "dataset_validating": (d, _AGENT, dataset.DatasetValidationStarted(agent_id=_AGENT, attempt=1)),
        "dataset_validated": (
            d,
            _AGENT,
            dataset.DatasetValidated(
                attempt=1,
                facts=DatasetFacts(
                    clips=40, examples=40, frames=640, duration_seconds=64.5, size_bytes=400_000,
                    smallest_clip_frames=16,
                ),
                manifest=_MANIFEST,
                content_sha256=_SHA256,
            ),
        ),
        "model": (
            m,
            _USER,
            model.ModelRegistered(
                name="tiny", description="", owner_id=_USER, listing=_LISTING, file_count=5,
                size_bytes=900_000,
            ),
        ),
        "model_upload": (m, _USER, model.ModelUploadStarted(upload_id=_UPLOAD)),
        "model_uploaded": (m, _USER, model.ModelUploaded(upload_id=_UPLOAD)),
        "model_validating": (m, _AGENT, model.ModelValidationStarted(agent_id=_AGENT, attempt=1)),
        "model_validated": (
            m,
            _AGENT,
            model.ModelValidated(
                attempt=1,
                facts=ModelFacts(
                    family="smolvlm", architecture="SmolVLMForConditionalGeneration", parameters=500_000,
                    quantized_linear_layers=10, vision_linear_layers=4, connector_linear_layers=1,
                    text_linear_layers=5, context_tokens=512, image_size=32,
                ),
                content_sha256=_SHA256,
            ),
        ),
        "requested": (j, _USER, _REQUESTED),
        "validating": (j, SYSTEM, job.JobValidationStarted()),
        "planned": (
            j,
            SYSTEM,
            job.JobPlanned(total_steps=TOTAL_STEPS, training_examples=32, held_out_examples=8, epochs=3.0),
        ),
        "queued": (j, SYSTEM, job.JobQueued(attempt=1, reason="requested")),
        "assigned": (j, _AGENT, job.JobAssigned(attempt=1, agent_id=_AGENT)),
        "accepted": (j, _AGENT, job.AgentAccepted(attempt=1)),
        "started": (j, _AGENT, _STARTED),
        "evaluated_before": (
            j, _AGENT, job.JobEvaluated(attempt=1, step=0, phase="before", evaluation=_EVALUATION)
        ),
        "progressed": (
            j,
            _AGENT,
            job.JobProgressed(
                attempt=1, step=_STEP, total_steps=TOTAL_STEPS, epoch=_EPOCHS,
                points=(_point(_STEP_BEFORE, _LOSS_BEFORE), _point(_STEP, _LOSS)),
                eta_seconds=93.5, peak_memory_bytes=900_000_000,
            ),
        ),
        "checkpoint": (
            j,
            _AGENT,
            job.CheckpointSaved(attempt=1, step=_STEP, objects=(_stored("checkpoint/state.safetensors"),)),
        ),
        "log": (
            j,
            _AGENT,
            job.LogSegmentStored(
                attempt=1, segment=_NUMBER, content="log", lines=120, object=_stored("log.txt")
            ),
        ),
        "evaluated_after": (
            j, _AGENT, job.JobEvaluated(attempt=1, step=_STEP, phase="after", evaluation=_EVALUATION)
        ),
        "finished": (
            j,
            _AGENT,
            job.TrainingFinished(
                attempt=1, steps=_STEP, loss_first=2.25, loss_last=_LOSS, seconds=125.5
            ),
        ),
        "adapter": (j, _AGENT, job.AdapterStored(attempt=1, objects=_ADAPTER, facts=_FACTS)),
        "adapter_registered": (m, _AGENT, _ADAPTER_REGISTERED),
        "succeeded": (j, _AGENT, job.JobSucceeded(attempt=1, output_model_id=_id(m, "output"))),
        "failed": (
            j,
            _AGENT,
            job.JobFailed(
                attempt=1, code="data_unreadable", message="a.mp4 does not decode", retryable=False
            ),
        ),
        "stop_requested": (j, _USER, job.JobStopRequested(mode="graceful", reason="enough")),
        "stopped": (j, _AGENT, job.JobStopped(attempt=1, step=_STEP, reason="enough")),
    }  # fmt: skip
    return {name: Template.of(prefix, actor, event) for name, (prefix, actor, event) in what.items()}
