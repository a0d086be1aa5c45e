"""Admits or refuses requested jobs. Driven by what the board shows, so a restart only looks again."""

import asyncio
import hashlib
import logging

from pydantic import ValidationError

from command_api.domain.errors import Refused
from command_api.domain.plan import plan_training
from command_api.handlers.bus import CommandBus
from command_api.messaging.board import Item
from command_api.messaging.follower import Follower
from command_api.messaging.identity import item_context
from command_api.objects import ObjectMissing, ObjectStore
from schemas.commands import Command
from schemas.commands.job import AdmitJob, RefuseJob, ValidateJob
from schemas.datasets import DatasetFacts, Manifest
from schemas.errors import KinoraError
from schemas.events.job import JobRequested

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
MAX_MANIFEST_BYTES = 64 * 2**20
"""Far more than any dataset needs. Agents write manifests, and this process reads them."""


class Admission:
    """The policy JobRequested → ValidateJob → AdmitJob or RefuseJob.

    Its idempotency keys derive from the job, so deciding twice, or in two processes, happens once.
    """

    def __init__(self, follower: Follower, bus: CommandBus, store: ObjectStore) -> None:
        self._follower = follower
        self._bus = bus
        self._store = store
        self._changed = follower.changed()

    async def run(self) -> None:
        """Decide until cancelled."""
        while True:
            self._changed.clear()
            failed = False
            for item in self._follower.board.undecided():
                try:
                    await self._decide(item)
                except KinoraError as error:
                    failed = True
                    logger.warning("admission of %s: %s; trying again", item.item_id, error)
                except Exception:  # the policy's door: one job must not end the whole orchestrator
                    failed = True
                    logger.exception("admission of %s failed and is tried again", item.item_id)
            try:
                async with asyncio.timeout(RETRY_SECONDS if failed else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _decide(self, item: Item) -> None:
        if item.request is None:
            return
        job_id = item.item_id
        if item.phase == "requested":
            await self._carry_out(item, "validate", ValidateJob(job_id=job_id))
        verdict = await self._verdict(job_id, item.request)
        name = "admit" if isinstance(verdict, AdmitJob) else "refuse"
        await self._carry_out(item, name, verdict)

    async def _carry_out(self, item: Item, name: str, command: Command) -> None:
        try:
            outcome = await self._bus.execute(
                command, item_context("policy", item, f"policy:{name}:{item.item_id}")
            )
        except Refused as error:
            # Stopped meanwhile, for instance; the board will say so.
            logger.info("admission of %s: %s", item.item_id, error)
            await self._follower.catch_up()
            return
        await self._follower.reach(outcome.position)

    async def _verdict(self, job_id: str, request: JobRequested) -> AdmitJob | RefuseJob:
        key = request.manifest.key
        if request.manifest.size_bytes > MAX_MANIFEST_BYTES:
            return _invalid_dataset(job_id, f"its manifest {key} is larger than {MAX_MANIFEST_BYTES} bytes")
        try:
            body = await self._store.get_bytes(key, limit=MAX_MANIFEST_BYTES)
        except ObjectMissing:
            return _invalid_dataset(job_id, f"its manifest {key} is not in the store")
        # Off the loop, which answers heartbeats meanwhile.
        return await asyncio.to_thread(_judge, job_id, request, body)


def _judge(job_id: str, request: JobRequested, body: bytes) -> AdmitJob | RefuseJob:
    """Plan the job from its dataset's manifest, which an agent wrote and nobody has checked yet."""
    if hashlib.sha256(body).hexdigest() != request.manifest.sha256:
        return _invalid_dataset(job_id, f"its manifest {request.manifest.key} is not what was validated")
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        return _invalid_dataset(job_id, f"its manifest cannot be read: {error.error_count()} problems")
    if not manifest.clips or not manifest.examples:
        return _invalid_dataset(job_id, "it has no clips or no examples")
    plan = plan_training(_facts(manifest), request.hyperparameters)
    return AdmitJob(
        job_id=job_id,
        total_steps=plan.total_steps,
        training_examples=plan.training_examples,
        held_out_examples=plan.held_out_examples,
        epochs=plan.epochs,
    )


def _facts(manifest: Manifest) -> DatasetFacts:
    return DatasetFacts(
        clips=len(manifest.clips),
        examples=len(manifest.examples),
        frames=sum(clip.frames for clip in manifest.clips),
        duration_seconds=sum(clip.duration_seconds for clip in manifest.clips),
        size_bytes=sum(clip.size_bytes for clip in manifest.clips),
        smallest_clip_frames=min(clip.frames for clip in manifest.clips),
    )


def _invalid_dataset(job_id: str, why: str) -> RefuseJob:
    return RefuseJob(
        job_id=job_id,
        code="invalid_dataset",
        message=f"the dataset cannot be trained on: {why}; register it again and request the job anew",
    )
