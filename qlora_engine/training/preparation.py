"""What a training needs before its first step, part by part; `attempt` puts them together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qlora_engine.adapters.injection import Injected, inject
from qlora_engine.adapters.parameter_groups import parameter_groups
from qlora_engine.adapters.ranks.resize import Resizing
from qlora_engine.adapters.ranks.rounds import Rounds, not_planned, planned_rounds
from qlora_engine.data.batches import Cursor, Steps
from qlora_engine.data.collate import Collator
from qlora_engine.data.decoders import Decoders
from qlora_engine.data.frame_cache import FrameCache
from qlora_engine.data.frames import Frames
from qlora_engine.data.samples import Split, sampled, split
from qlora_engine.data.sampling import Sampling
from qlora_engine.device import device_name
from qlora_engine.models.loading import Loaded
from qlora_engine.spans import span
from qlora_engine.training.checkpoints import Checkpoints, TrainingState
from qlora_engine.training.distributed import World, idle_processes, other_processes, sow
from qlora_engine.training.economy import CPU_OPTIMIZER_SLICE, OPTIMIZER_SLICE, Economy
from qlora_engine.training.forecast import Forecast, data_rows, evaluated_at_once, kept_frame_bytes
from qlora_engine.training.keepsakes import Keepsakes
from qlora_engine.training.optimizers import make_optimizer, not_paged
from qlora_engine.training.preflight import Tokens, cautions, check_budget, check_captions, check_clips
from qlora_engine.training.rank_phase import RankPhase, rank_phase
from qlora_engine.training.schedule import learning_rate_factor
from qlora_engine.updates import Logged, TrainingBegan, Update
from schemas.datasets import Example, Manifest
from schemas.training import Hyperparameters, TrainingSpec, total_steps

Emit = Callable[[Update], None]


# ---- data --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """What is trained and measured on, as the manifest has it."""

    manifest: Manifest
    sampling: Sampling
    examples: Split
    evaluated: Sequence[Example]
    """Of the held-out ones."""
    steps: int

    @property
    def training(self) -> Sequence[Example]:
        return self.examples.training


def data_of(spec: TrainingSpec, manifest: Manifest) -> Data:
    """
    Raises:
        FramesExceedClip: a clip cannot give the frames that the job asks for.
        DatasetError: a clip's file is not the validated one.
    """
    chosen = spec.hyperparameters
    sampling = Sampling.of(chosen)
    check_clips(manifest, Path(spec.dataset_folder), sampling)
    examples = split(manifest, chosen.held_out_fraction, chosen.seed)
    return Data(
        manifest=manifest,
        sampling=sampling,
        examples=examples,
        evaluated=sampled(examples.held_out, chosen.seed),
        steps=total_steps(chosen, len(examples.training)),
    )


@dataclass(frozen=True)
class Inputs:
    """How examples become what the model reads."""

    frames: Frames
    collator: Collator
    tokens: dict[str, Tokens]
    """By where an example is from."""
    lengths: Sequence[int]
    """Tokens of each training example."""


def inputs_of(spec: TrainingSpec, data: Data, base: Loaded, decoders: Decoders, emit: Emit) -> Inputs:
    """
    Raises:
        SequenceTooLong, ControlTokenInCaption: a row cannot be used.
        ModelRefused: the model sees no clips (code ``no_vision``).
    """
    cache = None
    if spec.frame_cache_folder is not None:
        cache = FrameCache(Path(spec.frame_cache_folder), spec.frame_cache_bytes)
    frames = Frames(
        Path(spec.dataset_folder),
        data.manifest.clips,
        data.sampling,
        base.vision,
        decode=decoders.sample,
        cache=cache,
    )
    collator = Collator(base.prompts, frames, base.context_tokens)
    tokens = check_captions(data.manifest, collator, base.vision, data.sampling, emit)
    check_budget(data.training, tokens, spec.hyperparameters)
    return Inputs(frames, collator, tokens, [tokens[example.where].whole for example in data.training])


# ---- what learns -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Learner:
    """The adapter, and what changes it."""

    injected: Injected
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    resizing: Resizing
    rounds: Rounds | None
    """In which ranks are given out; None where they stay as they are."""


def learner_of(
    chosen: Hyperparameters, data: Data, base: Loaded, device: torch.device, emit: Emit
) -> Learner:
    """Adapters are put into `base`."""
    rounds = planned_rounds(chosen, data.steps, len(data.evaluated))
    with span(emit, "inject adapters", rank=chosen.rank):
        injected = inject(base, chosen, None if rounds is None else rounds.floor_rank)
    optimizer = make_optimizer(parameter_groups(injected, chosen), chosen, device)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(chosen, data.steps))
    return Learner(
        injected, optimizer, scheduler, Resizing(injected.model, optimizer, chosen, injected.alphas), rounds
    )


def rank_phase_of(learner: Learner, keepsakes: Keepsakes) -> RankPhase | None:
    if learner.rounds is None:
        return None
    return rank_phase(learner.injected.parts, learner.resizing, learner.rounds, keepsakes)


# ---- where it stands ---------------------------------------------------------------------------------------


def beginning(
    spec: TrainingSpec, checkpoints: Checkpoints, device: torch.device, world: World, emit: Emit
) -> TrainingState:
    """The state to go on from, which model, optimizer and random numbers are put into.

    Raises:
        CheckpointUnusable: there is a checkpoint, but it is damaged or of another training.
    """
    chosen = spec.hyperparameters
    if not world.first:  # whose random numbers are those of a training by itself
        sow(chosen.seed, 0, world)
    if spec.resume is None:
        economy = Economy(
            gradient_checkpointing=chosen.gradient_checkpointing,
            loss_chunk=chosen.loss_chunk_tokens,
            optimizer_slice=CPU_OPTIMIZER_SLICE if device.type == "cpu" else OPTIMIZER_SLICE,
        )
        return TrainingState(0, Cursor(), None, None, 0.0, economy=economy)
    folder = Path(spec.resume.folder)
    state = checkpoints.restore(folder, spec.resume.step)
    if (elsewhere := checkpoints.elsewhere(folder)) is not None:
        emit(elsewhere)
    if (before := checkpoints.processes_of(folder)) != world.size:
        sow(chosen.seed, state.step, world)
        emit(other_processes(before, world.size))
    return state


# ---- what people hear of it --------------------------------------------------------------------------------


def forecast_of(
    chosen: Hyperparameters,
    data: Data,
    inputs: Inputs,
    base: Loaded,
    learner: Learner,
    plan: Steps,
    decoders: Decoders,
    world: World,
) -> Forecast:
    """What the training will take."""
    return Forecast.of(
        base,
        chosen,
        plan,
        data.steps,
        data_rows(data.training, inputs.tokens, data.manifest, base.vision, data.sampling),
        frame_bytes=kept_frame_bytes(data.manifest, base.vision, data.sampling),
        trainable=learner.injected.trainable_parameters if learner.rounds is None else None,  # it will grow
        decoders=decoders.count if data.manifest.clips else 0,
        processes=world.size,
        evaluated=evaluated_at_once(
            data_rows(world.slice(data.evaluated), inputs.tokens, data.manifest, base.vision, data.sampling),
            chosen.micro_batch_size or chosen.batch_size,
        ),
    )


def began(
    data: Data, base: Loaded, learner: Learner, state: TrainingState, forecast: Forecast, device: torch.device
) -> TrainingBegan:
    trainable = learner.injected.trainable_parameters
    return TrainingBegan(
        family=base.family.name,
        quantized_linear_layers=sum(1 for _ in base.linear_layers()),
        start_step=state.step,
        total_steps=data.steps,
        trainable_parameters=trainable,
        total_parameters=base.parameters + trainable,
        training_examples=len(data.training),
        held_out_examples=len(data.examples.held_out),
        device=device_name(device),
        preflight=forecast.preflight,
    )


def cautions_of(
    chosen: Hyperparameters,
    data: Data,
    inputs: Inputs,
    learner: Learner,
    scarce: Logged | None,
    world: World,
    device: torch.device,
) -> Iterator[Logged]:
    """What people should know before it starts; `scarce` is what they should know of its memory."""
    yield from cautions(data.examples, data.evaluated, inputs.tokens, chosen)
    if scarce is not None:
        yield scarce
    if world.size > 1 and (idle := idle_processes(chosen, world.size)) is not None:
        yield idle
    if (unpaged := not_paged(chosen, device)) is not None:
        yield Logged(level="warning", code="not_paged", message=unpaged)
    if learner.rounds is None and chosen.rank_allocation is not None:
        message = not_planned(data.steps, len(data.evaluated))
        yield Logged(level="warning", code="rank_not_allocated", message=message)
