"""Validating a dataset or a model as work of an agent: hostile files are opened in its engine."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from qlora_engine.updates import DatasetVerdict, Logged, ModelVerdict, Update
from schemas.datasets import DatasetFacts, Problem
from schemas.objects import Listing, content_sha256
from schemas.training import DatasetValidationSpec, EngineSpec, ModelValidationSpec
from schemas.work import DatasetAssignment, DatasetJudged, ModelAssignment, ModelJudged, Released
from trainer_agent.artifacts import Artifacts
from trainer_agent.attempt import Ending
from trainer_agent.folders import AttemptFolder
from trainer_agent.orders import Order
from trainer_agent.staging import Staging

log = structlog.get_logger()

_MOST_PROBLEMS = 100
_LONGEST_PROBLEM = 1000
_PROBLEM_BYTES = 200 * 1024
"""Below what a report may hold; a character takes up to six bytes of JSON."""


class _Validation:
    """What both have in common: nothing to save in the middle, nothing beside the engine."""

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        yield

    def can_save(self) -> bool:
        return False

    async def salvage(self, ending: Ending) -> None:
        return

    def stopped(self) -> Ending:
        return (Released(reason="the validation was stopped"),)


class DatasetValidation(_Validation):
    """Implements `attempt.Work`."""

    def __init__(
        self, assignment: DatasetAssignment, *, folder: AttemptFolder, staging: Staging, artifacts: Artifacts
    ) -> None:
        self._assignment = assignment
        self._folder = folder
        self._staging = staging
        self._artifacts = artifacts
        self._verdict: DatasetVerdict | None = None

    async def stage(self) -> EngineSpec:
        listing_file = self._folder.path / "listing.json"
        listing = await self._staging.listing(self._assignment.listing, listing_file)
        await self._staging.files(listing.files, self._folder.dataset)
        return DatasetValidationSpec(
            dataset_folder=str(self._folder.dataset), output_folder=str(self._folder.output)
        )

    async def follow(self, update: Update) -> bool:
        if isinstance(update, DatasetVerdict):
            self._verdict = update
            return True
        _note(update)
        return False

    def is_finished(self) -> bool:
        return self._verdict is not None

    async def conclude(self, order: Order) -> Ending:
        verdict = self._verdict
        assert verdict is not None  # noqa: S101 - it was the engine's last word
        problems = _bounded(verdict.problems)
        if problems or verdict.facts is None or verdict.manifest_file is None:
            return (DatasetJudged(problems=problems),)
        file = self._folder.made_by_engine(verdict.manifest_file)
        (manifest,) = await self._artifacts.store([file], file.parent, "validation")
        return (DatasetJudged(facts=_bounded_facts(verdict.facts), manifest=manifest),)


class ModelValidation(_Validation):
    """Implements `attempt.Work`."""

    def __init__(self, assignment: ModelAssignment, *, folder: AttemptFolder, staging: Staging) -> None:
        self._assignment = assignment
        self._folder = folder
        self._staging = staging
        self._listing = Listing(files=())
        self._verdict: ModelVerdict | None = None

    async def stage(self) -> EngineSpec:
        listing_file = self._folder.path / "listing.json"
        self._listing = await self._staging.listing(self._assignment.listing, listing_file)
        await self._staging.files(self._listing.files, self._folder.model)
        return ModelValidationSpec(model_folder=str(self._folder.model))

    async def follow(self, update: Update) -> bool:
        if isinstance(update, ModelVerdict):
            self._verdict = update
            return True
        _note(update)
        return False

    def is_finished(self) -> bool:
        return self._verdict is not None

    async def conclude(self, order: Order) -> Ending:
        verdict = self._verdict
        assert verdict is not None  # noqa: S101 - it was the engine's last word
        problems = _bounded(verdict.problems)
        if problems or verdict.facts is None:
            return (ModelJudged(problems=problems),)
        return (ModelJudged(facts=verdict.facts, content_sha256=content_sha256(self._listing.files)),)


def _note(update: Update) -> None:
    if isinstance(update, Logged):
        log.info("engine_log", level_of_engine=update.level, code=update.code, message=update.message)


def _bounded(problems: Sequence[Problem], room: int = _PROBLEM_BYTES) -> tuple[Problem, ...]:
    """As many and as long as an event takes."""
    kept: list[Problem] = []
    for problem in problems[:_MOST_PROBLEMS]:
        short = problem.model_copy(
            update={"message": problem.message[:_LONGEST_PROBLEM], "where": problem.where[:_LONGEST_PROBLEM]}
        )
        room -= len(short.model_dump_json().encode())
        if room < 0:
            break
        kept.append(short)
    return tuple(kept)


def _bounded_facts(facts: DatasetFacts) -> DatasetFacts:
    half = _PROBLEM_BYTES // 2
    return facts.model_copy(
        update={"warnings": _bounded(facts.warnings, half), "refused": _bounded(facts.refused, half)}
    )
