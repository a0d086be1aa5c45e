"""The pure parts of a backup: lines of events, the manifest, sealed keys, and what the log names."""

import json
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
from schemas.ids import Prefix, new_id
from schemas.objects import FileEntry, Listing, content_key

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


def state_of(payload: Any, version: int = 1, event_type: str = "kinora.dataset.registered") -> bytes:
    metadata = {
        "event_id": new_id(Prefix.EVENT),
        "recorded_at": "2026-01-02T03:04:05.678901Z",
        "organization_id": ORGANIZATION,
        "workspace_id": None,
        "actor": "system:test",
        "correlation_id": "req_1",
        "causation_id": "req_1",
        "traceparent": None,
    }
    return rfc8785.dumps(
        {
            "type": event_type,
            "schema_version": 1,
            "stream_id": STREAM,
            "version": version,
            "metadata": metadata,
            "payload": payload,
        }
    )


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.integers(1, 2**62))
def test_stored_bytes_come_back_exactly(payload: dict[str, Any], position: int) -> None:
    state = state_of(payload)
    line = event_lines.encode(position, state)

    assert line.count(b"\n") == 1
    assert json.loads(line)["event"] == json.loads(state)
    decoded = event_lines.decode(line)
    assert (decoded.position, decoded.state) == (position, state)
    assert decoded.row()[4] == state


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}\n",
        event_lines.encode(1, state_of({}))[:-1],
        event_lines.encode(0, state_of({})),
        event_lines.encode(1, b"{}"),
        event_lines.encode(1, b"{x}"),
        event_lines.encode(1, state_of({}).replace(STREAM.encode(), b"nobody")),
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


def test_what_the_log_names_is_needed_until_it_is_deleted() -> None:
    listing = {"path": "listing.json", "key": f"{ORGANIZATION}/l", "size_bytes": 5, "sha256": "1" * 64}
    files = Listing(files=(FileEntry(path="a.mp4", size_bytes=7, sha256="2" * 64),))
    content = content_key(ORGANIZATION, "2" * 64)
    references = References()

    def happened(event: str, payload: dict[str, Any]) -> None:
        references.apply(json.loads(state_of(payload, event_type=f"kinora.dataset.{event}")))

    happened("registered", {"name": "x", "listing": listing})
    references.apply_listing(listing["key"], files)  # type: ignore[arg-type]
    assert references.named.keys() == {listing["key"], content}
    assert references.needed(str(listing["key"]))
    assert not references.needed(content), "nobody uploaded it yet"
    happened("uploaded", {"upload_id": "upl_1"})
    references.apply_listing(listing["key"], files)  # type: ignore[arg-type]
    assert references.needed(content)
    happened("deleted", {})
    assert not references.needed(content)
