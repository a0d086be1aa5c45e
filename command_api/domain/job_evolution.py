"""What each event makes of a job: the fold behind every decision."""

from dataclasses import replace

from command_api.domain.errors import ImpossibleHistory
from command_api.domain.job_phases import (
    KEPT_CHECKPOINTS,
    Absent,
    Assigned,
    Cancelled,
    Checkpoint,
    Ended,
    Failed,
    Finalizing,
    Held,
    History,
    Holding,
    JobState,
    Pending,
    Preparing,
    Queued,
    Requested,
    Running,
    StopIntent,
    Stopping,
    Succeeded,
    Validating,
    before_training,
)
from schemas.events import Event
from schemas.events.job import (
    AdapterStored,
    AgentAccepted,
    AgentDeclined,
    AttemptFailed,
    AttemptReleased,
    CheckpointSaved,
    JobAssigned,
    JobEvaluated,
    JobFailed,
    JobPlanned,
    JobProgressed,
    JobQueued,
    JobRequested,
    JobStopped,
    JobStopRequested,
    JobSucceeded,
    JobValidationStarted,
    LeaseExpired,
    LogSegmentStored,
    RankChanged,
    TrainingFinished,
    TrainingStarted,
    WarningRaised,
)


def evolve(state: JobState, event: Event) -> JobState:
    match state:
        case Absent():
            if isinstance(event, JobRequested):
                return Pending(History(event))
        case Pending() | Validating() | Queued():
            return _while_waiting(state, event)
        case Assigned() | Preparing() | Running() | Stopping() | Finalizing():
            return _while_held(state, event)
        case Succeeded() | Failed() | Cancelled():
            pass
    raise ImpossibleHistory(state, event)


def _while_waiting(state: Pending | Validating | Queued, event: Event) -> JobState:
    match state, event:
        case _, (JobFailed() | JobStopped()):
            return _ended(state, event)
        case Pending(history=history), JobValidationStarted():
            return Validating(history)
        case Validating(history=history), JobPlanned(total_steps=total_steps):
            return Validating(replace(history, plan=event, total_steps=total_steps))
        case Validating(), JobQueued():
            return _queued(state, event)
        case Queued(history=history), JobAssigned(agent_id=agent_id):
            return Assigned(history, agent_id)
        case _:
            raise ImpossibleHistory(state, event)


def _while_held(state: Held, event: Event) -> JobState:
    match event:
        case JobSucceeded() | JobFailed() | JobStopped():
            return _ended(state, event)
        case JobQueued():
            return _queued(state, event)
        case LeaseExpired() | AttemptFailed():
            return replace(state, history=replace(state.history, failures=state.history.failures + 1))
        case AttemptReleased() | AgentDeclined():
            fruitless = state.history.fruitless + 1 if before_training(state) else 0
            return replace(state, history=replace(state.history, fruitless=fruitless))
        case JobEvaluated() | RankChanged() | LogSegmentStored() | WarningRaised():
            return state
        case JobProgressed(step=step):
            return replace(state, history=replace(state.history, step=step))
        case CheckpointSaved(attempt=attempt, step=step, objects=objects):
            kept = (*state.history.checkpoints, Checkpoint(attempt, step, objects))[-KEPT_CHECKPOINTS:]
            return replace(state, history=replace(state.history, checkpoints=kept))
        case _:
            return _next_phase(state, event)


def _next_phase(state: Held, event: Event) -> JobState:
    match state, event:
        case Assigned(history=history, agent_id=agent_id), AgentAccepted():
            return Preparing(history, agent_id)
        case Preparing(history=history, agent_id=agent_id), TrainingStarted():
            return Running(_started(history, event), agent_id)
        case Stopping(history=history), TrainingStarted():
            return replace(state, history=_started(history, event), training=True)
        case ((Preparing() | Running()), JobStopRequested(mode=mode, reason=reason)):
            intent = StopIntent(mode, reason)
            return Stopping(state.history, state.agent_id, intent, isinstance(state, Running))
        case Stopping(), JobStopRequested(mode=mode, reason=reason):
            return replace(state, stop=StopIntent(mode, reason))
        case Running(history=history, agent_id=agent_id), TrainingFinished(steps=steps):
            return Finalizing(replace(history, step=steps), agent_id)
        case Stopping(history=history, agent_id=agent_id, stop=stop), TrainingFinished(steps=steps):
            return Finalizing(replace(history, step=steps), agent_id, stop)
        case Stopping(), AdapterStored(partial=True):
            return replace(state, partial_adapter_stored=True)
        case Finalizing(), AdapterStored(partial=False):
            return replace(state, adapter_stored=True)
        case _:
            raise ImpossibleHistory(state, event)


def _started(history: History, event: TrainingStarted) -> History:
    return replace(history, step=event.start_step, total_steps=event.total_steps, fruitless=0)


def _queued(state: Requested, event: JobQueued) -> Queued:
    history, step = state.history, event.resume_step
    # Those behind the step that the attempt goes on from were found to be unusable.
    kept = tuple(checkpoint for checkpoint in history.checkpoints if checkpoint.step <= step)
    return Queued(replace(history, attempt=event.attempt, step=step, checkpoints=kept), event)


def _ended(state: Requested, event: JobSucceeded | JobFailed | JobStopped) -> Ended:
    last: Holding | None = None
    if isinstance(state, Held):
        last = Holding(state.agent_id, state.history.attempt)
    match event:
        case JobSucceeded():
            return Succeeded(state.history, last, event)
        case JobFailed():
            return Failed(state.history, last, event)
        case JobStopped():
            return Cancelled(state.history, last)
