"""What a training will take, predicted from the model's shape and the data's metadata: pure arithmetic.

The engine and the control plane share it, as they share the count of steps. Nothing here measures anything;
the shape is read once, when a model is validated, and the engine corrects the rest by its first step.

Saved for the way back, per token and layer of a transformer block (d: width, q and k: width of queries and of
keys, m: width of the MLP), counted with PyTorch's saved-tensor hooks in every family: the inputs of two
norms (2d), rotated queries and keys, values and the attention's output (2q + 2k), the inputs of three groups
of adapters (2d + m), and inside of the MLP 3m when it is gated, else m. A norm of queries and keys adds
q + k; where one layer makes queries, keys and values, all of its output is kept, 2d more. Where adapters
compute in another type than the base, each has a copy of its input. DoRA keeps what comes out of layer and
adapter, and with dropout the base's weights out of their 4 bits. A temporal kernel keeps what it convolves,
padded. NF4 takes 4 bits, plus scales of 8 bits per 64 weights and of 32 per 16,384 (arXiv:2305.14314).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from schemas.adapters import Modality
from schemas.events.agent import AgentProfile, Capabilities
from schemas.footprint import MemoryPart, ModelShape, PartShape, Preflight
from schemas.training import Hyperparameters

FLOAT = 4


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What is evaluated at once, at most: one forward pass, then answers to the same rows."""

    tokens: int = 0
    supervised: int = 0
    patches: int = 0
    pixels: int = 0
    rows: int = 0
    prompt: int = 0
    """Tokens of the longest prompt, which all are padded to."""


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
    evaluated: Evaluated = Evaluated()

    def keeping(self, frame_bytes: int) -> Self:
        """The same with so many bytes of frames in memory."""
        return replace(self, frame_bytes=frame_bytes)


@dataclass(frozen=True, slots=True)
class Device:
    """Where a training runs, as far as its memory depends on that."""

    gpu: bool
    """Whether memory is counted by CUDA's allocator; else it is the process's."""
    half: bool
    """Whether the base computes in bfloat16."""

    @classmethod
    def of(cls, *, gpu: bool, chosen: Hyperparameters) -> Self:
        """As the engine chooses what the base computes in."""
        return cls(gpu, gpu if chosen.compute_dtype == "auto" else chosen.compute_dtype == "bfloat16")

    @property
    def number(self) -> int:
        """Bytes of a number of the base."""
        return 2 if self.half else FLOAT

    @property
    def adapted(self) -> int:
        """Bytes of a number that goes into an adapter: outside of autocast, adapters compute in float32."""
        return 2 if self.half and self.gpu else FLOAT


