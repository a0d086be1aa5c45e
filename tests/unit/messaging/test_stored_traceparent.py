"""Reading the trace of a stored event from its last bytes finds what reading all of it would."""

import json

import pytest

from command_api.messaging.relay import stored_traceparent
from tests.golden.corpus import recorded


@pytest.mark.parametrize("name", sorted(recorded()))
def test_it_is_what_the_whole_event_says(name: str) -> None:
    said = [(json.loads(state).get("traceparent"), stored_traceparent(state)) for state in recorded()[name]]
    assert all(whole == found for whole, found in said)
    assert {whole is None for whole, _ in said} == {True, False}


def test_one_in_the_payload_is_none() -> None:
    state = b'{"data":{"traceparent":"00-1-1-01","type":"a"},"type":"kinora.job.queued.v1"}'
    assert stored_traceparent(state) is None
