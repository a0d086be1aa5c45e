"""A checkpoint of SmolVLM2's proportions: 64 tokens a frame, timed prompts, tied and sharded weights."""

import json
from pathlib import Path

import pytest
import torch
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    DEFAULT_MEDIA_OUTTRO,
    DEFAULT_VIDEO_INTRO,
    FRAME_TIMESTAMP_MESSAGE,
)

from qlora_engine.models.families import smolvlm
from qlora_engine.models.families.base import Moments, Shown, exchange
from qlora_engine.models.loading import load_model
from qlora_engine.models.tiny import make_tokenizer
from qlora_engine.models.tiny_random import smolvlm_of, write_smolvlm
from qlora_engine.models.validation import validate_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import train
from schemas.training import ModelValidationSpec
from tests.engine.conftest import MakeSpec, Recorded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random bfloat16 weights; image, patch and scale factor are those of SmolVLM2-500M."""
    folder = tmp_path_factory.mktemp("wide")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    text = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 512,
        "patch_size": 16,
    }
    config = smolvlm_of(tokenizer, text, vision, tie_word_embeddings=True, dtype=torch.bfloat16)
    write_smolvlm(folder, tokenizer, config, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_it_is_valid_and_counted_once(wide: Path, recorded: Recorded) -> None:
    verdict = validate_model(ModelValidationSpec(model_folder=str(wide)), recorded)
    assert verdict.problems == ()
    assert verdict.facts is not None
    assert (verdict.facts.image_size, verdict.facts.context_tokens) == (512, 8192)
    loaded = load_model(str(wide), CPU)
    assert verdict.facts.quantized_linear_layers == 21  # the head is the embedding: neither is quantised
    assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight


def test_the_prompt_is_the_one_of_its_processor(wide: Path) -> None:
    loaded = load_model(str(wide), CPU)
    prompts, vision = loaded.prompts, loaded.vision
    assert vision is not None
    assert isinstance(prompts, smolvlm.SmolVLMPrompts)
    assert smolvlm.CHAT_TEMPLATE == DEFAULT_CHAT_TEMPLATE
    moments = Moments((3.2, 67.9), 3725.4)
    frame = f"{smolvlm.FAKE}{smolvlm.GLOBAL}{smolvlm.IMAGE * 64}{smolvlm.FAKE}"
    shown = "".join(FRAME_TIMESTAMP_MESSAGE.format(timestamp=time) + frame for time in ("00:03", "01:07"))
    intro = DEFAULT_VIDEO_INTRO.format(frame_count="two", video_duration="1:02:05")
    expected = f"<|im_start|>User: {intro}{shown}{DEFAULT_MEDIA_OUTTRO}Why?<end_of_utterance>\nAssistant:"
    shown = Shown(vision.layout(640, 360, 2), moments)
    asked = prompts.pieces(exchange("Why?", "So."), shown)
    assert [piece.text for piece in asked] == [expected, " So.<end_of_utterance>"]
    image = loaded.tokenizer.convert_tokens_to_ids(smolvlm.IMAGE)
    assert prompts.encode(exchange("Why?", "So."), shown).ids.count(image) == shown.layout.tokens == 2 * 64


def test_it_trains(wide: Path, make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish) -> None:
    spec = make_spec(
        max_steps=2, batch_size=2, held_out_fraction=0.05, gradient_checkpointing=True, learning_rate=1e-3
    )
    train(spec.model_copy(update={"model_folder": str(wide)}), recorded, no_stop, CPU)
    before, after = recorded.of("evaluation_done")
    assert after.evaluation.loss != before.evaluation.loss
    (done,) = recorded.of("training_done")
    assert done.facts.trainable_parameters > 0
    config = json.loads((Path(done.adapter_folder) / "adapter_config.json").read_text("utf-8"))
    assert not any("lm_head" in name or "embed_tokens" in name for name in config["target_modules"])
