"""What tests need to have happened first: uploads over HTTP, and the agent's side through the bus."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import httpx

from command_api.handlers.base import Context
from schemas import work
from schemas.commands import Command
from schemas.commands.dataset import ClaimDatasetValidation
from schemas.commands.job import AdmitJob, ClaimJob, ReportAttempt, ValidateJob
from schemas.commands.model import ClaimModelValidation
from schemas.datasets import DatasetFacts, Manifest, ModelFacts
from schemas.events.job import Evaluation, ProgressPoint
from schemas.footprint import ModelShape
from schemas.objects import StoredObject, adapter_prefix, checkpoint_prefix, log_prefix, validation_prefix
from schemas.training import AdapterFacts
from tests.integration.api.running import Person, Visit

Files = Mapping[str, bytes]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def declared(files: Files) -> list[dict[str, Any]]:
    """The files as a registration declares them."""
    return [
        {"path": path, "size_bytes": len(content), "sha256": sha256(content)}
        for path, content in files.items()
    ]


async def register(person: Person, kind: str, files: Files, name: str = "shapes") -> dict[str, Any]:
    answer = await person.post(f"/{kind}", {"name": name, "files": declared(files)})
    assert answer.status_code == 201, answer.text
    item: dict[str, Any] = answer.json()
    return item


async def open_session(person: Person, kind: str, item_id: str) -> dict[str, Any]:
    answer = await person.post(f"/{kind}/{item_id}/upload")
    assert answer.status_code == 200, answer.text
    session: dict[str, Any] = answer.json()
    return session


async def put_parts(session: dict[str, Any], contents: Sequence[bytes]) -> list[dict[str, Any]]:
    """Put every file of a session; returns what to complete it with."""
    by_hash = {sha256(content): content for content in contents}
    done = []
    async with httpx.AsyncClient(trust_env=False, timeout=30) as store:
        for file in session["files"]:
            content, start, parts = by_hash[file["sha256"]], 0, []
            for part in file["parts"]:
                block = content[start : start + part["size_bytes"]]
                answer = await store.put(part["url"], content=block)
                assert answer.status_code == 200, answer.text
                parts.append({"number": part["number"], "etag": answer.headers["etag"]})
                start += part["size_bytes"]
            done.append({"sha256": file["sha256"], "parts": parts})
    return done


async def complete(
    person: Person, kind: str, item_id: str, upload_id: str, files: list[dict[str, Any]]
) -> httpx.Response:
    return await person.post(f"/{kind}/{item_id}/upload/complete", {"upload_id": upload_id, "files": files})


async def uploaded(person: Person, kind: str, files: Files, name: str = "shapes") -> dict[str, Any]:
    """An item whose files are all in the store."""
    item = await register(person, kind, files, name)
    session = await open_session(person, kind, item["id"])
    done = await put_parts(session, list(files.values()))
    answer = await complete(person, kind, item["id"], session["upload_id"], done)
    assert (answer.status_code, answer.json()["status"]) == (202, "uploaded"), answer.text
    found: dict[str, Any] = answer.json()
    return found


@dataclass
class Agent:
    """The agent's side of an item: claims it and reports, as the inbox would hand it on."""

    visit: Visit
    person: Person
    agent_id: str
    sequence: int = 0

    @classmethod
    async def enrolled(cls, visit: Visit, person: Person) -> Self:
        answer = await person.post("/agents/enroll", {"name": "node"})
        assert answer.status_code == 201, answer.text
        return cls(visit, person, answer.json()["id"])

    async def execute(self, command: Command) -> int:
        context = Context.system(
            "test", organization_id=self.person.organization_id, workspace_id=self.person.workspace_id
        )
        return (await self.visit.service.parts.bus.execute(command, context)).position

    async def report(self, item_id: str, body: work.ReportBody, attempt: int = 1) -> int:
        self.sequence += 1
        report = work.Report(
            item_id=item_id,
            attempt=attempt,
            sequence=self.sequence,
            occurred_at=datetime.now(UTC),
            body=body,
        )
        return await self.execute(ReportAttempt(agent_id=self.agent_id, report=report))

    async def stored(self, prefix: str, files: Files) -> tuple[StoredObject, ...]:
        """Put files where the attempt may write, as an agent does with presigned URLs."""
        store = await self.visit.store()
        found = []
        for path, content in files.items():
            key = f"{prefix}/{path}"
            await store.put_bytes(key, content)
            found.append(StoredObject(path=path, key=key, size_bytes=len(content), sha256=sha256(content)))
        return tuple(found)


@dataclass(frozen=True)
class Inputs:
    """A dataset and a base model that jobs may use."""

    dataset_id: str
    dataset_upload_id: str
    model_id: str
    model_files: Files


