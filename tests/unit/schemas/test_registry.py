"""Event types by stable name, and old versions brought up to today's."""

from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from schemas.events import REGISTRY, Event, Registry, UnknownEventType


@pytest.fixture
def registry() -> Registry:
    registry = Registry()

    @registry.register
    class Renamed(Event):
        TYPE: ClassVar[str] = "kinora.test.renamed"
        VERSION: ClassVar[int] = 3
        title: str
        loud: bool

    @registry.upcaster("kinora.test.renamed", 1)
    def _name_became_title(payload: dict[str, Any]) -> dict[str, Any]:
        return {"title": payload["name"]}

    @registry.upcaster("kinora.test.renamed", 2)
    def _loud_was_added(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "loud": payload["title"].isupper()}

    return registry


@pytest.mark.parametrize(
    ("version", "payload"),
    [(1, {"name": "HI"}), (2, {"title": "HI"}), (3, {"title": "HI", "loud": True})],
)
def test_every_version_means_the_same_today(
    registry: Registry, version: int, payload: dict[str, Any]
) -> None:
    event = registry.decode("kinora.test.renamed", version, payload)
    assert event.model_dump() == {"title": "HI", "loud": True}


def test_unknown_types_and_later_versions_ask_for_an_upgrade(registry: Registry) -> None:
    for kind, version in (("kinora.test.unknown", 1), ("kinora.test.renamed", 4)):
        with pytest.raises(UnknownEventType, match="upgrade Kinora"):
            registry.decode(kind, version, {})


def test_a_missing_step_is_named(registry: Registry) -> None:
    with pytest.raises(UnknownEventType, match=r"no upcaster from kinora\.test\.renamed v0 to v1"):
        registry.decode("kinora.test.renamed", 0, {})


def test_decoding_validates(registry: Registry) -> None:
    for payload in ({"title": "HI"}, {"title": "HI", "loud": True, "more": 1}, {"title": 1, "loud": True}):
        with pytest.raises(ValidationError):
            registry.decode("kinora.test.renamed", 3, payload)


def test_a_name_belongs_to_one_type_and_a_step_to_one_function(registry: Registry) -> None:
    class Other(Event):
        TYPE: ClassVar[str] = "kinora.test.renamed"

    with pytest.raises(ValueError, match="registered twice"):
        registry.register(Other)
    with pytest.raises(ValueError, match="registered twice"):
        registry.upcaster("kinora.test.renamed", 1)(dict)


def test_types_are_dotted_names_of_ours_and_never_import_paths() -> None:
    for event in REGISTRY.types:
        assert event.TYPE.startswith("kinora.")
        assert event.TYPE.count(".") == 2
        assert event.__module__ not in event.TYPE
