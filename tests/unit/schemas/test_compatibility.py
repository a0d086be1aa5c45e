"""A released version may gain fields and words; whatever else changes is named."""

from enum import StrEnum
from typing import Any, Literal

import pytest
from pydantic import Field, create_model

from schemas.base import Message
from schemas.compatibility import broken, structure


class Place(Message):
    row: int = Field(ge=1)
    title: str | None = None


class PlaceWithColumn(Place):
    column: int = 1


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


BEFORE: dict[str, Any] = {
    "title": (str, ...),
    "place": (Place, ...),
    "places": (tuple[Place, ...], ()),
    "phase": (Literal["begun", "ended"], ...),
    "choice": (Place | str, ...),
    "colour": (Colour, ...),
    "counts": (dict[str, int], ...),
}


def shape(**fields: Any) -> dict[str, Any]:
    model = create_model("Fact", __base__=Message, **(BEFORE | fields))
    return structure(model.model_json_schema(mode="serialization"))


def without(name: str) -> dict[str, Any]:
    fields = {key: value for key, value in BEFORE.items() if key != name}
    return structure(create_model("Fact", __base__=Message, **fields).model_json_schema(mode="serialization"))


@pytest.mark.parametrize(
    "after",
    [
        shape(),
        shape(more=(str, "")),
        shape(place=(PlaceWithColumn, ...)),
        shape(places=(tuple[PlaceWithColumn, ...], ())),
        shape(phase=(Literal["begun", "paused", "ended"], ...)),
        shape(choice=(PlaceWithColumn | str | int, ...)),
    ],
)
def test_growing_keeps_the_promise(after: dict[str, Any]) -> None:
    assert list(broken(shape(), after)) == []


@pytest.mark.parametrize(
    ("after", "fault"),
    [
        (without("title"), "title is gone"),
        (shape(title=(int, ...)), "title: type was 'string' and is 'integer'"),
        (shape(title=(str, Field(max_length=3))), "title: maxLength was None and is 3"),
        (shape(place=(str, ...)), "place"),
        (shape(phase=(Literal["begun"], ...)), "phase may no longer be 'ended'"),
        (shape(choice=(str, ...)), "choice"),
        (shape(counts=(dict[str, str], ...)), "counts.*: type was 'integer' and is 'string'"),
        (shape(places=(tuple[str, ...], ())), "places.*"),
    ],
)
def test_every_other_change_is_named(after: dict[str, Any], fault: str) -> None:
    faults = list(broken(shape(), after))
    assert any(fault in each for each in faults), faults


def test_words_for_people_are_no_part_of_the_promise() -> None:
    class Documented(Message):
        """With words."""

        row: int = Field(ge=1, description="The row.", title="Row", examples=[3])
        title: str | None = Field("", description="A field named like an annotation.")

    plain = structure(Place.model_json_schema(mode="serialization"))
    assert structure(Documented.model_json_schema(mode="serialization")) == plain
    assert set(plain["properties"]) == {"row", "title"}
