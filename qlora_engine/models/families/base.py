"""What the engine must know about one kind of model; a new family is a new file that says this.

Three things belong to a checkpoint, and a family makes them from its config, its tokenizer and its folder:
`Vision` says what a clip becomes, `Prompts` says which tokens a sample becomes and where they stand, and the
transformers class does the rest. No processor is needed, so neither pillow nor torchvision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from schemas.adapters import Modality

Role = Literal["system", "user", "assistant"]


class Turn(Protocol):
    """One message of a sample; assistant turns are supervised."""

    @property
    def role(self) -> Role: ...

    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Said:
    """The plainest `Turn`."""

    role: Role
    text: str


def exchange(prompt: str, response: str) -> tuple[Said, Said]:
    """The sample with one question and one answer."""
    return Said("user", prompt), Said("assistant", response)


@dataclass(frozen=True)
class Moments:
    """When the sampled frames are shown, in seconds from the clip's first frame."""

    seconds: tuple[float, ...]
    duration: float


@dataclass(frozen=True)
class ClipLayout:
    """What a clip becomes, known from its size and number of frames alone: nothing is decoded for it."""

    frames: int
    """Frames that are decoded."""
    height: int
    """Pixels that each frame is resized to."""
    width: int
    steps: int
    """T: points in time that the model tells apart, after it merged frames."""
    rows: int
    """Patches of the vision tower, per step."""
    columns: int
    step_tokens: int
    """N: tokens of the language model per step."""

    @property
    def tokens(self) -> int:
        """Placeholders in the prompt."""
        return self.steps * self.step_tokens


@dataclass(frozen=True)
class Shown:
    """A clip as a prompt sees it."""

    layout: ClipLayout
    moments: Moments


@dataclass(frozen=True)
class Encoded:
    """The tokens of one sample."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    """Per token: whether the model learns to say it. Every answer with its end token, and nothing else."""
    last_answer: int
    """Where the last answer begins; what stands before it is the question to generate from."""


@dataclass(frozen=True)
class Pixels:
    """A clip's normalised frames [frames, 3, height, width] and what they become."""

    frames: torch.Tensor
    shown: Shown


class Vision(Protocol):
    """How the clips of one checkpoint become tensors."""

    @property
    def mean(self) -> tuple[float, float, float]: ...

    @property
    def std(self) -> tuple[float, float, float]: ...

    @property
    def image_size(self) -> int:
        """The side of a square frame; 0 where the size follows the clip's."""
        ...

    def layout(self, width: int, height: int, frames: int) -> ClipLayout:
        """The layout of a clip of this size, in pixels after rotation.

        Raises:
            ClipError: no layout fits, such as for a clip that is far longer than wide.
        """
        ...

    def within(self, frame_pixels: int) -> "Vision":
        """The same with frames of at most so many pixels, but of one token at least.

        Raises:
            ModelRefused: every frame has the same size (code ``fixed_frame_size``).
        """
        ...

    def inputs(self, ids: torch.Tensor, rows: Sequence[Sequence[Pixels]]) -> dict[str, torch.Tensor]:
        """Keyword arguments of forward and generate, beside ids, mask and positions.

        `ids` is [rows, length]; each row has its clips in the order of their placeholders.
        """
        ...


def tried_clip(vision: Vision) -> Shown:
    """Two frames of a small clip that need not exist, to try a checkpoint with.

    Raises:
        ClipError: the checkpoint's preprocessor files make it impossible.
    """
    return Shown(vision.layout(160, 120, 2), Moments((0.0, 1.0), 2.0))


class Prompts(Protocol):
    """Samples as token ids, for one loaded tokenizer and config."""

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

    def encode(self, turns: Sequence[Turn], clip: Shown | None) -> Encoded:
        """A sample's tokens, the clip's placeholders before the first user turn's text.

        Raises:
            ControlTokenInCaption: a turn holds a special token.
            EmptyResponse: the chat template leaves nothing of an answer.
            ModelRefused: the checkpoint's own chat template cannot be used, or the model sees no clips.
        """
        ...

    def answer(self, generated: list[int]) -> str:
        """The text of generated ids, without special tokens and surrounding white space."""
        ...

    def positions(self, ids: Sequence[int], clip: Shown | None) -> torch.Tensor:
        """Position ids of one sample, [P, length], each row beginning at 0.

        P is 1, or 4 where text positions stand on top of three rows for time, height and width (M-RoPE).
        Samples are packed by putting these side by side: see `row_positions`.
        """
        ...


def row_positions(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """What forward takes as ``position_ids`` for rows of [P, length]: [rows, length] or [P, rows, length].

    In a packed row each sample counts from 0 again (arXiv 2107.02027 calls it packing).
    """
    stacked = torch.stack(list(rows), dim=1)
    return stacked[0] if len(stacked) == 1 else stacked


class Family(Protocol):
    """One kind of model. Stateless: everything comes from the checkpoint's own config."""

    @property
    def name(self) -> str: ...

    @property
    def model_types(self) -> frozenset[str]:
        """Values of ``model_type`` in config.json that this family loads."""
        ...

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The parts that its models have."""
        ...

    def model_class(self, model_type: str) -> Any:
        """The transformers class; imported here, because it is heavy."""
        ...

    def modality(self, module_name: str) -> Modality | None:
        """The part that a module of the loaded model belongs to; None for embeddings and heads."""
        ...

    def context_tokens(self, config: Any) -> int: ...

    def vision(self, config: Any, folder: Path) -> Vision | None:
        """None for models of text alone.

        Raises:
            ModelRefused: the checkpoint describes pixels that cannot be.
        """
        ...

    def prompts(self, config: Any, tokenizer: Any) -> Prompts:
        """
        Raises:
            ModelRefused: the tokenizer lacks this family's special tokens.
        """
        ...
