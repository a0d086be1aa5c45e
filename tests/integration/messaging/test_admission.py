"""A requested job is planned from its dataset's manifest, or refused, whatever an agent wrote there."""

import hashlib

from command_api.handlers.base import Context
from schemas.commands.dataset import ClaimDatasetValidation
from schemas.commands.job import ReportAttempt
from schemas.datasets import Manifest
from schemas.events.job import JobFailed, JobPlanned
from schemas.ids import Prefix, new_id
from schemas.objects import StoredObject, validation_prefix
from schemas.work import DatasetJudged, WorkOffer
from tests.integration.messaging.world import FACTS, MANIFEST, Agent, World


async def judged_dataset(world: World, agent: Agent, content: bytes) -> str:
    """A ready dataset whose manifest is what the agent stored."""
    dataset_id = new_id(Prefix.DATASET)
    await world.upload_dataset(dataset_id)
    await world.ask(ClaimDatasetValidation(dataset_id=dataset_id, agent_id=agent.agent_id, attempt=1))
    key = f"{validation_prefix(world.organization_id, dataset_id, 1)}/manifest.json"
    await world.store.put_bytes(key, content)
    manifest = StoredObject(
        path="manifest.json",
        key=key,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    report = agent.number(
        WorkOffer(item_id=dataset_id, attempt=1), DatasetJudged(facts=FACTS, manifest=manifest)
    )
    request = new_id(Prefix.REQUEST)
    context = Context(
        actor=agent.agent_id,
        organization_id=world.organization_id,
        workspace_id=world.workspace_id,
        request_id=request,
        correlation_id=request,
        causation_id=request,
    )
    await world.bus.execute(ReportAttempt(agent_id=agent.agent_id, report=report), context)
    return dataset_id


async def refusal(world: World, agent: Agent, content: bytes) -> JobFailed:
    good, world.dataset_id = world.dataset_id, await judged_dataset(world, agent, content)
    failed = await world.event(await world.request_job(), JobFailed)
    assert isinstance(failed, JobFailed)
    assert failed.code == "invalid_dataset"
    # One hostile manifest is its own job's end and nobody else's.
    world.dataset_id = good
    await world.event(await world.request_job(), JobPlanned)
    return failed


async def test_a_manifest_with_examples_of_no_clip_refuses_its_job_only(world: World, agent: Agent) -> None:
    hostile = Manifest(clips=(), examples=MANIFEST.examples)
    assert "clip" in (await refusal(world, agent, hostile.model_dump_json().encode())).message


async def test_a_manifest_that_cannot_be_read_refuses_its_job_only(world: World, agent: Agent) -> None:
    assert "cannot be read" in (await refusal(world, agent, b"[]")).message
