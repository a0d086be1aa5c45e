"""What people may choose for a training is finite and bounded."""

from math import inf, nan

import pytest
from pydantic import ValidationError

from schemas.training import Hyperparameters

FLOATS = [name for name, field in Hyperparameters.model_fields.items() if field.annotation is float]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [inf, -inf, nan, 1e308])
def test_a_number_without_end_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError) as refused:
        Hyperparameters.model_validate({name: value})
    assert [fault["loc"] for fault in refused.value.errors()] == [(name,)]


@pytest.mark.parametrize("name", Hyperparameters.model_fields)
def test_every_number_has_an_upper_bound(name: str) -> None:
    described = Hyperparameters.model_json_schema()["properties"][name]
    numbers = [
        each for each in (described, *described.get("anyOf", ())) if each.get("type") in ("integer", "number")
    ]
    assert all({"maximum", "exclusiveMaximum", "enum"} & set(each) for each in numbers)


@pytest.mark.parametrize(
    ("chosen", "remedy"),
    [
        ({"micro_batch_size": 2, "tokens_per_micro_batch": 512}, "leave one out"),
        ({"tokens_per_step": 4096, "max_steps": 5}, "set tokens_per_micro_batch to at most 4096"),
        (
            {"tokens_per_step": 256, "tokens_per_micro_batch": 512, "max_steps": 5},
            "set tokens_per_micro_batch to at most 256",
        ),
        ({"tokens_per_step": 4096, "tokens_per_micro_batch": 512}, "set max_steps"),
        ({"early_stopping_patience": 2}, "set evaluate_every_steps"),
        (
            {"early_stopping_patience": 2, "evaluate_every_steps": 5, "held_out_fraction": 0.0},
            "held_out_fraction is 0; raise it",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_remedy(chosen: dict[str, float], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        Hyperparameters.model_validate(chosen)
