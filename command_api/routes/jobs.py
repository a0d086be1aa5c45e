"""Jobs: request, list, show, stop, and everything that one leaves behind."""

import asyncio
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from command_api.auth.tokens import Principal
from command_api.domain.errors import Conflict, NotFound
from command_api.domain.job_request import pinned
from command_api.domain.outlook import PoolAgent, job_plan
from command_api.handlers.job import owned
from command_api.manifests import read_manifest
from command_api.routes.calling import RATE_LIMIT, CallerOfRequest, ClosedRoute, needs
from command_api.routes.commanding import AskingOfRequest
from command_api.routes.downloads import DownloadFile, downloadable
from command_api.routes.joblogs import LogLine, read_lines
from command_api.routes.problem_docs import COMMAND, QUERY, problems
from command_api.routes.reading import (
    CursorParameter,
    Limit,
    MinPosition,
    Page,
    Reading,
    ReadingOfRequest,
    chosen,
)
from command_api.routes.showing import show
from command_api.routes.travelling import MomentOfRequest, then
from projections.views import jobs as view
from projections.views.agents import of_pool
from projections.views.jobs import Checkpoint, JobDetail, Jobs, JobView
from projections.views.logs import segments
from projections.views.loss_curve import LossPoint, curve
from schemas.api import CreateJobBody, StopJobBody
from schemas.commands.job import RequestJob, StopJob
from schemas.events.job import Evaluation
from schemas.ids import JobId, Prefix, new_id
from schemas.job_plan import JobPlan
from schemas.job_status import JobPhase
from schemas.training import MERGED_FOLDER, AdapterFacts

router = APIRouter(prefix="/jobs", tags=["jobs"], dependencies=[needs("jobs:read")], route_class=ClosedRoute)

_JOBS = Jobs()


class JobCommanded(JobView):
    """A job after a command."""

    command_id: str


class EvaluationAt(BaseModel):
    """One pass over the held-out rows."""

    step: int = Field(
        description="Steps taken by then; after early stopping the adapter is that of the job's adapter_step."
    )
    phase: str
    attempt: int
    evaluation: Evaluation
    evaluated_at: str


class Metrics(BaseModel):
    """What a job's chart is drawn from."""

    job_id: str
    points: list[LossPoint]
    evaluations: list[EvaluationAt]


class AdapterFiles(BaseModel):
    """A job's adapter in PEFT's standard layout."""

    job_id: str
    partial: bool
    """True when it was kept from a stopped training."""
    facts: AdapterFacts | None
    files: list[DownloadFile]
    merged: list[DownloadFile] = []
    """Of the checkpoint that it was merged into, if the job asked for that; paths inside of its folder."""


@router.post(
    "",
    dependencies=[needs("jobs:write")],
    operation_id="jobs_create",
    status_code=202,
    response_model=JobCommanded,
    responses=problems(*COMMAND),
    summary="Request a fine-tuning",
    openapi_extra={"x-emits": ["kinora.job.requested"], RATE_LIMIT: "job_creation"},
)
async def create(body: CreateJobBody, asking: AskingOfRequest) -> dict[str, Any]:
    job_id = new_id(Prefix.JOB)
    outcome = await asking.execute(_request(body, job_id, asking.caller), body)
    job_id = outcome.events[0].stream_id
    asking.response.headers["Location"] = f"/api/v1/jobs/{job_id}"
    return {**dict(await show(asking.parts, _JOBS, job_id, outcome)), "command_id": asking.command_id}


