"""Jobs: where each one stands, in one row, with its checkpoints beside it."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, LiteralString

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import class_row, scalar_row

from projections.documents import (
    Cursor,
    Document,
    DocumentFold,
    DocumentQueries,
    DocumentView,
    StoredDocument,
    ViewModel,
    alter,
    beginning,
    begun,
    document_row,
    document_table,
    evolved,
)
from projections.view import Row, Table
from schemas.envelope import Recorded
from schemas.events import Event
from schemas.events import job as events
from schemas.footprint import Preflight
from schemas.job_status import TERMINAL_PHASES, JobPhase, phase_after
from schemas.objects import StoredObject
from schemas.training import AdapterFacts, Hyperparameters

KEPT_WARNINGS = 20


class JobError(ViewModel):
    """Why a job failed, or why its last attempt did."""

    code: str
    message: str
    retryable: bool


class JobWarning(ViewModel):
    """Something a person should know."""

    attempt: int
    code: str
    message: str
    raised_at: datetime


class Checkpoint(ViewModel):
    """A checkpoint that is whole in the store."""

    step: int
    attempt: int
    objects: tuple[StoredObject, ...]
    saved_at: datetime


class JobView(Document):
    """A job as lists show it."""

    status: JobPhase
    name: str
    owner_id: str
    dataset_id: str
    model_id: str
    output_model_id: str | None = None
    hyperparameters: Hyperparameters
    pool: str
    priority: events.Priority
    labels: dict[str, str]
    max_attempts: int
    attempt: int = 0
    """The newest attempt; 0 before the first is queued."""
    resume_step: int = 0
    """Step that the newest attempt goes on from."""
    agent_id: str | None = None
    """Who holds the attempt now."""
    device: str | None = None
    step: int = 0
    total_steps: int | None = None
    progress: float = 0.0
    """0 to 1."""
    epoch: float = 0.0
    """Examples taken so far over training examples."""
    epochs: float | None = None
    """As planned; None before that, and where steps are counted in tokens."""
    training_examples: int | None = None
    held_out_examples: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    """The latest one while the job runs."""
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    peak_memory_bytes: int = 0
    preflight: Preflight | None = None
    """What it is expected to take: when planned, the least; once an agent prepared it, by all its rows; after
    its first steps corrected by what they took."""
    training_seconds: float | None = None
    """Of the attempt that finished."""
    stopped_early: bool = False
    """The training ended before its planned steps, because the held-out loss no longer fell."""
    adapter_step: int | None = None
    """Step whose adapter early stopping kept."""
    evaluation_before: events.Evaluation | None = None
    evaluation_during: events.Evaluation | None = None
    evaluation_after: events.Evaluation | None = None
    checkpoint_step: int | None = None
    """Of the newest checkpoint, which the next attempt would go on from."""
    adapter: tuple[StoredObject, ...] = ()
    adapter_facts: AdapterFacts | None = None
    adapter_partial: bool = False
    """Kept from a stopped training."""
    error: JobError | None = None
    last_attempt_error: JobError | None = None
    """Why the attempt before this one ended."""
    warnings: tuple[JobWarning, ...] = ()
    """The newest of them."""
    stop_mode: events.StopMode | None = None
    stop_reason: str | None = None
    wait_reason: str | None = None
    """One sentence, while nothing runs."""
    not_before: datetime | None = None
    """End of the back-off."""
    queued_at: datetime | None = None
    started_at: datetime | None = None
    """First step of the first attempt that came so far."""
    finished_at: datetime | None = None


class JobDetail(JobView):
    """A job with its checkpoints, oldest first."""

    checkpoints: tuple[Checkpoint, ...] = ()


class Jobs(DocumentView[JobView]):
    name = "jobs"
    version = 5
    table: ClassVar[LiteralString] = "jobs"
    model = JobView
    tables = (
        document_table("jobs"),
        Table(
            name="checkpoints",
            stream="job_id",
            columns=(
                "job_id text NOT NULL",
                "step integer NOT NULL",
                "attempt integer NOT NULL",
                "objects jsonb NOT NULL",
                "saved_at timestamptz NOT NULL",
            ),
            key="job_id, step",
        ),
    )
    types = (
        events.JobRequested.TYPE,
        events.JobValidationStarted.TYPE,
        events.JobPlanned.TYPE,
        events.JobQueued.TYPE,
        events.JobAssigned.TYPE,
        events.AgentAccepted.TYPE,
        events.AgentDeclined.TYPE,
        events.AttemptReleased.TYPE,
        events.LeaseExpired.TYPE,
        events.AttemptFailed.TYPE,
        events.TrainingStarted.TYPE,
        events.JobEvaluated.TYPE,
        events.RankChanged.TYPE,
        events.JobProgressed.TYPE,
        events.CheckpointSaved.TYPE,
        events.LogSegmentStored.TYPE,
        events.WarningRaised.TYPE,
        events.JobStopRequested.TYPE,
        events.TrainingFinished.TYPE,
        events.AdapterStored.TYPE,
        events.JobSucceeded.TYPE,
        events.JobFailed.TYPE,
        events.JobStopped.TYPE,
    )
    census = (("jobs", (events.JobRequested.TYPE,)),)

    def fold(self, before: JobView | None, recorded: Recorded) -> JobView:
        event = recorded.event
        if type(event) is events.JobRequested:
            return JobView(
                **beginning(recorded),
                status="pending",
                name=event.name,
                owner_id=event.owner_id,
                dataset_id=event.dataset_id,
                model_id=event.model_id,
                hyperparameters=event.hyperparameters,
                pool=event.pool,
                priority=event.priority,
                labels=event.labels,
                max_attempts=event.max_attempts,
                wait_reason="The job waits for its inputs to be checked.",
            )
        job = begun(before, recorded)
        return evolved(job, recorded, changes_by(job, recorded))

    def begin(self) -> "JobFold":
        return JobFold(self)

    async def apply(self, cursor: AsyncCursor[Any], events_of_page: Sequence[Recorded]) -> None:
        await super().apply(cursor, events_of_page)
        saved = [
            _checkpoint_row(each.stream_id, _checkpoint(each, each.event))
            for each in events_of_page
            if isinstance(each.event, events.CheckpointSaved)
        ]
        if saved:
            await cursor.executemany(
                """
                INSERT INTO checkpoints (job_id, step, attempt, objects, saved_at) VALUES (%s, %s, %s, %s, %s)
                ON CONFLICT (job_id, step) DO UPDATE
                   SET attempt = excluded.attempt, objects = excluded.objects, saved_at = excluded.saved_at
                """,
                saved,
            )


_ENDED: dict[str, Any] = {"agent_id": None, "eta_seconds": None, "wait_reason": None, "not_before": None}
_LET_GO: dict[str, Any] = {"agent_id": None, "eta_seconds": None, "tokens_per_second": None}


class JobFold(DocumentFold[JobView]):
    """A job's stream: its document, and its checkpoints by step."""

    def __init__(self, view: Jobs) -> None:
        super().__init__(view)
        self._checkpoints: dict[int, Checkpoint] = {}

    def add(self, recorded: Recorded) -> None:
        event = recorded.event
        if self.document is None or type(event) is events.JobRequested:
            self.document = self.view.fold(self.document, recorded)
        else:
            # Nobody else has it: `shown` and `rows` give copies.
            alter(self.document, recorded, changes_by(self.document, recorded))
        if type(event) is events.CheckpointSaved:
            self._checkpoints[event.step] = _checkpoint(recorded, event)

    def rows(self) -> dict[str, list[Row]]:
        if self.document is None:
            return {}
        job_id = self.document.id
        saved = [_checkpoint_row(job_id, each) for each in self._checkpoints.values()]
        return {"jobs": [document_row(self.document)], "checkpoints": saved}

    def shown(self) -> JobDetail | None:
        if self.document is None:
            return None
        oldest_first = tuple(self._checkpoints[step] for step in sorted(self._checkpoints))
        return JobDetail(**dict(self.document), checkpoints=oldest_first)


