"""The demo's figures are what was answered, no more."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinora.demo.findings import bar, direction_accuracy


def answers(*rows: tuple[str, str | None]) -> list[dict[str, Any]]:
    return [{"response": response, "answer": answer} for response, answer in rows]


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        ([("a red ring moves left", "a blue square moves left"), ("it moves up", "it moves down")], 0.5),
        ([("a red ring moves left", "left of it"), ("it moves right", "")], 0.0),
        ([("a red ring moves left", None)], None),
        ([("a man runs", "a man runs")], None),
        ([], None),
    ],
)
def test_directions_are_the_last_words(rows: list[tuple[str, str | None]], share: float | None) -> None:
    assert direction_accuracy(answers(*rows), "answer") == share


@given(st.floats(0, 1), st.integers(1, 60))
def test_a_bar_is_as_long_as_its_share(share: float, width: int) -> None:
    drawn = bar(share, width)
    assert len(drawn) == width
    assert abs(drawn.count("█") - share * width) <= 1
    assert bar(1.0, width) == "█" * width
    assert bar(0.0, width) == "·" * width