@router.post(
    "/plan",
    dependencies=[needs("jobs:write")],
    operation_id="jobs_plan",
    response_model=JobPlan,
    responses=problems(*QUERY, 409),
    summary="What would happen if this job was requested",
    description="Takes what `POST /jobs` takes and refuses what that refuses, but nothing is recorded: steps,"
    " tokens, peak memory with the parts of its sum, time and energy as ranges, whether it fits on each agent"
    " of its pool, and what to know before. Tokens are reckoned from characters and from the clips' sizes;"
    " the engine counts them before the first step.",
    openapi_extra={RATE_LIMIT: "job_creation"},
)
async def plan(body: CreateJobBody, reading: ReadingOfRequest, caller: CallerOfRequest) -> JobPlan:
    organization_id, parts = reading.organization_id, reading.parts
    dataset = owned(await parts.bus.load(body.dataset_id), body.dataset_id, organization_id).state
    model = owned(await parts.bus.load(body.model_id), body.model_id, organization_id).state
    request = pinned(dataset, model, _request(body, new_id(Prefix.JOB), caller))
    manifest = await read_manifest(parts.store, request.manifest)
    if isinstance(manifest, str):
        raise Conflict(
            f"dataset {body.dataset_id} cannot be trained on: {manifest}; register it again",
            code="invalid_dataset",
        )
    await reading.fresh("agents", None)
    async with parts.pool.connection() as connection:
        agents = await of_pool(connection, organization_id, body.pool)
    pool = [PoolAgent(each.id, each.name, each.status == "online", each.capabilities) for each in agents]
    # Off the loop: a dataset may have very many rows.
    return await asyncio.to_thread(
        job_plan, request, manifest, dataset.validated.facts, model.validated.facts, pool
    )


@router.get(
    "",
    operation_id="jobs_list",
    response_model=Page[JobView],
    responses=problems(*QUERY),
    summary="List jobs, newest first",
)
async def list_jobs(
    reading: ReadingOfRequest,
    limit: Limit = 50,
    cursor: CursorParameter = None,
    status: Annotated[
        str | None,
        Query(
            max_length=200,
            description=f"Only these, such as queued,running: {', '.join(get_args(JobPhase))}.",
        ),
    ] = None,
    min_position: MinPosition = None,
) -> Response:
    statuses = chosen("status", status, get_args(JobPhase))
    await reading.fresh("jobs", min_position)

    async def rows(count: int, after: Any) -> Any:
        async with reading.parts.pool.connection() as connection:
            return await view.page(
                connection, reading.organization_id, limit=count, after=after, statuses=statuses
            )

    return await reading.stored_page(rows, limit=limit, cursor=cursor, filters=[status or ""])


@router.get(
    "/{job_id}",
    operation_id="jobs_get",
    response_model=JobDetail,
    responses=problems(*QUERY),
    summary="Show a job with its checkpoints",
)
async def get(
    job_id: JobId, reading: ReadingOfRequest, moment: MomentOfRequest, min_position: MinPosition = None
) -> Any:
    if moment is not None:
        return await then(reading, _JOBS, job_id, moment, min_position)
    await reading.fresh("jobs", min_position)
    found = await _job(reading, job_id)
    return reading.tagged(found, found.version)


@router.post(
    "/{job_id}/stop",
    dependencies=[needs("jobs:write")],
    operation_id="jobs_stop",
    status_code=202,
    response_model=JobCommanded,
    responses=problems(*COMMAND),
    summary="Ask a job to end; repeats change nothing",
    openapi_extra={"x-emits": ["kinora.job.stop_requested", "kinora.job.stopped"]},
)
async def stop(job_id: JobId, asking: AskingOfRequest, body: StopJobBody | None = None) -> dict[str, Any]:
    asked = body or StopJobBody()
    await asking.execute(StopJob(job_id=job_id, mode=asked.mode, reason=asked.reason), asked)
    return {**dict(await show(asking.parts, _JOBS, job_id)), "command_id": asking.command_id}


@router.get(
    "/{job_id}/events",
    operation_id="jobs_events",
    response_model=Page[dict[str, Any]],
    responses=problems(*QUERY, 409),
    summary="The job's own history, oldest first",
    openapi_extra={RATE_LIMIT: "event_replay"},
)
async def events(
    job_id: JobId,
    reading: ReadingOfRequest,
    after: Annotated[int, Query(ge=0, le=2**62, description="Begin behind this position.")] = 0,
    limit: Limit = 50,
    cursor: CursorParameter = None,
    min_position: MinPosition = None,
) -> dict[str, Any]:
    await reading.from_log(min_position)
    begin = reading.log_place(cursor) or after
    rows = await reading.parts.reader.page(
        begin, limit + 1, organization_id=reading.organization_id, stream_id=job_id
    )
    if not rows and begin == 0:
        raise NotFound(f"job {job_id} does not exist")
    return reading.log_answer(rows, limit)


