"""The stored bytes: canonical, exact, and readable again for every event type."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from command_api.eventlog.errors import EventNotCanonical, EventTooLarge
from command_api.eventlog.mapper import EnvelopeMapper, LoggedEvent, canonical_state
from schemas.envelope import Metadata, Recorded, public_event
from schemas.events import REGISTRY, Event
from schemas.events.job import JobProgressed, ProgressPoint, WarningRaised
from schemas.ids import Prefix, new_id
from tests.any_event import any_event

NEW_YEAR = datetime(2030, 1, 2, tzinfo=UTC)
MOMENTS = st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def place(
    event: Event, recorded_at: datetime = datetime(2030, 1, 2, tzinfo=UTC), **metadata: Any
) -> LoggedEvent:
    given = Metadata(
        event_id=new_id(Prefix.EVENT),
        recorded_at=recorded_at,
        actor="system:test",
        correlation_id="req_1",
        causation_id="req_1",
        **metadata,
    )
    return LoggedEvent(new_id(Prefix.JOB), 3, given, event)


def warning(message: str) -> WarningRaised:
    return WarningRaised(attempt=1, code="c", message=message)


@pytest.mark.parametrize("kind", REGISTRY.types, ids=lambda kind: kind.TYPE)
def test_every_event_type_survives_the_round_trip(kind: type[Event]) -> None:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 2**32), MOMENTS)
    def round_trip(seed: int, moment: datetime) -> None:
        event = any_event(kind, seed)
        logged = place(event, moment)
        stored = EnvelopeMapper().to_stored_event(logged)
        assert stored.topic == kind.TYPE
        # JCS has one kind of number: a float without fraction looks like an integer.
        assert rfc8785.dumps(json.loads(stored.state, parse_int=float)) == stored.state
        assert EnvelopeMapper().to_domain_event(stored) == logged
        recorded = Recorded.from_state(7, stored.state)
        assert (recorded.event, recorded.metadata, recorded.version) == (event, logged.metadata, 3)

    round_trip()


def test_the_bytes_are_sorted_and_without_space() -> None:
    state = canonical_state(place(warning('é "\\ \u2028 🎬'), organization_id="org_1"))
    assert state.startswith(b'{"actor":"system:test","causationid":"req_1"')
    assert '"message":"é \\"\\\\ \u2028 🎬"'.encode() in state
    assert b'"time":"2030-01-02T00:00:00Z"' in state
    assert b'"type":"kinora.job.warning_raised.v1"}' in state


def test_the_public_event_is_the_envelope_with_its_position() -> None:
    logged = place(warning("w"))
    public = public_event(5, "log_1", canonical_state(logged))
    assert (public["position"], public["source"], public["type"]) == (
        5,
        "urn:kinora:log_1",
        f"{WarningRaised.TYPE}.v1",
    )
    assert public["data"] == {"attempt": 1, "code": "c", "message": "w"}


def progressed(**point: Any) -> JobProgressed:
    given = {"step": 1, "loss": 1.0, "learning_rate": 0.1, "grad_norm": 0.1, "tokens": 1}
    given |= {"tokens_per_second": 1.0, "step_seconds": 1.0} | point
    return JobProgressed(attempt=1, step=1, total_steps=2, epoch=0.5, points=(ProgressPoint(**given),))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_lacks_is_refused_and_not_turned_into_null(number: float) -> None:
    with pytest.raises(EventNotCanonical, match="finite numbers"):
        canonical_state(place(progressed(loss=number)))


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back_bit_for_bit(number: float) -> None:
    state = canonical_state(place(progressed(loss=number)))
    event = Recorded.from_state(1, state).event
    assert isinstance(event, JobProgressed)
    assert event.points[0].loss == number


@pytest.mark.parametrize("number", [2**53, -(2**53), 2**63])
def test_an_integer_that_would_lose_digits_is_refused(number: int) -> None:
    with pytest.raises(EventNotCanonical, match="2\\*\\*53"):
        canonical_state(place(progressed(tokens=number)))
    canonical_state(place(progressed(tokens=2**53 - 1)))


def test_broken_unicode_is_refused() -> None:
    with pytest.raises(EventNotCanonical, match="Unicode"):
        canonical_state(place(WarningRaised.model_construct(attempt=1, code="c", message="\ud800")))


@pytest.mark.parametrize(
    "moment",
    [datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=2)))],  # noqa: DTZ001
)
def test_a_time_that_is_not_utc_is_refused(moment: datetime) -> None:
    with pytest.raises(EventNotCanonical, match="UTC"):
        canonical_state(place(warning("w"), moment))


def test_the_limit_is_256_kib() -> None:
    room = 256 * 1024 - len(canonical_state(place(warning(""))))
    assert len(canonical_state(place(warning("x" * room)))) == 256 * 1024
    with pytest.raises(EventTooLarge, match="262145 bytes"):
        canonical_state(place(warning("x" * (room + 1))))