def _checkpoint(recorded: Recorded, event: events.CheckpointSaved) -> Checkpoint:
    return Checkpoint(
        step=event.step,
        attempt=event.attempt,
        objects=event.objects,
        saved_at=recorded.metadata.recorded_at,
    )


def _checkpoint_row(job_id: str, saved: Checkpoint) -> Row:
    objects = ",".join([each.model_dump_json() for each in saved.objects])
    return (job_id, saved.step, saved.attempt, f"[{objects}]", saved.saved_at)


def changes_by(job: JobView, recorded: Recorded) -> dict[str, Any]:
    """What an event after the first changes."""
    event = recorded.event
    change = _CHANGES.get(type(event))
    changes = {} if change is None else change(job, recorded, event)
    changes["status"] = status = phase_after(job.status, event)
    if status in TERMINAL_PHASES and job.finished_at is None:
        changes |= _ENDED | {"finished_at": recorded.metadata.recorded_at}
    return changes


def _planned(job: JobView, recorded: Recorded, event: events.JobPlanned) -> dict[str, Any]:
    return {
        "total_steps": event.total_steps,
        "epochs": event.epochs,
        "training_examples": event.training_examples,
        "held_out_examples": event.held_out_examples,
        "preflight": event.preflight,
    }


def _assigned(job: JobView, recorded: Recorded, event: events.JobAssigned) -> dict[str, Any]:
    return {
        "agent_id": event.agent_id,
        "attempt": event.attempt,
        "wait_reason": None,
        "not_before": None,
    }


