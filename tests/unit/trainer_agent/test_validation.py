"""A verdict fits into a report, in whatever language its problems are told."""

from schemas.datasets import Problem
from schemas.work import DatasetJudged
from trainer_agent.reporter import LARGEST_REPORT_BYTES
from trainer_agent.validation import _bounded


def test_problems_take_no_more_room_than_a_report_has() -> None:
    long = Problem(code="missing_clip", where="視" * 5000, message="\U0001f98a" * 5000)
    kept = _bounded([long] * 150)
    report = DatasetJudged(problems=kept).model_dump_json().encode()
    assert len(report) < LARGEST_REPORT_BYTES - 1000
    assert len(report) > LARGEST_REPORT_BYTES / 2
    assert kept[0].message == "\U0001f98a" * 1000


def test_short_problems_are_all_told() -> None:
    short = [
        Problem(code="missing_clip", where=f"captions.jsonl:{row}", message="gone") for row in range(100)
    ]
    assert _bounded(short) == tuple(short)
