"""Gathers a `History` from a running service: its log and jobs by the API, its store by the plain files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from kinora.client import Client
from tests.faults.history import History, Json, Seen, check


def whole_log(client: Client) -> list[Json]:
    """Every event that the caller may see, oldest first."""
    return list(client.pages("/events", after=0, limit=200))


def stored_under(bucket: Path) -> dict[str, str]:
    """SHA-256 by key of everything in the embedded store's bucket, which keeps objects as plain files."""
    return {
        path.relative_to(bucket).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in bucket.rglob("*")
        if path.is_file()
    }


def observe(
    client: Client, bucket: Path, submitted: Sequence[str], *, seen: Sequence[Seen] = (), all_ended: bool
) -> History:
    """What is known of a run, once its read models have caught up with its log."""
    log = whole_log(client)
    head = log[-1]["position"] if log else 0
    jobs = {event["subject"] for event in log if event["subject"].startswith("job_")}
    return History(
        log=log,
        submitted=submitted,
        all_ended=all_ended,
        seen=seen,
        stored=stored_under(bucket),
        views={job_id: client.get(f"/jobs/{job_id}", min_position=head) for job_id in jobs},
    )


def assert_clean(history: History) -> None:
    """Fail with every broken rule."""
    broken = check(history)
    assert not broken, "\n".join(map(str, broken))
