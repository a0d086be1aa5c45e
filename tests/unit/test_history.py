"""The judge of fault runs is judged: a clean history passes, and every kind of damage is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from projections.views.jobs import Jobs, JobView
from schemas.envelope import Recorded, envelope_fields
from schemas.events import Event, dataset
from schemas.events import job as facts
from tests.faults.history import History, Json, Rule, Seen, check, named_objects, recorded
from tests.stories import (
    AGENT,
    DATASET,
    JOB,
    Teller,
    admitted,
    finished,
    progressed,
    stored,
    taken,
    whole_dataset,
    whole_job,
)


def as_api_gives_it(one: Recorded) -> Json:
    return {
        "position": one.position,
        "source": "urn:kinora:log_1",
        **envelope_fields(one.stream_id, one.version, one.metadata, one.event),
    }


def told(*events: Event) -> list[Json]:
    return [as_api_gives_it(one) for one in Teller().tell(JOB, *events)]


def view_of(log: list[Json]) -> Json:
    document: JobView | None = None
    for event in log:
        document = Jobs().fold(document, recorded(event))
    assert document is not None
    return json.loads(document.model_dump_json())


def clean() -> History:
    log = told(*whole_job())
    return History(
        log=log,
        submitted=[JOB],
        all_ended=True,
        seen=[Seen("dropped and resumed", [1, 2, 3, 3, 4, *range(4, len(log) + 1)], until=len(log))],
        stored={named["key"]: named["sha256"] for event in log for named in named_objects(event["data"])},
        views={JOB: view_of(log)},
    )


def test_a_clean_history_passes() -> None:
    assert check(clean()) == []


def test_a_job_that_still_runs_passes_until_it_has_to_be_over() -> None:
    log = told(*admitted(), *taken(1), progressed(1, 1, 5))

    assert check(History(log=log, submitted=[JOB])) == []
    assert [broken.rule for broken in check(History(log=log, submitted=[JOB], all_ended=True))] == [
        "job_unfinished"
    ]


def test_what_was_deleted_need_not_be_in_the_store() -> None:
    def named_by(*events: Event) -> History:
        told_of = [as_api_gives_it(one) for one in Teller().tell(DATASET, *events)]
        return History(log=told_of, stored={})

    assert [broken.rule for broken in check(named_by(*whole_dataset()))][:1] == ["object_missing"]
    assert check(named_by(*whole_dataset(), dataset.DatasetDeleted())) == []


def without(number: int) -> Callable[[History], History]:
    return lambda history: replace(history, log=[*history.log[:number], *history.log[number + 1 :]])


def saw(*positions: int, **fields: Any) -> Callable[[History], History]:
    return lambda history: replace(history, seen=[Seen("client", positions, **fields)])


def changed_view(**fields: Any) -> Callable[[History], History]:
    return lambda history: replace(history, views={JOB: view_of(list(history.log)) | fields})


def with_store(change: Callable[[dict[str, str]], object]) -> Callable[[History], History]:
    def damaged(history: History) -> History:
        store = dict(history.stored or {})
        change(store)
        return replace(history, stored=store)

    return damaged


def story(*events: Event) -> Callable[[History], History]:
    return lambda _history: History(log=told(*events), submitted=[JOB])


def renumbered(history: History) -> History:
    log = [dict(event) for event in history.log]
    log[4]["position"], log[5]["position"] = log[5]["position"], log[4]["position"]
    return replace(history, log=log, seen=())


EXPIRED = [*admitted(), *taken(1), progressed(1, 1, 5), facts.LeaseExpired(attempt=1, agent_id=AGENT)]
QUEUED_AGAIN = facts.JobQueued(attempt=2, reason="lease_expired")
SAVED = facts.CheckpointSaved(attempt=1, step=5, objects=(stored("optimizer.safetensors"),))


@pytest.mark.parametrize(
    ("rule", "damage"),
    [
        ("job_lost", lambda history: replace(history, submitted=[JOB, "job_" + "f" * 32])),
        ("terminal_twice", story(*whole_job(), whole_job()[-1])),
        ("event_after_end", story(*whole_job(), facts.WarningRaised(attempt=2, code="a", message="b"))),
        ("attempts_not_increasing", story(*EXPIRED, facts.JobQueued(attempt=1, reason="lease_expired"))),
        ("stale_attempt", story(*EXPIRED, QUEUED_AGAIN, *taken(2), progressed(1, 6, 7))),
        ("stale_attempt", story(*EXPIRED, QUEUED_AGAIN, progressed(2, 6, 7))),
        ("stale_attempt", story(*EXPIRED, progressed(1, 6, 7))),
        ("stale_attempt", story(*admitted(), facts.JobAssigned(attempt=2, agent_id=AGENT))),
        ("impossible_history", story(*admitted(), *finished(1))),
        ("steps_not_monotone", story(*admitted(), *taken(1), progressed(1, 1, 5), progressed(1, 5, 6))),
        ("steps_not_monotone", story(*admitted(), *taken(1), progressed(1, 1, 5), progressed(1, 3, 4))),
        (
            "resumed_from_nothing",
            story(*EXPIRED, facts.JobQueued(attempt=2, reason="lease_expired", resume_step=5)),
        ),
        (
            "resumed_from_nothing",
            story(
                *EXPIRED[:-1],
                SAVED,
                EXPIRED[-1],
                facts.JobQueued(attempt=2, reason="lease_expired", resume_step=5),
                *taken(2, start_step=0),
            ),
        ),
        ("version_gap", without(7)),
        ("positions_not_increasing", renumbered),
        ("seen_not_in_log", saw(1, 2, 3, 99, until=3)),
        ("seen_out_of_order", saw(1, 3, 2)),
        ("seen_gap", saw(1, 2, 4)),
        ("seen_gap", saw(1, 2, 3, until=5)),
        ("seen_gap", saw(6, 7, after=4)),
        ("object_missing", with_store(lambda store: store.pop(next(iter(store))))),
        ("object_differs", with_store(lambda store: store.update({next(iter(store)): "0" * 64}))),
        ("view_differs", changed_view(status="running")),
        ("view_differs", changed_view(step=11)),
        ("view_differs", lambda history: replace(history, views={})),
    ],
)
def test_damage_is_found(rule: Rule, damage: Callable[[History], History]) -> None:
    broken = {one.rule for one in check(damage(clean()))}

    assert rule in broken, broken
