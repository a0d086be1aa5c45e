"""What the log needs in the store: everything that is named, until nobody who named it is left."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_api.storage.references import TYPES, Needed, References, named_objects, names_objects
from schemas.envelope import Metadata, Recorded
from schemas.events import REGISTRY, Event
from schemas.events.dataset import DatasetDeleted, DatasetValidationInterrupted
from schemas.events.job import (
    AdapterStored,
    CheckpointSaved,
    JobFailed,
    JobProgressed,
    JobQueued,
    JobStopped,
    JobSucceeded,
    LogSegmentStored,
)
from schemas.events.model import AdapterRegistered, ModelDeleted
from schemas.ids import id_prefix
from schemas.objects import StoredObject
from tests.any_event import any_event
from tests.unit.domain.samples import (
    ADAPTER_FACTS,
    DATASET,
    DATASET_READY,
    DATASET_REGISTERED,
    DATASET_VALIDATING,
    JOB,
    JOB_REQUESTED,
    LISTING,
    MANIFEST,
    MODEL,
    MODEL_LISTING,
    MODEL_READY,
    NOON,
    ORGANIZATION,
    PROBLEM,
    USER,
    identifier,
    sha,
    stored,
)

OTHER = identifier("ds", 2)
ADAPTER = identifier("mdl", 9)
CHECKPOINT = CheckpointSaved(attempt=1, step=5, objects=(stored("checkpoint", 11),))
ADAPTER_STORED = AdapterStored(attempt=1, objects=(stored("adapter", 12),), facts=ADAPTER_FACTS)
LOG = LogSegmentStored(attempt=1, segment=1, content="log", lines=1, object=stored("log", 13))
ADAPTER_REGISTERED = AdapterRegistered(
    name="a",
    owner_id=USER,
    job_id=JOB,
    base_model_id=MODEL,
    objects=ADAPTER_STORED.objects,
    facts=ADAPTER_FACTS,
    content_sha256=sha(4),
)
ENDS = (
    JobSucceeded(attempt=1, output_model_id=ADAPTER),
    JobFailed(attempt=1, code="oom", message="", retryable=False),
    JobStopped(attempt=1, step=5, reason=""),
)
QUEUED = JobQueued(attempt=1, reason="requested")
LATER = NOON + timedelta(days=30)


def folded(*streams: tuple[str, Sequence[Event]], at: datetime = NOON) -> References:
    references = References()
    position = 0
    for stream_id, events in streams:
        for version, event in enumerate(events, start=1):
            position += 1
            references.apply(recorded(position, stream_id, event, at, version))
    return references


def recorded(position: int, stream_id: str, event: Event, at: datetime, version: int = 1) -> Recorded:
    metadata = Metadata(
        event_id=f"evt_{position:032x}",
        recorded_at=at,
        organization_id=ORGANIZATION,
        actor="system:test",
        correlation_id="req_1",
        causation_id="req_1",
    )
    return Recorded(position=position, stream_id=stream_id, version=version, metadata=metadata, event=event)


def needed(*streams: tuple[str, Sequence[Event]]) -> Needed:
    """Long after the grace period."""
    return folded(*streams).needed(LATER)


@pytest.mark.parametrize("kind", REGISTRY.types, ids=lambda kind: kind.TYPE)
def test_whatever_an_event_names_is_needed_right_after_it(kind: type[Event]) -> None:
    event = any_event(kind, seed=7)
    references = folded((JOB if kind.TYPE.startswith("kinora.job.") else DATASET, [event]))
    keys = {named.key for _, named in named_objects(event)}
    assert keys <= references.needed(NOON).keys
    assert not keys or names_objects(kind)
    assert not names_objects(kind) or kind.TYPE in TYPES


def test_measurements_are_not_read() -> None:
    assert JobProgressed.TYPE not in TYPES
    assert DatasetValidationInterrupted.TYPE not in TYPES


def test_a_dataset_needs_its_files_until_it_is_deleted() -> None:
    ready = needed((DATASET, DATASET_READY))
    assert ready.keys == {LISTING.key, MANIFEST.key}
    assert ready.listings == {LISTING.key}
    deleted = needed((DATASET, (*DATASET_READY, DatasetDeleted())))
    assert (deleted.keys, deleted.listings) == (frozenset(), frozenset())


def test_what_was_let_go_of_lately_is_still_needed() -> None:
    references = folded((DATASET, (*DATASET_READY, DatasetDeleted())))
    assert references.needed(NOON).keys == {LISTING.key, MANIFEST.key}
    assert references.needed(NOON + timedelta(seconds=1)).keys == frozenset()


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.TYPE)
def test_a_job_needs_its_inputs_until_it_has_ended_and_their_lists_for_good(end: Event) -> None:
    gone = (DATASET, (*DATASET_READY, DatasetDeleted())), (MODEL, (*MODEL_READY, ModelDeleted()))
    running = needed(*gone, (JOB, (JOB_REQUESTED, QUEUED)))
    assert running.keys == {LISTING.key, MODEL_LISTING.key, MANIFEST.key}
    assert running.listings == {LISTING.key, MODEL_LISTING.key}
    ended = needed(*gone, (JOB, (JOB_REQUESTED, QUEUED, end)))
    assert (ended.listings, ended.keys) == (frozenset(), running.keys)
    again = JobQueued(attempt=2, reason="retry")
    assert needed(*gone, (JOB, (JOB_REQUESTED, QUEUED, end, again))).listings == running.listings


def test_what_a_job_made_is_needed_for_good() -> None:
    made = needed((JOB, (QUEUED, CHECKPOINT, LOG, ADAPTER_STORED, ENDS[0])))
    assert made.keys == {CHECKPOINT.objects[0].key, LOG.object.key, ADAPTER_STORED.objects[0].key}


def test_another_dataset_of_the_same_files_keeps_them() -> None:
    shared = needed((DATASET, (*DATASET_READY, DatasetDeleted())), (OTHER, (DATASET_REGISTERED,)))
    assert shared.listings == {LISTING.key}


def test_an_adapter_keeps_its_base_model() -> None:
    base = MODEL, (*MODEL_READY, ModelDeleted())
    assert needed(base, (ADAPTER, (ADAPTER_REGISTERED,))).listings == {MODEL_LISTING.key}
    assert needed(base, (ADAPTER, (ADAPTER_REGISTERED, ModelDeleted()))).listings == frozenset()
    assert needed((ADAPTER, (ADAPTER_REGISTERED,))).listings == frozenset()


def test_only_the_present_attempt_may_still_be_writing() -> None:
    assert needed((JOB, (JOB_REQUESTED,))).attempts == frozenset()
    assert needed((JOB, (JOB_REQUESTED, QUEUED))).attempts == {(JOB, 1)}
    second = JobQueued(attempt=2, reason="lease_expired")
    assert needed((JOB, (JOB_REQUESTED, QUEUED, second))).attempts == {(JOB, 2)}
    assert needed((JOB, (JOB_REQUESTED, QUEUED, second, ENDS[0]))).attempts == frozenset()
    assert needed((DATASET, DATASET_VALIDATING)).attempts == {(DATASET, 1)}
    assert needed((DATASET, DATASET_READY)).attempts == frozenset()
    assert PROBLEM.code


KEYS = st.sampled_from([f"{ORGANIZATION}/objects/sha256/{number}" for number in range(6)])
STEPS = st.lists(
    st.tuples(st.sampled_from(["register", "delete", "request", "end", "save"]), st.integers(0, 3), KEYS),
    max_size=40,
)


def an_object(key: str) -> StoredObject:
    return stored("x", key=key)


@settings(deadline=None)
@given(STEPS, st.integers(0, 40))
def test_needed_is_what_somebody_is_left_to_need(steps: list[tuple[str, int, str]], grace: int) -> None:
    """Against sets of claims that are kept by hand, one a holder."""
    references = References()
    claims: dict[str, tuple[str, int | None]] = {}
    for_good: set[str] = set()
    for minute, (step, number, key) in enumerate(steps):
        dataset, job = identifier("ds", number), identifier("job", number)
        event: Any = None
        if step == "register" and dataset not in claims:
            event, claims[dataset] = _registering(key), (key, None)
        elif step == "request" and job not in claims:
            event, claims[job] = _requesting(key), (key, None)
            for_good.add(key)
        elif step == "delete" and claims.get(dataset, ("", 0))[1] is None:
            event, claims[dataset] = DatasetDeleted(), (claims[dataset][0], minute)
        elif step == "end" and claims.get(job, ("", 0))[1] is None:
            event, claims[job] = ENDS[0], (claims[job][0], minute)
        elif step == "save" and claims.get(job, ("", 0))[1] is None:
            event = CheckpointSaved(attempt=1, step=1, objects=(an_object(key),))
            for_good.add(key)
        if event is None:
            continue
        stream_id = dataset if step in ("register", "delete") else job
        assert id_prefix(stream_id)
        references.apply(recorded(minute + 1, stream_id, event, NOON + timedelta(minutes=minute)))
    before = len(steps) - grace
    expected = {key for key, ended in claims.values() if ended is None or ended >= before}
    found = references.needed(NOON + timedelta(minutes=before))
    assert found.keys == expected | for_good
    assert found.listings == expected


def _registering(key: str) -> Event:
    return DATASET_REGISTERED.model_copy(update={"listing": an_object(key)})


def _requesting(key: str) -> Event:
    pinned = JOB_REQUESTED.dataset.model_copy(update={"listing": an_object(key)})
    same = {"dataset": pinned, "model": pinned, "manifest": an_object(key)}
    return JOB_REQUESTED.model_copy(update=same)
