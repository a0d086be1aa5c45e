"""What goes together is accepted; the rest is refused with field, value, reason and remedy."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.adapters import REFUSED
from schemas.training import Hyperparameters

TOGETHER: list[dict[str, Any]] = [
    {"temporal": True, "rslora": True, "lora_plus_ratio": 16, "init_lora_weights": "olora"},
    {"temporal": True, "temporal_kernel": 5, "target_modalities": ["connector"]},
    {"lora_variant": "dora", "rslora": True, "init_lora_weights": "gaussian"},
    {"rank_pattern": {"vision": 4, "layers.0.*": 16}, "alpha_pattern": {"q_proj": 32}},
    {"rank_allocation": {"rounds": 2, "max_rank": 64}, "temporal": True, "alpha_pattern": {"text": 8}},
    {"rank_allocation": {"gate": False}, "held_out_fraction": 0, "lora_variant": "dora", "rslora": True},
    {"export": "merged", "init_lora_weights": "olora", "compute_dtype": "float32", "lora_variant": "dora"},
    {"quantization": "fp4", "double_quantization": False, "compute_dtype": "bfloat16"},
]
APART: list[tuple[dict[str, Any], str]] = [
    ({"temporal": True, "lora_variant": "dora"}, "use lora_variant 'lora', or leave temporal out"),
    ({"temporal": True, "target_modalities": ["text"]}, "names neither vision nor connector"),
    ({"temporal_kernel": 5}, "temporal_kernel is 5, but temporal is false; set temporal to true"),
    ({"temporal_learning_rate_ratio": 2}, "temporal is false"),
    ({"temporal": True, "learning_rate": 0.2}, r"learning_rate 0\.2 times the ratio 10 is above 1; lower"),
    ({"learning_rate": 0.2, "lora_plus_ratio": 16}, "times the ratio 16 is above 1"),
    ({"rank_pattern": {"text": 4}, "target_modalities": ["vision"]}, "rank_pattern names 'text'"),
    ({"alpha_pattern": {"text": 4}, "target_modalities": ["vision"]}, "alpha_pattern names 'text'"),
    ({"target_modalities": ["text", "text"]}, "names a modality twice"),
    ({"rank_allocation": {}, "rank_pattern": {"text": 4}}, "both say which rank a layer gets; leave one"),
    (
        {"rank_allocation": {}, "init_lora_weights": "olora"},
        "is 'olora', .* use 'default', or leave rank_all",
    ),
    ({"rank_allocation": {"floor_rank": 8}}, "leaves nothing of rank 8 to give out; lower floor_rank"),
    ({"rank_allocation": {"rounds": 4}, "rank": 4}, "rounds 4 is more than the 1 ranks between .* lower it"),
    ({"rank_allocation": {"max_rank": 7}}, "max_rank 7 is below rank 8.*raise max_rank or lower rank"),
    (
        {"rank_allocation": {"rounds": 4, "explore_ratio": 0.2, "floor_ratio": 0}},
        "after 80% of the steps, too late.*to 75%",
    ),
    ({"rank_allocation": {}, "held_out_fraction": 0}, "held_out_fraction is 0; raise it, or set rank_alloc"),
    ({"export": "merged", "temporal": True}, "is 'merged' and temporal is true.* use export 'adapter'"),
    (
        {"export": "merged", "init_lora_weights": "olora"},
        "compute_dtype 'auto'.* set compute_dtype to 'float",
    ),
    ({"merged_dtype": "float32"}, "export 'adapter' merges nothing; set export to 'merged', or leave"),
    ({"rank_pattern": {"q proj (": 4}}, "String should match pattern"),
    ({"rank_pattern": {"q_proj": 0}}, "greater than or equal to 1"),
]


@pytest.mark.parametrize("chosen", TOGETHER)
def test_what_goes_together_is_accepted(chosen: dict[str, Any]) -> None:
    accepted = Hyperparameters.model_validate(chosen)
    assert Hyperparameters.model_validate(accepted.model_dump(mode="json")) == accepted


@pytest.mark.parametrize(("chosen", "reason"), APART)
def test_what_does_not_is_refused_with_the_remedy(chosen: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Hyperparameters.model_validate(chosen)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in REFUSED for value in REFUSED[field]]
)
def test_well_known_others_are_refused_with_a_reason_and_a_remedy(field: str, value: str) -> None:
    with pytest.raises(
        ValidationError, match=f"{field} cannot be '{value.upper()}': .*(use|write) '"
    ) as told:
        Hyperparameters.model_validate({field: value.upper()})
    assert len(told.value.errors()) == 1


def test_no_accepted_value_is_refused_and_an_unknown_one_names_those_that_are() -> None:
    described = Hyperparameters.model_json_schema()["properties"]
    for field, refused in REFUSED.items():
        assert not set(described[field]["enum"]) & set(refused)
        with pytest.raises(ValidationError, match=f"'{described[field]['enum'][0]}'"):
            Hyperparameters.model_validate({field: "nonsense"})
