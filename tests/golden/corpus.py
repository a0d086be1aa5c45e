"""Events of every released version, as a log would hold them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from command_api.eventlog.mapper import LoggedEvent, canonical_state
from schemas.envelope import Metadata, public_bytes, stored_bytes, versioned_type
from schemas.events import REGISTRY, Event
from tests.any_event import any_event

FOLDER = Path(__file__).parent / "events"
LOG = "log_golden"
EXAMPLES = 3

STREAMS = {
    "user": "usr",
    "organization": "org",
    "dataset": "ds",
    "model": "mdl",
    "agent": "agt",
    "job": "job",
    "subscription": "sub",
    "finding": "fnd",
}


def recorded() -> dict[str, list[bytes]]:
    """The stored bytes of every example by type and version."""
    return {
        file.name.removesuffix(".ndjson"): [
            stored_bytes(line)[2] for line in file.read_bytes().splitlines() if line
        ]
        for file in sorted(FOLDER.glob("*.ndjson"))
    }


def record() -> list[str]:
    """Write examples of the versions that have none; returns their names."""
    missing = [event for event in REGISTRY.types if not _file(event).is_file()]
    for event in missing:
        lines = [public_bytes(place, LOG, state) for place, state in enumerate(_examples(event), 1)]
        _file(event).write_bytes(b"\n".join(lines) + b"\n")
    return [versioned_type(event) for event in missing]


def _file(event: type[Event]) -> Path:
    return FOLDER / f"{versioned_type(event)}.ndjson"


def _examples(event: type[Event]) -> Iterator[bytes]:
    prefix = STREAMS[event.TYPE.split(".")[1]]
    for seed in range(EXAMPLES):
        metadata = Metadata(
            event_id=f"evt_{seed:032x}",
            recorded_at=datetime(2026, 11, 21, 12, seed, tzinfo=UTC),
            organization_id=f"org_{1:032x}",
            workspace_id=f"ws_{1:032x}" if seed % 2 else None,
            actor=f"usr_{1:032x}",
            correlation_id="req_golden",
            causation_id="req_golden",
            traceparent=f"00-{1:032x}-{1:016x}-01" if seed % 2 else None,
        )
        yield canonical_state(LoggedEvent(f"{prefix}_{1:032x}", seed + 1, metadata, any_event(event, seed)))
