"""What a training is: the hyperparameters people choose and the spec that an engine runs."""

from math import ceil
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.adapters import AdapterChoices, ComputeDtype, LoraVariant, QuantType
from schemas.base import Message
from schemas.ids import JobId, Sha256

Schedule = Literal["cosine", "linear", "constant"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
Export = Literal["adapter", "merged"]
MergedDtype = Literal["auto", "float32", "bfloat16"]
MOST_FRAMES = 512
"""Frames that one clip may give."""


class Hyperparameters(AdapterChoices):
    """Everything a person may choose for a job; the defaults train a small video model sensibly."""

    learning_rate: float = Field(
        2e-4, gt=0, le=1, description="At its peak, after the warm-up; of the LoRA A matrices."
    )
    optimizer: Optimizer = Field(
        "adamw",
        description="AdamW with moments in 32 or in 8 bits; paged ones move to main memory when a CUDA device"
        " runs short.",
    )
    schedule: Schedule = Field("cosine", description="How the learning rate falls after the warm-up.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps spent warming up.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay of AdamW.")
    max_grad_norm: float = Field(
        1.0, gt=0, le=1e6, description="Norm to which the gradient of all adapters together is clipped."
    )
    batch_size: int = Field(
        8, ge=1, le=4096, description="Examples per optimizer step; ignored with tokens_per_step."
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Examples per forward pass; the batch size when absent. The gradient is exact.",
    )
    tokens_per_micro_batch: int | None = Field(
        None,
        ge=16,
        le=1_048_576,
        description="Tokens per forward pass, instead of micro_batch_size examples: examples are packed up to"
        " this many, and none sees another. The gradient is exact.",
    )
    tokens_per_step: int | None = Field(
        None,
        ge=16,
        le=1_073_741_824,
        description="Tokens per optimizer step, instead of batch_size examples; as many full forward passes"
        " as that takes. Needs tokens_per_micro_batch and max_steps.",
    )
    loss_chunk_tokens: int = Field(
        1024,
        ge=1,
        le=1_048_576,
        description="Response tokens whose logits are in memory at the same time; fewer take less memory.",
    )
    epochs: float = Field(
        3.0, gt=0, le=10_000, description="Passes over the training split; ignored with max_steps."
    )
    max_steps: int | None = Field(
        None, ge=1, le=10_000_000, description="Optimizer steps, instead of epochs."
    )
    frames: int = Field(
        4,
        ge=1,
        le=MOST_FRAMES,
        description="Frames taken from each clip, evenly spaced in time; ignored with frames_per_second.",
    )
    frames_per_second: float | None = Field(
        None,
        gt=0,
        le=240,
        description="Frames taken per second of each clip, instead of frames: a longer clip gives more.",
    )
    min_frames: int | None = Field(
        None,
        ge=1,
        le=MOST_FRAMES,
        description="With frames_per_second: a clip too short for so many frames gives these, spread evenly;"
        " 1 when absent. A clip that holds fewer is an error.",
    )
    max_frames: int | None = Field(
        None,
        ge=1,
        le=MOST_FRAMES,
        description="With frames_per_second: a clip too long for so few frames gives these, spread evenly."
        " When absent, a clip that would give more than 512 is an error.",
    )
    frame_pixels: int | None = Field(
        None,
        ge=256,
        le=16_777_216,
        description="Pixels that a frame is scaled down to at most, in families whose frames keep their"
        " proportions (Qwen2.5-VL, Qwen3-VL): fewer make fewer tokens. Only the checkpoint's own limits when"
        " absent; others, whose frames are all squares of one size, refuse it.",
    )
    held_out_fraction: float = Field(
        0.2,
        ge=0,
        le=0.9,
        description="Share of the clips, or of the rows without one, kept for evaluation; a dataset"
        " with a split of its own keeps to that.",
    )
    checkpoint_every_steps: int = Field(
        50,
        ge=1,
        le=10_000_000,
        description="Optimizer steps between checkpoints; a lost attempt goes on from the last one.",
    )
    evaluate_every_steps: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Optimizer steps between evaluations during training; only before and after when absent.",
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Evaluations without a lower held-out loss after which the training ends. The best"
        " adapter is kept. Needs evaluate_every_steps.",
    )
    max_new_tokens: int = Field(
        32, ge=1, le=4096, description="Tokens to which a generated answer in evaluation is limited."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, more time."
    )
    oom_fewer_frames: bool = Field(
        False,
        description="Where memory does not suffice though micro-batches are split, activations are computed"
        " twice and logits are made for few tokens at once: go on with half as many frames of each clip,"
        " which is another training, instead of failing.",
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Processes of one node that share every optimizer step, each with the whole model; one"
        " for each CUDA device of the node when absent, and one without any. The gradient is exact.",
    )
    export: Export = Field(
        "adapter",
        description="What the job leaves. merged: beside the adapter also the base model with the adapter"
        " merged into it, an ordinary checkpoint that needs neither PEFT nor bitsandbytes.",
    )
    merged_dtype: MergedDtype = Field(
        "auto",
        description="Type of the merged model's weights; needs export merged. auto: what the base model is"
        " stored in. bfloat16 takes half of float32's room and rounds.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="Of the split, the order of examples, dropout and initial weights: same seed, same data,"
        " same machine, same adapter, bit for bit.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size};"
                " lower it or leave it out"
            )
        if self.micro_batch_size is not None and self.tokens_per_micro_batch is not None:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} and tokens_per_micro_batch"
                f" {self.tokens_per_micro_batch} both say what a forward pass takes; leave one out"
            )
        if self.tokens_per_step is not None:
            self._check_tokens_per_step(self.tokens_per_step)
        if self.early_stopping_patience is not None and self.evaluate_every_steps is None:
            raise ValueError(
                f"early_stopping_patience {self.early_stopping_patience} counts evaluations during training,"
                " but there are none; set evaluate_every_steps"
            )
        if self.early_stopping_patience is not None and self.held_out_fraction == 0:
            raise ValueError(
                f"early_stopping_patience {self.early_stopping_patience} looks at the held-out loss, but"
                " held_out_fraction is 0; raise it, or leave early_stopping_patience out"
            )
        if self.rank_allocation is not None and self.rank_allocation.gate and self.held_out_fraction == 0:
            raise ValueError(
                "rank_allocation.gate looks at the held-out loss, but held_out_fraction is 0; raise it, or"
                " set rank_allocation.gate to false"
            )
        self._check_frames()
        self._check_export()
        fastest = max(self.lora_plus_ratio, self.temporal_learning_rate_ratio if self.temporal else 1)
        if self.learning_rate * fastest > 1:
            raise ValueError(
                f"learning_rate {self.learning_rate:g} times the ratio {fastest:g} is above 1; lower"
                " learning_rate, lora_plus_ratio or temporal_learning_rate_ratio"
            )
        return self

    def _check_tokens_per_step(self, tokens: int) -> None:
        if self.tokens_per_micro_batch is None or tokens < self.tokens_per_micro_batch:
            raise ValueError(
                f"tokens_per_step {tokens} is made of whole forward passes; set tokens_per_micro_batch to at"
                f" most {tokens} (it is {self.tokens_per_micro_batch})"
            )
        if self.max_steps is None:
            raise ValueError(
                f"tokens_per_step {tokens} leaves open how many steps an epoch takes, for only the model's"
                f" tokenizer tells how many tokens the rows have; set max_steps: an epoch is about one step"
                f" for every {tokens} of them"
            )

    def _check_export(self) -> None:
        if self.export == "adapter":
            if self.merged_dtype != "auto":
                raise ValueError(
                    f"merged_dtype is {self.merged_dtype!r}, but export 'adapter' merges nothing; set export"
                    " to 'merged', or leave merged_dtype out"
                )
            return
        if self.temporal:
            raise ValueError(
                "export is 'merged' and temporal is true: what a frame gives depends on its neighbours, which"
                " no merged weight can do; use export 'adapter', or leave temporal out"
            )
        if self.init_lora_weights == "olora" and self.compute_dtype != "float32":
            raise ValueError(
                f"export is 'merged' and init_lora_weights 'olora' with compute_dtype {self.compute_dtype!r}:"
                " the 4-bit weights that OLoRA begins from can be made again exactly in float32 only; set"
                " compute_dtype to 'float32', use init_lora_weights 'default', or export 'adapter'"
            )

    def _check_frames(self) -> None:
        if self.frames_per_second is None:
            for name in ("min_frames", "max_frames"):
                if (bound := getattr(self, name)) is not None:
                    raise ValueError(
                        f"{name} {bound} bounds frames_per_second, which is not set; set it, or use frames"
                        " alone"
                    )
        elif (self.min_frames or 1) > (self.max_frames or MOST_FRAMES):
            raise ValueError(
                f"min_frames {self.min_frames} is larger than max_frames {self.max_frames};"
                " lower it or leave it out"
            )


