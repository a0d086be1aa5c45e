"""Reports outlive a crash of the agent, whole and in order."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.ids import Prefix, new_id
from schemas.work import Accepted, Failed, Released, Report, ReportBody, Stopped, Warned
from trainer_agent.spool import Spool

ITEM = new_id(Prefix.JOB)


def report(sequence: int, body: ReportBody | None = None) -> Report:
    return Report(
        item_id=ITEM,
        attempt=1,
        sequence=sequence,
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        body=body or Warned(code="w", message=f"number {sequence}"),
    )


def keep(spool: Spool, *reports: Report) -> None:
    for one in reports:
        spool.write(one)
        spool.add(one)


def drain(spool: Spool) -> list[int]:
    seen = []
    while (one := spool.first_unacknowledged()) is not None:
        seen.append(one.sequence)
        spool.acknowledge(one.sequence)
    return seen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / f"{ITEM}.1"


def test_what_was_not_acknowledged_comes_back(path: Path) -> None:
    spool = Spool(path)
    keep(spool, report(1, Accepted()), report(2), report(3))
    spool.acknowledge(1)
    spool.close()

    found = Spool.load(path)
    assert found.last_sequence == 3
    assert not found.ended
    assert drain(found) == [2, 3]
    found.discard()
    assert not path.exists()


def test_numbers_go_on_where_everything_was_acknowledged(path: Path) -> None:
    spool = Spool(path)
    keep(spool, report(1), report(2))
    spool.acknowledge(2)
    spool.close()

    found = Spool.load(path)
    assert found.first_unacknowledged() is None
    assert found.last_sequence == 2
    found.close()


def test_a_torn_last_line_is_dropped_and_swallows_nothing(path: Path) -> None:
    spool = Spool(path)
    keep(spool, report(1), report(2))
    spool.close()
    content = path.read_bytes()
    path.write_bytes(content[:-20])

    found = Spool.load(path)
    assert found.last_sequence == 1
    keep(found, report(2, Released(reason="restarted")))
    found.close()

    again = Spool.load(path)
    assert drain(again) == [1, 2]
    assert again.ended
    again.close()


@pytest.mark.parametrize(
    ("body", "ended"),
    [
        (Stopped(step=3), True),
        (Failed(code="oom", message="no memory", retryable=False), True),
        (Accepted(), False),
    ],
)
def test_it_knows_whether_the_attempt_had_ended(path: Path, body: ReportBody, ended: bool) -> None:
    spool = Spool(path)
    keep(spool, report(1, body))
    spool.acknowledge(1)
    spool.close()
    found = Spool.load(path)
    assert found.ended is ended
    found.close()


def test_an_empty_spool_begins_with_one(path: Path) -> None:
    Spool(path).close()
    found = Spool.load(path)
    assert found.last_sequence == 0
    assert not found.ended
    found.close()


def test_a_closed_spool_never_writes_into_another_file(path: Path, tmp_path: Path) -> None:
    spool = Spool(path)
    keep(spool, report(1))
    spool.discard()
    with (tmp_path / "other").open("wb"):  # gets the closed descriptor's number
        spool.acknowledge(1)
    assert (tmp_path / "other").read_bytes() == b""
