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
    assert all({"maximum", "exclusiveMaximum"} & set(each) for each in numbers)
