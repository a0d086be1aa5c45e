"""A tiny checkpoint of every architecture that the engine loads, with random weights: for trying and testing.

Each is an ordinary folder of `save_pretrained`: config, safetensors, tokenizer and, for those that see clips,
the preprocessor file. Some 100 to 500 thousand parameters; weights are drawn wide, because with the usual
0.02 models this narrow learn nothing.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from qlora_engine.models.families import qwen2_5_vl, qwen_vl, smolvlm
from qlora_engine.models.tiny_tokenizer import train_tokenizer

WIDTH = 64
"""Of every part; the 4-bit kernels like multiples of 64."""
CONTEXT_TOKENS = 2048
IMAGE_SIZE = 32
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.1,
}
QWEN_TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_heads": 4,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": WIDTH,
    "initializer_range": 0.1,
}
END_OF_TEXT = "<|endoftext|>"
QWEN_SPECIAL = (END_OF_TEXT, qwen_vl.START, qwen_vl.END)
QWEN_VL_SPECIAL = (
    *QWEN_SPECIAL,
    qwen_vl.VISION_START,
    qwen_vl.VISION_END,
    qwen_vl.IMAGE,
    qwen_vl.VIDEO,
)
BEGIN_OF_TEXT, END_OF_TURN, PADDING = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
LLAMA_SPECIAL = (BEGIN_OF_TEXT, "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN, PADDING)


@dataclass(frozen=True)
class Recipe:
    """How one architecture is made small."""

    tokenizer: Callable[[], Any]
    model: Callable[[Any], Any]
    """From a tokenizer to a model with random weights."""
    preprocessor: dict[str, Any] | None = None


def make_random_model(folder: Path | str, architecture: str, seed: int = 0) -> Path:
    """Write a checkpoint of `architecture`, a key of `RECIPES`; the caller's random state is left alone."""
    recipe, folder = RECIPES[architecture], Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = recipe.tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recipe.model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_preprocessor(folder, architecture)
    return folder


def write_preprocessor(folder: Path, architecture: str) -> None:
    """Say which pixels the model wants, where it sees any."""
    described = RECIPES[architecture].preprocessor
    if described is not None:
        text = json.dumps(described, indent=2) + "\n"
        (folder / "preprocessor_config.json").write_text(text, "utf-8")


def vocabulary_size(tokenizer: Any) -> int:
    return (len(tokenizer) + 63) // 64 * 64


def _ids(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary_size(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def smolvlm_config(tokenizer: Any, text: Mapping[str, Any] = TEXT) -> SmolVLMConfig:
    """One token per frame."""
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "initializer_range": 0.1,
    }
    return smolvlm_of(tokenizer, text, vision, initializer_range=0.1)


def smolvlm_of(
    tokenizer: Any, text: Mapping[str, Any], vision: Mapping[str, Any], **rest: Any
) -> SmolVLMConfig:
    """A SmolVLM of these proportions; what they leave open is the tokenizer's."""
    return SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**vision),
        text_config=LlamaConfig(**_ids(tokenizer) | dict(text)),
        image_token_id=tokenizer.convert_tokens_to_ids(smolvlm.IMAGE),
        pad_token_id=tokenizer.pad_token_id,
        **{"scale_factor": 4, "tie_word_embeddings": False} | rest,
    )


def write_smolvlm(folder: Path, tokenizer: Any, config: SmolVLMConfig, **saving: Any) -> None:
    """Write a checkpoint of `config`, a `smolvlm_of`, with random weights; `saving` is for `save_pretrained`.

    Weights are saved in the configuration's ``dtype``. The caller's random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmolVLMForConditionalGeneration(config)
    model.to(config.dtype or torch.float32).save_pretrained(folder, **saving)
    tokenizer.save_pretrained(folder)
    write_preprocessor(folder, "smolvlm")


def smolvlm_tokenizer() -> Any:
    special = (END_OF_TEXT, smolvlm.START, qwen_vl.END)
    return train_tokenizer(
        (*special, smolvlm.FAKE, smolvlm.IMAGE, smolvlm.GLOBAL, smolvlm.VIDEO, smolvlm.END),
        bos_token=smolvlm.START,
        eos_token=smolvlm.END,
        pad_token=qwen_vl.END,
        unk_token=END_OF_TEXT,
        model_max_length=CONTEXT_TOKENS,
    )


def _smolvlm(tokenizer: Any) -> Any:
    return SmolVLMForConditionalGeneration(smolvlm_config(tokenizer))


def _qwen_tokenizer(special: tuple[str, ...]) -> Callable[[], Any]:
    def make() -> Any:
        return train_tokenizer(
            special, eos_token=qwen_vl.END, pad_token=END_OF_TEXT, model_max_length=CONTEXT_TOKENS
        )

    return make


def _vision_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids(qwen_vl.IMAGE),
        "video_token_id": tokenizer.convert_tokens_to_ids(qwen_vl.VIDEO),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids(qwen_vl.VISION_START),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids(qwen_vl.VISION_END),
    }


def _qwen2_5_vl(tokenizer: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        vision_config={**QWEN_TOWER, "window_size": 32, "fullatt_block_indexes": [1], "tokens_per_second": 4},
        text_config={**TEXT, **_ids(tokenizer), "rope_parameters": rope},
        **_vision_ids(tokenizer),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl(tokenizer: Any) -> Any:
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 3, 3],
        "mrope_interleaved": True,
    }
    config = Qwen3VLConfig(
        vision_config={**QWEN_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        text_config={**TEXT, **_ids(tokenizer), "head_dim": 16, "rope_parameters": rope},
        **_vision_ids(tokenizer),
    )
    return Qwen3VLForConditionalGeneration(config)


def _llama_tokenizer() -> Any:
    return train_tokenizer(
        LLAMA_SPECIAL,
        bos_token=BEGIN_OF_TEXT,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        model_max_length=CONTEXT_TOKENS,
    )


def _llama(tokenizer: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**TEXT, **_ids(tokenizer)))


def _qwen2(tokenizer: Any) -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**TEXT, **_ids(tokenizer)))


def _qwen3(tokenizer: Any) -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**TEXT, **_ids(tokenizer), head_dim=16, tie_word_embeddings=True))


_HALF = [0.5, 0.5, 0.5]
RECIPES: dict[str, Recipe] = {
    "smolvlm": Recipe(
        smolvlm_tokenizer,
        _smolvlm,
        {"image_mean": _HALF, "image_std": _HALF, "size": {"longest_edge": IMAGE_SIZE}},
    ),
    "qwen2_5_vl": Recipe(
        _qwen_tokenizer(QWEN_VL_SPECIAL),
        _qwen2_5_vl,
        {
            "image_mean": list(qwen2_5_vl.MEAN),
            "image_std": list(qwen2_5_vl.STD),
            "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64},
        },
    ),
    "qwen3_vl": Recipe(
        _qwen_tokenizer(QWEN_VL_SPECIAL),
        _qwen3_vl,
        {
            "image_mean": _HALF,
            "image_std": _HALF,
            "size": {"shortest_edge": 2 * 32 * 32, "longest_edge": 8 * 64 * 64},
        },
    ),
    "llama": Recipe(_llama_tokenizer, _llama),
    "qwen2": Recipe(_qwen_tokenizer(QWEN_SPECIAL), _qwen2),
    "qwen3": Recipe(_qwen_tokenizer(QWEN_SPECIAL), _qwen3),
}
