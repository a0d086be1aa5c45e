"""The log that benchmarks measure on is one that the service could have written."""

from typing import Any

from benchmarks.seeding import Story
from command_api.domain.aggregates import AGGREGATES
from command_api.eventlog.mapper import LoggedEvent, canonical_state
from schemas.envelope import Recorded
from schemas.ids import id_prefix


def test_every_event_is_canonical_and_every_stream_folds() -> None:
    states: dict[str, Any] = {}
    versions: dict[str, int] = {}
    position = 0
    story = Story(seed=1, long_stream=400)
    rows = list(story.rows(6000))
    for row in rows:
        assert row.notification_id > position
        position = row.notification_id
        recorded = Recorded.from_state(position, row.state)
        metadata = recorded.metadata
        assert canonical_state(
            LoggedEvent(recorded.stream_id, recorded.version, metadata, recorded.event)
        ) == (row.state)
        assert row[1:4] == (row.originator_id, recorded.version, type(recorded.event).TYPE)
        assert row.originator_id.hex == recorded.stream_id.split("_")[1]
        assert row[5:] == (
            metadata.event_id,
            recorded.stream_id,
            metadata.organization_id,
            metadata.workspace_id,
            metadata.actor,
            metadata.correlation_id,
            metadata.causation_id,
            metadata.recorded_at,
        )
        aggregate = AGGREGATES[id_prefix(recorded.stream_id)]
        before = states.get(recorded.stream_id, aggregate.initial)
        states[recorded.stream_id] = aggregate.evolve(before, recorded.event)
        assert recorded.version == versions.get(recorded.stream_id, 0) + 1
        versions[recorded.stream_id] = recorded.version
    assert len({row.event_id for row in rows}) == len(rows) == 6000
    assert (story.head, story.long_job_id in story.running) == (position, True)
    assert versions[str(story.long_job_id)] == 400
    assert story.ended


def test_the_same_seed_makes_the_same_log() -> None:
    assert list(Story(seed=3).rows(500)) == list(Story(seed=3).rows(500))
    assert list(Story(seed=3).rows(500)) != list(Story(seed=4).rows(500))
