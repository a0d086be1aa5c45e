"""Logs that exist stay readable and mean the same: the golden corpus replays, recorded lives re-decide."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import rfc8785
from jsonschema import Draft202012Validator

from command_api.domain.aggregates import aggregate_of
from command_api.handlers.registry import HANDLERS
from projections.documents import DocumentView
from projections.sentences import told
from projections.views.agents import Agents
from projections.views.datasets import Datasets
from projections.views.jobs import Jobs
from projections.views.models import Models
from projections.views.subscriptions import Subscriptions
from schemas.envelope import Envelope, Metadata, Recorded, envelope_fields, split_type, versioned_type
from schemas.events import REGISTRY, Event
from schemas.generate import FOLDER
from schemas.ids import Prefix, id_prefix
from tests.golden import corpus, lives

EVENTS = corpus.recorded()
LIVES = lives.recorded()
DOCUMENTS: dict[Prefix, DocumentView[Any]] = {
    Prefix.AGENT: Agents(),
    Prefix.DATASET: Datasets(),
    Prefix.JOB: Jobs(),
    Prefix.MODEL: Models(),
    Prefix.SUBSCRIPTION: Subscriptions(),
}
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_every_released_version_is_in_the_corpus() -> None:
    versions = {file.name.removesuffix(".json") for file in FOLDER.glob("*.v*.json")}
    assert versions == EVENTS.keys(), "run python -m tests.golden.record"


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_of_every_version_is_read(name: str) -> None:
    schema = Draft202012Validator(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    event_type, version = split_type(name)
    assert len(EVENTS[name]) == corpus.EXAMPLES
    for position, state in enumerate(EVENTS[name], 1):
        stored = json.loads(state)
        assert rfc8785.dumps(json.loads(state, parse_int=float)) == state
        schema.validate(stored["data"])
        recorded = Recorded.from_state(position, state)
        assert told(recorded)[0]
        if version == REGISTRY.version_of(event_type):
            again = envelope_fields(recorded.stream_id, recorded.version, recorded.metadata, recorded.event)
            assert _kept(stored, again), "only additions may differ"


@pytest.mark.parametrize("name", EVENTS)
def test_a_reader_of_any_version_gets_it(name: str) -> None:
    """Whatever version was stored, the one that a subscriber pinned fits its schema."""
    event_type, stored_version = split_type(name)
    for wanted in range(1, (REGISTRY.version_of(event_type) or 0) + 1):
        schema = Draft202012Validator(json.loads((FOLDER / f"{event_type}.v{wanted}.json").read_text()))
        for state in EVENTS[name]:
            data = Envelope.model_validate_json(state).data
            schema.validate(REGISTRY.recast(event_type, stored_version, data, wanted))


def _kept(before: Any, after: Any) -> bool:
    match before, after:
        case dict(), dict():
            return all(key in after and _kept(value, after[key]) for key, value in before.items())
        case list(), list():
            return len(before) == len(after) and all(map(_kept, before, after))
        case _:
            return bool(before == after)


# ---- lives ----------------------------------------------------------------------------------------


def test_every_story_is_recorded() -> None:
    assert LIVES.keys() == lives.STORIES.keys(), "run python -m tests.golden.record"


def test_every_command_and_every_event_is_in_a_life() -> None:
    lines = [line for life in LIVES.values() for line in life]
    given = {line["command"] for line in lines if line.get("events")}
    made = {event["type"] for line in lines for event in line.get("events", ())}
    add = "add a story to tests/golden/lives.py, then run python -m tests.golden.record"
    assert {command.TYPE for command in HANDLERS} == given, add
    assert {versioned_type(event) for event in REGISTRY.types} <= made, add


@pytest.mark.parametrize("name", LIVES)
def test_a_life_is_decided_as_it_was(name: str) -> None:
    life = lives.Life()
    for number, line in enumerate(LIVES[name], 1):
        was = {key: line[key] for key in ("refused", "events") if key in line}
        decided = life.give(lives.decoded(line))
        assert _upcast(was) == _upcast(decided), f"line {number}: {line['command']}"


@pytest.mark.parametrize("name", LIVES)
def test_a_recorded_life_folds(name: str) -> None:
    """Aggregates and document views take every history that a log may hold."""
    states: dict[str, Any] = {}
    documents: dict[str, Any] = {}
    position = 0
    for line in LIVES[name]:
        for told_event in line.get("events", ()):
            position += 1
            recorded = _recorded(position, told_event)
            stream_id = recorded.stream_id
            aggregate = aggregate_of(stream_id)
            states[stream_id] = aggregate.evolve(states.get(stream_id, aggregate.initial), recorded.event)
            view = DOCUMENTS.get(id_prefix(stream_id))
            if view is not None and type(recorded.event).TYPE in view.types:
                documents[stream_id] = view.fold(documents.get(stream_id), recorded)
    assert states
    assert documents.keys() == {name for name in states if id_prefix(name) in DOCUMENTS}


def _recorded(position: int, line: dict[str, Any]) -> Recorded:
    metadata = Metadata(
        event_id=f"evt_{position:032x}",
        recorded_at=NOON,
        organization_id=f"org_{1:032x}",
        actor="system:golden",
        correlation_id="req_golden",
        causation_id="req_golden",
    )
    event: Event = REGISTRY.decode(*split_type(line["type"]), line["data"])
    return Recorded(
        position=position,
        stream_id=line["subject"],
        version=line["streamversion"],
        metadata=metadata,
        event=event,
    )


def _upcast(outcome: dict[str, Any]) -> dict[str, Any]:
    """An old life may have been recorded in older versions: what counts is what they mean today."""
    events = [
        (line["subject"], line["streamversion"], REGISTRY.decode(*split_type(line["type"]), line["data"]))
        for line in outcome.get("events", ())
    ]
    return {"refused": outcome.get("refused"), "events": events}
