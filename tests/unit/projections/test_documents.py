"""Documents are stored as JSON that PostgreSQL takes."""

import json

from projections.documents import storable, without_nul
from projections.registry import VIEWS, view_named
from projections.views.datasets import Datasets, DatasetView
from projections.views.models import Models, ModelView
from schemas.events import Event, dataset, model
from tests.stories import (
    DATASET,
    MODEL,
    PROBLEM,
    SOURCE,
    Teller,
    adapter,
    imported_dataset,
    imported_model,
    whole_dataset,
    whole_model,
)


def dataset_after(*events: Event) -> DatasetView:
    view, result = Datasets(), None
    for recorded in Teller().tell(DATASET, *events):
        result = view.fold(result, recorded)
    assert result is not None
    return result


def model_after(*events: Event) -> ModelView:
    view, result = Models(), None
    for recorded in Teller().tell(MODEL, *events):
        result = view.fold(result, recorded)
    assert result is not None
    return result


def test_nul_characters_are_replaced_and_nothing_else() -> None:
    assert without_nul({"a\x00": ["b\x00", 1, None, "\\u0000"]}) == {
        "a\ufffd": ["b\ufffd", 1, None, "\\u0000"]
    }
    kept = dataset_after(*whole_dataset(name="nul \x00 and \\u0000 in text"))
    assert json.loads(storable(kept))["name"] == "nul \ufffd and \\u0000 in text"


def test_a_document_survives_its_json() -> None:
    ready = dataset_after(*whole_dataset())
    assert DatasetView.model_validate(json.loads(storable(ready))) == ready


def test_datasets_follow_their_story() -> None:
    story = whole_dataset()
    statuses = [dataset_after(*story[: count + 1]).status for count in range(len(story))]
    assert statuses == ["uploading", "uploading", "uploaded", "validating", "uploaded", "validating", "ready"]
    rejected = dataset_after(*story[:4], dataset.DatasetRejected(attempt=1, problems=(PROBLEM,)))
    assert (rejected.status, rejected.problems) == ("rejected", (PROBLEM,))
    assert dataset_after(*story, dataset.DatasetDeleted()).status == "deleted"


def test_models_follow_their_story() -> None:
    story = whole_model()
    statuses = [model_after(*story[: count + 1]).status for count in range(len(story))]
    assert statuses == ["uploading", "uploading", "uploaded", "validating", "uploaded", "validating", "ready"]
    assert (model_after(*story).kind, model_after(*story).family) == ("base", "smolvlm")
    assert model_after(*story, model.ModelDeleted()).status == "deleted"


def test_imports_follow_their_story() -> None:
    for after, story, direct in (
        (dataset_after, imported_dataset(), whole_dataset()),
        (model_after, imported_model(), whole_model()),
    ):
        views = [after(*story[: count + 1]) for count in range(5)]
        assert [view.status for view in views] == [
            *("importing", "import_failed", "importing", "uploading", "uploaded")
        ]
        assert [view.import_attempt for view in views] == [1, 1, 2, 2, 2]
        assert [view.import_problem is None for view in views] == [True, False, True, True, True]
        ready, uploaded = after(*story), after(*direct)
        assert (ready.status, ready.source) == ("ready", SOURCE)
        assert (ready.listing, ready.size_bytes) == (uploaded.listing, uploaded.size_bytes)


def test_an_adapter_is_a_model_that_is_ready() -> None:
    tuned = model_after(adapter())
    assert (tuned.kind, tuned.status, tuned.base_model_id, tuned.file_count) == ("adapter", "ready", MODEL, 2)


def test_views_are_found_by_name() -> None:
    assert {view.name for view in VIEWS} == {
        "jobs",
        "loss_curve",
        "logs",
        "datasets",
        "models",
        "agents",
        "findings",
        "activity",
        "subscriptions",
    }
    assert all(view_named(view.name) is view for view in VIEWS)


def test_columns_go_by_the_names_that_the_database_gives_them() -> None:
    """A word of SQL such as "check" is quoted in the statement, and is no part of the name."""
    names = [name for view in VIEWS for table in view.tables for name in table.names]
    assert "check" in names
    assert [name for name in names if not name.isidentifier()] == []
