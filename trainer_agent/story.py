"""A training's log in words: one readable line for everything that people would ask it about."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from qlora_engine.updates import (
    Calibrated,
    CheckpointWritten,
    EvaluationDone,
    OomRecovered,
    Preparing,
    RankChanged,
    TrainingBegan,
    TrainingDone,
    TrainingStopped,
    Update,
)
from schemas.events.job import Evaluation
from schemas.footprint import Preflight
from schemas.work import AdapterUploaded, CheckpointStored, Failed, Progressed, Released, ReportBody, Stopped

Level = Literal["info", "warning", "error"]
Source = Literal["agent", "engine", "printed"]

_EVALUATED = {"before": "before training", "during": "during training", "after": "after training"}


@dataclass(frozen=True)
class Line:
    """One line of a job's log; `source` is who said it, `printed` for what libraries print."""

    level: Level
    code: str
    message: str
    source: Source = "agent"


Note = Callable[[Line], Awaitable[None]]
"""Takes a line into the log."""


def _info(code: str, message: str) -> Line:
    return Line("info", code, message)


# ---- what the engine does ------------------------------------------------------------------------------


def of_update(update: Update) -> tuple[Line, ...]:
    """Lines for a milestone. Steps are not told here: there may be thousands in a second."""
    match update:
        case Preparing(done=0):  # how far it got is telemetry
            return _preparing(update)
        case TrainingBegan():
            return _began(update)
        case Calibrated():
            return (_corrected(update),)
        case EvaluationDone():
            return (_evaluated(update),)
        case RankChanged():
            return (_reranked(update),)
        case CheckpointWritten():
            return (_info("checkpoint_written", f"Checkpoint of step {update.step} written"),)
        case OomRecovered():
            return (_recovered(update),)
        case TrainingDone():
            return (
                _info(
                    "training_finished",
                    f"Finished {_count(update.steps, 'step')} in {_duration(update.seconds)}:"
                    f" loss {update.loss_first:.4f} → {update.loss_last:.4f}",
                ),
            )
        case TrainingStopped():
            return (_info("training_stopped", f"The engine stopped at step {update.step}, as asked"),)
        case _:
            return ()


def _preparing(update: Preparing) -> tuple[Line, ...]:
    match update.phase:
        case "loading_data":
            return (_info("loading_data", f"Checking {_count(update.total, 'clip')}"),)
        case "loading_model":
            return (_info("loading_model", "Loading the base model in 4 bits"),)
        case "evaluating" if update.total:
            return (_info("evaluating", f"Evaluating {_count(update.total, 'held-out row')}"),)
        case "saving":
            return (_info("saving", "Saving the adapter"),)
        case "merging":
            return (_info("merging", "Merging the adapter into the base model"),)
        case _:
            return ()


def _expected(preflight: Preflight) -> Line:
    energy = "" if preflight.watt_hours is None else f", about {preflight.watt_hours:.2g} Wh (assumed power)"
    return _info(
        "preflight",
        f"Expecting {preflight.summed()}; {_count(preflight.tokens, 'token')} in all steps,"
        f" {_count(preflight.largest_pass_tokens, 'token')} in the largest pass{energy}",
    )


def _corrected(update: Calibrated) -> Line:
    preflight = update.preflight
    energy = "" if preflight.watt_hours is None else f", about {preflight.watt_hours:.2g} Wh (assumed power)"
    return _info(
        "calibrated",
        f"After step {update.step} expecting {preflight.summed()};"
        f" {_duration(preflight.seconds or 0.0)} for all steps{energy}",
    )


def _began(update: TrainingBegan) -> tuple[Line, ...]:
    share = update.trainable_parameters / max(1, update.total_parameters)
    steps = _count(update.total_steps, "step")
    expected = () if update.preflight is None else (_expected(update.preflight),)
    return (
        *expected,
        _info(
            "model_loaded",
            f"Model loaded: {update.family} with {_count(update.total_parameters, 'parameter')},"
            f" {_count(update.quantized_linear_layers, 'layer')} in 4 bits,"
            f" {update.trainable_parameters:,} trainable ({share:.2%}), on {update.device}",
        ),
        _info(
            "data_split",
            f"Data split: {_count(update.training_examples, 'row')} to train on,"
            f" {update.held_out_examples:,} held out",
        ),
        _info(
            "training_began",
            f"Training {steps}"
            if update.start_step == 0
            else f"Going on after step {update.start_step} of {steps}",
        ),
    )


