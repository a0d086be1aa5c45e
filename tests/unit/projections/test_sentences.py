"""Every event that the log can hold has one sentence of plain words."""

import pytest

from projections.sentences import LEVELS, level, sentence, untold
from schemas.events import REGISTRY, Event, dataset, finding, job
from tests.stories import EVERY_EVENT, evaluated


def test_every_registered_type_has_words() -> None:
    assert untold() == []


def test_the_examples_cover_every_registered_type() -> None:
    assert {type(event) for event in EVERY_EVENT} == set(REGISTRY.types)


@pytest.mark.parametrize("event", EVERY_EVENT, ids=lambda event: type(event).TYPE)
def test_a_sentence_is_one_line_that_ends_with_one_full_stop(event: Event) -> None:
    words = sentence(event)
    assert words[0].isupper() or words[0].isdigit() or words.startswith(("agt_", "usr_"))
    assert words.endswith(".")
    assert not words.endswith("..")
    assert "\n" not in words
    assert "  " not in words
    assert level(event) in LEVELS


def test_numbers_and_reasons_are_told() -> None:
    assert (
        sentence(job.JobQueued(attempt=2, reason="lease_expired", resume_step=6, not_before_seconds=2))
        == "The job was queued as attempt 2, because its agent was lost, to go on from step 6, in 2 s."
    )
    assert sentence(job.JobStopRequested(mode="graceful", reason="")) == "The job is asked to stop."
    assert (
        sentence(job.AttemptFailed(attempt=1, code="oom", message="out of memory."))
        == "Attempt 1 failed (oom): out of memory."
    )
    assert sentence(dataset.DatasetDeleted()) == "The dataset was deleted."


def test_what_was_measured_is_told() -> None:
    earlier = evaluated(1, 12, "after", 0.75).model_copy(update={"adapter_step": 8})
    assert "evaluated after training, with the adapter of step 8: loss" in sentence(earlier)
    assert sentence(evaluated(1, 12, "after", 0.75)) == (
        "12 held-out examples evaluated after training: loss 1.5000, 75 % answered word for word,"
        " 88 % of the tokens right."
    )


def test_an_early_end_is_told_with_the_adapter_that_is_kept() -> None:
    early = job.TrainingFinished(
        attempt=1, steps=60, loss_first=2, loss_last=1, seconds=3, stopped_early=True, adapter_step=40
    )
    assert sentence(early) == (
        "Training ended early, after 60 steps in 3.0 s: loss 2.0000 → 1.0000; the adapter of step 40 is kept."
    )
    whole = early.model_copy(update={"stopped_early": False, "adapter_step": 60})
    assert sentence(whole) == "Training finished after 60 steps in 3.0 s: loss 2.0000 → 1.0000."


def test_rows_left_out_of_a_dataset_are_told() -> None:
    validated = next(event for event in EVERY_EVENT if isinstance(event, dataset.DatasetValidated))
    facts = validated.facts.model_copy(update={"refused_rows": 2, "rows": 62})
    assert sentence(validated) == "The dataset is ready: 60 clips, 60 examples."
    left_out = validated.model_copy(update={"facts": facts})
    assert sentence(left_out) == "The dataset is ready: 60 clips, 60 examples; 2 rows left out."


def test_what_a_subscriber_missed_is_told_of_the_subscriber() -> None:
    missed = finding.FindingOpened(
        check="subscriber", subject="EVENTS", about="sub_1", detail="it ends at position 7", remedy="export"
    )
    assert sentence(missed) == "The subscriber of sub_1 missed events: it ends at position 7."
