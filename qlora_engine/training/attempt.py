"""One training attempt from its spec to an adapter: the order of the parts, and nothing else."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from qlora_engine.adapters.injection import inject
from qlora_engine.adapters.parameter_groups import parameter_groups
from qlora_engine.adapters.ranks.resize import Resizing
from qlora_engine.adapters.ranks.rounds import not_planned, planned_rounds
from qlora_engine.data.batches import Cursor, planned
from qlora_engine.data.collate import Collator
from qlora_engine.data.decoders import Decoders
from qlora_engine.data.frame_cache import FrameCache
from qlora_engine.data.frames import Frames
from qlora_engine.data.samples import sampled, split
from qlora_engine.data.sampling import Sampling
from qlora_engine.device import best_device, device_name
from qlora_engine.errors import DatasetError
from qlora_engine.fingerprints import file_sha256, folder_sha256
from qlora_engine.models.loading import load_model
from qlora_engine.models.quantization import Quantization
from qlora_engine.spans import span
from qlora_engine.stopping import Mode, StopWish
from qlora_engine.training.checkpoints import Checkpoints, Identity, TrainingState
from qlora_engine.training.distributed import ALONE, World, idle_processes, other_processes, sow
from qlora_engine.training.economy import Economy
from qlora_engine.training.evaluation import Answer, Evaluator, Phase
from qlora_engine.training.export import Exporter, write_answers
from qlora_engine.training.forecast import Forecast, data_rows, kept_frame_bytes
from qlora_engine.training.forward import Runner
from qlora_engine.training.keepsakes import Keepsakes
from qlora_engine.training.loop import Emit, Loop
from qlora_engine.training.optimizers import make_optimizer, not_paged
from qlora_engine.training.preflight import cautions, check_budget, check_captions, check_clips
from qlora_engine.training.rank_phase import rank_phase
from qlora_engine.training.schedule import learning_rate_factor
from qlora_engine.updates import Logged, Preparing, TrainingBegan, TrainingDone, TrainingStopped
from schemas.datasets import Manifest
from schemas.training import TrainingSpec, total_steps

ADAPTER_FOLDER = "adapter"
SERIES_FILE = "series.jsonl"
TINY = 5_000_000
"""Parameters up to which more threads make a step slower."""


def train(
    spec: TrainingSpec,
    emit: Emit,
    stop: StopWish,
    device: torch.device | None = None,
    world: World = ALONE,
) -> None:
    """Run the attempt; the last update is `TrainingDone` or `TrainingStopped`.

    Where several processes share it, all of them call this; only the first writes files, and only what it
    emits tells of the training.

    Raises:
        EngineError: the training cannot go on.
    """
    with Decoders() as decoders:
        with span(emit, "prepare"):
            attempt = _prepare(spec, emit, stop, device or best_device(), decoders, world)
        with attempt.frames:
            _run(attempt, emit, stop)


def _run(attempt: "_Attempt", emit: Emit, stop: StopWish) -> None:
    spec = attempt.spec
    if spec.resume is None:
        attempt.evaluate("before")
    with span(emit, "train", start_step=attempt.start_step, total_steps=attempt.loop.steps) as learnt:
        attempt.loop.run()
        learnt["step"] = attempt.loop.state.step
        learnt["decoded"] = attempt.frames.decoded
    if attempt.asked is None:
        attempt.evaluate("after")
    mode = attempt.asked
    if mode is None:
        attempt.finish()
    else:
        attempt.give_up(mode == "graceful")


@dataclass
class _Attempt:
    spec: TrainingSpec
    loop: Loop
    exporter: Exporter
    frames: Frames
    start_step: int
    answers: tuple[Answer, ...] = ()
    """Of the last evaluation."""

    @property
    def _output(self) -> Path:
        return Path(self.spec.output_folder)

    @property
    def asked(self) -> Mode | None:
        """Whether to stop; called by all processes together."""
        return self.loop.world.asked(self.loop.stop)

    def evaluate(self, phase: Phase) -> None:
        measured = self.loop.evaluate(phase)
        if measured is not None:
            self.answers = measured.answers

    def finish(self) -> None:
        state = self.loop.state
        self.loop.emit(Preparing(phase="saving"))
        folder = self._write_adapter()
        if self.loop.world.first:
            write_answers(folder, self.answers)
            if (outliers := self.loop.keepsakes.write_outliers(folder, self.loop.examples)) is not None:
                self.loop.emit(outliers)
        self.loop.emit(
            TrainingDone(
                steps=state.step,
                loss_first=state.loss_first or 0.0,
                loss_last=state.loss_last or 0.0,
                seconds=state.seconds,
                adapter_folder=str(folder),
                series_file=str(self.loop.series),
                facts=self.exporter.facts(self._adapter_step),
                stopped_early=state.step < self.loop.steps,
                adapter_step=self.loop.adapter_step,
            )
        )

    def give_up(self, graceful: bool) -> None:
        """A graceful stop keeps what was learnt, unless nothing was."""
        state, folder = self.loop.state, None
        if graceful and state.step > 0:
            self.loop.emit(Preparing(phase="saving"))
            if state.step > self.start_step and state.step % self.spec.hyperparameters.checkpoint_every_steps:
                self.loop.save()
            folder = self._write_adapter()
        self.loop.emit(
            TrainingStopped(
                step=state.step,
                adapter_folder=None if folder is None else str(folder),
                series_file=str(self.loop.series),
                facts=None if folder is None else self.exporter.facts(self._adapter_step),
            )
        )

    def _write_adapter(self) -> Path:
        folder = self._output / ADAPTER_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if self.loop.world.first:
            with span(self.loop.emit, "save adapter", step=self._adapter_step):
                self.exporter.write(folder, self._adapter_step)
        return folder

    @property
    def _adapter_step(self) -> int:
        """Steps that the adapter was trained for."""
        return self.loop.adapter_step or self.loop.state.step


def _prepare(
    spec: TrainingSpec,
    emit: Emit,
    stop: StopWish,
    device: torch.device,
    decoders: Decoders,
    world: World,
) -> _Attempt:
    hyperparameters = spec.hyperparameters
    output = Path(spec.output_folder)
    output.mkdir(parents=True, exist_ok=True)
    series = output / SERIES_FILE
    if world.first:
        series.write_text("", "utf-8")
    manifest = read_manifest(Path(spec.manifest_file))
    emit(Preparing(phase="loading_data", total=len(manifest.clips)))
    sampling = Sampling.of(hyperparameters)
    check_clips(manifest, Path(spec.dataset_folder), sampling)
    examples = split(manifest, hyperparameters.held_out_fraction, hyperparameters.seed)
    steps = total_steps(hyperparameters, len(examples.training))
    emit(Preparing(phase="loading_model"))
    with span(emit, "load model"):
        base = load_model(spec.model_folder, device, Quantization.chosen(hyperparameters))
    _set_threads(spec.threads, base.parameters, world.size)
    frames = Frames(
        Path(spec.dataset_folder),
        manifest.clips,
        sampling,
        base.vision,
        decode=decoders.sample,
        cache=_frame_cache(spec),
    )
    collator = Collator(base.prompts, frames, base.context_tokens)
    tokens = check_captions(manifest, collator, base.vision, sampling, emit)
    check_budget(examples.training, tokens, hyperparameters)
    evaluated = sampled(examples.held_out, hyperparameters.seed)
    base_sha256 = world.once(lambda: folder_sha256(base.folder))
    rounds = planned_rounds(hyperparameters, steps, len(evaluated))
    with span(emit, "inject adapters", rank=hyperparameters.rank):
        injected = inject(base, hyperparameters, None if rounds is None else rounds.floor_rank)
    exporter = Exporter(base, injected, hyperparameters, base_sha256)
    optimizer = make_optimizer(parameter_groups(injected, hyperparameters), hyperparameters, device)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(hyperparameters, steps))
    identity = Identity(hyperparameters, base_sha256, file_sha256(Path(spec.manifest_file)))
    keepsakes = Keepsakes(len(examples.training))
    resizing = Resizing(injected.model, optimizer, hyperparameters, injected.alphas)
    checkpoints = Checkpoints(
        output, injected, optimizer, scheduler, exporter, series, identity, keepsakes, resizing, world
    )
    economy = Economy(
        gradient_checkpointing=hyperparameters.gradient_checkpointing,
        loss_chunk=hyperparameters.loss_chunk_tokens,
    )
    state = TrainingState(0, Cursor(), None, None, 0.0, economy=economy)
    if not world.first:  # whose random numbers are those of a training by itself
        sow(hyperparameters.seed, 0, world)
    if spec.resume is not None:
        state = checkpoints.restore(Path(spec.resume.folder), spec.resume.step)
        if (elsewhere := checkpoints.elsewhere(Path(spec.resume.folder))) is not None:
            emit(elsewhere)
        if (before := checkpoints.processes_of(Path(spec.resume.folder))) != world.size:
            sow(hyperparameters.seed, state.step, world)
            emit(other_processes(before, world.size))
    runner = Runner(injected.model, base, hyperparameters.loss_chunk_tokens)
    lengths = [tokens[example.where].whole for example in examples.training]
    plan = planned(hyperparameters, lengths)
    forecast = Forecast.of(
        base,
        hyperparameters,
        plan,
        steps,
        data_rows(examples.training, tokens, manifest, base.vision, sampling),
        frame_bytes=kept_frame_bytes(manifest, base.vision, sampling),
        trainable=injected.trainable_parameters if rounds is None else None,  # it will grow
        decoders=decoders.count if manifest.clips else 0,
    )
    scarce = forecast.check(spec.memory_bytes)
    emit(
        TrainingBegan(
            family=base.family.name,
            quantized_linear_layers=sum(1 for _ in base.linear_layers()),
            start_step=state.step,
            total_steps=steps,
            trainable_parameters=injected.trainable_parameters,
            total_parameters=base.parameters + injected.trainable_parameters,
            training_examples=len(examples.training),
            held_out_examples=len(examples.held_out),
            device=device_name(device),
            preflight=forecast.preflight,
        )
    )
    for caution in cautions(examples, evaluated, tokens, hyperparameters):
        emit(caution)
    if scarce is not None:
        emit(scarce)
    if world.size > 1 and (idle := idle_processes(hyperparameters, world.size)) is not None:
        emit(idle)
    if (unpaged := not_paged(hyperparameters, device)) is not None:
        emit(Logged(level="warning", code="not_paged", message=unpaged))
    if rounds is None and hyperparameters.rank_allocation is not None:
        emit(Logged(level="warning", code="rank_not_allocated", message=not_planned(steps, len(evaluated))))
    loop = Loop(
        runner=runner,
        injected=injected,
        collator=collator,
        examples=examples.training,
        plan=plan,
        lengths=lengths,
        hyperparameters=hyperparameters,
        optimizer=optimizer,
        scheduler=scheduler,
        evaluator=Evaluator(
            runner,
            collator,
            evaluated,
            hyperparameters.micro_batch_size or hyperparameters.batch_size,
            hyperparameters.max_new_tokens,
            world,
        ),
        checkpoints=checkpoints,
        keepsakes=keepsakes,
        ranks=None if rounds is None else rank_phase(injected.parts, resizing, rounds, keepsakes, world),
        steps=steps,
        state=state,
        emit=emit,
        stop=stop,
        series=series,
        frames=frames,
        world=world,
    )
    return _Attempt(spec, loop, exporter, frames, state.step)


def _frame_cache(spec: TrainingSpec) -> FrameCache | None:
    if spec.frame_cache_folder is None:
        return None
    return FrameCache(Path(spec.frame_cache_folder), spec.frame_cache_bytes)


def read_manifest(file: Path) -> Manifest:
    """
    Raises:
        DatasetError: the manifest is missing or not a manifest, or it has no example.
    """
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise DatasetError(
            f"{file.name} is not a dataset manifest ({error}); validate the dataset again"
        ) from error
    if not manifest.examples:
        raise DatasetError(f"{file.name} names no example; add rows to the captions file")
    return manifest


def _set_threads(limit: int | None, parameters: int, processes: int) -> None:
    """All cores or as many as allowed, but one for a tiny model, whose threads would only wait."""
    if parameters < TINY:
        torch.set_num_threads(1)
    elif limit is not None or processes > 1:
        torch.set_num_threads(max(1, (limit or torch.get_num_threads()) // processes))
