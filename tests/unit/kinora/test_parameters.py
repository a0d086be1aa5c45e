"""Every hyperparameter explains itself, in the API's schema and on the command line."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from typer.testing import CliRunner

from kinora.cli.app import app
from kinora.cli.jobs import BadParameter, hyperparameters
from kinora.parameters import parameters
from schemas.api import CreateJobBody
from schemas.training import Hyperparameters

SCHEMA = CreateJobBody.model_json_schema()
FIELDS: Mapping[str, Any] = SCHEMA["$defs"]["Hyperparameters"]["properties"]
LIMITS = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}


def values(field: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas of what a field may hold, those inside of arrays, objects and groups too."""
    if (reference := field.get("$ref")) is not None:
        field = SCHEMA["$defs"][reference.rpartition("/")[2]]
    inside = [*field.get("anyOf", ()), *field.get("patternProperties", {}).values()]
    inside += [field["items"]] if "items" in field else []
    for each in [*inside, *field.get("properties", {}).values()]:
        yield from values(each)
    if "anyOf" not in field:
        yield field


@pytest.mark.parametrize("name", FIELDS)
def test_a_job_request_says_what_a_field_means_and_takes(name: str) -> None:
    field = FIELDS[name]
    assert len(field.get("description", "")) > 10
    assert "default" in field
    for value in values(field):
        match value.get("type"):
            case "integer" | "number" if "enum" not in value:
                assert all(limits & value.keys() for limits in LIMITS), f"{name} has no range: {value}"
            case "string":
                assert {"enum", "const", "pattern"} & value.keys(), f"{name} takes any text"
            case "array":
                assert "items" in value
            case _:
                pass
        assert all(each.get("description") for each in value.get("properties", {}).values())


def test_the_command_line_lists_what_the_schema_has() -> None:
    result = CliRunner().invoke(app, ["jobs", "parameters", "--json"])
    told = {row["name"]: row for row in json.loads(result.stdout)}
    assert [name for name in told if "." not in name] == list(Hyperparameters.model_fields)
    assert told["rank"] == {
        "name": "rank",
        "default": "8",
        "allowed": "1 to 512",
        "description": "LoRA rank r.",
    }
    assert told["learning_rate"]["allowed"] == "above 0, to 1"
    assert told["dropout"]["allowed"] == "0 to below 1"
    assert told["rank_pattern"]["allowed"] == "name: 1 to 512"
    few = CliRunner().invoke(app, ["jobs", "parameters", "temporal", "--json"])
    assert {row["name"] for row in json.loads(few.stdout)} == {name for name in told if "temporal" in name}


@pytest.mark.parametrize(
    "parameter", [each for each in parameters() if "." not in each.name], ids=lambda each: each.name
)
def test_every_parameter_can_be_set_on_the_command_line(parameter: Any) -> None:
    default = Hyperparameters.model_fields[parameter.name].get_default(call_default_factory=True)
    written = json.dumps(default.model_dump() if hasattr(default, "model_dump") else default)
    chosen = hyperparameters({}, [f"{parameter.name}={written}"])
    assert chosen.model_fields_set == {parameter.name}
    assert getattr(chosen, parameter.name) == default


def test_fields_of_groups_and_entries_of_objects_are_set_one_by_one() -> None:
    pairs = ["rank_allocation.floor_rank=2", "rank_allocation.gate=false"]
    allocation = hyperparameters({}, pairs).rank_allocation
    assert allocation is not None
    assert (allocation.floor_rank, allocation.gate) == (2, False)
    patterns = ["rank_pattern.vision=16", "rank_pattern.layers.0.self_attn.q_proj=4"]
    assert hyperparameters({}, patterns).rank_pattern == {"vision": 16, "layers.0.self_attn.q_proj": 4}


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (["rank_allocation.rounds=2", "rank_allocation.rounds=3"], "rank_allocation.rounds is given twice"),
        (["rank_allocation.rounds=2", "rank_allocation={}"], "rank_allocation is given twice"),
        (["rank=4", "rank.x=3"], "rank.x is given twice"),
        (["rank.=3"], "'rank.=3' is not name=value"),
        ([".rank=3"], "'.rank=3' is not name=value"),
        (["rank_allocation.rounds=99"], "rounds is 99; it must be at most 8"),
        (["rank_allocation.round=2"], 'there is no field "round"; did you mean rounds?'),
    ],
)
def test_what_cannot_be_set_is_said(pairs: list[str], says: str) -> None:
    with pytest.raises(BadParameter) as refused:
        hyperparameters({}, pairs)
    told = [refused.value.message, *(detail.message for detail in refused.value.errors)]
    assert any(says in each for each in told), told
