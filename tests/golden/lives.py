"""Lives of every aggregate: commands as they were given, and what was decided then.

The stories below say which commands are given. What was decided on them is recorded once and never again:
code that decides otherwise on the same history would contradict logs that exist.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from command_api.domain.aggregates import AGGREGATES
from command_api.domain.errors import Refused
from command_api.domain.job_phases import Absent, Cancelled, Failed, Held, Succeeded
from command_api.domain.job_reports import output_model_id
from command_api.handlers.base import Context
from command_api.handlers.decision import Request, decide
from command_api.handlers.registry import HANDLERS
from command_api.handlers.streams import FoldCache, PendingStreams
from schemas import work
from schemas.commands import Command, identity, job
from schemas.commands import agent as agents
from schemas.commands import dataset as datasets
from schemas.commands import finding as findings
from schemas.commands import model as models
from schemas.commands import subscription as subscriptions
from schemas.envelope import versioned_type
from schemas.imports import ImportSource
from schemas.objects import (
    StoredObject,
    adapter_prefix,
    checkpoint_prefix,
    log_prefix,
    validation_prefix,
)
from schemas.subscriptions import EventFilter
from schemas.training import Hyperparameters
from tests.unit.domain import samples as s
from tests.unit.domain.job_story import (
    ACCEPTED,
    CRASHED,
    DECLINED,
    EVALUATED,
    FINISHED,
    RELEASED,
    RERANKED,
    STARTED,
    WARNED,
)

FOLDER = Path(__file__).parent / "lives"
ENDED = (Succeeded, Failed, Cancelled)
Json = dict[str, Any]
Story = Iterator[Command]
NODE_KEY = "U" + "A" * 55
COMMANDS = {command.TYPE: command for command in HANDLERS}


class NoLog:
    """What a life begins with: nothing was ever stored."""

    def read_stream(self, stream_id: str, after_version: int = 0, limit: int | None = None) -> list[Any]:
        return []


class Life:
    """Streams in memory, decided on by the real handlers."""

    def __init__(self) -> None:
        self.streams = PendingStreams(FoldCache(NoLog(), AGGREGATES))  # type: ignore[arg-type]
        self._now = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def give(self, command: Command) -> Json:
        """What the command comes to, and everything it leaves behind."""
        context = Context.system("golden", organization_id=s.ORGANIZATION, workspace_id=s.WORKSPACE)
        attempt = self.streams.fork()
        try:
            append = decide(Request(command, context), HANDLERS, attempt, self._clock)
        except Refused as refused:
            return {"refused": refused.code}
        self.streams = attempt
        return {
            "events": [
                {
                    "subject": one.stream_id,
                    "streamversion": one.version,
                    "type": versioned_type(type(one.event)),
                    "data": one.event.model_dump(mode="json"),
                }
                for one in append.events
            ]
        }

    def _clock(self) -> datetime:
        self._now += timedelta(seconds=1)
        return self._now


def decoded(line: Json) -> Command:
    """The command of a recorded line."""
    return COMMANDS[line["command"]].model_validate(line["fields"])


def recorded() -> dict[str, list[Json]]:
    """Every life by name: one line a command."""
    return {
        file.stem: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for file in sorted(FOLDER.glob("*.ndjson"))
    }


def record() -> list[str]:
    """Live the stories that have not been recorded; returns their names."""
    missing = [name for name in STORIES if not (FOLDER / f"{name}.ndjson").is_file()]
    for name in missing:
        (FOLDER / f"{name}.ndjson").write_text("".join(_lines(name)), encoding="utf-8")
    return missing


def _lines(name: str) -> Iterator[str]:
    life = Life()
    for command in STORIES[name](life):
        line = {"command": command.TYPE, "fields": command.model_dump(mode="json"), **life.give(command)}
        yield json.dumps(line, ensure_ascii=False) + "\n"


# ---- stories --------------------------------------------------------------------------------------


def person(_: Life) -> Story:
    place = {"user_id": s.USER, "organization_id": s.ORGANIZATION, "workspace_id": s.WORKSPACE}
    signed = identity.SignUp(**place, username_ciphertext="bm9ib2R5", email_ciphertext="bm93aGVyZQ==")
    yield signed
    yield signed
    yield identity.RecordLogin(user_id=s.USER)
    yield identity.RevokeTokenFamily(user_id=s.USER, family_id="family_1", reason="reuse_detected")
    yield identity.RevokeTokenFamily(user_id=s.USER, family_id="family_2", reason="logout")
    secret = {"organization_id": s.ORGANIZATION, "workspace_id": s.WORKSPACE, "name": "hub"}
    yield identity.StoreSecret(**secret, kind="token")
    yield identity.StoreSecret(**secret, kind="token")
    yield identity.DeleteSecret(**secret)
    yield identity.DeleteSecret(**secret)
    yield identity.RegisterUser(
        user_id=s.identifier("usr", 2), username_ciphertext="Yg==", email_ciphertext="Yg=="
    )
    yield identity.CreateOrganization(
        organization_id=s.identifier("org", 2),
        workspace_id=s.identifier("ws", 2),
        owner_id=s.identifier("usr", 2),
        personal=False,
    )


def erased_person(_: Life) -> Story:
    place = {"user_id": s.USER, "organization_id": s.ORGANIZATION, "workspace_id": s.WORKSPACE}
    erase = identity.EraseUser(
        user_id=s.USER, organization_ids=(s.ORGANIZATION,), requested_by=s.identifier("usr", 2)
    )
    yield erase
    yield identity.SignUp(**place, username_ciphertext="bm9ib2R5", email_ciphertext="bm93aGVyZQ==")
    yield identity.RecordLogin(user_id=s.USER)
    yield erase
    yield erase
    yield identity.RecordLogin(user_id=s.USER)
    yield identity.RevokeTokenFamily(user_id=s.USER, family_id="family_1", reason="logout")
    yield identity.RegisterUser(user_id=s.USER, username_ciphertext="Yg==", email_ciphertext="Yg==")
    home = s.identifier("org", 2)
    yield identity.CreateOrganization(
        organization_id=home, workspace_id=s.identifier("ws", 2), owner_id=s.USER, personal=False
    )
    leave = identity.RemoveMember(organization_id=home, user_id=s.USER, reason="erased")
    yield leave
    yield leave


def node(_: Life) -> Story:
    enroll = agents.EnrollAgent(agent_id=s.AGENT, name="jetson", pool="default")
    yield agents.MarkAgentOnline(agent_id=s.AGENT)
    yield enroll
    yield enroll
    yield agents.IssueEnrolmentToken(agent_id=s.AGENT, expires_at=datetime(2026, 11, 22, tzinfo=UTC))
    yield agents.JoinAgent(agent_id=s.AGENT, public_key=NODE_KEY)
    yield agents.JoinAgent(agent_id=s.AGENT, public_key=NODE_KEY)
    yield agents.ReportCapabilities(agent_id=s.AGENT, capabilities=s.CAPABILITIES)
    yield agents.ReportCapabilities(agent_id=s.AGENT, capabilities=s.CAPABILITIES)
    yield agents.MarkAgentOnline(agent_id=s.AGENT)
    yield agents.MarkAgentLost(agent_id=s.AGENT, reason="lease_expired")
    yield agents.MarkAgentLost(agent_id=s.AGENT, reason="shut_down")
    yield agents.RevokeAgent(agent_id=s.AGENT, reason="sold")
    yield agents.MarkAgentOnline(agent_id=s.AGENT)


def subscribers(_: Life) -> Story:
    """A NATS subscriber with renewed credentials, and a webhook that rests, goes on and ends."""
    warehouse, chat = s.identifier("sub", 1), s.identifier("sub", 2)
    end = datetime(2026, 12, 21, tzinfo=UTC)
    yield subscriptions.CreateSubscription(
        subscription_id=warehouse,
        name="warehouse",
        owner_id=s.USER,
        kind="nats",
        filter=EventFilter(types=("kinora.job.succeeded",), workspace_id=s.WORKSPACE),
        after=0,
        pinned={},
        public_key=NODE_KEY,
        expires_at=end,
    )
    yield subscriptions.IssueSubscriptionCredentials(
        subscription_id=warehouse, public_key="U" + "B" * 55, expires_at=end, keep_former=False
    )
    webhook = subscriptions.CreateSubscription(
        subscription_id=chat,
        name="chat",
        owner_id=s.USER,
        kind="webhook",
        filter=EventFilter(stream_id=s.JOB),
        after=7,
        pinned={"kinora.job.succeeded": 1},
        url="https://hooks.example.org/kinora",
    )
    yield webhook.model_copy(update={"url": "https://hooks.example.org/?token=1"})
    yield webhook
    yield subscriptions.IssueSubscriptionCredentials(
        subscription_id=chat, public_key=NODE_KEY, expires_at=end, keep_former=False
    )
    yield subscriptions.RotateSubscriptionSecret(subscription_id=chat, former_until=end)
    for _again in range(2):
        yield subscriptions.DisableSubscription(
            subscription_id=chat, reason="failing", detail="500 for 3 days"
        )
    yield subscriptions.EnableSubscription(subscription_id=chat)
    for _again in range(2):
        yield subscriptions.DeleteSubscription(subscription_id=chat)
    yield subscriptions.EnableSubscription(subscription_id=chat)


def finding(_: Life) -> Story:
    finding_id = s.identifier("fnd", 1)
    found = findings.OpenFinding(
        finding_id=finding_id,
        check="read_model",
        subject="jobs",
        about=s.JOB,
        detail="jobs differs in status",
        remedy="kinora projections rebuild jobs",
    )
    healed = findings.ResolveFinding(finding_id=finding_id, detail="compared at position 12")
    yield healed
    yield found
    yield found
    yield healed
    yield healed
    yield found


def _enrolled(number: int = 1) -> Command:
    agent_id = s.identifier("agt", number)
    return agents.EnrollAgent(agent_id=agent_id, name=f"node {number}", pool="default")


def _judged_dataset(attempt: int = 1) -> Command:
    manifest = _at(validation_prefix(s.ORGANIZATION, s.DATASET, attempt), "manifest.json")
    return _says(s.DATASET, work.DatasetJudged(facts=s.FACTS, manifest=manifest), attempt)


def _ready_dataset() -> Story:
    yield datasets.RegisterDataset(
        dataset_id=s.DATASET,
        name="shapes",
        description="",
        owner_id=s.USER,
        listing=s.LISTING,
        file_count=11,
        size_bytes=4000,
    )
    yield datasets.StartDatasetUpload(dataset_id=s.DATASET, upload_id=s.UPLOAD)
    yield datasets.CompleteDatasetUpload(dataset_id=s.DATASET, upload_id=s.UPLOAD)
    yield datasets.ClaimDatasetValidation(dataset_id=s.DATASET, agent_id=s.AGENT, attempt=1)
    yield _judged_dataset()


def dataset(_: Life) -> Story:
    claim = {"dataset_id": s.DATASET, "agent_id": s.AGENT}
    yield _enrolled()
    yield next(_ready_dataset())
    yield datasets.CompleteDatasetUpload(dataset_id=s.DATASET, upload_id=s.UPLOAD)
    yield datasets.StartDatasetUpload(dataset_id=s.DATASET, upload_id=s.UPLOAD)
    yield datasets.StartDatasetUpload(dataset_id=s.DATASET, upload_id=s.OTHER_UPLOAD)
    yield datasets.CompleteDatasetUpload(dataset_id=s.DATASET, upload_id=s.OTHER_UPLOAD)
    for attempt, reason in enumerate(("lease_expired", "released", "declined", "failed"), 1):
        yield datasets.ClaimDatasetValidation(**claim, attempt=attempt)
        yield datasets.InterruptDatasetValidation(**claim, attempt=attempt, reason=reason, detail="why")
    yield datasets.ClaimDatasetValidation(**claim, attempt=5)
    yield datasets.JudgeDataset(**claim, attempt=5, facts=s.FACTS, manifest=s.MANIFEST)
    yield _judged_dataset(5)
    yield datasets.DeleteDataset(dataset_id=s.DATASET)
    yield datasets.DeleteDataset(dataset_id=s.DATASET)


def imported_dataset(_: Life) -> Story:
    source = ImportSource(kind="url", uri="https://example.org/clips.zip", secret="hub")
    asked = {"name": "clips", "description": "", "owner_id": s.USER, "source": source}
    done = {"listing": s.LISTING, "file_count": 11, "size_bytes": 4000, "upload_id": s.UPLOAD}
    yield _enrolled()
    yield datasets.RequestDatasetImport(dataset_id=s.DATASET, **asked)
    yield datasets.FailDatasetImport(
        dataset_id=s.DATASET, attempt=1, code="unreachable", message="no answer", retryable=True
    )
    yield datasets.RetryDatasetImport(dataset_id=s.DATASET)
    yield datasets.CompleteDatasetImport(dataset_id=s.DATASET, attempt=1, **done)
    yield datasets.CompleteDatasetImport(dataset_id=s.DATASET, attempt=2, **done)
    yield datasets.ClaimDatasetValidation(dataset_id=s.DATASET, agent_id=s.AGENT, attempt=1)
    yield _says(s.DATASET, work.DatasetJudged(problems=(s.PROBLEM,)))
    yield _says(s.DATASET, work.DatasetJudged(problems=(s.PROBLEM,)))


def _ready_model() -> Story:
    yield models.RegisterModel(
        model_id=s.MODEL,
        name="tiny",
        description="",
        owner_id=s.USER,
        listing=s.MODEL_LISTING,
        file_count=3,
        size_bytes=9000,
    )
    yield models.StartModelUpload(model_id=s.MODEL, upload_id=s.UPLOAD)
    yield models.CompleteModelUpload(model_id=s.MODEL, upload_id=s.UPLOAD)
    yield models.ClaimModelValidation(model_id=s.MODEL, agent_id=s.AGENT, attempt=1)
    yield _says(s.MODEL, work.ModelJudged(facts=s.MODEL_FACTS, content_sha256=s.sha(4)))


def model(_: Life) -> Story:
    yield _enrolled()
    yield from _ready_model()
    yield models.InterruptModelValidation(model_id=s.MODEL, attempt=1, reason="lease_expired")
    yield models.DeleteModel(model_id=s.MODEL)
    yield models.DeleteModel(model_id=s.MODEL)
    adapter = models.RegisterAdapter(
        model_id=output_model_id(s.JOB),
        name="first",
        owner_id=s.USER,
        job_id=s.JOB,
        base_model_id=s.MODEL,
        objects=(_at(adapter_prefix(s.ORGANIZATION, s.JOB, 1), "adapter_model.safetensors"),),
        facts=s.ADAPTER_FACTS,
    )
    yield adapter
    yield adapter


def imported_model(_: Life) -> Story:
    source = ImportSource(kind="hub", uri="hf://example/tiny@main")
    asked = {"name": "tiny", "description": "", "owner_id": s.USER, "source": source}
    done = {"listing": s.MODEL_LISTING, "file_count": 3, "size_bytes": 9000, "upload_id": s.UPLOAD}
    claim = {"model_id": s.MODEL, "agent_id": s.AGENT}
    yield _enrolled()
    yield models.RequestModelImport(model_id=s.MODEL, **asked)
    yield models.FailModelImport(
        model_id=s.MODEL, attempt=1, code="not_found", message="no such model", retryable=False
    )
    yield models.RetryModelImport(model_id=s.MODEL)
    yield models.CompleteModelImport(model_id=s.MODEL, attempt=2, **done)
    for attempt, reason in enumerate(("released", "declined", "failed"), 1):
        yield models.ClaimModelValidation(**claim, attempt=attempt)
        yield models.InterruptModelValidation(**claim, attempt=attempt, reason=reason)
    yield models.ClaimModelValidation(**claim, attempt=4)
    yield models.JudgeModel(**claim, attempt=4, problems=(s.PROBLEM,))


def _queued_job() -> Story:
    yield _enrolled(1)
    yield _enrolled(2)
    yield from _ready_dataset()
    yield from _ready_model()
    yield job.RequestJob(
        job_id=s.JOB,
        name="first",
        owner_id=s.USER,
        dataset_id=s.DATASET,
        model_id=s.MODEL,
        hyperparameters=Hyperparameters(),
        pool="default",
        priority="normal",
        labels={"team": "a"},
        max_attempts=4,
    )
    yield job.ValidateJob(job_id=s.JOB)
    yield job.AdmitJob(job_id=s.JOB, total_steps=10, training_examples=16, held_out_examples=4, epochs=3.0)


def _trained(attempt: int, first_step: int = 0) -> Story:
    yield job.ClaimJob(job_id=s.JOB, agent_id=s.AGENT, attempt=attempt)
    yield _says(s.JOB, ACCEPTED, attempt)
    yield _says(s.JOB, STARTED.model_copy(update={"start_step": first_step}), attempt)


def finished_job(_: Life) -> Story:
    yield from _queued_job()
    yield from _trained(1)
    for body in (EVALUATED, _progress(3), _progress(3), _checkpoint(1, 3), WARNED, _log(1)):
        yield _says(s.JOB, body)
    yield job.ExpireLease(job_id=s.JOB, attempt=1)
    yield _says(s.JOB, _progress(4))
    yield from _trained(2, 3)
    for body in (_progress(10), FINISHED, EVALUATED.model_copy(update={"step": 10, "phase": "after"})):
        yield _says(s.JOB, body, 2)
    uploaded = _adapter(2)
    yield _says(s.JOB, uploaded, 2)
    yield _says(s.JOB, uploaded, 2)
    yield job.StopJob(job_id=s.JOB, mode="graceful", reason="too late")
    yield models.DeleteModel(model_id=output_model_id(s.JOB))


def early_job(_: Life) -> Story:
    """Steps counted in tokens, and ended by early stopping with the adapter of an earlier one."""
    *begun, admit = _queued_job()
    yield from begun
    yield admit.model_copy(update={"epochs": None})
    yield from _trained(1)
    yield _says(s.JOB, _progress(6))
    ended = {"step": 6, "phase": "after", "adapter_step": 4}
    yield _says(s.JOB, EVALUATED.model_copy(update=ended))
    yield _says(s.JOB, FINISHED.model_copy(update={"steps": 6, "stopped_early": True, "adapter_step": 4}))
    yield _says(s.JOB, _adapter(1))


def reranked_job(_: Life) -> Story:
    yield from _queued_job()
    yield from _trained(1)
    yield _says(s.JOB, RERANKED)
    yield _says(s.JOB, _progress(10))
    yield _says(s.JOB, FINISHED)
    yield _says(s.JOB, RERANKED)
    yield _says(s.JOB, _adapter(1))


def unlucky_job(_: Life) -> Story:
    yield from _queued_job()
    yield job.ClaimJob(job_id=s.JOB, agent_id=s.AGENT, attempt=1)
    yield _says(s.JOB, DECLINED)
    yield from _trained(2)
    yield _says(s.JOB, RELEASED, 2)
    for attempt in range(3, 8):
        yield from _trained(attempt)
        yield _says(s.JOB, CRASHED, attempt)


def stopped_job(_: Life) -> Story:
    yield from _queued_job()
    yield from _trained(1)
    yield _says(s.JOB, _progress(3))
    yield job.StopJob(job_id=s.JOB, mode="graceful", reason="enough")
    yield _says(s.JOB, _adapter(1).model_copy(update={"partial": True}))
    yield _says(s.JOB, work.Stopped(step=3))
    yield job.ClaimJob(job_id=s.JOB, agent_id=s.AGENT, attempt=1)


def refused_job(_: Life) -> Story:
    *begun, _admit = _queued_job()
    yield from begun
    yield job.RefuseJob(job_id=s.JOB, code="does_not_fit", message="the model does not fit")


def wild_job(seed: int) -> Callable[[Life], Story]:
    """Whatever may be said of a job, in an order that chance decides; most of it fits."""

    def story(life: Life) -> Story:
        yield from _queued_job()
        random = Random(seed)
        while not isinstance(state := life.streams.load(s.JOB).state, ENDED):
            yield _wild(state, random)
        for _ in range(5):
            yield _wild(state, random)

    return story


def _wild(state: Any, random: Random) -> Command:
    attempt = (
        1 if isinstance(state, Absent) else max(1, state.history.attempt + random.choice((0,) * 8 + (1, -1)))
    )
    agent_id = random.choice((s.AGENT, s.AGENT, s.AGENT, s.OTHER_AGENT))
    if random.random() < 0.04:
        mode = random.choice(("graceful", "immediate"))
        return job.StopJob(job_id=s.JOB, mode=mode, reason="enough")
    if random.random() < 0.06:
        return job.ExpireLease(job_id=s.JOB, attempt=attempt)
    if not isinstance(state, Held):
        return job.ClaimJob(job_id=s.JOB, agent_id=agent_id, attempt=attempt)
    step = max(1, state.history.step + random.randint(0, 3))
    bodies: dict[str, list[work.ReportBody]] = {
        "assigned": [ACCEPTED, ACCEPTED, DECLINED],
        "preparing": [STARTED.model_copy(update={"start_step": state.history.step}), EVALUATED, CRASHED],
        "running": [
            *(_progress(step),) * 4,
            _checkpoint(attempt, step),
            _log(attempt),
            WARNED,
            FINISHED,
            CRASHED,
        ],
        "stopping": [
            _progress(step),
            _adapter(attempt).model_copy(update={"partial": True}),
            work.Stopped(step=step),
        ],
        "finalizing": [EVALUATED, _log(attempt), _adapter(attempt), RELEASED],
    }
    return _says(s.JOB, random.choice(bodies[state.phase]), attempt, state.agent_id)


def _says(item: str, body: work.ReportBody, attempt: int = 1, agent_id: str = s.AGENT) -> job.ReportAttempt:
    report = work.Report(item_id=item, attempt=attempt, sequence=1, occurred_at=s.NOON, body=body)
    return job.ReportAttempt(agent_id=agent_id, report=report)


def _at(prefix: str, path: str, number: int = 9) -> StoredObject:
    return s.stored(path, number, key=f"{prefix}/{path}")


def _progress(step: int) -> work.Progressed:
    point = s.POINT.model_copy(update={"step": step})
    return work.Progressed(step=step, total_steps=10, epoch=step / 10, points=(point,))


def _checkpoint(attempt: int, step: int) -> work.CheckpointStored:
    prefix = checkpoint_prefix(s.ORGANIZATION, s.JOB, attempt, step)
    return work.CheckpointStored(step=step, objects=(_at(prefix, "checkpoint.safetensors"),))


def _log(attempt: int) -> work.LogStored:
    stored = _at(log_prefix(s.ORGANIZATION, s.JOB, attempt), "log-1.txt")
    return work.LogStored(segment=1, content="log", lines=3, object=stored)


def _adapter(attempt: int) -> work.AdapterUploaded:
    prefix = adapter_prefix(s.ORGANIZATION, s.JOB, attempt)
    objects = tuple(_at(prefix, name) for name in ("adapter_model.safetensors", "adapter_config.json"))
    return work.AdapterUploaded(objects=objects, facts=s.ADAPTER_FACTS)


STORIES: dict[str, Callable[[Life], Iterable[Command]]] = {
    "subscribers": subscribers,
    "person": person,
    "erased_person": erased_person,
    "node": node,
    "dataset": dataset,
    "imported_dataset": imported_dataset,
    "model": model,
    "imported_model": imported_model,
    "finding": finding,
    "finished_job": finished_job,
    "early_job": early_job,
    "reranked_job": reranked_job,
    "unlucky_job": unlucky_job,
    "stopped_job": stopped_job,
    "refused_job": refused_job,
    **{f"wild_job_{seed:02}": wild_job(seed) for seed in range(8)},
}
