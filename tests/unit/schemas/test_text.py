"""Names and texts that people type."""

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.api import CreateJobBody
from schemas.ids import Prefix, new_id
from schemas.text import Line, LongText, Name, OptionalName

NAME = TypeAdapter[str](Name)
LINES = TypeAdapter[str](LongText)


def test_space_around_a_name_is_dropped() -> None:
    assert NAME.validate_python("  Grüße, 世界 👩‍🔬 ") == "Grüße, 世界 👩‍🔬"


@pytest.mark.parametrize("blank", ["", "   ", "\t\n", "\u3000", "\u200b", "\u2060\u200d"])
def test_a_blank_name_is_none(blank: str) -> None:
    with pytest.raises(ValidationError):
        NAME.validate_python(blank)


@pytest.mark.parametrize("text", ["a\0b", "a\x1b[2Jb", "a\nb", "a\x7fb", "a\x85b", "a\u2028b", "a\u202eb"])
def test_control_characters_are_refused_by_number(text: str) -> None:
    for kind in (NAME, TypeAdapter[str](OptionalName), TypeAdapter[str](Line)):
        with pytest.raises(ValidationError, match=f"U\\+{ord(text[1]):04X}"):
            kind.validate_python(text)


def test_a_long_text_has_lines_and_nothing_worse() -> None:
    assert LINES.validate_python("one\r\n\ttwo\n") == "one\r\n\ttwo\n"
    with pytest.raises(ValidationError, match=r"U\+0000"):
        LINES.validate_python("one\0")


@pytest.mark.parametrize("labels", [{"": "x"}, {"a\0": "x"}, {"a": "\0"}, {"k" * 101: "x"}, {"k": "v" * 201}])
def test_labels_are_names_too(labels: dict[str, str]) -> None:
    ids = {"dataset_id": new_id(Prefix.DATASET), "model_id": new_id(Prefix.MODEL)}
    assert CreateJobBody.model_validate({**ids, "labels": {"team": "video", "note": ""}})
    with pytest.raises(ValidationError):
        CreateJobBody.model_validate({**ids, "labels": labels})
