"""What a training will take, predicted from the model's shape and the data's metadata: pure arithmetic.

The engine and the control plane share it, as they share the count of steps. Nothing here measures anything;
the shape is read once, when a model is validated, and the engine corrects the rest by its first step.

Saved for the way back, per token and layer of a transformer block (d: width, q and k: width of queries and of
keys, m: width of the MLP), counted with PyTorch's saved-tensor hooks in every family: the inputs of two
norms (2d), rotated queries and keys, values and the attention's output (2q + 2k), the inputs of three groups
of adapters (2d + m), and inside of the MLP 3m when it is gated, else m. A norm of queries and keys adds
q + k. NF4 takes 4 bits, plus scales of 8 bits per 64 weights and of 32 per 16,384 (arXiv:2305.14314).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from schemas.adapters import Modality
from schemas.base import Message
from schemas.events.agent import AgentProfile
from schemas.training import Hyperparameters

FLOAT = 4
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

    def tokens(self, width: int, height: int, frames: int) -> int:
        """About what a clip of this size becomes; exact where frames are resized to a square."""
        each = round(width * height / self.pixels_per_token) if self.pixels_per_token else 0
        steps = -(-frames // self.frames_per_step)
        return steps * min(max(each, self.least_step_tokens), self.most_step_tokens)


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

    def summed(self) -> str:
        """``3.21 GiB = base weights 1.20 + activations 2.01``."""
        told = [part for part in self.parts if part.size_bytes >= 0.005 * _GIB] or list(self.parts[:1])
        terms = " + ".join(f"{part.name} {part.size_bytes / _GIB:.2f}" for part in told)
        return f"{self.peak_bytes / _GIB:.2f} GiB = {terms}"


@dataclass(frozen=True, slots=True)
class Workload:
    """What the data come to."""

    tokens: int
    """In the largest forward pass, text and vision together."""
    supervised: int
    """Supervised tokens of a forward pass, at most."""
    patches: int
    """Of the vision tower, in the forward pass that has most."""
    pixels: int
    """Numbers of its frames: frames * 3 * height * width."""
    frame_bytes: int
    """That will be kept in memory, of all clips."""
    total_tokens: int
    total_patches: int
    steps: int
    """Optimizer steps that the totals are of."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where a training runs, as far as its memory depends on that."""

    gpu: bool
    """Whether memory is counted by CUDA's allocator; else it is the process's."""
    half: bool
    """Whether the base computes in bfloat16."""

    @classmethod
    def of(cls, profile: AgentProfile, hyperparameters: Hyperparameters) -> "Device":
        gpu = profile in ("cuda", "jetson")
        chosen = hyperparameters.compute_dtype
        return cls(gpu, gpu if chosen == "auto" else chosen == "bfloat16")

    @property
    def number(self) -> int:
        """Bytes of a number of the base."""
        return 2 if self.half else FLOAT

    @property
    def adapted(self) -> int:
        """Bytes of a number that goes into an adapter: outside of autocast, adapters compute in float32."""
        return 2 if self.half and self.gpu else FLOAT


LIBRARIES_BYTES = 720 * 2**20
"""Resident after torch, transformers, peft and bitsandbytes are imported."""
DECODER_BYTES = 110 * 2**20
CUDA_CONTEXT_BYTES = 600 * 2**20
WATTS: dict[AgentProfile, float] = {"cpu": 65.0, "cuda": 400.0, "jetson": 20.0, "simulated-jetson": 20.0}
"""Drawn under load by a node of that kind: an assumption, not a measurement."""
FLOPS: dict[AgentProfile, float] = {"cpu": 4e10, "cuda": 1e14, "jetson": 5e12, "simulated-jetson": 2e10}
"""Per second, sustained: an assumption until the first step was measured."""


def predict(
    shape: ModelShape,
    work: Workload,
    chosen: Hyperparameters,
    device: Device,
    *,
    trainable: int | None = None,
    decoders: int = 0,
) -> Preflight:
    """The peak with its parts, and what all steps come to.

    `trainable` are the adapter's parameters, where they were counted.
    """
    trainable = adapter_parameters(shape, chosen) if trainable is None else trainable
    saved, largest_block = _activations(shape, work, chosen, device)
    transient = max(_block_transient(shape, work, device), _optimizer_transient(trainable, device))
    parts = {
        "base weights": _base(shape, chosen, device),
        "adapter and optimizer": trainable * (2 * FLOAT + _moments(chosen)),
        "activations": saved,
        "one recomputed block": largest_block if chosen.gradient_checkpointing else 0,
        "gradients of a block": transient,
        "loss": _loss(shape, work, chosen, device),
        "pixels": work.pixels * (FLOAT + device.number),
    }
    host = {"libraries": LIBRARIES_BYTES, "decoders": decoders * DECODER_BYTES}
    frames = work.frame_bytes
    if device.gpu:
        host["frames"] = frames
    else:
        parts["frames"] = frames
        loading = shape.stored_bytes + parts["base weights"] - sum(parts.values())
        parts["loading the checkpoint"] = max(0, loading)
    told = tuple(MemoryPart(name=name, size_bytes=size) for name, size in parts.items() if size)
    operations = _operations(shape, work, chosen)
    return Preflight(
        parts=told,
        peak_bytes=sum(parts.values()),
        host_bytes=sum(host.values()),
        largest_pass_tokens=work.tokens,
        tokens=work.total_tokens,
        steps=work.steps,
        teraflops=operations / 1e12,
    )


