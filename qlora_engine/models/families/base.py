"""What the engine must know about one kind of video-text model; a new family is a new file that says this."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from schemas.training import Modality


@dataclass(frozen=True)
class PixelFormat:
    """How decoded frames become the numbers that a model expects."""

    size: int
    """Frames are resized to a square of this many pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Moments:
    """When the sampled frames are shown, in seconds from the clip's first frame."""

    seconds: tuple[float, ...]
    duration: float


class Prompts(Protocol):
    """Text and frames as token ids, for one loaded tokenizer and config."""

    @property
    def pad_token_id(self) -> int: ...

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer; it is supervised and stops generation."""
        ...

    @property
    def brings_a_template(self) -> bool:
        """Whether prompts are rendered by a program that came with the checkpoint."""
        ...

    def prompt_ids(self, prompt: str, moments: Moments) -> list[int]:
        """Everything before the answer, with one placeholder per image feature.

        Raises:
            ControlTokenInCaption: `prompt` holds a special token.
            ModelRefused: the checkpoint's own chat template cannot be used.
        """
        ...

    def response_ids(self, response: str) -> list[int]:
        """The answer and the end token: exactly what is supervised.

        Raises:
            ControlTokenInCaption: `response` holds a special token.
        """
        ...

    def answer(self, generated: list[int]) -> str:
        """The text of generated ids, without special tokens and surrounding white space."""
        ...


class Family(Protocol):
    """One kind of model. Stateless: everything comes from the checkpoint's own config."""

    @property
    def name(self) -> str: ...

    @property
    def model_types(self) -> frozenset[str]:
        """Values of ``model_type`` in config.json that this family loads."""
        ...

    def model_class(self) -> Any:
        """The transformers class; imported here, because it is heavy."""
        ...

    def modality(self, module_name: str) -> Modality | None:
        """The part that a module of the loaded model belongs to; None for embeddings and heads."""
        ...

    def pixel_format(self, config: Any, folder: Path) -> PixelFormat:
        """
        Raises:
            ModelRefused: the checkpoint describes pixels that cannot be.
        """
        ...

    def context_tokens(self, config: Any) -> int: ...

    def prompts(self, config: Any, tokenizer: Any) -> Prompts:
        """
        Raises:
            ModelRefused: the tokenizer lacks this family's special tokens.
        """
        ...

    def vision_inputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Keyword arguments of forward and generate for `pixels` of shape [clips, frames, 3, size, size]."""
        ...
