"""Datasets and models from elsewhere: asked for, fetched, failed, tried again, deleted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from command_api.domain.aggregates import AGGREGATES
from schemas.commands import dataset as dataset_commands
from schemas.commands import model as model_commands
from schemas.events import Event
from schemas.events import dataset as dataset_events
from schemas.events import model as model_events
from schemas.ids import Prefix
from schemas.imports import ImportSource
from tests.unit.domain.samples import (
    DATASET,
    DATASET_REGISTERED,
    LISTING,
    MODEL,
    MODEL_LISTING,
    MODEL_REGISTERED,
    UPLOAD,
)
from tests.unit.domain.spec import Given, Spec

SOURCE = ImportSource(kind="s3", uri="s3://lab/shapes", secret="lab")


@dataclass(frozen=True)
class Kind:
    """The same story, told of a dataset or of a model."""

    spec: Spec
    noun: str
    item_id: str
    commands: Any
    events: Any
    registered: Event
    facts: dict[str, Any]

    def command(self, pattern: str, **fields: Any) -> Any:
        cls = getattr(self.commands, pattern.format(self.noun.capitalize()))
        return cls(**{f"{self.noun}_id": self.item_id}, **fields)

    def event(self, pattern: str, **fields: Any) -> Event:
        cls: Callable[..., Event] = getattr(self.events, pattern.format(self.noun.capitalize()))
        return cls(**fields)

    @property
    def request(self) -> Any:
        return self.command("Request{}Import", source=SOURCE, **self.described)

    @property
    def described(self) -> dict[str, Any]:
        return self.registered.model_dump(include={"name", "description", "owner_id"})

    @property
    def requested(self) -> Event:
        return self.event("{}ImportRequested", source=SOURCE, **self.described)

    def complete(self, attempt: int = 1) -> Any:
        return self.command("Complete{}Import", attempt=attempt, upload_id=UPLOAD, **self.facts)

    def failed(self, attempt: int = 1) -> Event:
        return self.event("{}ImportFailed", attempt=attempt, code="gone", message="404", retryable=False)

    def fail(self, attempt: int = 1) -> Any:
        return self.command("Fail{}Import", attempt=attempt, code="gone", message="404", retryable=False)

    def given(self, *events: Event) -> Given:
        return self.spec.given(*events)

    @property
    def imported(self) -> tuple[Event, ...]:
        return self.registered, self.event("{}Uploaded", upload_id=UPLOAD)


KINDS = [
    Kind(
        Spec(AGGREGATES[Prefix.DATASET]),
        "dataset",
        DATASET,
        dataset_commands,
        dataset_events,
        DATASET_REGISTERED,
        {"listing": LISTING, "file_count": 11, "size_bytes": 4000},
    ),
    Kind(
        Spec(AGGREGATES[Prefix.MODEL]),
        "model",
        MODEL,
        model_commands,
        model_events,
        MODEL_REGISTERED,
        {"listing": MODEL_LISTING, "file_count": 3, "size_bytes": 9000},
    ),
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.noun)


@every_kind
def test_asking_once(kind: Kind) -> None:
    kind.given().when(kind.request).then(kind.requested)
    kind.given(kind.requested).when(kind.request).then_nothing()
    other = kind.request.model_copy(update={"source": SOURCE.model_copy(update={"uri": "s3://lab/other"})})
    kind.given(kind.requested).when(other).then_refused(f"{kind.noun}_exists")
    kind.given(kind.registered).when(kind.request).then_refused(f"{kind.noun}_exists")


@every_kind
def test_what_arrived_goes_on_like_an_upload(kind: Kind) -> None:
    kind.given(kind.requested).when(kind.complete()).then(*kind.imported)
    state = kind.given(kind.requested, *kind.imported).state
    assert (state.phase, state.registered) == ("uploaded", kind.registered)
    claim = kind.command("Claim{}Validation", agent_id="agt_" + "1" * 32, attempt=1)
    assert kind.given(kind.requested, *kind.imported).when(claim).then_state().phase == "validating"


@every_kind
def test_a_source_without_content_makes_nothing(kind: Kind) -> None:
    empty = kind.complete().model_copy(update={"size_bytes": 0})
    kind.given(kind.requested).when(empty).then_refused(f"empty_{kind.noun}")


@every_kind
def test_a_failure_waits_for_a_retry(kind: Kind) -> None:
    retry = kind.command("Retry{}Import")
    retried = kind.event("{}ImportRetried", attempt=2)
    kind.given(kind.requested).when(kind.fail()).then(kind.failed())
    kind.given(kind.requested).when(retry).then_nothing()
    kind.given(kind.requested, kind.failed()).when(retry).then(retried)
    again = kind.given(kind.requested, kind.failed(), retried)
    again.when(retry).then_nothing()
    again.when(kind.complete(2)).then(*kind.imported)
    again.when(kind.fail(2)).then(kind.failed(2))
    kind.given(kind.requested, *kind.imported).when(retry).then_refused("import_not_failed")


@every_kind
def test_only_the_running_attempt_is_believed(kind: Kind) -> None:
    retried = kind.event("{}ImportRetried", attempt=2)
    again = kind.given(kind.requested, kind.failed(), retried)
    deleted = kind.given(kind.requested, kind.event("{}Deleted"))
    for late in (kind.complete(1), kind.fail(1)):
        again.when(late).then_refused("import_over")
        deleted.when(late).then_refused("import_over")
        kind.given(kind.requested, kind.failed()).when(late).then_refused("import_over")
        kind.given(kind.requested, *kind.imported).when(late).then_refused("import_over")
        kind.given().when(late).then_refused("not_found")


@every_kind
def test_nothing_is_uploaded_to_what_is_imported(kind: Kind) -> None:
    for history in ((kind.requested,), (kind.requested, kind.failed())):
        for upload in (
            kind.command("Start{}Upload", upload_id=UPLOAD),
            kind.command("Complete{}Upload", upload_id=UPLOAD),
        ):
            kind.given(*history).when(upload).then_refused("being_imported")
        register = kind.command("Register{}", **kind.described, **kind.facts)
        kind.given(*history).when(register).then_refused(f"{kind.noun}_exists")


@every_kind
def test_deletion_ends_it(kind: Kind) -> None:
    delete = kind.command("Delete{}")
    for history in ((kind.requested,), (kind.requested, kind.failed())):
        kind.given(*history).when(delete).then(kind.event("{}Deleted"))
        ended = kind.given(*history, kind.event("{}Deleted"))
        ended.when(delete).then_nothing()
        ended.when(kind.command("Retry{}Import")).then_refused("import_not_failed")
        ended.when(kind.request).then_refused(f"{kind.noun}_exists")


@every_kind
def test_what_does_not_exist_cannot_be_retried(kind: Kind) -> None:
    kind.given().when(kind.command("Retry{}Import")).then_refused("not_found")