@router.get(
    "/{job_id}/metrics",
    operation_id="jobs_metrics",
    response_model=Metrics,
    responses=problems(*QUERY),
    summary="The loss curve and the evaluations on held-out clips",
)
async def metrics(
    job_id: JobId,
    reading: ReadingOfRequest,
    after_step: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    max_points: Annotated[
        int | None, Query(ge=2, le=100_000, description="Thin evenly to about so many.")
    ] = None,
    min_position: MinPosition = None,
) -> Metrics:
    await reading.fresh("loss_curve", min_position)
    async with reading.parts.pool.connection() as connection:
        found = await curve(
            connection, reading.organization_id, job_id, after_step=after_step, max_points=max_points
        )
    if not found.points:
        await _job(reading, job_id)
    evaluations = [
        EvaluationAt(
            step=each.step,
            phase=each.phase,
            attempt=each.attempt,
            evaluation=Evaluation(
                examples=each.examples,
                loss=each.loss,
                exact_match=each.exact_match,
                token_accuracy=each.token_accuracy,
            ),
            evaluated_at=each.evaluated_at.isoformat(),
        )
        for each in found.evaluations
    ]
    return Metrics(job_id=job_id, points=list(found.points), evaluations=evaluations)


@router.get(
    "/{job_id}/logs",
    operation_id="jobs_logs",
    response_model=Page[LogLine],
    responses=problems(*QUERY),
    summary="The job's stored log, oldest first; lines of the running attempt arrive in segments",
)
async def logs(
    job_id: JobId,
    reading: ReadingOfRequest,
    after_line: Annotated[int, Query(ge=0, le=2**62, description="Begin behind this line.")] = 0,
    limit: Limit = 50,
    cursor: CursorParameter = None,
    min_position: MinPosition = None,
) -> dict[str, Any]:
    await reading.fresh("logs", min_position)
    begin = int((reading.place(cursor) or [after_line])[0])
    async with reading.parts.pool.connection() as connection:
        found = await segments(connection, reading.organization_id, job_id)
    if not found:
        await _job(reading, job_id)
    lines = await read_lines(reading.parts.store, found, begin, limit + 1)
    more = len(lines) > limit
    return reading.answer(lines[:limit], [lines[limit - 1].line] if more else None)


@router.get(
    "/{job_id}/checkpoints",
    operation_id="jobs_checkpoints",
    response_model=Page[Checkpoint],
    responses=problems(*QUERY),
    summary="The job's checkpoints, oldest first",
)
async def checkpoints(
    job_id: JobId, reading: ReadingOfRequest, min_position: MinPosition = None
) -> dict[str, Any]:
    await reading.fresh("jobs", min_position)
    return reading.answer((await _job(reading, job_id)).checkpoints, None)


@router.get(
    "/{job_id}/adapter",
    operation_id="jobs_adapter",
    response_model=AdapterFiles,
    responses=problems(*QUERY, 409),
    summary="Presigned URLs of the adapter's files, and of the merged model's if there is one",
)
async def adapter(job_id: JobId, reading: ReadingOfRequest, min_position: MinPosition = None) -> AdapterFiles:
    await reading.fresh("jobs", min_position)
    job = await _job(reading, job_id)
    if not job.adapter:
        raise Conflict(f"job {job_id} is {job.status} and has no adapter (yet)", code="no_adapter")
    inside = f"{MERGED_FOLDER}/"
    files, merged = [], []
    for each in job.adapter:
        file = await downloadable(reading.parts, each)
        if file.path.startswith(inside):
            merged.append(file.model_copy(update={"path": file.path.removeprefix(inside)}))
        else:
            files.append(file)
    return AdapterFiles(
        job_id=job_id, partial=job.adapter_partial, facts=job.adapter_facts, files=files, merged=merged
    )


def _request(body: CreateJobBody, job_id: str, caller: Principal) -> RequestJob:
    return RequestJob(
        job_id=job_id,
        name=body.name or f"job {job_id[-8:]}",
        owner_id=caller.user_id,
        dataset_id=body.dataset_id,
        model_id=body.model_id,
        hyperparameters=body.hyperparameters,
        pool=body.pool,
        priority=body.priority,
        labels=body.labels,
    )


async def _job(reading: Reading, job_id: str) -> JobDetail:
    async with reading.parts.pool.connection() as connection:
        found = await view.get(connection, reading.organization_id, job_id)
    if found is None:
        raise NotFound(f"job {job_id} does not exist")
    return found
