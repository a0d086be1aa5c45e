"""What may be chosen for the adapters and the 4-bit base, what goes together, and why the rest does not.

The matrix: fields with few values list them; `REFUSED` says of well-known other values why they are refused
and what to take instead; `AdapterChoices` refuses combinations. Everything is decided before a job is
accepted; what needs the model, such as the name of a layer, the engine checks when it puts the adapters in.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas.base import Message

Modality = Literal["vision", "connector", "text"]
LoraVariant = Literal["lora", "dora"]
LoraInit = Literal["default", "gaussian", "olora"]
QuantType = Literal["nf4", "fp4"]
ComputeDtype = Literal["auto", "float32", "bfloat16"]
LayerPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.*]+$", max_length=200)]

MODALITIES: tuple[Modality, ...] = ("vision", "connector", "text")
MOST_PATTERNS = 256
LATEST_ALLOCATION = 0.75
"""Share of the steps after which no more rank is given out."""
TEMPORAL_KERNEL: Literal[3] = 3
TEMPORAL_LEARNING_RATE_RATIO = 10.0

_DEFAULT_INIT = "use 'default', 'gaussian' or 'olora'"
REFUSED: Mapping[str, Mapping[str, str]] = {
    "init_lora_weights": {
        "pissa": f"it needs the base in float32, float16 or bfloat16, and ours is in 4 bits; {_DEFAULT_INIT}",
        "orthogonal": f"PEFT cannot make it beside 4-bit layers; {_DEFAULT_INIT}",
        "loftq": f"it quantises an unquantised base itself, and ours is loaded in 4 bits; {_DEFAULT_INIT}",
        "eva": f"it needs a pass over the data before the training, which jobs do not make; {_DEFAULT_INIT}",
        "corda": f"it needs a pass over the data and an unquantised base; {_DEFAULT_INIT}",
        "lora_ga": f"it needs gradients of an unquantised base before the training; {_DEFAULT_INIT}",
        "mica": f"PEFT's 4-bit layers leave it out in silence; {_DEFAULT_INIT}",
    },
    "lora_variant": {
        "adalora": "it only masks ranks, which frees no memory, by scores that mean other things in vision"
        " than in text; use 'lora' with rank_pattern",
        "kasa": "PEFT's 4-bit layers leave it out in silence; use 'lora' or 'dora'",
        "velora": "PEFT's 4-bit layers refuse it; use 'lora' with gradient_checkpointing",
        "qalora": "it needs a GPTQ base, and ours is in NF4 or FP4; use 'lora'",
        "rslora": "it is a scale, not a variant; use 'lora' with rslora true",
        "lora_plus": "it is a learning rate, not a variant; use 'lora' with lora_plus_ratio 16",
        "temporal": "it goes on top of LoRA; use 'lora' with temporal true",
    },
    "quantization": {
        "int8": "8-bit layers take twice the memory and another kind of LoRA layer; use 'nf4'",
        "int4": "bitsandbytes has no such type; use 'nf4', or 'fp4'",
        "gptq": "it needs a base that was quantised beforehand; use 'nf4' with the unquantised weights",
        "awq": "it needs a base that was quantised beforehand; use 'nf4' with the unquantised weights",
        "none": "this service trains QLoRA only, on a base in 4 bits; use 'nf4'",
    },
    "compute_dtype": {
        "float16": "its range is too small to train in without loss scaling; use 'bfloat16'",
        "fp16": "its range is too small to train in without loss scaling; use 'bfloat16'",
        "bf16": "write 'bfloat16'",
        "fp32": "write 'float32'",
    },
}


class RankAllocation(Message):
    """Rank goes where the loss falls most, at no more parameters than `rank` for every layer takes."""

    model_config = ConfigDict(allow_inf_nan=False)

    floor_rank: int = Field(
        1, ge=1, le=511, description="Least rank of any layer, where floor_ratio does not ask for more."
    )
    floor_ratio: float = Field(
        0.75, ge=0, lt=1, description="Share of rank that every layer begins with and keeps, rounded down."
    )
    max_rank: int | None = Field(
        None, ge=1, le=512, description="Most rank that a layer gets; 4 times rank when absent."
    )
    part_floor: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Share of the parameters it would have with rank everywhere that each part (vision,"
        " connector, text) keeps at least.",
    )
    explore_ratio: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="Share of the steps taken at floor_rank; by how much each part lowers the loss in the"
        " second half of them decides.",
    )
    rounds: int = Field(
        1,
        ge=1,
        le=8,
        description="Portions that the parameters are given out in, each after as many steps as"
        " explore_ratio says and by what was found then.",
    )
    gate: bool = Field(
        True,
        description="Keep the allocation only if, a few steps on, its held-out loss is not above that of rank"
        " everywhere, trained on the same batches from the same state; else every layer gets rank.",
    )

    def floor_of(self, rank: int) -> int:
        """The rank of every layer at the beginning, where `rank` was asked for."""
        return max(self.floor_rank, int(self.floor_ratio * rank))


class AdapterChoices(Message):
    """What is trained, beside what: the part of the hyperparameters that shapes the adapter."""

    model_config = ConfigDict(allow_inf_nan=False)

    rank: int = Field(8, ge=1, le=512, description="LoRA rank r.")
    alpha: float = Field(16.0, gt=0, le=4096, description="LoRA alpha; the update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the LoRA A matrix.")
    target_modalities: tuple[Modality, ...] = Field(
        MODALITIES, min_length=1, description="Parts of the model that get adapters."
    )
    rank_pattern: dict[LayerPattern, Annotated[int, Field(ge=1, le=512)]] = Field(
        {},
        max_length=MOST_PATTERNS,
        description="Other ranks for some layers, by part (vision, connector, text) or by the end of their"
        " name, with * for anything, such as layers.0.self_attn.q_proj. Names go before parts, longer names"
        " before shorter ones.",
    )
    alpha_pattern: dict[LayerPattern, Annotated[float, Field(gt=0, le=4096)]] = Field(
        {},
        max_length=MOST_PATTERNS,
        description="Other alphas for some layers, in the same way as rank_pattern.",
    )
    rank_allocation: RankAllocation | None = Field(
        None,
        description="Let the training find out which layers need how much rank, across vision, connector and"
        " text; {} for the defaults. Every layer has rank when absent.",
    )
    lora_variant: LoraVariant = Field(
        "lora", description="dora: the base's weights are also scaled row by row (DoRA, arXiv:2402.09353)."
    )
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(rank), for high ranks (rsLoRA, arXiv:2312.03732)."
    )
    init_lora_weights: LoraInit = Field(
        "default",
        description="How A and B begin. default: uniform A, zero B. gaussian: normal A, zero B. olora: by the"
        " QR decomposition of each base weight (arXiv:2406.01775).",
    )
    lora_plus_ratio: float = Field(
        1.0,
        ge=1,
        le=1000,
        description="Learning rate of B over that of A (LoRA+, arXiv:2402.12354); 1 is ordinary LoRA.",
    )
    temporal: bool = Field(
        False,
        description="Temporal-aware LoRA: adapters of vision and connector also look at the frames before and"
        " after, so that the order of frames can be learnt. Stock PEFT cannot load or merge the result.",
    )
    temporal_kernel: Literal[3, 5, 7] = Field(
        TEMPORAL_KERNEL, description="Frames that a temporal kernel spans."
    )
    temporal_learning_rate_ratio: float = Field(
        TEMPORAL_LEARNING_RATE_RATIO,
        gt=0,
        le=1000,
        description="Learning rate of the temporal kernels over that of A; they start at zero and are few.",
    )
    quantization: QuantType = Field("nf4", description="4-bit type of the frozen base.")
    double_quantization: bool = Field(
        True, description="Quantise the scales of the base's blocks, too: 0.37 bits less per parameter."
    )
    compute_dtype: ComputeDtype = Field(
        "auto", description="What the base computes in. auto: bfloat16 on CUDA, float32 on CPU."
    )

    @field_validator(*REFUSED, mode="before")
    @classmethod
    def _not_refused(cls, value: Any, info: Any) -> Any:
        reason = REFUSED[info.field_name].get(value.lower()) if isinstance(value, str) else None
        if reason is not None:
            raise ValueError(f"{info.field_name} cannot be {value!r}: {reason}")
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        for refusal in self._refusals():
            raise ValueError(refusal)
        return self

    def _refusals(self) -> Iterator[str]:
        if len(set(self.target_modalities)) != len(self.target_modalities):
            yield f"target_modalities {self.target_modalities} names a modality twice"
        for name in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, name):
                if pattern in MODALITIES and pattern not in self.target_modalities:
                    yield (
                        f"{name} names {pattern!r}, but target_modalities {self.target_modalities} does not;"
                        f" add it there, or take it out of {name}"
                    )
        if self.rank_allocation is not None:
            yield from self._allocation_refusals(self.rank_allocation)
        yield from self._temporal_refusals()

    def _allocation_refusals(self, chosen: RankAllocation) -> Iterator[str]:
        if self.rank_pattern:
            yield (
                "rank_pattern and rank_allocation both say which rank a layer gets; leave one out"
                " (target_modalities still says which parts take part)"
            )
        if self.init_lora_weights != "default":
            yield (
                f"init_lora_weights is {self.init_lora_weights!r}, which begins by the rank, and"
                " rank_allocation changes that later; use 'default', or leave rank_allocation out"
            )
        floor = chosen.floor_of(self.rank)
        if floor >= self.rank:
            yield (
                f"rank_allocation.floor_rank {floor} leaves nothing of rank {self.rank} to give"
                " out; lower floor_rank or raise rank"
            )
        elif chosen.rounds > self.rank - floor:
            yield (
                f"rank_allocation.rounds {chosen.rounds} is more than the {self.rank - floor}"
                f" ranks between floor_rank {floor} and rank {self.rank}; lower it"
            )
        if chosen.max_rank is not None and chosen.max_rank < self.rank:
            yield (
                f"rank_allocation.max_rank {chosen.max_rank} is below rank {self.rank}: the parameters could"
                " not be given out; raise max_rank or lower rank"
            )
        if chosen.rounds * chosen.explore_ratio > LATEST_ALLOCATION:
            yield (
                f"rank_allocation.rounds {chosen.rounds} times explore_ratio {chosen.explore_ratio:g} gives"
                f" out the last ranks after {chosen.rounds * chosen.explore_ratio:.0%} of the steps, too late"
                f" for them to learn; lower one, to {LATEST_ALLOCATION:.0%} or less"
            )

    def _temporal_refusals(self) -> Iterator[str]:
        if self.temporal:
            if not {"vision", "connector"} & set(self.target_modalities):
                yield (
                    f"temporal is true, but target_modalities {self.target_modalities} names neither vision"
                    " nor connector, the parts that see frames; add one, or leave temporal out"
                )
            if self.lora_variant == "dora":
                yield (
                    "temporal is true and lora_variant 'dora': DoRA normalises the merged weight, and a"
                    " temporal update has none; use lora_variant 'lora', or leave temporal out"
                )
            return
        for name, default in (
            ("temporal_kernel", TEMPORAL_KERNEL),
            ("temporal_learning_rate_ratio", TEMPORAL_LEARNING_RATE_RATIO),
        ):
            if getattr(self, name) != default:
                yield (
                    f"{name} is {getattr(self, name)}, but temporal is false; set temporal to true, or leave"
                    f" {name} out"
                )
