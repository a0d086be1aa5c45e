import pytest

from command_api.domain.aggregates import AGGREGATES
from command_api.domain.validation import MAX_FAILED, MAX_LOST, Interruption
from schemas.commands import Command
from schemas.commands.dataset import (
    ClaimDatasetValidation,
    CompleteDatasetUpload,
    DeleteDataset,
    InterruptDatasetValidation,
    JudgeDataset,
    RegisterDataset,
    StartDatasetUpload,
)
from schemas.events import Event
from schemas.events.dataset import (
    DatasetDeleted,
    DatasetRejected,
    DatasetUploaded,
    DatasetUploadStarted,
    DatasetValidationInterrupted,
    DatasetValidationStarted,
)
from schemas.ids import Prefix
from tests.unit.domain.samples import (
    AGENT,
    DATASET,
    DATASET_READY,
    DATASET_REGISTERED,
    DATASET_UPLOADED,
    DATASET_VALIDATED,
    DATASET_VALIDATING,
    FACTS,
    LISTING,
    MANIFEST,
    OTHER_AGENT,
    OTHER_UPLOAD,
    PROBLEM,
    UPLOAD,
    USER,
)
from tests.unit.domain.spec import Spec

dataset = Spec(AGGREGATES[Prefix.DATASET])
REGISTER = RegisterDataset(
    dataset_id=DATASET,
    name="shapes",
    description="",
    owner_id=USER,
    listing=LISTING,
    file_count=11,
    size_bytes=4000,
)
START = StartDatasetUpload(dataset_id=DATASET, upload_id=UPLOAD)
COMPLETE = CompleteDatasetUpload(dataset_id=DATASET, upload_id=UPLOAD)
CLAIM = ClaimDatasetValidation(dataset_id=DATASET, agent_id=AGENT, attempt=1)
ACCEPT = JudgeDataset(dataset_id=DATASET, agent_id=AGENT, attempt=1, facts=FACTS, manifest=MANIFEST)
REJECT = JudgeDataset(dataset_id=DATASET, agent_id=AGENT, attempt=1, problems=(PROBLEM,))
DELETE = DeleteDataset(dataset_id=DATASET)
REJECTED = DatasetRejected(attempt=1, problems=(PROBLEM,))


def interrupt(attempt: int, reason: Interruption, agent_id: str | None = AGENT) -> InterruptDatasetValidation:
    return InterruptDatasetValidation(dataset_id=DATASET, agent_id=agent_id, attempt=attempt, reason=reason)


def interrupted(attempt: int, reason: Interruption) -> tuple[Event, Event]:
    """An attempt that ended without a verdict, and the beginning of the next one."""
    return (
        DatasetValidationInterrupted(attempt=attempt, reason=reason),
        DatasetValidationStarted(agent_id=AGENT, attempt=attempt + 1),
    )


def test_declaring_it_once() -> None:
    dataset.given().when(REGISTER).then(DATASET_REGISTERED)
    dataset.given(DATASET_REGISTERED).when(REGISTER).then_nothing()
    other = REGISTER.model_copy(update={"name": "others"})
    dataset.given(DATASET_REGISTERED).when(other).then_refused("dataset_exists")


def test_an_empty_one_is_refused_and_the_field_is_named() -> None:
    empty = REGISTER.model_copy(update={"size_bytes": 0})
    refused = dataset.given().when(empty).then_refused("empty_dataset")
    assert [error.pointer for error in refused.errors] == ["/files"]


def test_an_upload_may_be_started_over_but_only_the_last_session_completes_it() -> None:
    started = DatasetUploadStarted(upload_id=UPLOAD)
    dataset.given(DATASET_REGISTERED).when(START).then(started)
    dataset.given(DATASET_REGISTERED, started).when(START).then_nothing()
    dataset.given(DATASET_REGISTERED, started).when(COMPLETE).then(DatasetUploaded(upload_id=UPLOAD))
    again = DatasetUploadStarted(upload_id=OTHER_UPLOAD)
    dataset.given(DATASET_REGISTERED, started, again).when(COMPLETE).then_refused("upload_not_open")
    dataset.given(DATASET_REGISTERED).when(COMPLETE).then_refused("upload_not_open")


def test_files_never_change_once_they_are_complete() -> None:
    dataset.given(*DATASET_UPLOADED).when(COMPLETE).then_nothing()
    dataset.given(*DATASET_READY).when(COMPLETE).then_nothing()
    dataset.given(*DATASET_UPLOADED).when(START).then_refused("already_uploaded")
    dataset.given(*DATASET_READY).when(START).then_refused("already_uploaded")


def test_one_agent_gets_the_validation() -> None:
    started = DatasetValidationStarted(agent_id=AGENT, attempt=1)
    dataset.given(*DATASET_UPLOADED).when(CLAIM).then(started)
    dataset.given(*DATASET_VALIDATING).when(CLAIM).then_nothing()
    rival = CLAIM.model_copy(update={"agent_id": OTHER_AGENT})
    dataset.given(*DATASET_VALIDATING).when(rival).then_refused("offer_gone")


