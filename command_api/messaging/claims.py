"""Grants queued attempts: the answer comes after the commit, and a repeat is answered alike."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from command_api.domain.errors import Refused
from command_api.handlers.bus import CommandBus
from command_api.messaging.board import Agent, Item
from command_api.messaging.follower import Follower
from command_api.messaging.identity import agent_context, find_item, identify
from command_api.messaging.leases import Held, Leases
from command_api.tracing import continued, traceparent_of
from schemas.commands import Command
from schemas.commands.dataset import ClaimDatasetValidation
from schemas.commands.job import ClaimJob
from schemas.commands.model import ClaimModelValidation
from schemas.errors import KinoraError
from schemas.ids import Prefix, id_prefix
from schemas.objects import log_prefix
from schemas.work import (
    Assignment,
    ClaimReply,
    ClaimRequest,
    DatasetAssignment,
    ModelAssignment,
    TrainAssignment,
    log_fields,
)

logger = logging.getLogger(__name__)
_tracer = trace.get_tracer(__name__)


@dataclass(frozen=True)
class Claims:
    """Answers `kinora.claim.<organization>.<agent>`."""

    follower: Follower
    bus: CommandBus
    leases: Leases
    clock: Callable[[], float]

    async def claim(
        self, organization_id: str, agent_id: str, request: ClaimRequest, traceparent: str | None
    ) -> ClaimReply:
        """``granted`` once the claim is committed; ``later`` only when nobody could decide it."""
        attributes = {**log_fields(request.item_id, request.attempt), "agent_id": agent_id}
        with (
            structlog.contextvars.bound_contextvars(organization_id=organization_id, **attributes),
            _tracer.start_as_current_span(
                "claim",
                continued(traceparent),
                SpanKind.SERVER,
                {f"kinora.{name}": value for name, value in attributes.items()},
            ) as span,
        ):
            reply = await self._answer(
                organization_id, agent_id, request, traceparent_of(span) or traceparent
            )
            span.set_attribute("kinora.outcome", reply.outcome)
            return reply

    async def _answer(
        self, organization_id: str, agent_id: str, request: ClaimRequest, traceparent: str | None
    ) -> ClaimReply:
        try:
            return await self._decide(organization_id, agent_id, request, traceparent)
        except Refused as error:
            return _gone(error.message)
        except KinoraError as error:
            logger.warning("claim of %s by %s: %s", request.item_id, agent_id, error)
            return ClaimReply(outcome="later", detail=error.message)

    async def _decide(
        self, organization_id: str, agent_id: str, request: ClaimRequest, traceparent: str | None
    ) -> ClaimReply:
        agent = await identify(self.follower, organization_id, agent_id)
        if agent is None:
            return _gone("you are not enrolled in this organization")
        item = await find_item(self.follower, agent, request.item_id)
        if item is None or not _may_take(agent, item):
            return _gone(f"{request.item_id} is not for you")
        held = Held(item.item_id, request.attempt, agent_id)
        context = agent_context(agent, item, f"claim:{item.item_id}:{request.attempt}", traceparent)
        outcome = await self.bus.execute(_command(held), context)
        await self.follower.reach(outcome.position)
        taken = self.follower.board.holds(held)
        if taken is None:
            return _gone("it was taken back meanwhile")
        self.leases.heard(agent_id, held, self.clock())
        return ClaimReply(
            outcome="granted",
            assignment=assignment(taken),
            lease_seconds=self.leases.period,
            log_output_prefix=log_prefix(item.organization_id, item.item_id, held.attempt),
            traceparent=traceparent or taken.traceparent,
        )


def assignment(item: Item) -> Assignment:
    """All that the holder of an item has to know; the same every time for one attempt."""
    if item.request is None:
        if item.listing is None:
            raise KinoraError(f"{item.item_id} is held but was never declared", code="impossible_history")
        if id_prefix(item.item_id) is Prefix.DATASET:
            return DatasetAssignment(listing=item.listing)
        return ModelAssignment(listing=item.listing)
    request, resume = item.request, item.resume
    return TrainAssignment(
        dataset_id=request.dataset_id,
        model_id=request.model_id,
        model_listing=request.model.listing,
        dataset_listing=request.dataset.listing,
        manifest=request.manifest,
        hyperparameters=request.hyperparameters,
        total_steps=item.plan.total_steps if item.plan is not None else 1,
        resume_step=resume.step if resume is not None else 0,
        resume_objects=resume.objects if resume is not None else (),
    )


def _command(held: Held) -> Command:
    match id_prefix(held.item_id):
        case Prefix.DATASET:
            return ClaimDatasetValidation(
                dataset_id=held.item_id, agent_id=held.agent_id, attempt=held.attempt
            )
        case Prefix.MODEL:
            return ClaimModelValidation(model_id=held.item_id, agent_id=held.agent_id, attempt=held.attempt)
        case _:
            return ClaimJob(job_id=held.item_id, agent_id=held.agent_id, attempt=held.attempt)


def _may_take(agent: Agent, item: Item) -> bool:
    if item.request is None or item.request.pool == agent.pool:
        return True
    logger.warning("agent %s of pool %s asked for %s; refused", agent.agent_id, agent.pool, item.item_id)
    return False


def _gone(detail: str) -> ClaimReply:
    return ClaimReply(outcome="gone", detail=detail)
