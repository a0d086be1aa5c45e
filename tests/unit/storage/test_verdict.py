"""Which objects may go, and what a key says of them."""

from datetime import timedelta

import pytest

from command_api.objects import Entry
from command_api.storage.places import Place, place_of
from command_api.storage.references import Needed
from command_api.storage.verdict import Knowledge, may_go
from schemas.objects import adapter_prefix, checkpoint_prefix, content_key, log_prefix, validation_prefix
from tests.unit.domain.samples import DATASET, JOB, NOON, ORGANIZATION, UPLOAD, sha

CONTENT = content_key(ORGANIZATION, sha(1))
TEMPORARY = f"{ORGANIZATION}/uploads/{UPLOAD}/{sha(1)}"
WRITTEN = {
    "checkpoint": f"{checkpoint_prefix(ORGANIZATION, JOB, 3, 40)}/weights",
    "adapter": f"{adapter_prefix(ORGANIZATION, JOB, 3)}/adapter.safetensors",
    "log": f"{log_prefix(ORGANIZATION, JOB, 3)}/log-1.ndjson",
}
VALIDATION = f"{validation_prefix(ORGANIZATION, DATASET, 1)}/manifest.json"
OLD = NOON - timedelta(seconds=1)


def knowing(
    *keys: str,
    content: frozenset[str] = frozenset(),
    uploads: frozenset[str] = frozenset(),
    attempts: frozenset[tuple[str, int]] = frozenset(),
) -> Knowledge:
    return Knowledge(Needed(frozenset(keys), frozenset(), frozenset(), attempts), content, uploads, NOON)


def test_a_key_says_what_it_is_for() -> None:
    assert place_of(CONTENT) == Place("content")
    assert place_of(TEMPORARY) == Place("upload", upload_id=UPLOAD)
    assert place_of(VALIDATION) == Place("validation", attempt=(DATASET, 1))
    for purpose, key in WRITTEN.items():
        assert place_of(key) == Place(purpose, attempt=(JOB, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        f"{ORGANIZATION}/objects/sha256/short",
        f"{ORGANIZATION}/objects/sha256/{sha(1)}.part",
        f"{ORGANIZATION}/exports/{JOB}/attempt-1/x",
        f"{ORGANIZATION}/checkpoints/job-{JOB}/attempt-0/x",
        f"{ORGANIZATION}/checkpoints/job-{JOB}/attempt-1",
        f"{ORGANIZATION}/elsewhere/checkpoints/job-{JOB}/attempt-1/x",
        "README",
    ],
)
def test_what_is_not_ours_is_never_deleted(key: str) -> None:
    assert place_of(key).purpose == "other"
    assert may_go(Entry(key, 1, OLD), knowing()) is None


@pytest.mark.parametrize("key", [CONTENT, TEMPORARY, VALIDATION, *WRITTEN.values()])
def test_what_nobody_needs_may_go_once_it_is_old(key: str) -> None:
    assert may_go(Entry(key, 1, OLD), knowing()) == place_of(key).purpose
    assert may_go(Entry(key, 1, NOON), knowing()) is None
    assert may_go(Entry(key, 1, OLD), knowing(key)) is None


def test_what_a_needed_listing_names_stays() -> None:
    assert may_go(Entry(CONTENT, 1, OLD), knowing(content=frozenset({CONTENT}))) is None


def test_what_is_being_uploaded_stays() -> None:
    assert may_go(Entry(TEMPORARY, 1, OLD), knowing(uploads=frozenset({UPLOAD}))) is None


def test_what_the_present_attempt_wrote_stays() -> None:
    for key in WRITTEN.values():
        assert may_go(Entry(key, 1, OLD), knowing(attempts=frozenset({(JOB, 3)}))) is None
        assert may_go(Entry(key, 1, OLD), knowing(attempts=frozenset({(JOB, 4)}))) is not None
