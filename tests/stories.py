"""Events for tests of the read side: one of every type, and whole stories of every aggregate."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from schemas.datasets import DatasetFacts, ModelFacts, Problem
from schemas.envelope import Metadata, Recorded
from schemas.events import Event, agent, dataset, finding, identity, job, model, subscription
from schemas.events.agent import Capabilities
from schemas.events.job import Evaluation, LayerRank, PinnedInput, ProgressPoint, RankTrial
from schemas.ids import Prefix, derived_id, new_id
from schemas.imports import ImportSource
from schemas.objects import StoredObject
from schemas.subscriptions import EventFilter
from schemas.training import AdapterFacts, Hyperparameters

ORGANIZATION = "org_" + "0" * 31 + "1"
STRANGERS = "org_" + "0" * 31 + "2"
WORKSPACE = "ws_" + "0" * 31 + "3"
USER = "usr_" + "0" * 31 + "4"
DATASET = "ds_" + "0" * 31 + "5"
MODEL = "mdl_" + "0" * 31 + "6"
AGENT = "agt_" + "0" * 31 + "7"
OTHER_AGENT = "agt_" + "0" * 31 + "8"
JOB = "job_" + "0" * 31 + "9"
SHA = "ab" * 32
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def stored(path: str = "listing.json") -> StoredObject:
    return StoredObject(path=path, key=f"{ORGANIZATION}/objects/{path}", size_bytes=10, sha256=SHA)


def point(step: int, loss: float | None = None) -> ProgressPoint:
    return ProgressPoint(
        step=step,
        loss=3.0 / step if loss is None else loss,
        learning_rate=1e-3,
        grad_norm=0.5,
        tokens=100,
        tokens_per_second=1000.0,
        step_seconds=0.1,
    )


def progressed(attempt: int, first: int, last: int, total: int = 12) -> job.JobProgressed:
    points = tuple(point(step, attempt + step / 100) for step in range(first, last + 1))
    return job.JobProgressed(
        attempt=attempt, step=last, total_steps=total, epoch=last / 4, points=points, eta_seconds=total - last
    )


FACTS = AdapterFacts(
    family="smolvlm", base_model_sha256=SHA, rank=8, alpha=16, trainable_parameters=1000, steps=12
)
PROBLEM = Problem(code="missing_clip", where="captions.jsonl:3", message="clip a.mp4 is not there")


def requested(name: str = "shapes") -> job.JobRequested:
    pinned = PinnedInput(listing=stored(), content_sha256=SHA)
    return job.JobRequested(
        name=name,
        owner_id=USER,
        dataset_id=DATASET,
        model_id=MODEL,
        dataset=pinned,
        model=pinned,
        manifest=stored("manifest.json"),
        hyperparameters=Hyperparameters(),
        pool="default",
        priority="normal",
        labels={"team": "a"},
        max_attempts=5,
    )


def started(attempt: int, start_step: int = 0) -> job.TrainingStarted:
    return job.TrainingStarted(
        attempt=attempt,
        start_step=start_step,
        total_steps=12,
        trainable_parameters=1000,
        total_parameters=100_000,
        training_examples=48,
        held_out_examples=12,
        device="cpu",
    )


def evaluated(attempt: int, step: int, phase: str, exact_match: float) -> job.JobEvaluated:
    evaluation = Evaluation(
        examples=12, loss=1.5, exact_match=exact_match, token_accuracy=(1 + exact_match) / 2
    )
    return job.JobEvaluated.model_validate(
        {"attempt": attempt, "step": step, "phase": phase, "evaluation": evaluation}
    )


def reranked(attempt: int, step: int) -> job.RankChanged:
    return job.RankChanged(
        attempt=attempt,
        step=step,
        kept="allocated",
        trial=RankTrial(steps=2, examples=12, allocated_loss=1.4, uniform_loss=1.45),
        parameters_before=400,
        parameters_after=1000,
        layers=(
            LayerRank(layer="vision.q_proj", part="vision", before=1, after=3),
            LayerRank(layer="layers.0.q_proj", part="text", before=1, after=2),
        ),
    )


def admitted(name: str = "shapes") -> list[Event]:
    """A job from its request to its place in the queue."""
    return [
        requested(name),
        job.JobValidationStarted(),
        job.JobPlanned(total_steps=12, training_examples=48, held_out_examples=12, epochs=3.0),
        job.JobQueued(attempt=1, reason="requested"),
    ]


def taken(attempt: int, agent_id: str = AGENT, start_step: int = 0) -> list[Event]:
    """An attempt from its claim to its first step."""
    return [
        job.JobAssigned(attempt=attempt, agent_id=agent_id),
        job.AgentAccepted(attempt=attempt),
        started(attempt, start_step),
    ]


def finished(attempt: int, job_id: str = JOB) -> list[Event]:
    """The end of an attempt that goes well."""
    return [
        evaluated(attempt, 12, "after", 0.75),
        job.TrainingFinished(attempt=attempt, steps=12, loss_first=2.5, loss_last=2.12, seconds=3.0),
        job.LogSegmentStored(
            attempt=attempt, segment=2, content="series", lines=12, object=stored("series.jsonl")
        ),
        job.AdapterStored(attempt=attempt, objects=(stored("adapter_model.safetensors"),), facts=FACTS),
        job.JobSucceeded(attempt=attempt, output_model_id=derived_id(Prefix.MODEL, job_id, "adapter")),
    ]


def whole_job(name: str = "shapes", job_id: str = JOB) -> list[Event]:
    """A job that loses its first agent at step 8, goes on from the checkpoint of step 6, and succeeds."""
    return [
        *admitted(name),
        *taken(1),
        evaluated(1, 0, "before", 0.0),
        progressed(1, 1, 5),
        reranked(1, 5),
        job.CheckpointSaved(attempt=1, step=6, objects=(stored("optimizer.safetensors"),)),
        progressed(1, 6, 8),
        job.LogSegmentStored(attempt=1, segment=1, content="log", lines=4, object=stored("1.log")),
        job.LeaseExpired(attempt=1, agent_id=AGENT),
        job.JobQueued(attempt=2, reason="lease_expired", resume_step=6, not_before_seconds=2),
        *taken(2, OTHER_AGENT, start_step=6),
        progressed(2, 7, 12),
        job.WarningRaised(attempt=2, code="slow_decoding", message="clip b.mp4 decodes slowly"),
        *finished(2, job_id),
    ]


CAPABILITIES = Capabilities(
    profile="cpu",
    device="EPYC (2 cores)",
    cpu_cores=2,
    memory_bytes=8 * 2**30,
    four_bit_kernel=True,
    versions={"torch": "2.13.0"},
)


def whole_agent(name: str = "node-1") -> list[Event]:
    return [
        agent.AgentEnrolled(name=name, pool="default"),
        agent.EnrolmentTokenIssued(expires_at=datetime(2026, 11, 22, tzinfo=UTC)),
        agent.AgentJoined(public_key="U" + "A" * 55),
        agent.AgentProbed(capabilities=CAPABILITIES),
        agent.AgentOnline(),
    ]


def whole_subscription() -> list[Event]:
    """A NATS subscriber that was given new credentials and ended."""
    end = datetime(2026, 12, 21, tzinfo=UTC)
    return [
        subscription.SubscriptionCreated(
            name="warehouse",
            owner_id=USER,
            kind="nats",
            filter=EventFilter(types=("kinora.job.succeeded",)),
            after=0,
            pinned={},
        ),
        subscription.SubscriptionCredentialsIssued(
            public_key="U" + "A" * 55, expires_at=end, former_void=False
        ),
        subscription.SubscriptionCredentialsIssued(
            public_key="U" + "B" * 55, expires_at=end, former_void=True
        ),
        subscription.SubscriptionDeleted(),
    ]


def whole_webhook() -> list[Event]:
    """A webhook whose receiver failed for too long, and came back."""
    return [
        subscription.SubscriptionCreated(
            name="chat",
            owner_id=USER,
            kind="webhook",
            filter=EventFilter(),
            after=7,
            pinned={"kinora.job.succeeded": 1},
            url="https://hooks.example.org/kinora",
        ),
        subscription.SubscriptionSecretRotated(former_until=datetime(2026, 11, 22, tzinfo=UTC)),
        subscription.SubscriptionDisabled(reason="failing", detail="it answered 500 for 3 days"),
        subscription.SubscriptionEnabled(),
    ]


DATASET_FACTS = DatasetFacts(
    clips=60, examples=60, frames=600, duration_seconds=60.0, size_bytes=1000, smallest_clip_frames=10
)
MODEL_FACTS = ModelFacts(
    family="smolvlm",
    architecture="SmolVLMForConditionalGeneration",
    parameters=100_000,
    quantized_linear_layers=10,
    vision_linear_layers=4,
    connector_linear_layers=1,
    text_linear_layers=5,
    context_tokens=512,
    image_size=64,
)


def whole_dataset(name: str = "shapes") -> list[Event]:
    return [
        dataset.DatasetRegistered(
            name=name,
            description="",
            format="video_text",
            owner_id=USER,
            listing=stored(),
            file_count=61,
            size_bytes=1_500_000,
        ),
        dataset.DatasetUploadStarted(upload_id="upl_1"),
        dataset.DatasetUploaded(upload_id="upl_1"),
        dataset.DatasetValidationStarted(agent_id=AGENT, attempt=1),
        dataset.DatasetValidationInterrupted(attempt=1, reason="lease_expired"),
        dataset.DatasetValidationStarted(agent_id=AGENT, attempt=2),
        dataset.DatasetValidated(
            attempt=2, facts=DATASET_FACTS, manifest=stored("manifest.json"), content_sha256=SHA
        ),
    ]


def whole_model(name: str = "tiny") -> list[Event]:
    return [
        model.ModelRegistered(
            name=name, description="", owner_id=USER, listing=stored(), file_count=5, size_bytes=1000
        ),
        model.ModelUploadStarted(upload_id="upl_2"),
        model.ModelUploaded(upload_id="upl_2"),
        model.ModelValidationStarted(agent_id=AGENT, attempt=1),
        model.ModelValidationInterrupted(attempt=1, reason="failed", detail="out of memory"),
        model.ModelValidationStarted(agent_id=AGENT, attempt=2),
        model.ModelValidated(attempt=2, facts=MODEL_FACTS, content_sha256=SHA),
    ]


def adapter(job_id: str = JOB) -> model.AdapterRegistered:
    return model.AdapterRegistered(
        name="shapes",
        owner_id=USER,
        job_id=job_id,
        base_model_id=MODEL,
        objects=(stored("adapter_model.safetensors"), stored("adapter_config.json")),
        facts=FACTS,
        content_sha256=SHA,
    )


SOURCE = ImportSource(kind="url", uri="https://example.org/shapes.zip", secret="mirror")


def imported_dataset() -> list[Event]:
    """An import that succeeds at its second try."""
    return [
        dataset.DatasetImportRequested(name="shapes", description="", owner_id=USER, source=SOURCE),
        dataset.DatasetImportFailed(attempt=1, code="source_failed", message="no answer", retryable=True),
        dataset.DatasetImportRetried(attempt=2),
        *(event for event in whole_dataset() if not isinstance(event, dataset.DatasetUploadStarted)),
    ]


def imported_model() -> list[Event]:
    return [
        model.ModelImportRequested(name="tiny", description="", owner_id=USER, source=SOURCE),
        model.ModelImportFailed(attempt=1, code="source_failed", message="no answer", retryable=True),
        model.ModelImportRetried(attempt=2),
        *(event for event in whole_model() if not isinstance(event, model.ModelUploadStarted)),
    ]


EVERY_EVENT: list[Event] = [
    finding.FindingOpened(
        check="read_model", subject="jobs", about=JOB, detail="jobs differs in status", remedy="rebuild it"
    ),
    finding.FindingResolved(detail="compared up to position 12"),
    identity.UserRegistered(username_ciphertext="x", email_ciphertext="y"),
    identity.UserLoggedIn(),
    identity.TokenFamilyRevoked(family_id="f", reason="reuse_detected"),
    identity.OrganizationCreated(organization_id=ORGANIZATION, personal=True),
    identity.WorkspaceCreated(workspace_id=WORKSPACE, name="default"),
    identity.MemberAdded(user_id=USER, role="owner"),
    identity.SecretStored(workspace_id=WORKSPACE, name="mirror", kind="token"),
    identity.SecretDeleted(workspace_id=WORKSPACE, name="mirror"),
    identity.UserErased(requested_by=USER),
    identity.MemberRemoved(user_id=USER, reason="erased"),
    *whole_agent(),
    agent.AgentLost(reason="lease_expired"),
    agent.AgentRevoked(reason="stolen"),
    *whole_subscription(),
    *whole_webhook(),
    *whole_dataset(),
    *imported_dataset()[:3],
    dataset.DatasetRejected(attempt=1, problems=(PROBLEM,)),
    dataset.DatasetDeleted(),
    *whole_model(),
    *imported_model()[:3],
    model.ModelRejected(attempt=1, problems=(PROBLEM, PROBLEM)),
    adapter(),
    model.ModelDeleted(),
    *whole_job(),
    job.AgentDeclined(attempt=1, reason="no space left"),
    job.AttemptReleased(attempt=1, reason="shut down"),
    job.AttemptFailed(attempt=1, code="oom", message="out of memory."),
    job.JobStopRequested(mode="graceful", reason=""),
    job.JobFailed(attempt=1, code="attempts_exhausted", message="five attempts failed", retryable=True),
    job.JobStopped(attempt=1, step=3, reason="no longer wanted"),
]
"""At least one event of every registered type, which a test asserts."""


class Teller:
    """Gives events their places: versions per stream, positions over all, a second between any two."""

    def __init__(self) -> None:
        self.position = 0
        self._versions: Counter[str] = Counter()

    def tell(
        self, stream_id: str, *events: Event, organization_id: str | None = ORGANIZATION
    ) -> list[Recorded]:
        told = []
        for event in events:
            self.position += 1
            self._versions[stream_id] += 1
            metadata = metadata_at(BEGINNING + timedelta(seconds=self.position), organization_id)
            told.append(
                Recorded(
                    position=self.position,
                    stream_id=stream_id,
                    version=self._versions[stream_id],
                    metadata=metadata,
                    event=event,
                )
            )
        return told


def metadata_at(at: datetime, organization_id: str | None) -> Metadata:
    return Metadata(
        event_id=new_id(Prefix.EVENT),
        recorded_at=at,
        organization_id=organization_id,
        workspace_id=None if organization_id is None else WORKSPACE,
        actor=USER,
        correlation_id="req_1",
        causation_id="req_1",
    )
