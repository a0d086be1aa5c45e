"""What causal language models of text alone have in common: a conversation in, its answers supervised."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from qlora_engine.errors import ModelRefused
from qlora_engine.models.families.base import Encoded, Shown, Turn, exchange
from qlora_engine.models.families.chat import Chat
from schemas.adapters import Modality

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>"
    "\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For base models that know no chat at all."""


def usual_template(tokenizer: Any) -> str:
    """The template that the tokenizer's special tokens suggest, for checkpoints that come without one."""
    vocabulary = tokenizer.get_vocab()
    if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        return CHATML
    if "<|start_header_id|>" in vocabulary and "<|eot_id|>" in vocabulary:
        return HEADERS
    return PLAIN


@dataclass(frozen=True)
class TextPrompts:
    """Prompts for one tokenizer."""

    chat: Chat

    @property
    def pad_token_id(self) -> int:
        """The end token where there is none for padding, as in Llama: padding is seen by nobody."""
        given = self.chat.tokenizer.pad_token_id
        return int(self.chat.tokenizer.eos_token_id if given is None else given)

    @cached_property
    def end_token_id(self) -> int:
        return self.encode(exchange("a", "b"), None).ids[-1]

    @property
    def brings_a_template(self) -> bool:
        return self.chat.brings_a_template

    def encode(self, turns: Sequence[Turn], clip: Shown | None) -> Encoded:
        if clip is not None:
            raise ModelRefused(
                "the model reads text alone and sees no clips; choose a video-text model,"
                " or a dataset without clips",
                code="no_vision",
            )
        self.chat.refuse_control_tokens(turns)
        return self.chat.encoded(
            self.chat.pieces([{"role": turn.role, "content": turn.text} for turn in turns])
        )

    def answer(self, generated: list[int]) -> str:
        return self.chat.answer(generated)

    def positions(self, ids: Sequence[int], clip: Shown | None) -> torch.Tensor:
        return torch.arange(len(ids))[None]


@dataclass(frozen=True)
class CausalText:
    """A family whose models are one stack of layers."""

    name: str
    architectures: tuple[tuple[str, str], ...]
    """``model_type`` of config.json and the transformers class that loads it."""
    modalities: tuple[Modality, ...] = ("text",)

    @property
    def model_types(self) -> frozenset[str]:
        return frozenset(dict(self.architectures))

    def model_class(self, model_type: str) -> Any:
        import transformers

        return getattr(transformers, dict(self.architectures)[model_type])

    def modality(self, module_name: str) -> Modality | None:
        return "text" if "layers" in module_name.split(".") else None

    def context_tokens(self, config: Any) -> int:
        return int(config.max_position_embeddings)

    def vision(self, config: Any, folder: Path) -> None:
        return None

    def prompts(self, config: Any, tokenizer: Any) -> TextPrompts:
        if tokenizer.eos_token_id is None:
            raise ModelRefused(
                "the tokenizer lacks an end token (eos_token); use the checkpoint's own",
                code="unusable_tokenizer",
            )
        return TextPrompts(Chat(tokenizer, usual_template(tokenizer)))