def adapter_parameters(shape: ModelShape, chosen: Hyperparameters) -> int:
    """Of a LoRA of one rank on every targeted layer."""
    return sum(
        chosen.rank * (linear.inputs + linear.outputs) * linear.count
        for part in shape.parts
        if part.modality in chosen.target_modalities
        for linear in part.linears
    )


def _base(shape: ModelShape, chosen: Hyperparameters, device: Device) -> int:
    bits = 4 + 8 / 64 + 32 / (64 * 256) if chosen.double_quantization else 4 + 32 / 64
    quantised = sum(part.weights for part in shape.parts)
    return round(quantised * bits / 8) + shape.dense_parameters * device.number


def _moments(chosen: Hyperparameters) -> int:
    """Bytes per trained parameter."""
    return 2 if chosen.optimizer.endswith("8bit") else 2 * FLOAT


def _activations(
    shape: ModelShape, work: Workload, chosen: Hyperparameters, device: Device
) -> tuple[int, int]:
    """Bytes kept for the way back, and those of the largest block."""
    total, largest, reached = 0, 0, False
    for modality, tokens in _passes(shape, work):
        part = shape.part(modality)
        if part is None:
            continue
        adapted = modality in chosen.target_modalities
        reached = reached or adapted
        if not reached:  # no gradient goes this far
            continue
        if not part.layers:
            each = sum((linear.inputs + linear.outputs) * linear.count for linear in part.linears)
            total += tokens * each * device.number
            continue
        block = tokens * _saved_per_token(part, chosen, device, adapted)
        largest = max(largest, block)
        kept = tokens * part.width * device.number if chosen.gradient_checkpointing else block
        total += part.layers * kept + tokens * part.width * FLOAT
    return round(total), round(largest)


def _passes(shape: ModelShape, work: Workload) -> Sequence[tuple[Modality, float]]:
    """What each part sees, in the order of the forward pass."""
    merged = work.patches / shape.sight.patches_per_token if shape.sight else 0.0
    return (("vision", work.patches), ("connector", merged), ("text", work.tokens))


def _saved_per_token(part: PartShape, chosen: Hyperparameters, device: Device, adapted: bool) -> float:
    """Bytes that one block keeps of one token."""
    d, q, k, m = part.width, part.query_width, part.key_width, part.mlp_width
    norms = 2 * d + (q + k if part.normed_queries else 0)
    computed = 2 * q + 2 * k + (3 * m if part.gated else m)
    size = norms * FLOAT + computed * device.number
    if not adapted:
        return size
    if chosen.dropout:
        entering = sum(linear.inputs * linear.count for linear in part.linears) / part.layers
        return size + entering * (device.adapted + (1 if device.gpu else FLOAT)) - q * device.number
    again = q if device.adapted != device.number else 0
    return size + (2 * d + m + again) * device.adapted + 7 * chosen.rank * device.adapted


def _block_transient(shape: ModelShape, work: Workload, device: Device) -> int:
    """Gradients of one block under way, and the largest weight taken out of its 4 bits."""
    most = 0.0
    for modality, tokens in _passes(shape, work):
        part = shape.part(modality)
        if part is None:
            continue
        weight = max((linear.inputs * linear.outputs for linear in part.linears), default=0)
        moving = tokens * (2 * part.width + 3 * part.mlp_width)
        most = max(most, (moving + weight) * device.number)
    return round(most)


def _optimizer_transient(trainable: int, device: Device) -> int:
    return 2 * trainable * FLOAT if device.gpu else 0


def _loss(shape: ModelShape, work: Workload, chosen: Hyperparameters, device: Device) -> int:
    text = shape.part("text")
    width = text.width if text else 0
    chunk = min(work.supervised, chosen.loss_chunk_tokens)
    return work.supervised * width * 2 * device.number + 2 * chunk * shape.vocabulary * FLOAT


def _operations(shape: ModelShape, work: Workload, chosen: Hyperparameters) -> float:
    """4 per weight and token (a frozen base has no weight gradients), 6 where the forward pass is repeated."""
    each = 6 if chosen.gradient_checkpointing else 4
    merged = work.total_patches / shape.sight.patches_per_token if shape.sight else 0.0
    seen = {"vision": work.total_patches, "connector": merged, "text": work.total_tokens}
    weights = sum(each * part.weights * seen[part.modality] / max(1, _repeats(part)) for part in shape.parts)
    text = shape.part("text")
    head = (text.width if text else 0) * shape.vocabulary
    return weights + 4 * head * work.total_tokens


def _repeats(part: PartShape) -> int:
    return 1