def _attempt_ended(job: JobView, recorded: Recorded, event: object) -> dict[str, Any]:
    return _LET_GO | {"last_attempt_error": _attempt_error(event)}


def _started(job: JobView, recorded: Recorded, event: events.TrainingStarted) -> dict[str, Any]:
    return {
        "step": event.start_step,
        "total_steps": event.total_steps,
        "progress": _share(event.start_step, event.total_steps),
        "trainable_parameters": event.trainable_parameters,
        "total_parameters": event.total_parameters,
        "training_examples": event.training_examples,
        "held_out_examples": event.held_out_examples,
        "device": event.device,
        "preflight": event.preflight or job.preflight,
        "started_at": job.started_at or recorded.metadata.recorded_at,
    }


def _evaluated(job: JobView, recorded: Recorded, event: events.JobEvaluated) -> dict[str, Any]:
    return {f"evaluation_{event.phase}": event.evaluation}


def _checkpoint_saved(job: JobView, recorded: Recorded, event: events.CheckpointSaved) -> dict[str, Any]:
    return {"checkpoint_step": event.step}


def _warned(job: JobView, recorded: Recorded, event: events.WarningRaised) -> dict[str, Any]:
    warning = JobWarning(
        attempt=event.attempt,
        code=event.code,
        message=event.message,
        raised_at=recorded.metadata.recorded_at,
    )
    return {"warnings": (*job.warnings, warning)[-KEPT_WARNINGS:]}


def _stop_requested(job: JobView, recorded: Recorded, event: events.JobStopRequested) -> dict[str, Any]:
    return {"stop_mode": event.mode, "stop_reason": event.reason}


def _finished(job: JobView, recorded: Recorded, event: events.TrainingFinished) -> dict[str, Any]:
    # A resumed attempt knows only its own first loss.
    resumed = job.resume_step and job.loss_first is not None
    return {
        "step": event.steps,
        "progress": _share(event.steps, job.total_steps),
        "loss_first": job.loss_first if resumed else event.loss_first,
        "loss_last": event.loss_last,
        "training_seconds": event.seconds,
        "stopped_early": event.stopped_early,
        "adapter_step": event.adapter_step,
        "eta_seconds": None,
    }


def _adapter_stored(job: JobView, recorded: Recorded, event: events.AdapterStored) -> dict[str, Any]:
    return {"adapter": event.objects, "adapter_facts": event.facts, "adapter_partial": event.partial}


def _succeeded(job: JobView, recorded: Recorded, event: events.JobSucceeded) -> dict[str, Any]:
    return {"output_model_id": event.output_model_id, "progress": 1.0, "error": None}


def _failed(job: JobView, recorded: Recorded, event: events.JobFailed) -> dict[str, Any]:
    return {"error": JobError(code=event.code, message=event.message, retryable=event.retryable)}


def _stopped(job: JobView, recorded: Recorded, event: events.JobStopped) -> dict[str, Any]:
    return {"step": event.step, "progress": _share(event.step, job.total_steps), "stop_reason": event.reason}


def _queued(job: JobView, recorded: Recorded, event: events.JobQueued) -> dict[str, Any]:
    at = recorded.metadata.recorded_at
    not_before = at + timedelta(seconds=event.not_before_seconds) if event.not_before_seconds else None
    changes: dict[str, Any] = _LET_GO | {
        "attempt": event.attempt,
        "queued_at": at,
        "not_before": not_before,
        "wait_reason": _wait_sentence(job, event),
        "resume_step": event.resume_step,
        "stopped_early": False,
        "adapter_step": None,
        "checkpoint_step": event.resume_step or None,
        "step": event.resume_step,
        "progress": _share(event.resume_step, job.total_steps),
    }
    if event.resume_step == 0:
        changes |= {"loss_first": None, "loss_last": None, "epoch": 0.0}
    return changes


def _wait_sentence(job: JobView, event: events.JobQueued) -> str:
    waiting = f"The job waits for an agent of pool {job.pool}"
    last = job.last_attempt_error
    match event.reason:
        case "requested":
            return f"{waiting}."
        case "declined":
            return f"{waiting}: the last one declined it, because {last.message if last else 'unknown'}."
        case "lease_expired":
            return f"{waiting}: the last one was lost."
        case "released":
            return f"{waiting}: the last one gave it back, because {last.message if last else 'unknown'}."
        case "retry":
            return f"{waiting}: attempt {event.attempt - 1} failed and is tried again."


