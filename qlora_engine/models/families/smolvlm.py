"""SmolVLM and SmolVLM2: one run of image tokens per frame, introduced by its time.

A checkpoint whose chat template knows pictures but no videos gets the frames as a row of pictures. The prompt
is what the model's own video processor builds, made here without it, because that needs pillow, torchvision
and num2words.
"""

import json
import math
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from qlora_engine.errors import ControlTokenInCaption, ModelRefused
from qlora_engine.models.families.base import Moments, PixelFormat, Prompts
from qlora_engine.models.families.numerals import spelled
from schemas.training import Modality

FAKE = "<fake_token_around_image>"
IMAGE = "<image>"
GLOBAL = "<global-img>"
VIDEO = "<video>"
END = "<end_of_utterance>"
START = "<|im_start|>"

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The family's published template; many of its checkpoints ship without one."""

_WITHOUT_TEMPLATE = "correct it, or remove chat_template to use the family's own"

_PARTS: dict[str, Modality] = {"vision_model": "vision", "connector": "connector", "text_model": "text"}


@dataclass(frozen=True)
class SmolVLMPrompts:
    """Prompts for one tokenizer."""

    tokenizer: Any
    image_tokens: int
    """Placeholders per frame."""

    @property
    def pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def end_token_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(END))

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        # all_special_tokens leaves out tokens such as <row_1_col_1>, and many tokenizers lack <video>.
        added = self.tokenizer.added_tokens_decoder.values()
        return (VIDEO, *(token.content for token in added if token.special))

    @property
    def _frame(self) -> str:
        return FAKE + GLOBAL + IMAGE * self.image_tokens + FAKE

    @property
    def brings_a_template(self) -> bool:
        own = self.tokenizer.chat_template
        return own is not None and own != CHAT_TEMPLATE

    @cached_property
    def _template(self) -> str:
        return self.tokenizer.chat_template or CHAT_TEMPLATE

    def _refuse_control_tokens(self, field: str, text: str) -> None:
        for token in self._control_tokens:
            if token in text:
                raise ControlTokenInCaption(
                    f"{field} {text[:80]!r} holds {token!r}, which steers the model; take it out"
                )

    def video_text(self, moments: Moments) -> str:
        """The text that stands for a clip."""
        shown = "".join(
            f"\nFrame from {int(second // 60):02d}:{int(second % 60):02d}:{self._frame}"
            for second in moments.seconds
        )
        return (
            f"You are provided the following series of {spelled(len(moments.seconds))} frames from a"
            f" {timedelta(seconds=int(moments.duration))} [H:MM:SS] video.\n{shown}\n\n"
        )

    def prompt_text(self, prompt: str, moments: Moments) -> str:
        """Everything before the answer, as text."""
        self._refuse_control_tokens("prompt", prompt)
        rendered = self._rendered([{"type": "video"}], prompt)
        if rendered.count(VIDEO) == 1:
            return rendered.replace(VIDEO, self.video_text(moments))
        frames = len(moments.seconds)
        rendered = self._rendered([{"type": "image"}] * frames, prompt)
        if rendered.count(IMAGE) == frames:
            return rendered.replace(IMAGE, self._frame)
        raise ModelRefused(
            f"the checkpoint's chat template renders {frames} pictures as {rendered[:120]!r};"
            f" {_WITHOUT_TEMPLATE}",
            code="unusable_chat_template",
        )

    def _rendered(self, shown: list[dict[str, str]], prompt: str) -> str:
        turn = {"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}
        try:
            rendered = self.tokenizer.apply_chat_template(
                [turn], chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
        except MemoryError:
            raise
        except Exception as error:  # a template is a program: it may fail in any way
            raise ModelRefused(
                f"the checkpoint's chat template fails ({type(error).__name__}: {str(error)[:200]});"
                f" {_WITHOUT_TEMPLATE}",
                code="unusable_chat_template",
            ) from error
        return str(rendered)

    def prompt_ids(self, prompt: str, moments: Moments) -> list[int]:
        return self._ids(self.prompt_text(prompt, moments))

    def response_ids(self, response: str) -> list[int]:
        self._refuse_control_tokens("response", response)
        return self._ids(f" {response}{END}")

    def answer(self, generated: list[int]) -> str:
        return str(
            self.tokenizer.decode(generated, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ).strip()

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class SmolVLM:
    """The family of ``SmolVLMForConditionalGeneration``."""

    name = "smolvlm"
    model_types = frozenset({"smolvlm"})

    def model_class(self) -> Any:
        from transformers import SmolVLMForConditionalGeneration

        return SmolVLMForConditionalGeneration

    def modality(self, module_name: str) -> Modality | None:
        for part in module_name.split("."):
            if part in _PARTS:
                return _PARTS[part]
        return None

    def pixel_format(self, config: Any, folder: Path) -> PixelFormat:
        described: dict[str, Any] = {}
        file = folder / "preprocessor_config.json"
        if file.is_file():
            described = json.loads(file.read_text("utf-8"))
        return PixelFormat(
            size=int(config.vision_config.image_size),
            mean=_colours(described, "image_mean"),
            std=_colours(described, "image_std"),
        )

    def context_tokens(self, config: Any) -> int:
        return int(config.text_config.max_position_embeddings)

    def prompts(self, config: Any, tokenizer: Any) -> Prompts:
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (FAKE, IMAGE, GLOBAL, END) if token not in vocabulary]
        if missing or tokenizer.pad_token_id is None:
            raise ModelRefused(
                f"the tokenizer lacks {', '.join(missing) or 'a padding token'}; use the checkpoint's own",
                code="unusable_tokenizer",
            )
        if vocabulary[IMAGE] != config.image_token_id:
            raise ModelRefused(
                f"config.json has image_token_id {config.image_token_id}, but the tokenizer's {IMAGE} is "
                f"{vocabulary[IMAGE]}; use the tokenizer files of the checkpoint",
                code="unusable_tokenizer",
            )
        side = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
        return SmolVLMPrompts(tokenizer, image_tokens=side**2 // int(config.scale_factor) ** 2)

    def vision_inputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        # The model takes a frame of only zeros for padding and drops it, so such a frame gets one tiny value.
        blank = (pixels == 0).flatten(2).all(dim=2)
        if bool(blank.any()):
            pixels = pixels.clone()
            pixels[blank] += 1e-6
        return {"pixel_values": pixels}


def _colours(described: dict[str, Any], field: str) -> tuple[float, float, float]:
    values = described.get(field) or (0.5, 0.5, 0.5)
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        red = green = blue = math.nan
    if not all(math.isfinite(value) for value in (red, green, blue)) or (
        field == "image_std" and min(red, green, blue) <= 0
    ):
        raise ModelRefused(
            f"preprocessor_config.json has {field} {values!r}; it must be three numbers, one per colour",
            code="bad_config",
        )
    return red, green, blue
