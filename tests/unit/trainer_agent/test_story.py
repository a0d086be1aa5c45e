"""A job's log reads as its story, and printed lines are as serious as they look."""

import pytest

from qlora_engine.updates import (
    Calibrated,
    CheckpointWritten,
    EvaluationDone,
    OomRecovered,
    Preparing,
    StepTaken,
    TrainingBegan,
    TrainingDone,
    Update,
)
from schemas.events.job import Evaluation, ProgressPoint
from schemas.footprint import MemoryPart, Preflight
from schemas.objects import StoredObject
from schemas.training import AdapterFacts
from schemas.work import AdapterUploaded, CheckpointStored, Failed, Progressed, Released, ReportBody, Stopped
from trainer_agent.story import Printed, of_progress, of_report, of_update

POINT = ProgressPoint(
    step=12,
    loss=1.23456,
    learning_rate=2e-4,
    grad_norm=0.5,
    tokens=100,
    tokens_per_second=1234.5,
    step_seconds=0.1,
)
FACTS = AdapterFacts(
    family="smolvlm", base_model_sha256="0" * 64, rank=8, alpha=16, trainable_parameters=12_288, steps=81
)
FILE = StoredObject(path="adapter_model.safetensors", size_bytes=98_304, sha256="0" * 64, key="adapters/a")


def began(start_step: int = 0) -> TrainingBegan:
    return TrainingBegan(
        family="smolvlm",
        quantized_linear_layers=27,
        start_step=start_step,
        total_steps=81,
        trainable_parameters=12_288,
        total_parameters=412_345,
        training_examples=216,
        held_out_examples=24,
        device="4 CPU cores",
    )


def evaluated(loss: float | None, exact_match: float | None) -> EvaluationDone:
    evaluation = Evaluation(examples=24, loss=loss, exact_match=exact_match)
    return EvaluationDone(step=0, phase="before", evaluation=evaluation)


def messages(update: Update) -> list[str]:
    return [line.message for line in of_update(update)]


def test_a_corrected_forecast_is_told_with_its_sum() -> None:
    parts = (
        MemoryPart(name="base weights", size_bytes=2**30),
        MemoryPart(name="correction by the first step", size_bytes=-(2**28)),
    )
    preflight = Preflight(
        parts=parts,
        peak_bytes=3 * 2**28,
        host_bytes=2,
        largest_pass_tokens=3,
        tokens=4,
        steps=5,
        teraflops=6.0,
        seconds=75.0,
        watt_hours=1.5,
        processes=2,
    )
    assert messages(Calibrated(step=1, preflight=preflight)) == [
        "After step 1 expecting 0.75 GiB for each of 2 processes = base weights 1.00 + correction by the"
        " first step -0.25; 1 min 15 s for all steps, about 1.5 Wh (assumed power)"
    ]


def test_a_beginning_tells_model_and_data() -> None:
    assert messages(began()) == [
        "Model loaded: smolvlm with 412,345 parameters, 27 layers in 4 bits, 12,288 trainable (2.98%),"
        " on 4 CPU cores",
        "Data split: 216 rows to train on, 24 held out",
        "Training 81 steps",
    ]
    assert messages(began(40))[-1] == "Going on after step 40 of 81 steps"


@pytest.mark.parametrize(
    ("loss", "exact_match", "says"),
    [
        (3.2, 0.125, "loss 3.2000, exact match 12.5%, 24 rows"),
        (3.2, None, "loss 3.2000, too few clips for exact match, 24 rows"),
        (None, None, "nothing is held out"),
    ],
)
def test_an_evaluation(loss: float | None, exact_match: float | None, says: str) -> None:
    assert messages(evaluated(loss, exact_match)) == [f"Evaluation before training (step 0): {says}"]


def test_preparations_are_told_once() -> None:
    assert messages(Preparing(phase="evaluating", total=24)) == ["Evaluating 24 held-out rows"]
    assert messages(Preparing(phase="evaluating", done=8, total=24)) == []
    assert messages(Preparing(phase="evaluating", total=0)) == []
    recovered = OomRecovered(step=9, site="backward", action="split_micro_batch", before=4096, after=2048)
    assert messages(recovered) == [
        "Memory did not suffice at step 9 (backward); going on with the same step: forward passes of 4,096"
        " tokens are split to 2,048"
    ]
    assert messages(CheckpointWritten(step=8, folder="x")) == ["Checkpoint of step 8 written"]


def test_steps_are_told_with_the_reports_of_progress() -> None:
    assert messages(StepTaken(total_steps=81, epoch=0.44, point=POINT)) == []
    line = of_progress(Progressed(step=12, total_steps=81, epoch=0.444, points=(POINT,)))
    assert line.message == ("Step 12/81 (epoch 0.44): loss 1.2346, learning rate 2.00e-04, 1,234 tokens/s")


@pytest.mark.parametrize(
    ("seconds", "says"), [(12.34, "12.3 s"), (75.0, "1 min 15 s"), (7384.0, "2 h 3 min")]
)
def test_an_end(seconds: float, says: str) -> None:
    done = TrainingDone(
        steps=81,
        loss_first=3.2,
        loss_last=0.4,
        seconds=seconds,
        adapter_folder="a",
        series_file="s",
        facts=FACTS,
    )
    assert messages(done) == [f"Finished 81 steps in {says}: loss 3.2000 → 0.4000"]


def test_how_an_attempt_ends_is_the_last_line() -> None:
    failed = Failed(code="oom", message="the memory does not suffice\nmore", retryable=False)
    bodies: list[ReportBody] = [
        CheckpointStored(step=8, objects=(FILE, FILE)),
        AdapterUploaded(objects=(FILE,), facts=FACTS, partial=True),
        Stopped(step=12),
        Released(reason="the agent is shutting down"),
        failed,
        failed.model_copy(update={"retryable": True}),
    ]
    assert [(line.level, line.message) for body in bodies for line in of_report(body)] == [
        ("info", "Checkpoint of step 8 stored (196.6 kB)"),
        ("info", "Partial adapter stored: 1 file, 98.3 kB"),
        ("info", "Stopped at step 12"),
        ("warning", "Given back to the queue: the agent is shutting down"),
        ("error", "Failed (oom): the memory does not suffice"),
        ("error", "Failed (oom): the memory does not suffice; it may be tried again"),
    ]


def test_printed_lines_are_as_serious_as_they_look() -> None:
    printed = Printed()
    text = """\
loading shards
/lib/peft/peft_model.py:184: FutureWarning: `x` is deprecated
  warnings.warn(
done
WARNING:root:careful
[W1120 21:30:00.000 init.cpp:1] NNPACK is not there
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    raise ValueError
ValueError: no
During handling of the above exception, another exception occurred:
Traceback (most recent call last):
  File "a.py", line 3, in <module>
KeyError: 'x'
the UserWarning class is no warning
"""
    assert [printed.line(line).level for line in text.splitlines()] == [
        *("info", "warning", "warning", "info", "warning", "warning"),
        *("error",) * 8,
        "info",
    ]