def held_out_count(clips: int, fraction: float) -> int:
    """How many of `clips` are kept for evaluation: the one rule that the plan and the engine share.

    Fewer than five clips are all trained on, because one of them would be too much to lose.
    """
    if fraction == 0 or clips < 5:
        return 0
    return min(clips - 1, max(1, round(clips * fraction)))


def total_steps(hyperparameters: Hyperparameters, training_examples: int) -> int:
    """Optimizer steps of a whole training; as above, plan and engine share the rule.

    Epochs follow one another without a gap: a batch may hold the end of one and the beginning of the next.
    The last batch is filled up, too, so that every step weighs the same: the epochs taken may exceed those
    asked for by less than one batch (18 examples in batches of 8, 3 epochs: 7 steps, 56 examples, 3.11).
    """
    if hyperparameters.max_steps is not None:
        return hyperparameters.max_steps
    # Rounded, because 70 * 0.1 is a little more than 7.
    examples = round(training_examples * hyperparameters.epochs, 6)
    return max(1, ceil(examples / hyperparameters.batch_size))


DOES_NOT_FIT = "does_not_fit"
"""The code of a failure for want of memory, said before the first step: another node may take the job."""
CHECKPOINT_UNUSABLE = "checkpoint_unusable"
"""The code of a failure whose cause is the checkpoint: the next attempt takes the one before it."""
CHECKPOINT_MISMATCH = "checkpoint_mismatch"
"""… is of a training with other numbers, so that none of its checkpoints will do: begin anew."""


