"""The pure parts of a backup: lines of events, the manifest, sealed keys, and what the log names."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from command_api.backup import event_lines, keys
from command_api.backup.errors import BackupDamaged, BackupTooNew, KeysLocked
from command_api.backup.manifest import FORMAT, Manifest, ObjectTotals
from command_api.backup.references import References
from schemas.events import Event
from schemas.events.dataset import DatasetDeleted
from schemas.events.job import JobStopped
from schemas.ids import Prefix, new_id
from schemas.objects import FileEntry, Listing, content_key
from tests.unit.domain.samples import (
    DATASET,
    DATASET_READY,
    DATASET_UPLOADED,
    JOB,
    JOB_REQUESTED,
    LISTING,
)

ORGANIZATION = "org_" + "a" * 32
STREAM = new_id(Prefix.DATASET)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def state_of(
    payload: Any, version: int = 1, event_type: str = "kinora.dataset.registered", *, stream_id: str = STREAM
) -> bytes:
    return rfc8785.dumps(
        {
            "specversion": "1.0",
            "id": new_id(Prefix.EVENT),
            "type": f"{event_type}.v1",
            "subject": stream_id,
            "time": "2026-01-02T03:04:05.678901Z",
            "datacontenttype": "application/json",
            "streamversion": version,
            "organization": ORGANIZATION,
            "actor": "system:test",
            "correlationid": "req_1",
            "causationid": "req_1",
            "data": payload,
        }
    )


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.integers(1, 2**62))
def test_stored_bytes_come_back_exactly(payload: dict[str, Any], position: int) -> None:
    state = state_of(payload)
    line = event_lines.encode(position, "log_1", state)

    assert line.count(b"\n") == 1
    assert json.loads(line) == json.loads(state) | {"position": position, "source": "urn:kinora:log_1"}
    decoded = event_lines.decode(line)
    assert (decoded.position, decoded.state) == (position, state)
    assert decoded.row()[4] == state


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}\n",
        event_lines.encode(1, "log_1", state_of({}))[:-1],
        event_lines.encode(0, "log_1", state_of({})),
        event_lines.encode(1, "log_1", b"{}"),
        event_lines.encode(1, "log_1", b"{x}"),
        event_lines.encode(1, "log_1", state_of({}).replace(STREAM.encode(), b"nobody")),
    ],
)
def test_other_lines_are_refused(line: bytes) -> None:
    with pytest.raises(BackupDamaged):
        event_lines.decode(line)


def manifest() -> Manifest:
    return Manifest(
        kinora_version="1",
        backup_id="backup_1",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        log_id="log_1",
        head=120,
        events=100,
        parts=(),
        objects=ObjectTotals(names=0, contents=0, size_bytes=0),
    )


def test_a_manifest_proves_itself() -> None:
    raw = manifest().to_bytes()

    assert Manifest.from_bytes(raw) == manifest()
    for wrong in (raw.replace(b"120", b"121"), raw[:-10], b"[]", raw.replace(b'"events": 100,', b"")):
        with pytest.raises(BackupDamaged):
            Manifest.from_bytes(wrong)


def test_a_newer_format_is_told_as_such_whatever_else_it_says() -> None:
    with pytest.raises(BackupTooNew, match="upgrade"):
        Manifest.from_bytes(json.dumps({"format": FORMAT + 1, "something": "new"}).encode())


def test_keys_are_opened_by_their_passphrase_and_in_their_backup_only() -> None:
    sealed = keys.seal("correct horse", b'{"key": "secret"}', "backup_1")

    assert b"secret" not in sealed
    assert keys.unseal("correct horse", sealed, "backup_1") == b'{"key": "secret"}'
    for passphrase, backup_id in (("correct house", "backup_1"), ("correct horse", "backup_2")):
        with pytest.raises(KeysLocked):
            keys.unseal(passphrase, sealed, backup_id)
    hungry = json.loads(sealed) | {"n": 2**40}
    with pytest.raises(BackupDamaged):
        keys.unseal("correct horse", json.dumps(hungry).encode(), "backup_1")
    with pytest.raises(KeysLocked, match="8"):
        keys.seal("short", b"", "backup_1")


FILES = Listing(files=(FileEntry(path="a.mp4", size_bytes=7, sha256="2" * 64),))
CONTENT = content_key(LISTING.key.partition("/")[0], "2" * 64)


def folded(*stories: tuple[str, Sequence[Event]]) -> References:
    """The references of streams that follow one another, the dataset's listing read."""
    references, position = References(), 0
    for stream_id, events in stories:
        for version, event in enumerate(events, start=1):
            position += 1
            payload = event.model_dump(mode="json")
            state = state_of(payload, version, type(event).TYPE, stream_id=stream_id)
            references.apply(event_lines.decode(event_lines.encode(position, "log_1", state)))
    for key in references.listings:
        references.apply_listing(key, FILES)
    return references


def test_what_the_log_names_is_required_until_it_is_deleted() -> None:
    declared = folded((DATASET, DATASET_UPLOADED[:2]))
    assert declared.named.keys() == {LISTING.key, CONTENT}
    assert declared.required() == {LISTING.key}, "nobody uploaded the file yet"
    there = folded((DATASET, DATASET_UPLOADED))
    assert there.required() == {LISTING.key, CONTENT}
    gone = folded((DATASET, (*DATASET_UPLOADED, DatasetDeleted())))
    assert gone.named.keys() == there.named.keys()
    assert gone.required() == frozenset()


def test_a_job_at_work_requires_the_files_of_a_deleted_dataset() -> None:
    deleted = DATASET, (*DATASET_READY, DatasetDeleted())
    assert CONTENT in folded(deleted, (JOB, [JOB_REQUESTED])).required()
    ended = folded(deleted, (JOB, [JOB_REQUESTED, JobStopped(attempt=0, step=0, reason="")])).required()
    assert LISTING.key in ended
    assert CONTENT not in ended


def test_an_event_that_only_a_newer_release_knows() -> None:
    line = event_lines.encode(1, "log_1", state_of({}, event_type="kinora.dataset.framed"))
    with pytest.raises(BackupTooNew, match="upgrade Kinora first"):
        References().apply(event_lines.decode(line))
    line = event_lines.encode(1, "log_1", state_of({"name": 5}))
    with pytest.raises(BackupDamaged, match="none of its type"):
        References().apply(event_lines.decode(line))