async def ready_inputs(
    visit: Visit, person: Person, manifest: Manifest | None = None, shape: ModelShape | None = None
) -> Inputs:
    dataset = await uploaded(person, "datasets", {"captions.jsonl": b"{}", "a.mp4": b"clip"})
    model_files = {"config.json": b"{}", "model.safetensors": b"weights"}
    model = await uploaded(person, "models", model_files, "tiny")
    agent = await Agent.enrolled(visit, person)
    await judge_dataset(agent, dataset["id"], manifest)
    await agent.execute(ClaimModelValidation(model_id=model["id"], agent_id=agent.agent_id, attempt=1))
    facts = ModelFacts(
        family="smolvlm",
        architecture="SmolVLMForConditionalGeneration",
        parameters=1000,
        quantized_linear_layers=10,
        vision_linear_layers=4,
        connector_linear_layers=1,
        text_linear_layers=5,
        context_tokens=2048,
        image_size=64,
        shape=shape,
    )
    await agent.report(model["id"], work.ModelJudged(facts=facts, content_sha256="cd" * 32))
    return Inputs(dataset["id"], dataset["upload_id"], model["id"], model_files)


async def judge_dataset(agent: Agent, dataset_id: str, found: Manifest | None = None) -> int:
    """The dataset is found valid."""
    await agent.execute(ClaimDatasetValidation(dataset_id=dataset_id, agent_id=agent.agent_id, attempt=1))
    manifest = (found or Manifest(clips=(), examples=())).model_dump_json().encode()
    prefix = validation_prefix(agent.person.organization_id, dataset_id, 1)
    (stored,) = await agent.stored(prefix, {"manifest.json": manifest})
    facts = DatasetFacts(
        clips=10,
        examples=10,
        frames=80,
        duration_seconds=10.0,
        size_bytes=100,
        smallest_clip_frames=8,
        smallest_clip="a.mp4",
    )
    return await agent.report(dataset_id, work.DatasetJudged(facts=facts, manifest=stored))


async def request_job(person: Person, inputs: Inputs, **changes: Any) -> dict[str, Any]:
    body = {"dataset_id": inputs.dataset_id, "model_id": inputs.model_id, "name": "first"} | changes
    answer = await person.post("/jobs", body)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def point(step: int) -> ProgressPoint:
    return ProgressPoint(
        step=step,
        loss=4.0 / step,
        learning_rate=1e-3,
        grad_norm=1.0,
        tokens=64,
        tokens_per_second=640.0,
        step_seconds=0.1,
    )


def evaluation(exact_match: float) -> Evaluation:
    return Evaluation(examples=8, loss=1.0, exact_match=exact_match)


ADAPTER = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"lora"}
LOG_LINES = [f"line {number}" for number in range(1, 8)]


async def start_training(agent: Agent, job_id: str) -> int:
    """From the request to the first step."""
    await agent.execute(ValidateJob(job_id=job_id))
    await agent.execute(
        AdmitJob(job_id=job_id, total_steps=4, training_examples=8, held_out_examples=2, epochs=1.0)
    )
    await agent.execute(ClaimJob(job_id=job_id, agent_id=agent.agent_id, attempt=1))
    await agent.report(job_id, work.Accepted())
    return await agent.report(
        job_id,
        work.Started(
            start_step=0,
            total_steps=4,
            trainable_parameters=100,
            total_parameters=1000,
            training_examples=8,
            held_out_examples=2,
            device="cpu",
        ),
    )


async def train(agent: Agent, job_id: str) -> int:
    """From the first step to the end; returns the last position."""
    organization = agent.person.organization_id
    await agent.report(job_id, work.Evaluated(step=0, phase="before", evaluation=evaluation(0.0)))
    await progress(agent, job_id, (1, 2))
    saved = await agent.stored(checkpoint_prefix(organization, job_id, 1, 2), {"state.safetensors": b"two"})
    await agent.report(job_id, work.CheckpointStored(step=2, objects=saved))
    for segment, lines in ((1, LOG_LINES[:4]), (2, LOG_LINES[4:])):
        content = "".join(
            json.dumps({"time": "2030-01-01T00:00:00Z", "level": "info", "code": "step", "message": line})
            + "\n"
            for line in lines
        )
        (stored,) = await agent.stored(
            log_prefix(organization, job_id, 1), {f"log-{segment}.ndjson": content.encode()}
        )
        await agent.report(
            job_id, work.LogStored(segment=segment, content="log", lines=len(lines), object=stored)
        )
    await progress(agent, job_id, (3, 4))
    await agent.report(job_id, work.Evaluated(step=4, phase="after", evaluation=evaluation(0.75)))
    await agent.report(job_id, work.Finished(steps=4, loss_first=4.0, loss_last=1.0, seconds=2.0))
    objects = await agent.stored(adapter_prefix(organization, job_id, 1), ADAPTER)
    facts = AdapterFacts(
        family="smolvlm",
        base_model_sha256="cd" * 32,
        rank=8,
        alpha=16.0,
        trainable_parameters=100,
        steps=4,
    )
    return await agent.report(job_id, work.AdapterUploaded(objects=objects, facts=facts))


async def progress(agent: Agent, job_id: str, steps: Sequence[int]) -> int:
    return await agent.report(
        job_id,
        work.Progressed(
            step=steps[-1], total_steps=4, epoch=steps[-1] / 4, points=tuple(point(step) for step in steps)
        ),
    )
