"""The page on hyperparameters names each of them as `kinora jobs parameters` does."""

import re
from pathlib import Path

import pytest

from kinora.parameters import Parameter, parameters

PAGE = (Path(__file__).parents[3] / "docs" / "training.md").read_text("utf-8")
ROWS = {
    name: (default.strip(), allowed.strip())
    for name, default, allowed in re.findall(
        r"^\| `([\w.]+)` \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", PAGE, re.MULTILINE
    )
}
DERIVED = {"micro_batch_size": "the batch size"}


def test_every_hyperparameter_has_a_row_and_no_other() -> None:
    assert list(ROWS) == [parameter.name for parameter in parameters()]


@pytest.mark.parametrize("parameter", parameters(), ids=lambda parameter: parameter.name)
def test_default_and_range_are_the_real_ones(parameter: Parameter) -> None:
    default = DERIVED.get(parameter.name, parameter.default)
    assert ROWS[parameter.name] == (default, parameter.allowed)
