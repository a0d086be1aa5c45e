"""Base models that are unsafe, incomplete or unknown are refused with a code; good ones are counted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from qlora_engine.errors import ControlTokenInCaption, ModelRefused
from qlora_engine.families.base import Moments
from qlora_engine.families.smolvlm import CHAT_TEMPLATE, VIDEO, SmolVLMPrompts
from qlora_engine.loading import load_model
from qlora_engine.model_validation import validate_model
from schemas.training import ModelValidationSpec
from tests.engine.conftest import Recorded


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.connector.modality_projection.proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


REFUSALS: dict[str, Callable[[Path], object]] = {
    "pickle_weights": pickled,
    "unknown_family": lambda folder: edit(folder / "config.json", model_type="bert"),
    "missing_config": lambda folder: (folder / "config.json").unlink(),
    "bad_config": lambda folder: (folder / "config.json").write_text("{", "utf-8"),
    "remote_code": lambda folder: edit(folder / "config.json", auto_map={"AutoModel": "evil.Model"}),
    "already_quantized": lambda folder: edit(folder / "config.json", quantization_config={"bits": 4}),
    "missing_weights": lambda folder: (folder / "model.safetensors").unlink(),
    "model_load_failed": truncated,
    "unusable_tokenizer": lambda folder: [
        (folder / f"tokenizer{end}").unlink() for end in (".json", "_config.json")
    ],
}


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "base"
    shutil.copytree(tiny, copy)
    return copy


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals(code: str, folder: Path, recorded: Recorded) -> None:
    REFUSALS[code](folder)
    with pytest.raises(ModelRefused) as refused:
        load_model(str(folder))
    assert refused.value.code == code
    verdict = validate_model(ModelValidationSpec(model_folder=str(folder)), recorded)
    assert verdict.facts is None
    assert [problem.code for problem in verdict.problems] == [code]


def test_a_tensor_that_is_missing_is_named(folder: Path) -> None:
    without_a_tensor(folder)
    with pytest.raises(ModelRefused, match=r"connector\.modality_projection\.proj\.weight"):
        load_model(str(folder))


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(ModelRefused, match="names model-00002-of-00002") as refused:
        load_model(str(folder))
    assert refused.value.code == "missing_weights"


@pytest.mark.parametrize(
    ("field", "value"), [("image_mean", "x"), ("image_mean", [0.5]), ("image_std", [0.5, 0, 0.5])]
)
def test_colours_that_cannot_be_are_refused(field: str, value: object, folder: Path) -> None:
    edit(folder / "preprocessor_config.json", **{field: value})
    with pytest.raises(ModelRefused, match=f"has {field}") as refused:
        load_model(str(folder))
    assert refused.value.code == "bad_config"


def test_what_libraries_say_names_no_place_on_this_node(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(
        ModelRefused, match=r"no file named model\.safetensors found in directory base"
    ) as refused:
        load_model(str(folder))
    assert str(folder.parent) not in refused.value.message


def test_remote_code_in_the_tokenizer_is_refused_too(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    with pytest.raises(ModelRefused, match=r"tokenizer_config\.json") as refused:
        load_model(str(folder))
    assert refused.value.code == "remote_code"


def test_a_hub_id_is_not_fetched_when_offline() -> None:
    with pytest.raises(ModelRefused, match="HF_HUB_OFFLINE") as refused:
        load_model("nobody/nothing")
    assert refused.value.code == "model_not_found"


def test_a_good_model_is_counted(tiny: Path, recorded: Recorded) -> None:
    verdict = validate_model(ModelValidationSpec(model_folder=str(tiny)), recorded)
    assert verdict.problems == ()
    facts = verdict.facts
    assert facts is not None
    assert (facts.family, facts.architecture) == ("smolvlm", "SmolVLMForConditionalGeneration")
    assert (facts.vision_linear_layers, facts.connector_linear_layers, facts.text_linear_layers) == (
        12,
        1,
        14,
    )
    assert facts.quantized_linear_layers == 27
    assert facts.parameters == sum(
        tensor.numel() for tensor in load_file(tiny / "model.safetensors").values()
    )
    assert (facts.context_tokens, facts.image_size) == (2048, 32)


def test_every_quantised_layer_keeps_its_weights_in_evaluation(tiny: Path) -> None:
    loaded = load_model(str(tiny), torch.device("cpu"))
    layers = list(loaded.linear_layers())
    assert all(not layer.support_avx512bf16_for_cpu for _, layer in layers)
    weights = {name: layer.weight.detach().clone() for name, layer in layers}
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([[1, 2, 3]]))
    assert all(torch.equal(weights[name], layer.weight) for name, layer in layers)


def test_the_prompt_of_large_checkpoints_names_the_frames_times(tiny: Path) -> None:
    loaded = load_model(str(tiny))
    loaded.tokenizer.chat_template = CHAT_TEMPLATE
    prompts = loaded.family.prompts(loaded.model.config, loaded.tokenizer)
    assert isinstance(prompts, SmolVLMPrompts)
    frame = "<fake_token_around_image><global-img><image><fake_token_around_image>"
    assert prompts.prompt_text("Why?", Moments((0.5, 61.9), 125.0)) == (
        "<|im_start|>User: You are provided the following series of two frames"
        " from a 0:02:05 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{frame}\nFrame from 01:01:{frame}\n\nWhy?<end_of_utterance>\nAssistant:"
    )


@pytest.mark.parametrize("text", ["look: <image>", "<end_of_utterance>", "a <fake_token_around_image>"])
def test_control_tokens_in_captions_are_refused(text: str, tiny: Path) -> None:
    loaded = load_model(str(tiny))
    with pytest.raises(ControlTokenInCaption):
        loaded.prompts.prompt_ids(text, Moments((0.0,), 1.0))
    with pytest.raises(ControlTokenInCaption):
        loaded.prompts.response_ids(text)


def test_control_tokens_that_a_tokenizer_does_not_list_are_refused(tiny: Path) -> None:
    loaded = load_model(str(tiny))
    loaded.tokenizer.add_tokens([AddedToken("<row_1_col_1>", special=True)])
    loaded.tokenizer.chat_template = CHAT_TEMPLATE
    prompts = loaded.family.prompts(loaded.model.config, loaded.tokenizer)
    assert "<row_1_col_1>" not in loaded.tokenizer.all_special_tokens
    with pytest.raises(ControlTokenInCaption, match="row_1_col_1"):
        prompts.response_ids("at <row_1_col_1>")
    assert isinstance(prompts, SmolVLMPrompts)
    assert VIDEO in prompts._control_tokens


def test_any_text_survives_the_tokenizer(tiny: Path) -> None:
    loaded = load_model(str(tiny))
    text = "Ein Fuchs läuft 42 Meter , don 't — 狐が走る 🦊"
    loaded.tokenizer.clean_up_tokenization_spaces = True
    assert loaded.prompts.answer(loaded.prompts.response_ids(text)) == text
