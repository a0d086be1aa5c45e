"""Jobs: the request folds dataset and model, a claim folds the agent; the rest a job decides alone."""

from collections.abc import Mapping
from typing import TypeAlias

from command_api.domain import job
from command_api.domain.errors import Conflict, NotFound
from command_api.domain.job_phases import Absent
from command_api.domain.job_request import decide_request
from command_api.handlers.agent import enrolled_agent
from command_api.handlers.base import (
    Changes,
    Context,
    Handler,
    Loaded,
    StreamEvents,
    Streams,
    reading,
    single_aggregate,
)
from schemas.commands import Command
from schemas.commands.job import AdmitJob, ClaimJob, ExpireLease, RefuseJob, RequestJob, StopJob, ValidateJob

JobAlone: TypeAlias = ValidateJob | AdmitJob | RefuseJob | ClaimJob | ExpireLease | StopJob


def _stream_of(command: JobAlone) -> str:
    return command.job_id


_alone = single_aggregate(job.decide, _stream_of)


@reading(lambda command: (command.job_id, command.dataset_id, command.model_id))
def request_job(command: RequestJob, context: Context, streams: Streams) -> Changes:
    requested = streams.load(command.job_id)
    dataset = owned(streams.load(command.dataset_id), command.dataset_id, context.organization_id)
    model = owned(streams.load(command.model_id), command.model_id, context.organization_id)
    events = decide_request(requested.state, dataset.state, model.state, command)
    return [StreamEvents(command.job_id, requested.version, events)]


@reading(lambda command: (command.job_id, command.agent_id))
def claim_job(command: ClaimJob, context: Context, streams: Streams) -> Changes:
    agent = enrolled_agent(streams, command.agent_id)
    state: job.State = streams.load(command.job_id).state
    if not isinstance(state, Absent) and state.history.request.pool != agent.pool:
        raise Conflict(
            f"job {command.job_id} waits in pool {state.history.request.pool}, agent {command.agent_id} is in"
            f" {agent.pool}; claim only what that pool's queue offers",
            code="other_pool",
        )
    return _alone(command, context, streams)


def owned(loaded: Loaded, item_id: str, organization_id: str | None) -> Loaded:
    """The stream, if it is that organization's; also for the control plane itself, which sees all.

    Raises:
        NotFound: it is another one's.
    """
    if loaded.version and loaded.organization_id != organization_id:
        raise NotFound(f"{item_id} does not exist; check the id and the organization")
    return loaded


HANDLERS: Mapping[type[Command], Handler] = {
    RequestJob: request_job,
    ClaimJob: claim_job,
    ValidateJob: _alone,
    AdmitJob: _alone,
    RefuseJob: _alone,
    ExpireLease: _alone,
    StopJob: _alone,
}
