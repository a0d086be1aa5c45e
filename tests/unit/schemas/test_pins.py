"""A subscriber gets the version that it pinned, and the stored bytes where it pinned nothing else."""

import json
from typing import Any, ClassVar

import pytest

from schemas.events import Event, Registry
from schemas.pins import UnknownVersion, pinned, pins_of

STORED = {
    2: b'{"position":7,"source":"urn:kinora:log_1","data":{"loud":true,"title":"HI"}'
    b',"type":"kinora.test.said.v2"}',
    1: b'{"position":3,"source":"urn:kinora:log_1","data":{"name":"HO"},"type":"kinora.test.said.v1"}',
}
SAID = "kinora.test.said"


@pytest.fixture
def registry() -> Registry:
    registry = Registry()

    @registry.register
    class Said(Event):
        TYPE: ClassVar[str] = SAID
        VERSION: ClassVar[int] = 3
        title: str
        loud: bool
        by: str | None = None

    @registry.upcaster(SAID, 1)
    def _name_became_title(data: dict[str, Any]) -> dict[str, Any]:
        return {"title": data["name"], "loud": data["name"].isupper()}

    @registry.downcaster(SAID, 2)
    def _title_was_name(data: dict[str, Any]) -> dict[str, Any]:
        return {"name": data["title"]}

    @registry.upcaster(SAID, 2)
    def _somebody_says_it(data: dict[str, Any]) -> dict[str, Any]:
        return data | {"by": None}

    @registry.downcaster(SAID, 3)
    def _nobody_said_it(data: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in data.items() if key != "by"}

    return registry


def test_without_a_pin_and_at_its_version_the_bytes_are_the_stored_ones(registry: Registry) -> None:
    for version, public in STORED.items():
        assert pinned(public, SAID, {}, registry) is public
        assert pinned(public, SAID, {"kinora.test.other": 1}, registry) is public
        assert pinned(public, SAID, {SAID: version}, registry) is public


@pytest.mark.parametrize(
    ("stored", "wanted", "data"),
    [
        (2, 1, {"name": "HI"}),
        (2, 3, {"title": "HI", "loud": True, "by": None}),
        (1, 2, {"title": "HO", "loud": True}),
        (1, 3, {"title": "HO", "loud": True, "by": None}),
    ],
)
def test_older_and_newer_events_are_cast(
    registry: Registry, stored: int, wanted: int, data: dict[str, Any]
) -> None:
    before = json.loads(STORED[stored])
    event = json.loads(pinned(STORED[stored], SAID, {SAID: wanted}, registry))
    assert event == before | {"type": f"{SAID}.v{wanted}", "storedtype": f"{SAID}.v{stored}", "data": data}


def test_pins_are_read_from_names(registry: Registry) -> None:
    assert pins_of([f"{SAID}.v2"], registry) == {SAID: 2}
    assert pins_of([], registry) == {}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (f"{SAID}.v4", "pin one of kinora.test.said.v1 to .v3"),
        (f"{SAID}.v0", "pin one of kinora.test.said.v1 to .v3"),
        (SAID, "pin one of kinora.test.said.v1 to .v3"),
        ("kinora.test.other.v1", "is no event version"),
        ("", "is no event version"),
        (f"{SAID}.vx", "is no event version"),
    ],
)
def test_what_never_was_cannot_be_pinned(registry: Registry, name: str, says: str) -> None:
    with pytest.raises(UnknownVersion, match=says):
        pins_of([name], registry)