@pytest.mark.parametrize("attempt", [1, 3])
def test_only_the_next_attempt_can_be_claimed(attempt: int) -> None:
    stale = CLAIM.model_copy(update={"attempt": attempt})
    released = DatasetValidationInterrupted(attempt=1, reason="released")
    dataset.given(*DATASET_VALIDATING, released).when(stale).then_refused("offer_gone")


def test_the_verdict_ends_the_validation() -> None:
    dataset.given(*DATASET_VALIDATING).when(ACCEPT).then(DATASET_VALIDATED)
    dataset.given(*DATASET_VALIDATING).when(REJECT).then(REJECTED)


def test_a_repeated_verdict_does_nothing_and_another_one_is_stale() -> None:
    dataset.given(*DATASET_READY).when(ACCEPT).then_nothing()
    dataset.given(*DATASET_READY).when(REJECT).then_refused("attempt_not_held")
    dataset.given(*DATASET_VALIDATING, REJECTED).when(REJECT).then_nothing()
    dataset.given(*DATASET_VALIDATING, REJECTED).when(ACCEPT).then_refused("attempt_not_held")


def test_a_verdict_must_say_something() -> None:
    empty = JudgeDataset(dataset_id=DATASET, agent_id=AGENT, attempt=1, facts=FACTS)
    dataset.given(*DATASET_VALIDATING).when(empty).then_refused("empty_verdict")


@pytest.mark.parametrize(
    "stale",
    [
        ACCEPT.model_copy(update={"attempt": 2}),
        ACCEPT.model_copy(update={"agent_id": OTHER_AGENT}),
        interrupt(2, "failed"),
        interrupt(1, "failed", OTHER_AGENT),
    ],
)
def test_only_the_holder_of_the_attempt_is_believed(stale: Command) -> None:
    dataset.given(*DATASET_VALIDATING).when(stale).then_refused("attempt_not_held")


def test_an_interrupted_validation_waits_for_another_attempt() -> None:
    expired = DatasetValidationInterrupted(attempt=1, reason="lease_expired")
    dataset.given(*DATASET_VALIDATING).when(interrupt(1, "lease_expired", None)).then(expired)
    second = CLAIM.model_copy(update={"attempt": 2, "agent_id": OTHER_AGENT})
    dataset.given(*DATASET_VALIDATING, expired).when(second).then(
        DatasetValidationStarted(agent_id=OTHER_AGENT, attempt=2)
    )


def test_a_lease_that_is_gone_does_not_expire_again() -> None:
    expired = DatasetValidationInterrupted(attempt=1, reason="lease_expired")
    dataset.given(*DATASET_VALIDATING, expired).when(interrupt(1, "lease_expired", None)).then_nothing()
    dataset.given(*DATASET_READY).when(interrupt(1, "lease_expired", None)).then_nothing()


@pytest.mark.parametrize(("reason", "limit"), [("failed", MAX_FAILED), ("lease_expired", MAX_LOST)])
def test_it_is_given_up_after_too_many_bad_attempts(reason: Interruption, limit: int) -> None:
    before = [event for attempt in range(1, limit) for event in interrupted(attempt, reason)]
    state = dataset.given(*DATASET_VALIDATING, *before).when(interrupt(limit, reason)).then_state()
    assert state.phase == "rejected"
    assert [problem.code for problem in state.rejected.problems] == ["validation_failed"]


@pytest.mark.parametrize("reason", ["released", "declined"])
def test_orderly_returns_never_count(reason: Interruption) -> None:
    before = [event for attempt in range(1, 20) for event in interrupted(attempt, reason)]
    state = dataset.given(*DATASET_VALIDATING, *before).when(interrupt(20, reason)).then_state()
    assert (state.phase, state.tally.next_attempt) == ("uploaded", 21)


@pytest.mark.parametrize(
    "history", [(DATASET_REGISTERED,), DATASET_UPLOADED, DATASET_VALIDATING, DATASET_READY]
)
def test_deletion_is_possible_in_every_phase_and_final(history: tuple[Event, ...]) -> None:
    dataset.given(*history).when(DELETE).then(DatasetDeleted())
    deleted = dataset.given(*history, DatasetDeleted())
    deleted.when(DELETE).then_nothing()
    deleted.when(START).then_refused("dataset_deleted")
    deleted.when(COMPLETE).then_refused("dataset_deleted")
    deleted.when(CLAIM).then_refused("offer_gone")
    deleted.when(ACCEPT).then_refused("attempt_not_held")


@pytest.mark.parametrize(
    "command", [START, COMPLETE, CLAIM, ACCEPT, interrupt(1, "failed"), DELETE], ids=lambda c: c.TYPE
)
def test_nothing_can_be_done_with_one_that_does_not_exist(command: Command) -> None:
    dataset.given().when(command).then_refused("not_found")
