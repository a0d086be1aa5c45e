"""The page on hyperparameters names each of them with the default that it has."""

import re
from pathlib import Path

import pytest

from schemas.training import Hyperparameters

PAGE = (Path(__file__).parents[3] / "docs" / "training.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
DERIVED = {"micro_batch_size": "the batch size"}


def test_every_hyperparameter_has_a_row_and_no_other() -> None:
    assert list(ROWS) == list(Hyperparameters.model_fields)


@pytest.mark.parametrize("name", Hyperparameters.model_fields)
def test_the_default_is_the_real_one(name: str) -> None:
    default = getattr(Hyperparameters(), name)
    match default:
        case None:
            expected = DERIVED.get(name, "none")
        case bool():
            expected = str(default).lower()
        case dict():
            assert default == {}
            expected = "none"
        case tuple():
            expected = ", ".join(default)
        case _:
            expected = str(default)
    assert ROWS[name].strip() == expected
