"""One human sentence per event: what happened, in words, for every type that the log can hold."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from schemas.envelope import Recorded
from schemas.events import REGISTRY, Event, agent, dataset, finding, identity, job, model, subscription
from schemas.training import AdapterFacts

Level = Literal["detail", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("detail", "info", "warning", "error")

_WORDS: dict[type[Event], Callable[[Any], str]] = {}
_LEVELS: dict[type[Event], Level] = {
    identity.UserLoggedIn: "detail",
    identity.TokenFamilyRevoked: "warning",
    dataset.DatasetImportFailed: "error",
    dataset.DatasetUploadStarted: "detail",
    dataset.DatasetValidationInterrupted: "warning",
    dataset.DatasetRejected: "error",
    model.ModelImportFailed: "error",
    model.ModelUploadStarted: "detail",
    model.ModelValidationInterrupted: "warning",
    model.ModelRejected: "error",
    agent.AgentProbed: "detail",
    agent.AgentLost: "warning",
    agent.AgentRevoked: "warning",
    finding.FindingOpened: "error",
    job.JobValidationStarted: "detail",
    job.JobProgressed: "detail",
    job.LogSegmentStored: "detail",
    job.AgentDeclined: "warning",
    job.LeaseExpired: "warning",
    job.AttemptFailed: "warning",
    job.WarningRaised: "warning",
    job.JobFailed: "error",
    subscription.SubscriptionCredentialsIssued: "detail",
    subscription.SubscriptionDisabled: "warning",
}


def sentence(event: Event) -> str:
    """What happened; the subject of the sentence is the stream's aggregate or the actor.

    Raises:
        KeyError: for a type without words, which the tests exclude for every registered one.
    """
    return _WORDS[type(event)](event)


def level(event: Event) -> Level:
    """How much attention it deserves."""
    return _LEVELS.get(type(event), "info")


def types_from(least: Level) -> frozenset[str]:
    """The event types that deserve at least so much attention."""
    return frozenset(
        cls.TYPE for cls in REGISTRY.types if LEVELS.index(_LEVELS.get(cls, "info")) >= LEVELS.index(least)
    )


def told(recorded: Recorded) -> tuple[str, Level]:
    """Sentence and level of a recorded event."""
    event = recorded.event
    kind = type(event)
    return _WORDS[kind](event), _LEVELS.get(kind, "info")


def untold() -> list[str]:
    """Registered types without words."""
    return [cls.TYPE for cls in REGISTRY.types if cls not in _WORDS]


def _words(cls: type[Event], words: Callable[[Any], str]) -> None:
    _WORDS[cls] = words


def _because(reason: str) -> str:
    """A reason as the end of a sentence, if one was given."""
    return f": {reason.rstrip('. ')}." if reason.strip() else "."


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _size(size_bytes: int) -> str:
    size, units = float(size_bytes), ["bytes", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size_bytes} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _reason(reason: str) -> str:
    return reason.replace("_", " ")


# ---- users and organizations ----------------------------------------------------------------------

_words(identity.UserRegistered, lambda e: "A person signed up.")
_words(identity.UserLoggedIn, lambda e: "A person logged in.")
_words(
    identity.TokenFamilyRevoked,
    lambda e: (
        "A person logged out."
        if e.reason == "logout"
        else "A refresh token was used twice, so the session was ended."
    ),
)
_words(
    identity.UserErased,
    lambda e: f"A person was forgotten at the request of {e.requested_by}: their key is destroyed.",
)
_words(
    identity.OrganizationCreated,
    lambda e: "A personal organization began." if e.personal else "An organization began.",
)
_words(identity.WorkspaceCreated, lambda e: f"Workspace “{e.name}” began.")
_words(identity.MemberAdded, lambda e: f"{e.user_id} became a member as {e.role}.")

_words(identity.MemberRemoved, lambda e: f"{e.user_id} is no member any more, because they were {e.reason}.")
_words(identity.SecretStored, lambda e: f"Secret “{e.name}” ({e.kind}) was stored; its value is in no event.")
_words(identity.SecretDeleted, lambda e: f"Secret “{e.name}” was deleted.")

# ---- datasets -------------------------------------------------------------------------------------

_words(dataset.DatasetImportRequested, lambda e: f"Dataset “{e.name}” is to be imported from {e.source.uri}.")
_words(
    dataset.DatasetImportFailed,
    lambda e: f"Import {e.attempt} of the dataset failed{_because(e.message)}",
)
_words(dataset.DatasetImportRetried, lambda e: f"Import {e.attempt} of the dataset began.")
_words(
    dataset.DatasetRegistered,
    lambda e: f"Dataset “{e.name}” was declared with {_count(e.file_count, 'file')}, {_size(e.size_bytes)}.",
)
_words(dataset.DatasetUploadStarted, lambda e: "The upload of the dataset's files began.")
_words(dataset.DatasetUploaded, lambda e: "Every file of the dataset is stored and verified.")
_words(
    dataset.DatasetValidationStarted,
    lambda e: f"{e.agent_id} began to check the dataset (attempt {e.attempt}).",
)
_words(
    dataset.DatasetValidationInterrupted,
    lambda e: f"The check of the dataset was interrupted ({_reason(e.reason)}){_because(e.detail)}",
)
_words(
    dataset.DatasetValidated,
    lambda e: (
        f"The dataset is ready: {_count(e.facts.clips, 'clip')}, {_count(e.facts.examples, 'example')}"
        + (f"; {_count(e.facts.refused_rows, 'row')} left out." if e.facts.refused_rows else ".")
    ),
)
_words(
    dataset.DatasetRejected,
    lambda e: (
        f"The dataset was rejected for {_count(len(e.problems), 'problem')}{_because(e.problems[0].message)}"
    ),
)
_words(dataset.DatasetDeleted, lambda e: "The dataset was deleted.")

# ---- models ---------------------------------------------------------------------------------------

_words(model.ModelImportRequested, lambda e: f"Base model “{e.name}” is to be imported from {e.source.uri}.")
_words(
    model.ModelImportFailed,
    lambda e: f"Import {e.attempt} of the model failed{_because(e.message)}",
)
_words(model.ModelImportRetried, lambda e: f"Import {e.attempt} of the model began.")
_words(
    model.ModelRegistered,
    lambda e: (
        f"Base model “{e.name}” was declared with {_count(e.file_count, 'file')}, {_size(e.size_bytes)}."
    ),
)
_words(model.ModelUploadStarted, lambda e: "The upload of the model's files began.")
_words(model.ModelUploaded, lambda e: "Every file of the model is stored and verified.")
_words(
    model.ModelValidationStarted, lambda e: f"{e.agent_id} began to check the model (attempt {e.attempt})."
)
_words(
    model.ModelValidationInterrupted,
    lambda e: f"The check of the model was interrupted ({_reason(e.reason)}){_because(e.detail)}",
)
_words(
    model.ModelValidated,
    lambda e: f"The model is ready: family {e.facts.family}, {_count(e.facts.parameters, 'parameter')}.",
)
_words(
    model.ModelRejected,
    lambda e: (
        f"The model was rejected for {_count(len(e.problems), 'problem')}{_because(e.problems[0].message)}"
    ),
)
_words(
    model.AdapterRegistered, lambda e: f"Adapter “{e.name}” of {e.job_id} became a model{_adapter(e.facts)}"
)
_words(model.ModelDeleted, lambda e: "The model was deleted.")

# ---- agents ---------------------------------------------------------------------------------------

_words(agent.AgentEnrolled, lambda e: f"Agent “{e.name}” was admitted to pool {e.pool}.")
_words(
    agent.AgentProbed,
    lambda e: (
        f"The agent runs on {e.capabilities.device}"
        + (" with 4-bit kernels." if e.capabilities.four_bit_kernel else ", where 4-bit kernels do not work.")
    ),
)
_words(
    agent.EnrolmentTokenIssued,
    lambda e: f"A token was issued with which a node may become this agent until {_minute(e.expires_at)}.",
)
_words(agent.AgentJoined, lambda e: "A node joined as this agent.")
_words(agent.AgentRevoked, lambda e: f"The agent was shut out for good{_because(e.reason)}")
_words(agent.AgentOnline, lambda e: "The agent is online.")
_words(
    agent.AgentLost,
    lambda e: (
        "The agent was shut down."
        if e.reason == "shut_down"
        else "Nothing was heard of the agent for a lease."
    ),
)

# ---- jobs -----------------------------------------------------------------------------------------


def _adapter(facts: AdapterFacts) -> str:
    return f": rank {facts.rank}, {_count(facts.steps, 'step')}."


def _queued(event: job.JobQueued) -> str:
    why = {
        "requested": "",
        "declined": ", because the agent declined it",
        "lease_expired": ", because its agent was lost",
        "released": ", because its agent gave it back",
        "retry": ", because the last attempt failed",
    }[event.reason]
    resume = f", to go on from step {event.resume_step}" if event.resume_step else ""
    pause = f", in {event.not_before_seconds:g} s" if event.not_before_seconds else ""
    return f"The job was queued as attempt {event.attempt}{why}{resume}{pause}."


def _progressed(event: job.JobProgressed) -> str:
    points = event.points
    loss = f", loss {points[-1].loss:.4f}" if points else ""
    return f"Step {event.step} of {event.total_steps}{loss}."


def _evaluated(event: job.JobEvaluated) -> str:
    evaluation, figures = event.evaluation, []
    if evaluation.loss is not None:
        figures.append(f"loss {evaluation.loss:.4f}")
    if evaluation.exact_match is not None:
        figures.append(f"{_percent(evaluation.exact_match)} answered word for word")
    if evaluation.token_accuracy is not None:
        figures.append(f"{_percent(evaluation.token_accuracy)} of the tokens right")
    when = {"before": "before", "during": "during", "after": "after"}[event.phase]
    whose = "" if event.adapter_step is None else f", with the adapter of step {event.adapter_step}"
    return (
        f"{_count(evaluation.examples, 'held-out example')} evaluated {when} training{whose}"
        f"{_because(', '.join(figures))}"
    )


def _rank_changed(event: job.RankChanged) -> str:
    parts = {
        part: (sum(layer.before for layer in layers), sum(layer.after for layer in layers))
        for part in dict.fromkeys(layer.part for layer in event.layers)
        if (layers := [layer for layer in event.layers if layer.part == part])
    }
    moved = ", ".join(f"{part} {before} → {after}" for part, (before, after) in parts.items())
    what = (
        f"Rank was given out after step {event.step}"
        if event.kept == "allocated"
        else f"Every layer got the same rank after step {event.step}"
    )
    tried = ""
    if event.trial is not None:
        tried = (
            f"; held-out loss {event.trial.allocated_loss:.4f} allocated,"
            f" {event.trial.uniform_loss:.4f} uniform"
        )
    return f"{what}: {moved} ({event.parameters_after:,} parameters){tried}."


def _training_finished(event: job.TrainingFinished) -> str:
    ended = "ended early," if event.stopped_early else "finished"
    best = event.adapter_step
    kept = "" if best is None or best == event.steps else f"; the adapter of step {best} is kept"
    return (
        f"Training {ended} after {_count(event.steps, 'step')} in {event.seconds:.1f} s:"
        f" loss {event.loss_first:.4f} → {event.loss_last:.4f}{kept}."
    )


def _warning(event: job.WarningRaised) -> str:
    return f"Warning {event.code}{_because(event.message)}"


_words(
    job.JobRequested,
    lambda e: f"Job “{e.name}” was requested: {e.model_id} on {e.dataset_id}, {e.priority} priority.",
)
_words(job.JobValidationStarted, lambda e: "The job's inputs are being checked.")
_words(
    job.JobPlanned,
    lambda e: (
        f"The job was planned: {_count(e.total_steps, 'step')} over"
        f" {_count(e.training_examples, 'example')}, {e.held_out_examples:,} held out."
    ),
)
_words(job.JobQueued, _queued)
_words(job.JobAssigned, lambda e: f"Attempt {e.attempt} was given to {e.agent_id}.")
_words(job.AgentAccepted, lambda e: "The agent prepares the training.")
_words(job.AgentDeclined, lambda e: f"The agent declined the job{_because(e.reason)}")
_words(job.AttemptReleased, lambda e: f"The agent gave the job back{_because(e.reason)}")
_words(
    job.LeaseExpired,
    lambda e: f"Nothing was heard of {e.agent_id} for a lease, so attempt {e.attempt} ended.",
)
_words(job.AttemptFailed, lambda e: f"Attempt {e.attempt} failed ({e.code}){_because(e.message)}")
_words(
    job.TrainingStarted,
    lambda e: (
        (f"Training goes on from step {e.start_step}" if e.start_step else "Training began")
        + f" on {e.device}: {e.trainable_parameters:,} of {e.total_parameters:,} parameters learn."
    ),
)
_words(job.JobEvaluated, _evaluated)
_words(job.RankChanged, _rank_changed)
_words(job.JobProgressed, _progressed)
_words(job.CheckpointSaved, lambda e: f"The checkpoint of step {e.step} is stored.")
_words(
    job.LogSegmentStored,
    lambda e: (
        f"{_count(e.lines, 'line')} of the job's "
        + ("log are stored." if e.content == "log" else "full-resolution series are stored.")
    ),
)
_words(job.WarningRaised, _warning)
_words(
    job.JobStopRequested,
    lambda e: (
        ("The job is asked to stop" if e.mode == "graceful" else "The job is asked to stop at once")
        + _because(e.reason)
    ),
)
_words(job.TrainingFinished, _training_finished)
_words(
    job.AdapterStored,
    lambda e: (
        ("The adapter of the stopped training is stored" if e.partial else "The adapter is stored")
        + _adapter(e.facts)
    ),
)
_words(job.JobSucceeded, lambda e: f"The job succeeded and produced {e.output_model_id}.")
_words(job.JobFailed, lambda e: f"The job failed ({e.code}){_because(e.message)}")
_words(job.JobStopped, lambda e: f"The job was cancelled at step {e.step}{_because(e.reason)}")

# ---- subscriptions --------------------------------------------------------------------------------

_words(
    subscription.SubscriptionCreated,
    lambda e: (
        f"Subscriber “{e.name}” is sent events"
        + (" over NATS" if e.kind == "nats" else f" by webhook to {e.url}")
        + (f", from behind position {e.after:,}." if e.after else ", from the beginning.")
    ),
)
_words(
    subscription.SubscriptionCredentialsIssued,
    lambda e: f"NATS credentials were issued to the subscriber, valid until {_minute(e.expires_at)}.",
)
_words(
    subscription.SubscriptionSecretRotated,
    lambda e: f"Deliveries are signed with a new secret, and until {_minute(e.former_until)} with both.",
)
_STOPPED = {
    "requested": "Delivery was stopped",
    "failing": "Delivery was stopped, as it kept failing",
    "gone": "Delivery was stopped, as the receiver wants no more",
}
_words(subscription.SubscriptionDisabled, lambda e: _STOPPED[e.reason] + _because(e.detail))
_words(subscription.SubscriptionEnabled, lambda e: "Delivery goes on.")
_words(subscription.SubscriptionDeleted, lambda e: "The subscription was deleted.")

# ---- findings of the auditor ------------------------------------------------------------------------


def _found(event: finding.FindingOpened) -> str:
    if event.check == "log":
        return f"The log is not what it was when it was signed{_because(event.detail)}"
    if event.check == "subscriber":
        return f"The subscriber of {event.about} missed events{_because(event.detail)}"
    differs = f"{event.subject} differs from the log for {event.about}"
    return f"The auditor found that {differs}{_because(event.detail)}"


_words(finding.FindingOpened, _found)
_words(finding.FindingResolved, lambda e: f"What was found is as it should be again{_because(e.detail)}")