ERROR = 1.1
"""Times what was predicted that a training may really take: what fits is what fits with that."""
LIBRARIES_BYTES = 720 * 2**20
"""Resident after torch, transformers, peft and bitsandbytes are imported."""
CODE_BYTES = 32 * 2**20
"""Of libraries that are read when a model is loaded and a step computes: kernels, model classes, tables."""
WORKING_BYTES = 40 * 2**20
"""What a step takes beside tensors: autograd's graph, scratch of kernels, small blocks."""
SHORT_CLIP = 4
"""Steps of a clip; longer ones have less padding per step."""
DECODER_BYTES = 110 * 2**20
CUDA_CONTEXT_BYTES = 600 * 2**20
WATTS: dict[AgentProfile, float] = {"cpu": 65.0, "cuda": 400.0, "jetson": 20.0, "simulated-jetson": 20.0}
"""Drawn under load by a node of that kind: an assumption, not a measurement."""
DISPATCH_SECONDS = 1e-3
"""Of Python and PyTorch to set off one layer's forward pass, backward pass and update, however little it has.

Measured in CPU time on one core of a 2-core server, torch 2.13: models of 14 and 27 adapted layers took 0.95
and 1.05 ms per layer. The host does this whatever the device is; large models hide it on a GPU.
"""
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

    `trainable` are the adapter's parameters, where they were counted; `decoders` are processes.
    """
    trainable = adapter_parameters(shape, chosen) if trainable is None else trainable
    saved, largest_block = _activations(shape, work, chosen, device)
    recomputed = largest_block if chosen.gradient_checkpointing else 0
    transient = max(_block_transient(shape, work, device), _optimizer_transient(trainable, device))
    logits = _logits(shape, work.supervised, chosen, device)
    parts = {
        "base weights": _base(shape, chosen, device),
        "adapter and optimizer": trainable * (2 * FLOAT + _moments(chosen)),
    }
    step = {
        "activations": saved,
        "one recomputed block": recomputed,
        "gradients of a block": transient,
        "loss": _loss(_predicting(shape, work, device), logits, recomputed, transient),
        "pixels": work.pixels * (FLOAT + device.number),
    }
    evaluating = _evaluating(shape, work.evaluated, chosen, device)
    step["evaluation beyond that"] = max(0, evaluating - sum(step.values()))
    parts |= step
    host = {"libraries": LIBRARIES_BYTES, "decoders": decoders * DECODER_BYTES}
    copies = _copies(trainable, chosen)
    frames = work.frame_bytes
    if device.gpu:
        host |= {"frames": frames, "copies of the adapter": copies}
    else:
        parts["frames"] = frames
        parts["copies of the adapter"] = copies
        parts["libraries' code"] = CODE_BYTES
        parts["working space"] = WORKING_BYTES
        loading = shape.stored_bytes + parts["base weights"] + CODE_BYTES - sum(parts.values())
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


def timed(
    preflight: Preflight,
    profile: AgentProfile,
    flops: float | None = None,
    *,
    devices: int = 1,
    dispatches: float = 0.0,
) -> Preflight:
    """With seconds and energy, at a measured speed or at what nodes of this kind are assumed to reach.

    `flops` are those of all devices together; `devices` is how many GPUs share the steps. Several processes
    on one device, or on a CPU, are no faster than one. `dispatches` count where no speed was measured, for
    one that was has them in it.
    """
    operations = preflight.teraflops * 1e12
    if flops is None:
        seconds = (operations / FLOPS[profile] + dispatches * DISPATCH_SECONDS) / devices
    else:
        seconds = operations / flops
    watt_hours = seconds * WATTS[profile] * devices / 3600
    return preflight.model_copy(update={"seconds": seconds, "watt_hours": watt_hours})


def dispatches(shape: ModelShape, work: Workload, chosen: Hyperparameters) -> float:
    """How often a layer is computed in all steps, and half as often again where it is recomputed."""
    layers = sum(linear.count for part in shape.parts for linear in part.linears)
    passes = max(work.steps, work.total_tokens / max(1, work.tokens))
    return layers * passes * (1.5 if chosen.gradient_checkpointing else 1.0)


def room(capabilities: Capabilities, processes: int = 1) -> int:
    """Bytes that each of `processes` may take: of its GPU, or of the node's memory without the libraries.

    Processes of one GPU, or of a node without one, share what there is.
    """
    gpu = _has_memory_of_its_own(capabilities)
    sharing = -(-processes // max(1, capabilities.gpus)) if gpu else processes
    return share(offered(capabilities), sharing, gpu=gpu)


def offered(capabilities: Capabilities) -> int:
    """Bytes that a node offers to a training, its libraries included: of one GPU, or of main memory."""
    gpu = _has_memory_of_its_own(capabilities)
    whole = capabilities.gpu_memory_bytes if gpu else capabilities.memory_bytes
    return max(0, whole - capabilities.reserved_bytes)


def share(offered: int, processes: int, *, gpu: bool) -> int:
    """What is left for a training of each of `processes` that share `offered` bytes, without libraries."""
    return max(0, offered // processes - (CUDA_CONTEXT_BYTES if gpu else LIBRARIES_BYTES))


def _has_memory_of_its_own(capabilities: Capabilities) -> bool:
    """Whether its GPU does not share the node's memory."""
    return capabilities.gpu_memory_bytes > 0 and capabilities.profile != "jetson"


