"""Jobs as far as tests need them: the events that lead to each phase, and reports by their holder."""

from command_api.domain.aggregates import AGGREGATES
from command_api.domain.job_reports import output_model_id
from schemas import work
from schemas.commands.job import (
    AdmitJob,
    ClaimJob,
    ExpireLease,
    RefuseJob,
    ReportAttempt,
    StopJob,
    ValidateJob,
)
from schemas.events import Event
from schemas.events.job import (
    AdapterStored,
    AgentAccepted,
    AttemptReleased,
    CheckpointSaved,
    JobAssigned,
    JobFailed,
    JobPlanned,
    JobQueued,
    JobStopped,
    JobStopRequested,
    JobSucceeded,
    JobValidationStarted,
    LayerRank,
    RankTrial,
    StopMode,
    TrainingFinished,
    TrainingStarted,
)
from schemas.ids import Prefix
from schemas.job_status import JobPhase
from tests.unit.domain.samples import (
    ADAPTER_FACTS,
    AGENT,
    EVALUATION,
    JOB,
    JOB_REQUESTED,
    NOON,
    POINT,
    stored,
)
from tests.unit.domain.spec import Spec

job = Spec(AGGREGATES[Prefix.JOB])

CHECKPOINT_OBJECTS = (stored("checkpoint.safetensors", 5),)
ADAPTER_OBJECTS = (stored("adapter_model.safetensors", 6), stored("adapter_config.json", 7))

ACCEPTED = work.Accepted()
STARTED = work.Started(
    start_step=0,
    total_steps=10,
    trainable_parameters=100,
    total_parameters=1000,
    training_examples=16,
    held_out_examples=4,
    device="cpu",
)
EVALUATED = work.Evaluated(step=0, phase="before", evaluation=EVALUATION)
RERANKED = work.Reranked(
    step=5,
    kept="uniform",
    trial=RankTrial(steps=1, examples=4, allocated_loss=1.5, uniform_loss=1.25),
    parameters_before=10,
    parameters_after=80,
    layers=(LayerRank(layer="layers.0.q_proj", part="text", before=1, after=8),),
)
PROGRESSED = work.Progressed(step=5, total_steps=10, epoch=1.0, points=(POINT,))
CHECKPOINT = work.CheckpointStored(step=5, objects=CHECKPOINT_OBJECTS)
LOG = work.LogStored(segment=1, content="log", lines=3, object=stored("log-1.txt"))
WARNED = work.Warned(code="slow_decode", message="clip a.mp4 takes 9 s to decode")
FINISHED = work.Finished(steps=10, loss_first=2.0, loss_last=1.0, seconds=5.0)
ADAPTER = work.AdapterUploaded(objects=ADAPTER_OBJECTS, facts=ADAPTER_FACTS)
PARTIAL = ADAPTER.model_copy(update={"partial": True})
STOPPED = work.Stopped(step=7)
DECLINED = work.Declined(reason="too little memory")
RELEASED = work.Released(reason="shutting down")
CRASHED = work.Failed(code="oom", message="out of memory", retryable=True)
BROKEN = work.Failed(code="data_unreadable", message="clip a.mp4 does not decode", retryable=False)

VALIDATE = ValidateJob(job_id=JOB)
ADMIT = AdmitJob(job_id=JOB, total_steps=9, training_examples=16, held_out_examples=4, epochs=3.0)
REFUSE = RefuseJob(job_id=JOB, code="does_not_fit", message="the model does not fit")


def claim(attempt: int = 1, agent_id: str = AGENT) -> ClaimJob:
    return ClaimJob(job_id=JOB, agent_id=agent_id, attempt=attempt)


def expire(attempt: int = 1) -> ExpireLease:
    return ExpireLease(job_id=JOB, attempt=attempt)


def stop(mode: StopMode = "graceful") -> StopJob:
    return StopJob(job_id=JOB, mode=mode, reason="enough")


def says(body: work.ReportBody, attempt: int = 1, agent_id: str = AGENT) -> ReportAttempt:
    report = work.Report(item_id=JOB, attempt=attempt, sequence=1, occurred_at=NOON, body=body)
    return ReportAttempt(agent_id=agent_id, report=report)


PLANNED = JobPlanned(total_steps=9, training_examples=16, held_out_examples=4, epochs=3.0)
FIRST_QUEUED = JobQueued(attempt=1, reason="requested")
STARTED_EVENT = TrainingStarted(attempt=1, **STARTED.model_dump(exclude={"kind"}))
FINISHED_EVENT = TrainingFinished(attempt=1, **FINISHED.model_dump(exclude={"kind"}))
CHECKPOINT_EVENT = CheckpointSaved(attempt=1, step=5, objects=CHECKPOINT_OBJECTS)
STOP_EVENT = JobStopRequested(mode="graceful", reason="enough")
ADAPTER_EVENT = AdapterStored(attempt=1, objects=ADAPTER_OBJECTS, facts=ADAPTER_FACTS)
PARTIAL_EVENT = ADAPTER_EVENT.model_copy(update={"partial": True})
SUCCEEDED_EVENT = JobSucceeded(attempt=1, output_model_id=output_model_id(JOB))

PENDING: tuple[Event, ...] = (JOB_REQUESTED,)
VALIDATING = (*PENDING, JobValidationStarted())
QUEUED = (*VALIDATING, PLANNED, FIRST_QUEUED)
ASSIGNED = (*QUEUED, JobAssigned(attempt=1, agent_id=AGENT))
PREPARING = (*ASSIGNED, AgentAccepted(attempt=1))
RUNNING = (*PREPARING, STARTED_EVENT)
STOPPING = (*RUNNING, STOP_EVENT)
FINALIZING = (*RUNNING, FINISHED_EVENT)
SUCCEEDED = (*FINALIZING, ADAPTER_EVENT, SUCCEEDED_EVENT)
FAILED = (*RUNNING, JobFailed(attempt=1, code=BROKEN.code, message=BROKEN.message, retryable=False))
CANCELLED = (*STOPPING, JobStopped(attempt=1, step=7, reason="enough"))

HISTORIES: dict[JobPhase, tuple[Event, ...]] = {
    "pending": PENDING,
    "validating": VALIDATING,
    "queued": QUEUED,
    "assigned": ASSIGNED,
    "preparing": PREPARING,
    "running": RUNNING,
    "stopping": STOPPING,
    "finalizing": FINALIZING,
    "succeeded": SUCCEEDED,
    "failed": FAILED,
    "cancelled": CANCELLED,
}
"""One history that ends in each phase."""

STOPPED_LATE = (*STOPPING, FINISHED_EVENT)
"""Finalizing, with a stop that came too late."""
SECOND_QUEUED = (*ASSIGNED, AttemptReleased(attempt=1, reason="bye"), JobQueued(attempt=2, reason="released"))