def _recovered(update: OomRecovered) -> Line:
    """A warning: it goes on, but slower than it could."""
    match update.action:
        case "split_micro_batch":
            done = f"forward passes of {update.before:,} tokens are split to {update.after:,}"
        case "gradient_checkpointing":
            done = "gradient checkpointing is on"
        case "smaller_loss_chunks":
            done = f"logits are made for {update.after:,} tokens at once instead of {update.before:,}"
        case "fewer_frames":
            done = f"clips give {update.after} frames at most instead of {update.before}, as the job allows"
        case "smaller_optimizer_slices":
            done = f"the optimizer updates {_size(update.after)} at once instead of {_size(update.before)}"
        case "smaller_evaluation_batch":
            done = f"{_count(update.after, 'held-out row')} at once instead of {update.before:,}"
    return Line(
        "warning",
        "oom_recovered",
        f"Memory did not suffice at step {update.step} ({update.site}); going on with the same step: {done}",
    )


def _evaluated(update: EvaluationDone) -> Line:
    whose = "" if update.adapter_step is None else f", the adapter of step {update.adapter_step}"
    return _info(
        "evaluated",
        f"Evaluation {_EVALUATED[update.phase]} (step {update.step}{whose}): {_figures(update.evaluation)}",
    )


def _reranked(update: RankChanged) -> Line:
    ranks: dict[str, list[int]] = {}
    for layer in update.layers:
        ranks.setdefault(layer.part, []).append(layer.after)
    table = ", ".join(
        f"{part} {min(after)} to {max(after)} in {_count(len(after), 'layer')}"
        for part, after in ranks.items()
    )
    what = "Ranks given out" if update.kept == "allocated" else "The same rank for every layer kept"
    trial = update.trial
    why = (
        ""
        if trial is None
        else f"; held-out loss after {_count(trial.steps, 'step')} of trial {trial.allocated_loss:.4f}"
        f" allocated, {trial.uniform_loss:.4f} uniform"
    )
    return _info(
        "rank_changed",
        f"{what} after step {update.step}: {table},"
        f" {update.parameters_before:,} → {update.parameters_after:,} parameters{why}",
    )


def _figures(evaluation: Evaluation) -> str:
    if evaluation.loss is None:
        return "nothing is held out"
    right = evaluation.exact_match
    answers = "too few clips for exact match" if right is None else f"exact match {right:.1%}"
    if evaluation.token_accuracy is not None:
        answers = f"token accuracy {evaluation.token_accuracy:.1%}, {answers}"
    return f"loss {evaluation.loss:.4f}, {answers}, {_count(evaluation.examples, 'row')}"


# ---- what is reported ----------------------------------------------------------------------------------


def of_progress(report: Progressed) -> Line:
    """The newest step, as often as progress is reported and no oftener."""
    point = report.points[-1]
    return _info(
        "step",
        f"Step {report.step}/{report.total_steps} (epoch {report.epoch:.2f}): loss {point.loss:.4f},"
        f" learning rate {point.learning_rate:.2e}, {point.tokens_per_second:,.0f} tokens/s",
    )


def of_report(body: ReportBody) -> tuple[Line, ...]:
    """Lines for what the agent stored, and for how the attempt ended."""
    match body:
        case CheckpointStored():
            size = _size(sum(stored.size_bytes for stored in body.objects))
            return (_info("checkpoint_stored", f"Checkpoint of step {body.step} stored ({size})"),)
        case AdapterUploaded():
            files, size = len(body.objects), _size(sum(stored.size_bytes for stored in body.objects))
            what = "Partial adapter" if body.partial else "Adapter"
            return (_info("adapter_stored", f"{what} stored: {_count(files, 'file')}, {size}"),)
        case Stopped():
            return (_info("stopped", f"Stopped at step {body.step}"),)
        case Released():
            return (Line("warning", "released", f"Given back to the queue: {body.reason}"),)
        case Failed():
            # What the engine printed last is in the log already.
            reason, _, _ = body.message.partition("\n")
            again = "; it may be tried again" if body.retryable else ""
            return (Line("error", body.code, f"Failed ({body.code}): {reason}{again}"),)
        case _:
            return ()


# ---- what libraries print ------------------------------------------------------------------------------

_ERROR = re.compile(
    r"Traceback \(most recent call|Fatal Python error|Exception (in thread|ignored in)"
    r"|During handling of the above|The above exception was"
)
_WARNING = re.compile(r"\b\w*Warning:|\bWARN(ING)?\b|^\[?W\d{4}|^warning\b", re.ASCII)


class Printed:
    """Says how serious printed lines are, one after the other: an indented one belongs to the one before."""

    def __init__(self) -> None:
        self._level: Level = "info"
        self._trace = False

    def line(self, text: str) -> Line:
        """`text` with its level."""
        if not text[:1].isspace():
            ends_trace = self._trace  # the exception itself follows its frames
            self._trace = _ERROR.match(text) is not None
            if self._trace or ends_trace:
                self._level = "error"
            else:
                self._level = "warning" if _WARNING.search(text) else "info"
        return Line(self._level, "printed", text, source="printed")


# ---- figures -------------------------------------------------------------------------------------------


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"