class ResumePoint(Message):
    """The checkpoint that a new attempt goes on from."""

    step: int = Field(ge=0)
    folder: str
    """Local folder holding the checkpoint's files, as the engine wrote them."""


class TrainingSpec(Message):
    """One attempt as the engine runs it; every path is local to the node and already verified."""

    kind: Literal["train"] = "train"
    job_id: JobId
    dataset_id: str | None = None
    model_id: str | None = None
    """As the model card names dataset and base."""
    attempt: int = Field(ge=1)
    hyperparameters: Hyperparameters
    model_folder: str
    """A Hugging Face checkpoint folder: config.json, *.safetensors, tokenizer files."""
    dataset_folder: str
    """Clips at the paths that `manifest_file` names."""
    manifest_file: str
    """A `schemas.datasets.Manifest` as JSON."""
    output_folder: str
    """Where checkpoints (`checkpoint-{step}/`), `adapter/` and `series.jsonl` are written."""
    frame_cache_folder: str | None = None
    """Where finished frames are kept by content, for other attempts and jobs, too; nowhere when absent."""
    frame_cache_bytes: int = Field(8 << 30, ge=0)
    resume: ResumePoint | None = None
    threads: int | None = Field(None, ge=1)
    """CPU threads of all processes together; all cores when absent."""
    processes: int | None = Field(None, ge=1)
    """The most that this node's operator allows; no limit when absent."""
    memory_bytes: int | None = Field(None, ge=1)
    """What all processes of the training may take together of each device's memory, or of main memory on a
    node without one, libraries included; all that is free when absent."""


class DatasetValidationSpec(Message):
    """A dataset to decode and judge."""

    kind: Literal["validate_dataset"] = "validate_dataset"
    dataset_folder: str
    """Everything that was uploaded, at its uploaded paths, captions file included."""
    output_folder: str
    """Where `manifest.json` (`schemas.datasets.Manifest`) is written."""
    seconds_per_file: float = Field(60.0, gt=0, allow_inf_nan=False)
    """A clip that takes longer to decode is refused; large files get a second more for each MiB."""


class ModelValidationSpec(Message):
    """A base model to load in 4 bits and judge."""

    kind: Literal["validate_model"] = "validate_model"
    model_folder: str


EngineSpec = Annotated[
    TrainingSpec | DatasetValidationSpec | ModelValidationSpec, Field(discriminator="kind")
]


MERGED_FOLDER = "merged"
"""Of the merged model, inside of the adapter's."""


class MergedFacts(Message):
    """The merged model that lies beside an adapter, below `MERGED_FOLDER`."""

    dtype: str
    """Of its weights, such as ``bfloat16``."""
    difference: float = Field(allow_inf_nan=False)
    """The largest difference of a logit to base and adapter, in float32."""
    stored_difference: float = Field(allow_inf_nan=False)
    """The same once weights are rounded to `dtype`, as read back from the files."""
    size_bytes: int = Field(ge=0)
    """Of the weights."""


class AdapterFacts(Message):
    """What a finished adapter is."""

    family: str
    base_model_sha256: Sha256
    rank: int
    alpha: float = Field(allow_inf_nan=False)
    trainable_parameters: int
    steps: int
    lora_variant: LoraVariant = "lora"
    temporal: bool = False
    """Whether it needs a loader of its own; stock PEFT refuses it."""
    quantization: QuantType = "nf4"
    double_quantization: bool = True
    compute_dtype: ComputeDtype = "float32"
    """Never ``auto``: what it was trained in."""
    lowest_rank: int | None = None
    """Of any layer; which has which, `adapter_config.json` says. None: `rank` everywhere."""
    highest_rank: int | None = None
    merged: MergedFacts | None = None
    """Absent where the job did not ask for it, or where it could not be made (a warning says why)."""