def least_workload(tokens: float, steps: int, chosen: Hyperparameters) -> Workload:
    """The least that rows of this average length come to: the largest pass is no smaller than the average.

    For those who know no tokenizer; clips are left to the engine, which knows what each of them becomes.
    """
    taken = chosen.batch_size
    if chosen.tokens_per_micro_batch is not None:
        in_pass = min(chosen.tokens_per_micro_batch / 2, taken * tokens)
    else:
        in_pass = min(chosen.micro_batch_size or taken, taken) * tokens
    in_step = chosen.tokens_per_step or taken * tokens
    return Workload(
        tokens=int(in_pass),
        supervised=0,
        patches=0,
        pixels=0,
        frame_bytes=0,
        total_tokens=int(in_step * steps),
        total_patches=0,
        steps=steps,
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
    total, largest, reached, first = 0.0, 0.0, False, True
    for modality, tokens in _passes(shape, work):
        part = shape.part(modality)
        if part is None:
            continue
        adapted = modality in chosen.target_modalities
        reached = reached or adapted
        if not reached:  # no gradient goes this far
            continue
        weights = part.weights * device.number if adapted and _keeps_weights(chosen) else 0
        if not part.layers:
            leaving = sum(linear.outputs * linear.count for linear in part.linears)
            each = _entering(part) * (device.adapted if adapted else device.number) + leaving * device.number
            if adapted and chosen.dropout:
                each += _entering(part) * _mask(device)
            total += tokens * (each + _of_variant(part, chosen, device, adapted)) + weights
            continue
        block = tokens * _saved_per_token(part, chosen, device, adapted) + weights / part.layers
        largest = max(largest, block)
        kept = tokens * part.width * device.number if chosen.gradient_checkpointing else block
        total += part.layers * kept + tokens * part.width * FLOAT
        if first and not chosen.gradient_checkpointing:
            total -= tokens * _spared_by_the_first(part, chosen, device)
        first = False
    return round(total), round(largest)


def _passes(shape: ModelShape, work: Workload) -> Sequence[tuple[Modality, float]]:
    """What each part sees, in the order of the forward pass."""
    merged = work.patches / shape.sight.patches_per_token if shape.sight else 0.0
    return (("vision", work.patches), ("connector", merged), ("text", work.tokens))


def _saved_per_token(part: PartShape, chosen: Hyperparameters, device: Device, adapted: bool) -> float:
    """Bytes that one block keeps of one token."""
    d, q, k, m = part.width, part.query_width, part.key_width, part.mlp_width
    norms = 2 * d + (q + k if part.normed_queries else 0)
    computed = 2 * q + 2 * k + (3 * m if part.gated else m) + (2 * d if _fused(part) else 0)
    size = float(norms * FLOAT + computed * device.number)
    if not adapted:
        return size
    entering = _entering(part) / part.layers
    size += _of_variant(part, chosen, device, adapted) / part.layers
    if chosen.dropout:  # what comes out of it is what is kept, not what went in
        return size + entering * (device.adapted + _mask(device))
    if _packed(part, chosen):
        size += q * device.number
    copied = entering if device.adapted != device.number else 2 * d + m
    return size + copied * device.adapted + 7 * chosen.rank * device.adapted


def _spared_by_the_first(part: PartShape, chosen: Hyperparameters, device: Device) -> float:
    """Bytes of one token that the first block does not keep: what enters it needs no gradient."""
    masks = (1 if _fused(part) else 3) * _mask(device) if chosen.dropout else 0
    return part.width * (FLOAT + masks)


def _entering(part: PartShape) -> float:
    """Numbers that enter all layers of a part, of one token."""
    return sum(linear.inputs * linear.count for linear in part.linears)


def _mask(device: Device) -> int:
    """Bytes in which dropout keeps whether a number was dropped."""
    return 1 if device.gpu else FLOAT


def _of_variant(part: PartShape, chosen: Hyperparameters, device: Device, adapted: bool) -> float:
    """Bytes that DoRA and temporal kernels keep of one token beside what LoRA keeps, in a whole part."""
    size = 0.0
    if adapted and chosen.lora_variant == "dora":
        leaving = sum(linear.outputs * linear.count for linear in part.linears)
        size += leaving * (device.number + device.adapted)
    if adapted and chosen.temporal and part.modality != "text":
        layers = sum(linear.count for linear in part.linears)
        padded = 1 + (chosen.temporal_kernel - 1) / SHORT_CLIP
        size += layers * chosen.rank * padded * device.adapted
    return size


def _keeps_weights(chosen: Hyperparameters) -> bool:
    """Whether the base's weights stay out of their 4 bits for the way back."""
    return chosen.lora_variant == "dora" and chosen.dropout > 0


def _packed(part: PartShape, chosen: Hyperparameters) -> bool:
    """Whether a pass holds several samples, whose attention's output is put back into the row's order."""
    several = chosen.tokens_per_micro_batch is not None or (chosen.micro_batch_size or chosen.batch_size) > 1
    return several and part.modality == "text"


def _fused(part: PartShape) -> bool:
    """Whether one layer makes queries, keys and values; an MLP may be three times as wide, too."""
    as_wide = sum(
        linear.count
        for linear in part.linears
        if (linear.inputs, linear.outputs) == (part.width, 3 * part.width)
    )
    of_mlp = (2 if part.gated else 1) * part.layers if part.mlp_width == 3 * part.width else 0
    return part.layers > 0 and as_wide - of_mlp >= part.layers


def _evaluating(shape: ModelShape, seen: Evaluated, chosen: Hyperparameters, device: Device) -> int:
    """Bytes of a pass without gradients, or of answering, whichever takes more."""
    if not seen.rows:
        return 0
    text = shape.part("text")
    width = text.width if text else 0

    def moving(tokens: float, patches: float) -> float:
        """What one block holds under way, beside the stream that it adds to."""
        most = 0.0
        merged = patches / shape.sight.patches_per_token if shape.sight else 0.0
        for modality, count in (("vision", patches), ("connector", merged), ("text", tokens)):
            part = next((each for each in shape.parts if each.modality == modality), None)
            if part is None:
                continue
            weight = max((linear.inputs * linear.outputs for linear in part.linears), default=0)
            inside = max(3 * part.mlp_width, 2 * part.query_width + 2 * part.key_width)
            most = max(most, count * (3 * part.width + inside) + weight)
        return most * device.number

    pixels = seen.pixels * (FLOAT + device.number)
    loss = moving(seen.tokens, seen.patches) + _logits(shape, seen.supervised, chosen, device)
    cached = 2 * text.layers * text.key_width * device.number if text else 0
    answering = (
        seen.rows * (seen.prompt + chosen.max_new_tokens) * cached
        + moving(seen.rows * seen.prompt, seen.patches)
        + seen.rows * (3 * shape.vocabulary * FLOAT + seen.prompt**2 + width * device.number)
    )
    return round(pixels + max(loss, answering))


def _copies(trainable: int, chosen: Hyperparameters) -> int:
    """Of the adapter in main memory: the best one so far, and the two states of a trial of ranks."""
    best = trainable * FLOAT if chosen.early_stopping_patience is not None else 0
    wish = chosen.rank_allocation
    if wish is None or not wish.gate:
        return best
    state = trainable * (FLOAT + _moments(chosen))
    return best + round(state * (1 + wish.floor_of(chosen.rank) / chosen.rank))


def _block_transient(shape: ModelShape, work: Workload, device: Device) -> int:
    """Gradients of one block under way, and the largest weight taken out of its 4 bits."""
    most = 0.0
    for modality, tokens in _passes(shape, work):
        part = shape.part(modality)
        if part is None:
            continue
        weight = max((linear.inputs * linear.outputs for linear in part.linears), default=0)
        moving = tokens * (part.width + 1.5 * part.mlp_width)
        most = max(most, (moving + weight) * device.number)
    return round(most)


def _optimizer_transient(trainable: int, device: Device) -> int:
    return 2 * trainable * FLOAT if device.gpu else 0


def _loss(predicting: int, logits: int, recomputed: int, transient: int) -> int:
    """What the loss takes beyond the way back, which begins when logits are gone.

    By the time a block is recomputed, what predicted the tokens is gone, too.
    """
    if recomputed:
        return max(0, predicting + logits - recomputed - transient)
    return predicting + max(0, logits - transient)


def _predicting(shape: ModelShape, work: Workload, device: Device) -> int:
    """What predicts supervised tokens, and its gradient."""
    text = shape.part("text")
    return work.supervised * (text.width if text else 0) * 2 * device.number


def _logits(shape: ModelShape, supervised: int, chosen: Hyperparameters, device: Device) -> int:
    """Of one chunk, in float32 and as the head gave them, with what they say to the layer below."""
    text = shape.part("text")
    half = device.number if device.half else 0
    each = shape.vocabulary * (FLOAT + half) + (text.width if text else 0) * device.number
    return min(supervised, chosen.loss_chunk_tokens) * each


def _operations(shape: ModelShape, work: Workload, chosen: Hyperparameters) -> float:
    """4 per weight and token, for a frozen base has no weight gradients; 6 with the forward pass repeated."""
    each = 6 if chosen.gradient_checkpointing else 4
    merged = work.total_patches / shape.sight.patches_per_token if shape.sight else 0.0
    seen = {"vision": work.total_patches, "connector": merged, "text": work.total_tokens}
    weights = sum(each * part.weights * seen[part.modality] for part in shape.parts)
    text = shape.part("text")
    head = (text.width if text else 0) * shape.vocabulary
    return weights + 4 * head * work.total_tokens
