"""What a person sees of a running job: a fold over its events, and its live picture in the terminal."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kinora.client import Json
from schemas.envelope import split_type
from schemas.events import REGISTRY, UnknownEventType, job
from schemas.events.registry import Event

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class JobProgress:
    """A job's state as its events tell it; `losses` are (step, loss) of the points seen."""

    phase: str = "pending"
    attempt: int = 0
    step: int = 0
    total_steps: int = 0
    loss_first: float | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    before: job.Evaluation | None = None
    after: job.Evaluation | None = None
    checkpoints: int = 0
    note: str = ""
    kept: str = ""
    """Which adapter early stopping kept, as the end of a note."""
    error: str | None = None
    position: int = 0
    losses: tuple[tuple[int, float], ...] = field(default=(), repr=False)

    @property
    def finished(self) -> bool:
        """No more events will change it."""
        return self.phase in TERMINAL

    def after_frame(self, frame: Json) -> "JobProgress":
        """The progress after one feed frame; frames of other kinds and unknown events change nothing."""
        if frame["type"] == "telemetry":
            return self._after_telemetry(frame)
        if frame["type"] != "event":
            return self
        envelope = frame["event"]
        try:
            event = REGISTRY.decode(*split_type(envelope["type"]), envelope["data"])
        except UnknownEventType:
            return self
        return replace(_after(self, event), position=int(frame["position"]))

    def _after_telemetry(self, frame: Json) -> "JobProgress":
        points = [job.ProgressPoint.model_validate(point) for point in frame.get("points") or ()]
        if not points or self.phase not in ("running", "preparing") or points[-1].step <= self.step:
            return self
        return replace(
            self,
            step=points[-1].step,
            loss=points[-1].loss,
            loss_first=self.loss_first if self.loss_first is not None else points[0].loss,
            tokens_per_second=points[-1].tokens_per_second,
        )


def _after(progress: JobProgress, event: Event) -> JobProgress:
    match event:
        case job.JobValidationStarted():
            return replace(progress, phase="validating", note="checking inputs against parameters")
        case job.JobPlanned():
            return replace(progress, total_steps=event.total_steps)
        case job.JobQueued():
            note = "waiting for an agent"
            if event.attempt > 1:
                reason = event.reason.replace("_", " ")
                note = f"attempt {event.attempt} waits ({reason}), from step {event.resume_step}"
            return replace(progress, phase="queued", attempt=event.attempt, note=note)
        case job.JobAssigned():
            return replace(progress, phase="assigned", note="an agent took it")
        case job.AgentAccepted():
            return replace(progress, phase="preparing", note="staging inputs, loading the model in 4 bits")
        case job.TrainingStarted():
            note = (
                f"{event.trainable_parameters:,} of {event.total_parameters:,} parameters on {event.device}"
            )
            return replace(
                progress, phase="running", step=event.start_step, total_steps=event.total_steps, note=note
            )
        case job.JobEvaluated(phase="before"):
            return replace(progress, before=event.evaluation)
        case job.JobEvaluated(phase="after"):
            return replace(progress, after=event.evaluation)
        case job.RankChanged():
            return replace(progress, note=f"ranks {event.kept} after step {event.step}")
        case job.JobEvaluated(evaluation=job.Evaluation(loss=float(loss))):
            return replace(progress, note=f"held-out loss {loss:.4f} at step {event.step}")
        case job.JobProgressed():
            return _after_points(progress, event)
        case job.CheckpointSaved():
            return replace(
                progress, checkpoints=progress.checkpoints + 1, note=f"checkpoint at step {event.step}"
            )
        case job.WarningRaised():
            return replace(progress, note=f"warning: {event.message}")
        case job.LeaseExpired():
            return replace(progress, note="the agent was lost; the job goes on elsewhere")
        case job.AttemptFailed():
            return replace(progress, note=f"attempt failed: {event.message}")
        case job.JobStopRequested():
            return replace(progress, phase="stopping", note="stopping at the next step")
        case job.TrainingFinished():
            return replace(
                progress,
                phase="finalizing",
                step=event.steps,
                loss_first=event.loss_first,
                loss=event.loss_last,
                eta_seconds=0.0,
                note=f"storing the adapter{_kept(event)}",
                kept=_kept(event),
            )
        case job.JobSucceeded():
            return replace(
                progress,
                phase="succeeded",
                note=f"every artifact is stored: the adapter{progress.kept}"
                if progress.kept
                else "every artifact is stored",
            )
        case job.JobFailed():
            return replace(progress, phase="failed", note="", error=f"{event.code}: {event.message}")
        case job.JobStopped():
            return replace(progress, phase="cancelled", note=event.reason)
        case _:
            return progress


