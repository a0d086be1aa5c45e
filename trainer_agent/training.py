"""A training as work of an agent: what it stages, which reports tell of it, and what it leaves behind."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from pydantic import ValidationError

from qlora_engine.updates import (
    Calibrated,
    CheckpointWritten,
    EvaluationDone,
    Logged,
    OomRecovered,
    Preparing,
    RankChanged,
    StepTaken,
    TrainingBegan,
    TrainingDone,
    TrainingStopped,
    Update,
)
from schemas.datasets import Manifest
from schemas.events.job import ProgressPoint
from schemas.subjects import telemetry_subject
from schemas.training import CHECKPOINT_UNUSABLE, EngineSpec, ResumePoint, TrainingSpec
from schemas.work import (
    AdapterUploaded,
    Evaluated,
    Finished,
    HeldItem,
    Progressed,
    Released,
    Reranked,
    Started,
    Stopped,
    TelemetryLine,
    TrainAssignment,
    Warned,
)
from trainer_agent import story
from trainer_agent.artifacts import Artifacts, CheckpointUploads
from trainer_agent.attempt import Ending
from trainer_agent.connection import Connection
from trainer_agent.errors import EngineDied, InputUnreadable
from trainer_agent.folders import AttemptFolder
from trainer_agent.log_segments import LogSegments
from trainer_agent.metrics import STEP_SECONDS, TRAINED_TOKENS
from trainer_agent.orders import Order
from trainer_agent.progress import ProgressReports
from trainer_agent.reporter import Reporter
from trainer_agent.settings import AgentSettings
from trainer_agent.staging import Staging
from trainer_agent.story import Line
from trainer_agent.waiting import running

log = structlog.get_logger()

_WARNINGS_PER_CODE = 20
"""A warning at each step is one fact, not a thousand events; the log has them all."""
_LONGEST_WARNING = 1000


class Training:
    """Implements `attempt.Work`."""

    def __init__(
        self,
        assignment: TrainAssignment,
        held: HeldItem,
        *,
        settings: AgentSettings,
        memory_bytes: int,
        connection: Connection,
        folder: AttemptFolder,
        staging: Staging,
        artifacts: Artifacts,
        reporter: Reporter,
    ) -> None:
        self._assignment = assignment
        self._held = held
        self._settings = settings
        self._memory_bytes = memory_bytes
        self._connection = connection
        self._telemetry_subject = telemetry_subject(settings.organization_id, held.item_id)
        self._folder = folder
        self._staging = staging
        self._artifacts = artifacts
        self._reporter = reporter
        self._progress = ProgressReports()
        self._log = LogSegments(artifacts, reporter, folder.segments, folder.log_file, self._show_lines)
        self._checkpoints = CheckpointUploads(artifacts, reporter, folder.path / "checkpoints", self._log.add)
        self._warned: Counter[str] = Counter()
        self._began = False
        self._step = assignment.resume_step
        self._end: TrainingDone | TrainingStopped | None = None

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        async with self._checkpoints, running(self._log.run()):
            yield

    async def stage(self) -> EngineSpec:
        began = (
            f"Attempt {self._held.attempt} on agent {self._settings.name}: fetching the model and the clips"
        )
        await self._log.add(Line("info", "staging", began))
        model = await self._staging.listing(self._assignment.model_listing, self._folder.path / "model.json")
        await self._staging.files(model.files, self._folder.model)
        await self._stage_dataset()
        return TrainingSpec(
            job_id=self._held.item_id,
            dataset_id=self._assignment.dataset_id,
            model_id=self._assignment.model_id,
            attempt=self._held.attempt,
            hyperparameters=self._assignment.hyperparameters,
            model_folder=str(self._folder.model),
            dataset_folder=str(self._folder.dataset),
            manifest_file=str(self._folder.manifest),
            output_folder=str(self._folder.output),
            frame_cache_folder=str(self._settings.work_folder / "frames"),
            frame_cache_bytes=self._settings.frame_cache_bytes,
            resume=await self._stage_resume(),
            threads=self._settings.engine_threads,
            processes=self._settings.engine_processes,
            memory_bytes=self._memory_bytes,
        )

    async def _stage_dataset(self) -> None:
        """Only the clips that the manifest names: what else was uploaded is of no use to a training."""
        stored = self._assignment.manifest
        await self._staging.objects([stored], {stored.path: self._folder.manifest})
        listing_file = self._folder.path / "dataset.json"
        listing = await self._staging.listing(self._assignment.dataset_listing, listing_file)
        try:
            text = await asyncio.to_thread(self._folder.manifest.read_bytes)
            clips = {(clip.path, clip.sha256) for clip in Manifest.model_validate_json(text).clips}
        except ValidationError as error:
            raise InputUnreadable(f"{stored.key} is no manifest: {error}", retryable=False) from error
        files = [file for file in listing.files if (file.path, file.sha256) in clips]
        if missing := clips - {(file.path, file.sha256) for file in files}:
            path, sha256 = min(missing)
            raise InputUnreadable(
                f"the manifest names {path} with sha256 {sha256} and the dataset lists no such file;"
                " validate the dataset again",
                retryable=False,
            )
        await self._staging.files(files, self._folder.dataset)

    async def _stage_resume(self) -> ResumePoint | None:
        objects = self._assignment.resume_objects
        if not objects:
            return None
        folder = self._folder.resume
        try:
            await self._staging.objects(objects, {stored.path: folder / stored.path for stored in objects})
        except InputUnreadable as error:
            if error.retryable:
                raise
            raise InputUnreadable(
                f"the checkpoint of step {self._assignment.resume_step} is lost: {error.message}",
                code=CHECKPOINT_UNUSABLE,
            ) from error
        return ResumePoint(step=self._assignment.resume_step, folder=str(folder))

    async def follow(self, update: Update) -> bool:
        match update:
            case StepTaken():
                await self._take_step(update)
            case Logged():
                await self._take_line(update)
            case _:
                await self._tell_progress(self._progress.flush())
                for line in story.of_update(update):
                    await self._log.add(line)
                await self._take_milestone(update)
        return self._end is not None

    async def _take_step(self, update: StepTaken) -> None:
        self._step = update.point.step
        STEP_SECONDS.observe(update.point.step_seconds)
        TRAINED_TOKENS.inc(update.point.tokens)
        await self._tell(points=(update.point,))
        await self._tell_progress(self._progress.add(update, asyncio.get_running_loop().time()))

    async def _tell_progress(self, progressed: Progressed | None) -> None:
        if progressed is not None:
            await self._reporter.report(progressed)
            await self._log.add(story.of_progress(progressed))

    async def _take_line(self, update: Logged) -> None:
        await self._log.add(Line(update.level, update.code, update.message, source="engine"))
        if update.level != "info":
            await self._warn(update.code, update.message)

    async def _warn(self, code: str, message: str) -> None:
        if self._warned[code] < _WARNINGS_PER_CODE:
            self._warned[code] += 1
            await self._reporter.report(Warned(code=code, message=message[:_LONGEST_WARNING]))

    async def _take_milestone(self, update: Update) -> None:
        match update:
            case Preparing():
                await self._tell(phase=update.phase)
            case TrainingBegan():
                self._began = True
                self._step = update.start_step
                known_to_the_job = set(Started.model_fields) - {"kind"}
                await self._reporter.report(Started(**update.model_dump(include=known_to_the_job)))
            case Calibrated():
                self._progress.expect(update.preflight)
            case EvaluationDone():
                await self._reporter.report(Evaluated(**dict(update) | {"kind": "evaluated"}))
            case OomRecovered():
                for line in story.of_update(update):
                    await self._warn(line.code, line.message)
            case RankChanged():
                await self._reporter.report(Reranked(**update.model_dump(exclude={"kind"})))
            case CheckpointWritten():
                await self._checkpoints.add(update.step, self._folder.made_by_engine(update.folder))
            case TrainingDone():
                self._step = update.steps
                await self._reporter.report(
                    Finished(
                        steps=update.steps,
                        loss_first=update.loss_first,
                        loss_last=update.loss_last,
                        seconds=update.seconds,
                        stopped_early=update.stopped_early,
                        adapter_step=update.adapter_step,
                    )
                )
                self._end = update
            case TrainingStopped():
                self._step = update.step
                self._end = update
            case _:
                log.warning("engine_update_out_of_place", kind=update.kind)

    def can_save(self) -> bool:
        return self._began

    def is_finished(self) -> bool:
        return isinstance(self._end, TrainingDone)

    async def conclude(self, order: Order) -> Ending:
        await self._checkpoints.stored()
        if isinstance(self._end, TrainingDone):
            return await self._close_log(await self._store_adapter(self._end, partial=False))
        stopped = self._end
        assert stopped is not None  # noqa: S101 - the engine's last word was one of the two
        if order is Order.CARRY_ON:
            raise EngineDied("the engine stopped without being asked to", code="engine_stopped")
        if order is Order.SHUT_DOWN:
            return await self._close_log((Released(reason="the agent is shutting down"),))
        adapter = await self._store_adapter(stopped, partial=True)
        return await self._close_log((*adapter, Stopped(step=stopped.step)))

    async def salvage(self, ending: Ending) -> None:
        await self._checkpoints.stored()
        await self._close_log(ending)

    def stopped(self) -> Ending:
        return (Stopped(step=self._step),)

    async def _store_adapter(self, done: TrainingDone | TrainingStopped, *, partial: bool) -> Ending:
        if done.adapter_folder is None or done.facts is None:
            return ()
        folder = self._folder.made_by_engine(done.adapter_folder)
        objects = await self._artifacts.store_folder(folder, "adapter")
        return (AdapterUploaded(objects=objects, facts=done.facts, partial=partial),)

    async def _close_log(self, ending: Ending) -> Ending:
        """Store the log, whose last lines say how the attempt ends."""
        for body in ending:
            for line in story.of_report(body):
                await self._log.add(line)
        await self._log.finish()
        series = self._folder.output / "series.jsonl"
        if self._end is not None:
            series = self._folder.made_by_engine(self._end.series_file)
        if series.is_file():
            await self._log.store_series(series)
        return ending

    async def _show_lines(self, lines: tuple[str, ...]) -> None:
        await self._tell(lines=lines)

    async def _tell(
        self,
        *,
        points: tuple[ProgressPoint, ...] = (),
        lines: tuple[str, ...] = (),
        phase: str | None = None,
    ) -> None:
        line = TelemetryLine(
            job_id=self._held.item_id, attempt=self._held.attempt, points=points, log=lines, phase=phase
        )
        await self._connection.publish(self._telemetry_subject, line)
