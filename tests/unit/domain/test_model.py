import pytest

from command_api.domain.aggregates import AGGREGATES
from schemas.commands import Command
from schemas.commands.model import (
    ClaimModelValidation,
    CompleteModelUpload,
    DeleteModel,
    InterruptModelValidation,
    JudgeModel,
    RegisterAdapter,
    RegisterModel,
    StartModelUpload,
)
from schemas.events import Event
from schemas.events.model import (
    AdapterRegistered,
    ModelDeleted,
    ModelRejected,
    ModelUploaded,
    ModelUploadStarted,
    ModelValidationInterrupted,
    ModelValidationStarted,
)
from schemas.ids import Prefix
from schemas.objects import content_sha256
from tests.unit.domain.samples import (
    ADAPTER_FACTS,
    AGENT,
    JOB,
    MODEL,
    MODEL_FACTS,
    MODEL_LISTING,
    MODEL_READY,
    MODEL_REGISTERED,
    MODEL_UPLOADED,
    MODEL_VALIDATED,
    MODEL_VALIDATING,
    OTHER_AGENT,
    PROBLEM,
    UPLOAD,
    USER,
    identifier,
    sha,
    stored,
)
from tests.unit.domain.spec import Spec

model = Spec(AGGREGATES[Prefix.MODEL])
REGISTER = RegisterModel(
    model_id=MODEL,
    name="tiny",
    description="",
    owner_id=USER,
    listing=MODEL_LISTING,
    file_count=3,
    size_bytes=9000,
)
START = StartModelUpload(model_id=MODEL, upload_id=UPLOAD)
COMPLETE = CompleteModelUpload(model_id=MODEL, upload_id=UPLOAD)
CLAIM = ClaimModelValidation(model_id=MODEL, agent_id=AGENT, attempt=1)
ACCEPT = JudgeModel(model_id=MODEL, agent_id=AGENT, attempt=1, facts=MODEL_FACTS, content_sha256=sha(4))
REJECT = JudgeModel(model_id=MODEL, agent_id=AGENT, attempt=1, problems=(PROBLEM,))
INTERRUPT = InterruptModelValidation(model_id=MODEL, agent_id=AGENT, attempt=1, reason="failed")
DELETE = DeleteModel(model_id=MODEL)
OBJECTS = (stored("adapter/adapter_model.safetensors", 8), stored("adapter/adapter_config.json", 9))
KEEP = RegisterAdapter(
    model_id=MODEL,
    name="tuned",
    owner_id=USER,
    job_id=JOB,
    base_model_id=identifier("mdl", 2),
    objects=OBJECTS,
    facts=ADAPTER_FACTS,
)
KEPT = AdapterRegistered(
    **KEEP.model_dump(exclude={"model_id", "objects", "facts"}),
    objects=OBJECTS,
    facts=ADAPTER_FACTS,
    content_sha256=content_sha256(OBJECTS),
)


def test_a_base_model_from_its_declaration_to_its_verdict() -> None:
    model.given().when(REGISTER).then(MODEL_REGISTERED)
    model.given(MODEL_REGISTERED).when(START).then(ModelUploadStarted(upload_id=UPLOAD))
    model.given(*MODEL_UPLOADED[:2]).when(COMPLETE).then(ModelUploaded(upload_id=UPLOAD))
    model.given(*MODEL_UPLOADED).when(CLAIM).then(ModelValidationStarted(agent_id=AGENT, attempt=1))
    model.given(*MODEL_VALIDATING).when(ACCEPT).then(MODEL_VALIDATED)
    model.given(*MODEL_VALIDATING).when(REJECT).then(ModelRejected(attempt=1, problems=(PROBLEM,)))
    model.given(*MODEL_READY).when(DELETE).then(ModelDeleted())


@pytest.mark.parametrize(
    ("history", "repeat"),
    [
        ((MODEL_REGISTERED,), REGISTER),
        (MODEL_UPLOADED[:2], START),
        (MODEL_UPLOADED, COMPLETE),
        (MODEL_VALIDATING, CLAIM),
        (MODEL_READY, ACCEPT),
        ((*MODEL_READY, ModelDeleted()), DELETE),
        ((KEPT,), KEEP),
    ],
    ids=lambda value: value.TYPE if isinstance(value, Command) else "",
)
def test_a_repeat_does_nothing(history: tuple[Event, ...], repeat: Command) -> None:
    model.given(*history).when(repeat).then_nothing()


def test_only_the_holder_of_the_attempt_is_believed() -> None:
    by_other = ACCEPT.model_copy(update={"agent_id": OTHER_AGENT})
    model.given(*MODEL_VALIDATING).when(by_other).then_refused("attempt_not_held")
    released = ModelValidationInterrupted(attempt=1, reason="released")
    model.given(*MODEL_VALIDATING, released).when(ACCEPT).then_refused("attempt_not_held")
    model.given(*MODEL_VALIDATING, released).when(CLAIM).then_refused("offer_gone")


def test_an_interrupted_validation_waits_for_another_attempt() -> None:
    failed = ModelValidationInterrupted(attempt=1, reason="failed")
    model.given(*MODEL_VALIDATING).when(INTERRUPT).then(failed)
    second = CLAIM.model_copy(update={"attempt": 2})
    model.given(*MODEL_VALIDATING, failed).when(second).then(
        ModelValidationStarted(agent_id=AGENT, attempt=2)
    )


def test_a_verdict_must_say_something() -> None:
    empty = ACCEPT.model_copy(update={"content_sha256": None})
    model.given(*MODEL_VALIDATING).when(empty).then_refused("empty_verdict")


def test_an_adapter_is_ready_at_once_and_never_uploaded() -> None:
    model.given().when(KEEP).then(KEPT)
    assert model.given(KEPT).state.phase == "ready"
    model.given(KEPT).when(START).then_refused("not_a_base_model")
    model.given(KEPT).when(COMPLETE).then_refused("not_a_base_model")
    model.given(KEPT).when(CLAIM).then_refused("offer_gone")
    model.given(KEPT).when(DELETE).then(ModelDeleted())


def test_an_id_is_never_used_for_another_model() -> None:
    model.given(KEPT).when(REGISTER).then_refused("model_exists")
    model.given(MODEL_REGISTERED).when(KEEP).then_refused("model_exists")


def test_the_content_hash_depends_on_paths_and_contents_but_not_on_order() -> None:
    assert content_sha256(OBJECTS) == content_sha256(reversed(OBJECTS))
    assert content_sha256(OBJECTS) != content_sha256(OBJECTS[:1])


@pytest.mark.parametrize("command", [START, COMPLETE, CLAIM, ACCEPT, INTERRUPT, DELETE], ids=lambda c: c.TYPE)
def test_nothing_can_be_done_with_one_that_does_not_exist(command: Command) -> None:
    model.given().when(command).then_refused("not_found")