def _kept(event: job.TrainingFinished) -> str:
    best = "" if event.adapter_step is None else f" of step {event.adapter_step}"
    return f"{best}; the training ended early" if event.stopped_early else best


def _after_points(progress: JobProgress, event: job.JobProgressed) -> JobProgress:
    points = tuple((point.step, point.loss) for point in event.points)
    kept = tuple(p for p in progress.losses if not points or p[0] < points[0][0])
    last = event.points[-1] if event.points else None
    return replace(
        progress,
        step=max(event.step, progress.step),
        total_steps=event.total_steps,
        loss=last.loss if last else progress.loss,
        loss_first=progress.loss_first if progress.loss_first is not None or not points else points[0][1],
        tokens_per_second=last.tokens_per_second if last else progress.tokens_per_second,
        eta_seconds=event.eta_seconds,
        losses=kept + points,
    )


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int = 40) -> str:
    """The values as one line of block characters, evenly thinned to `width`."""
    if not values:
        return ""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, high = min(values), max(values)
    span = high - low or 1.0
    return "".join(_BARS[min(7, int((value - low) / span * 8))] for value in values)


def duration(seconds: float | None) -> str:
    """``1:05`` or ``2:03:04``; a dash when unknown."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(share: float | None) -> str:
    """``85 %``; a dash when unknown."""
    return "–" if share is None else f"{share:.0%}"


def nats(loss: float | None) -> str:
    """``0.1834``; a dash when unknown."""
    return "–" if loss is None else f"{loss:.4f}"


def picture(progress: JobProgress, title: str) -> RenderableType:
    """The live display: phase, step, loss, tokens/s and ETA."""
    facts = Table.grid(padding=(0, 2))
    for _ in range(6):
        facts.add_column(justify="left", no_wrap=True)
    speed = "–" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f}"
    facts.add_row(
        Text(progress.phase, style=_STYLES.get(progress.phase, "bold cyan")),
        f"step {progress.step}/{progress.total_steps or '–'}",
        f"loss {nats(progress.loss)}",
        f"{speed} tokens/s",
        f"ETA {duration(progress.eta_seconds)}",
        f"attempt {progress.attempt}" if progress.attempt > 1 else "",
    )
    # In a grid of its own, because a bar alone does not end its line.
    bar = Table.grid()
    bar.add_row(
        ProgressBar(
            total=progress.total_steps or 1,
            completed=progress.step,
            width=60,
            pulse=progress.phase in ("pending", "validating", "queued", "assigned", "preparing"),
        )
    )
    rows: list[RenderableType] = [Text(title, style="bold"), bar, facts]
    if progress.losses:
        rows.append(Text("loss  " + sparkline([loss for _, loss in progress.losses]), style="dim"))
    if progress.before is not None:
        rows += _measured(progress.before, progress.after)
    if progress.note:
        rows.append(Text(progress.note, style="dim"))
    if progress.error:
        rows.append(Text(progress.error, style="bold red"))
    return Group(*rows)


def _measured(before: job.Evaluation, after: job.Evaluation | None) -> Iterator[Text]:
    """A line for each figure that was measured on what is held out."""
    for name, figure, told in (
        ("loss", attrgetter("loss"), nats),
        ("exact match", attrgetter("exact_match"), percent),
        ("token accuracy", attrgetter("token_accuracy"), percent),
    ):
        then = "" if after is None else f", {told(figure(after))} after"
        if name == "exact match" or figure(before) is not None:
            yield Text(f"held-out {name}: {told(figure(before))} before{then}")


_STYLES = {
    "succeeded": "bold green",
    "failed": "bold red",
    "cancelled": "bold yellow",
    "running": "bold blue",
}
