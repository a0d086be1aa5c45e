"""Admits or refuses requested jobs. Driven by what the board shows, so a restart only looks again."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence

from botocore.exceptions import BotoCoreError

from command_api.domain.errors import Refused
from command_api.domain.plan import facts_of, fits, foreseen, plan_training, too_large
from command_api.eventlog.recorder import SideRow
from command_api.handlers.base import Context
from command_api.handlers.bus import Answer, CommandBus
from command_api.manifests import read_manifest
from command_api.messaging.board import Item
from command_api.messaging.follower import Follower
from command_api.messaging.identity import item_context
from command_api.objects import ObjectStore
from schemas.commands import Command
from schemas.commands.job import AdmitJob, RefuseJob, ValidateJob
from schemas.datasets import DatasetFacts
from schemas.errors import KinoraError
from schemas.events.job import JobRequested
from schemas.objects import StoredObject

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
AT_ONCE = 64
"""Jobs that are decided in one commit."""
KNOWN_MANIFESTS = 64
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
        self._known: OrderedDict[str, DatasetFacts] = OrderedDict()
        """What sound manifests say, by their hash: most jobs use a dataset that another one just did."""

    async def run(self) -> None:
        """Decide until cancelled."""
        while True:
            self._changed.clear()
            undecided, settled = self._follower.board.undecided(), True
            for start in range(0, len(undecided), AT_ONCE):
                # All of them, so that jobs that fail time and again hold up no later ones.
                settled &= await self._decide_together(undecided[start : start + AT_ONCE])
            try:
                async with asyncio.timeout(None if settled else RETRY_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _decide_together(self, items: Sequence[Item]) -> bool:
        """Carry out what follows for these jobs in one commit; false when some have to be tried again."""
        settled = True
        requests: list[tuple[Command, Context, Sequence[SideRow]]] = []
        for item in items:
            try:
                requests += await self._commands(item)
            except (KinoraError, BotoCoreError) as error:
                settled = False
                logger.warning("admission of %s: %s; trying again", item.item_id, error)
            except Exception:  # the policy's door: one job must not end the whole orchestrator
                settled = False
                logger.exception("admission of %s failed and is tried again", item.item_id)
        try:
            answers = await self._bus.execute_batch(requests)
            for (command, _, _), answer in zip(requests, answers, strict=True):
                settled &= _taken(command, answer)
            await self._follower.catch_up()
        except KinoraError as error:
            logger.warning("admission: %s; trying again", error)
            return False
        return settled

    async def _commands(self, item: Item) -> list[tuple[Command, Context, Sequence[SideRow]]]:
        if item.request is None:
            return []
        job_id = item.item_id
        verdict = await self._verdict(item, item.request)
        commands: list[tuple[str, Command]] = []
        if item.phase == "requested":
            commands.append(("validate", ValidateJob(job_id=job_id)))
        commands.append(("admit" if isinstance(verdict, AdmitJob) else "refuse", verdict))
        return [
            (command, item_context("policy", item, f"policy:{name}:{job_id}"), ())
            for name, command in commands
        ]

    async def _verdict(self, item: Item, request: JobRequested) -> AdmitJob | RefuseJob:
        job_id = item.item_id
        facts = await self._dataset(request.manifest)
        if isinstance(facts, str):
            return RefuseJob(
                job_id=job_id,
                code="invalid_dataset",
                message=f"the dataset cannot be trained on: {facts}; register it again and request the job"
                " anew",
            )
        plan = plan_training(facts, request.hyperparameters)
        nodes = self._follower.board.nodes(item.organization_id, request.pool)
        preflight = foreseen(request, facts, plan, nodes)
        if preflight is not None and not any(fits(preflight, node) for node in nodes):
            return RefuseJob(job_id=job_id, code="does_not_fit", message=too_large(preflight, nodes))
        return AdmitJob(
            job_id=job_id,
            total_steps=plan.total_steps,
            training_examples=plan.training_examples,
            held_out_examples=plan.held_out_examples,
            epochs=plan.epochs,
            preflight=preflight,
        )

    async def _dataset(self, manifest: StoredObject) -> DatasetFacts | str:
        """What the manifest says, or why it cannot be used."""
        if (known := self._known.get(manifest.sha256)) is not None:
            self._known.move_to_end(manifest.sha256)
            return known
        read = await read_manifest(self._store, manifest)
        if isinstance(read, str):
            return read
        found = await asyncio.to_thread(facts_of, read)
        self._known[manifest.sha256] = found
        if len(self._known) > KNOWN_MANIFESTS:
            self._known.popitem(last=False)
        return found


def _taken(command: Command, answer: Answer) -> bool:
    """Whether the command is settled, one way or the other."""
    match answer:
        case Refused():
            # Stopped meanwhile, for instance; the board will say so.
            logger.info("admission: %s: %s", command.TYPE, answer)
            return True
        case KinoraError():
            logger.warning("admission: %s: %s; trying again", command.TYPE, answer)
            return False
        case Exception():
            logger.error("admission: %s failed and is tried again", command.TYPE, exc_info=answer)
            return False
        case _:
            return True
