"""One training attempt from its spec to an adapter: the order of the parts, and nothing else."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError

from qlora_engine.data.batches import planned
from qlora_engine.data.decoders import Decoders
from qlora_engine.data.frames import Frames
from qlora_engine.device import best_device
from qlora_engine.errors import DatasetError
from qlora_engine.fingerprints import file_sha256, folder_sha256
from qlora_engine.memory import held_memory_bytes
from qlora_engine.models.loading import load_model
from qlora_engine.models.quantization import Quantization
from qlora_engine.spans import span
from qlora_engine.stopping import Mode, StopWish
from qlora_engine.training import preparation
from qlora_engine.training.calibration import Calibration
from qlora_engine.training.checkpoints import Checkpoints, Identity
from qlora_engine.training.distributed import ALONE, World
from qlora_engine.training.evaluation import Answer, Evaluator, Phase
from qlora_engine.training.export import Exporter, write_answers
from qlora_engine.training.forward import Runner
from qlora_engine.training.keepsakes import Keepsakes
from qlora_engine.training.loop import Emit, Loop
from qlora_engine.training.merged_export import check_room_for_merged, with_merged
from qlora_engine.training.record import Record, Warnings, base_model, trained_on
from qlora_engine.updates import Preparing, TrainingDone, TrainingStopped
from schemas.datasets import Manifest
from schemas.events.job import Evaluation
from schemas.training import TrainingSpec

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
    warnings = Warnings(emit)
    emit = warnings.heard
    with Decoders() as decoders:
        with span(emit, "prepare"):
            attempt = _prepare(spec, warnings, stop, device or best_device(), decoders, world)
        with attempt.frames:
            last_word = _run(attempt, emit)
        device, architecture = attempt.exporter.base.device, attempt.record.base_model["architecture"]
        del attempt  # the model's memory is needed
    if isinstance(last_word, TrainingDone) and spec.hyperparameters.export == "merged" and world.first:
        last_word = with_merged(last_word, spec, architecture, device, emit, stop)
    emit(last_word)


def _run(attempt: "_Attempt", emit: Emit) -> TrainingDone | TrainingStopped:
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
    return attempt.finish() if mode is None else attempt.give_up(mode == "graceful")


@dataclass
class _Attempt:
    spec: TrainingSpec
    loop: Loop
    exporter: Exporter
    frames: Frames
    start_step: int
    record: Record
    measured: Evaluation | None = None
    """After the last step."""
    answers: tuple[Answer, ...] = ()
    """Of the last evaluation."""
    base_answers: tuple[Answer, ...] = ()
    """Of the evaluation before the first step; none where this attempt resumed."""

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
            if phase == "after":
                self.measured = measured.evaluation
            if phase == "before":
                self.base_answers = self.answers
                before = measured.evaluation.model_dump(mode="json")
                self.loop.state = replace(self.loop.state, before=before)

    def finish(self) -> TrainingDone:
        state = self.loop.state
        self.loop.emit(Preparing(phase="saving"))
        folder = self._folder()
        if self.loop.world.first:
            write_answers(folder, self.answers, self.base_answers)
            if (outliers := self.loop.keepsakes.write_outliers(folder, self.loop.examples)) is not None:
                self.loop.emit(outliers)
        self._write_adapter(folder)
        return TrainingDone(
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

    def give_up(self, graceful: bool) -> TrainingStopped:
        """A graceful stop keeps what was learnt, unless nothing was."""
        state, folder = self.loop.state, None
        if graceful and state.step > 0:
            self.loop.emit(Preparing(phase="saving"))
            if state.step > self.start_step and state.step % self.spec.hyperparameters.checkpoint_every_steps:
                self.loop.save()
            folder = self._write_adapter(self._folder())
        return TrainingStopped(
            step=state.step,
            adapter_folder=None if folder is None else str(folder),
            series_file=str(self.loop.series),
            facts=None if folder is None else self.exporter.facts(self._adapter_step),
        )

    def _folder(self) -> Path:
        folder = self._output / ADAPTER_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _write_adapter(self, folder: Path) -> Path:
        if self.loop.world.first:
            with span(self.loop.emit, "save adapter", step=self._adapter_step):
                run = self.record.described(
                    series=self.loop.series,
                    steps=self.loop.state.step,
                    before=self.loop.state.before,
                    after=self.measured,
                )
                self.exporter.write(folder, self._adapter_step, run)
        return folder

    @property
    def _adapter_step(self) -> int:
        """Steps that the adapter was trained for."""
        return self.loop.adapter_step or self.loop.state.step


def _prepare(
    spec: TrainingSpec,
    warnings: Warnings,
    stop: StopWish,
    device: torch.device,
    decoders: Decoders,
    world: World,
) -> _Attempt:
    """What can be refused without the model is looked at before it is loaded, which takes longest."""
    emit = warnings.heard
    baseline = held_memory_bytes(device)
    chosen = spec.hyperparameters
    series = _series(Path(spec.output_folder), world)
    manifest = read_manifest(Path(spec.manifest_file))
    emit(Preparing(phase="loading_data", total=len(manifest.clips)))
    data = preparation.data_of(spec, manifest)

    emit(Preparing(phase="loading_model"))
    with span(emit, "load model"):
        base = load_model(spec.model_folder, device, Quantization.chosen(chosen))
    if base.vision is not None and chosen.frame_pixels is not None:
        base = replace(base, vision=base.vision.within(chosen.frame_pixels))
    _set_threads(spec.threads, base.parameters, world.size)
    if chosen.export == "merged":
        check_room_for_merged(base, chosen.merged_dtype, Path(spec.output_folder))
    inputs = preparation.inputs_of(spec, data, base, decoders, emit)
    base_sha256 = world.once(lambda: folder_sha256(base.folder))
    learner = preparation.learner_of(chosen, data, base, device, emit)

    exporter = Exporter(base, learner.injected, chosen, base_sha256)
    keepsakes = Keepsakes(len(data.training))
    checkpoints = Checkpoints(
        Path(spec.output_folder),
        learner.injected,
        learner.optimizer,
        learner.scheduler,
        exporter,
        series,
        Identity(chosen, base_sha256, file_sha256(Path(spec.manifest_file))),
        keepsakes,
        learner.resizing,
        world,
    )
    state = preparation.beginning(spec, checkpoints, device, world, emit)
    plan = planned(chosen, inputs.lengths)
    forecast = preparation.forecast_of(chosen, data, inputs, base, learner, plan, decoders, world)
    scarce = forecast.check(spec.memory_bytes)
    emit(preparation.began(data, base, learner, state, forecast, device))
    for caution in preparation.cautions_of(chosen, data, inputs, learner, scarce, world, device):
        emit(caution)

    runner = Runner(learner.injected.model, base, chosen.loss_chunk_tokens)
    at_once = chosen.micro_batch_size or chosen.batch_size
    loop = Loop(
        runner=runner,
        injected=learner.injected,
        collator=inputs.collator,
        examples=data.training,
        plan=plan,
        lengths=inputs.lengths,
        hyperparameters=chosen,
        optimizer=learner.optimizer,
        scheduler=learner.scheduler,
        evaluator=Evaluator(runner, inputs.collator, data.evaluated, at_once, chosen.max_new_tokens, world),
        checkpoints=checkpoints,
        keepsakes=keepsakes,
        ranks=preparation.rank_phase_of(learner, keepsakes),
        steps=data.steps,
        state=state,
        emit=emit,
        stop=stop,
        series=series,
        frames=inputs.frames,
        world=world,
        calibration=Calibration(
            forecast.preflight,
            forecast.of_step,
            forecast.retimed,
            baseline,
            memory=learner.rounds is None,  # else adapters are small at first, and will grow
        ),
    )
    record = Record(
        job_id=spec.job_id,
        base_model=base_model(base, spec, base_sha256),
        data=trained_on(manifest, checkpoints.identity.manifest_sha256, spec, len(data.examples.held_out)),
        device=device,
        processes=world.size,
        warnings=warnings,
    )
    return _Attempt(spec, loop, exporter, inputs.frames, state.step, record)


def _series(output: Path, world: World) -> Path:
    """The file that steps are told in, empty; its folder is made."""
    output.mkdir(parents=True, exist_ok=True)
    series = output / SERIES_FILE
    if world.first:
        series.write_text("", "utf-8")
    return series


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
