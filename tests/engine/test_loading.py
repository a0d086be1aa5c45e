"""Base models that are unsafe, incomplete or unknown are refused with a code; good ones are counted."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken

from qlora_engine.data.collate import Collator
from qlora_engine.data.sampling import Sampling
from qlora_engine.errors import ControlTokenInCaption, EmptyResponse, ModelRefused
from qlora_engine.models.families.base import Moments, Shown, exchange
from qlora_engine.models.families.smolvlm import CHAT_TEMPLATE, VIDEO, SmolVLMPrompts
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.validation import Noise, validate_model
from qlora_engine.training.preflight import check_captions
from schemas.datasets import Example, Manifest, one_turn
from schemas.training import ModelValidationSpec
from tests.engine.conftest import Recorded


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")


def shown(loaded: Loaded, moments: Moments) -> Shown:
    assert loaded.vision is not None
    return Shown(loaded.vision.layout(64, 64, len(moments.seconds)), moments)


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "base"
    shutil.copytree(tiny, copy)
    return copy


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
    question, answer = prompts.pieces(exchange("Why?", "So."), shown(loaded, Moments((0.5, 61.9), 125.0)))
    assert (answer.text, answer.is_answer) == (" So.<end_of_utterance>", True)
    assert question.text == (
        "<|im_start|>User: You are provided the following series of two frames"
        " from a 0:02:05 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{frame}\nFrame from 01:01:{frame}\n\nWhy?<end_of_utterance>\nAssistant:"
    )


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no videos') }}", r"fails \(TemplateError: no videos\)"),
        ("{% for", "fails .*Syntax"),
        ("{{ 1 / 0 }}", "fails .*ZeroDivisionError"),
        ("Hello", "ends no answer with a special token: ''"),
        (
            "{% for turn in messages %}{{ loop.length }}{{ turn['role'] }}<end_of_utterance>{% endfor %}",
            "begins",
        ),
        (
            "{% for turn in messages %}{{ turn['role'] }}<end_of_utterance>{% endfor %}",
            "renders 1 pictures as 'user<end_of_utterance>assistant",
        ),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused(template: str, says: str, tiny: Path) -> None:
    loaded = load_model(str(tiny))
    loaded.tokenizer.chat_template = template
    prompts = loaded.family.prompts(loaded.model.config, loaded.tokenizer)
    with pytest.raises(ModelRefused, match=f"{says}.*remove chat_template") as refused:
        prompts.encode(exchange("Why?", "So."), shown(loaded, Moments((0.0,), 1.0)))
    assert refused.value.code == "unusable_chat_template"


def test_a_response_of_which_the_template_leaves_nothing_names_its_row(tiny: Path) -> None:
    """Templates of models that can think leave thoughts out; of a response that is nothing else, all."""
    loaded = load_model(str(tiny))
    loaded.tokenizer.chat_template = (
        "{% for turn in messages %}{{ turn['role'] }}:"
        "{{ turn['content'][-1]['text'].split('</think>')[-1] }}<end_of_utterance>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    prompts = loaded.family.prompts(loaded.model.config, loaded.tokenizer)
    collator = Collator(prompts, Noise(None), loaded.context_tokens)
    said = one_turn("Why?", "<think>because</think>So.")
    thought = one_turn("Why?", "<think>because</think>")
    manifest = Manifest(
        clips=(),
        examples=(Example(clip=None, messages=said, row=1), Example(clip=None, messages=thought, row=2)),
    )
    with pytest.raises(
        EmptyResponse, match=r":2: the chat template leaves nothing of .*'<think>.*remove the row"
    ):
        check_captions(manifest, collator, None, Sampling(frames=1), lambda _: None)


@pytest.mark.parametrize("text", ["look: <image>", "<end_of_utterance>", "a <fake_token_around_image>"])
def test_control_tokens_in_captions_are_refused(text: str, tiny: Path) -> None:
    loaded = load_model(str(tiny))
    with pytest.raises(ControlTokenInCaption):
        loaded.prompts.encode(exchange(text, "So."), shown(loaded, Moments((0.0,), 1.0)))
    with pytest.raises(ControlTokenInCaption):
        loaded.prompts.encode(exchange("Why?", text), None)


def test_control_tokens_that_a_tokenizer_does_not_list_are_refused(tiny: Path) -> None:
    loaded = load_model(str(tiny))
    loaded.tokenizer.add_tokens([AddedToken("<row_1_col_1>", special=True)])
    loaded.tokenizer.chat_template = CHAT_TEMPLATE
    prompts = loaded.family.prompts(loaded.model.config, loaded.tokenizer)
    assert "<row_1_col_1>" not in loaded.tokenizer.all_special_tokens
    with pytest.raises(ControlTokenInCaption, match="row_1_col_1"):
        prompts.encode(exchange("Where?", "at <row_1_col_1>"), None)
    assert isinstance(prompts, SmolVLMPrompts)
    assert VIDEO in prompts.chat.control_tokens


def test_any_text_survives_the_tokenizer(tiny: Path) -> None:
    loaded = load_model(str(tiny))
    text = "Ein Fuchs läuft 42 Meter , don 't — 狐が走る 🦊"
    loaded.tokenizer.clean_up_tokenization_spaces = True
    encoded = loaded.prompts.encode(exchange("Who?", text), None)
    assert loaded.prompts.answer(list(encoded.ids[encoded.last_answer :])) == text
