"""A model's sizes, and what a training on it is expected to take; `schemas.preflight` predicts that."""

from pydantic import Field

from schemas.adapters import Modality
from schemas.base import Message

_GIB = 2**30


class LinearShape(Message):
    """Quantised layers that are alike."""

    inputs: int = Field(ge=1)
    outputs: int = Field(ge=1)
    count: int = Field(ge=1)

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.count


class PartShape(Message):
    """The vision tower, the connector or the language model, as far as memory and time depend on it."""

    modality: Modality
    linears: tuple[LinearShape, ...]
    layers: int = Field(0, ge=0)
    """Transformer blocks; 0 for a connector."""
    width: int = Field(0, ge=0)
    query_width: int = Field(0, ge=0)
    key_width: int = Field(0, ge=0)
    mlp_width: int = Field(0, ge=0)
    gated: bool = False
    normed_queries: bool = False

    @property
    def weights(self) -> int:
        return sum(linear.weights for linear in self.linears)


class Sight(Message):
    """How many tokens a clip becomes."""

    frames_per_step: int = Field(ge=1)
    patches_per_token: int = Field(ge=1)
    pixels_per_token: int = Field(ge=0)
    """0 where every frame is resized to the same square."""
    least_step_tokens: int = Field(ge=1)
    most_step_tokens: int = Field(ge=1)

    def tokens(self, width: int, height: int, frames: int, frame_pixels: int | None = None) -> int:
        """About what a clip of this size becomes; exact where frames are resized to a square."""
        each = round(width * height / self.pixels_per_token) if self.pixels_per_token else 0
        each = min(max(each, self.least_step_tokens), self.most_step_tokens)
        if frame_pixels is not None and self.pixels_per_token:
            each = min(each, max(1, frame_pixels // self.pixels_per_token))
        return -(-frames // self.frames_per_step) * each


class ModelShape(Message):
    """A base model's sizes."""

    parts: tuple[PartShape, ...]
    dense_parameters: int = Field(ge=0)
    """Embeddings, norms, convolutions and the head: not quantised."""
    vocabulary: int = Field(ge=1)
    stored_bytes: int = Field(0, ge=0)
    """Of its weight files."""
    sight: Sight | None = None

    def part(self, modality: Modality) -> PartShape | None:
        return next((part for part in self.parts if part.modality == modality), None)


class MemoryPart(Message):
    """One summand of the peak."""

    name: str
    """``base weights``, ``activations`` … in words."""
    size_bytes: int


class Preflight(Message):
    """What a training is expected to take. Everything here is an estimate."""

    parts: tuple[MemoryPart, ...]
    """They add up to `peak_bytes`."""
    peak_bytes: int
    """Of the GPU's memory, or of the process on a node without one."""
    host_bytes: int
    """Of main memory beside it: libraries, frames, decoders."""
    largest_pass_tokens: int
    """Tokens of the largest forward pass."""
    tokens: int
    """Of all steps."""
    steps: int
    teraflops: float
    """Floating point operations of all steps, in 10**12."""
    seconds: float | None = None
    """Of all steps; None before any speed is known."""
    watt_hours: float | None = None
    """Estimated from seconds and the power that a node of its kind is assumed to draw."""
    processes: int = 1
    """Each of them takes `peak_bytes` and `host_bytes`; seconds are those of all together."""
    calibrated: bool = False
    """Whether the first steps have corrected what was predicted before them."""

    def summed(self) -> str:
        """``3.21 GiB = base weights 1.20 + activations 2.01``."""
        told = [part for part in self.parts if abs(part.size_bytes) >= 0.005 * _GIB] or list(self.parts[:1])
        terms = " + ".join(f"{part.name} {part.size_bytes / _GIB:.2f}" for part in told)
        each = f" for each of {self.processes} processes" if self.processes > 1 else ""
        return f"{self.peak_bytes / _GIB:.2f} GiB{each} = {terms}"