def _attempt_error(event: object) -> JobError:
    match event:
        case events.AttemptFailed(code=code, message=message):
            return JobError(code=code, message=message, retryable=True)
        case events.AgentDeclined(reason=reason):
            return JobError(code="declined", message=reason, retryable=True)
        case events.AttemptReleased(reason=reason):
            return JobError(code="released", message=reason, retryable=True)
        case _:
            return JobError(
                code="node_lost", message="Nothing was heard of the agent for a lease.", retryable=True
            )


def _progressed(job: JobView, recorded: Recorded, event: events.JobProgressed) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "step": event.step,
        "total_steps": event.total_steps,
        "progress": _share(event.step, event.total_steps),
        "epoch": event.epoch,
        "eta_seconds": event.eta_seconds,
        "peak_memory_bytes": max(job.peak_memory_bytes, event.peak_memory_bytes),
        "preflight": event.preflight or job.preflight,
    }
    if event.points:
        newest = event.points[-1]
        changes |= {
            "loss_first": event.points[0].loss if job.loss_first is None else job.loss_first,
            "loss_last": newest.loss,
            "learning_rate": newest.learning_rate,
            "tokens_per_second": newest.tokens_per_second,
        }
    return changes


# Every event of every job comes by here: a look-up takes a tenth of the time of a `match`.
_CHANGES: dict[type[Event], Callable[[JobView, Recorded, Any], dict[str, Any]]] = {
    events.JobPlanned: _planned,
    events.JobQueued: _queued,
    events.JobAssigned: _assigned,
    events.AgentDeclined: _attempt_ended,
    events.AttemptReleased: _attempt_ended,
    events.LeaseExpired: _attempt_ended,
    events.AttemptFailed: _attempt_ended,
    events.TrainingStarted: _started,
    events.JobEvaluated: _evaluated,
    events.JobProgressed: _progressed,
    events.CheckpointSaved: _checkpoint_saved,
    events.WarningRaised: _warned,
    events.JobStopRequested: _stop_requested,
    events.TrainingFinished: _finished,
    events.AdapterStored: _adapter_stored,
    events.JobSucceeded: _succeeded,
    events.JobFailed: _failed,
    events.JobStopped: _stopped,
}


def _share(step: int, total: int | None) -> float:
    return min(step / total, 1.0) if total else 0.0


_QUERIES = DocumentQueries("jobs", "jobs", JobView)


async def get(connection: AsyncConnection[Any], organization_id: str, job_id: str) -> JobDetail | None:
    """The job with its checkpoints, or None when the organization has none of that id."""
    async with connection.cursor(row_factory=scalar_row) as cursor:
        # One statement, so that both are of one moment.
        await cursor.execute(
            """
            SELECT j.document || jsonb_build_object('checkpoints', coalesce((
                       SELECT jsonb_agg(jsonb_build_object('step', c.step, 'attempt', c.attempt,
                                                           'objects', c.objects, 'saved_at', c.saved_at)
                                        ORDER BY c.step)
                         FROM view_jobs.checkpoints c WHERE c.job_id = j.id), '[]'))
              FROM view_jobs.jobs j
             WHERE j.id = %s AND j.organization_id = %s
            """,
            [job_id, organization_id],
        )
        found = await cursor.fetchone()
    return None if found is None else JobDetail.model_validate(found)


async def checkpoints(
    connection: AsyncConnection[Any], organization_id: str, job_id: str
) -> tuple[Checkpoint, ...]:
    """The job's checkpoints, oldest first."""
    async with connection.cursor(row_factory=class_row(Checkpoint)) as cursor:
        await cursor.execute(
            """
            SELECT c.step, c.attempt, c.objects, c.saved_at
              FROM view_jobs.checkpoints c JOIN view_jobs.jobs j ON j.id = c.job_id
             WHERE c.job_id = %s AND j.organization_id = %s
             ORDER BY c.step
            """,
            [job_id, organization_id],
        )
        return tuple(await cursor.fetchall())


async def page(
    connection: AsyncConnection[Any],
    organization_id: str,
    *,
    limit: int,
    after: Cursor | None = None,
    statuses: Sequence[str] | None = None,
) -> list[StoredDocument]:
    """Newest first; `after` is (created_at, id) of the last row of the page before."""
    return await _QUERIES.page(connection, organization_id, limit=limit, after=after, statuses=statuses)
