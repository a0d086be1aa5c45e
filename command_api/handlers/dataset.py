"""Datasets: every command is decided by one of them alone; a claim must come from an enrolled agent."""

from collections.abc import Mapping

from command_api.domain import dataset
from command_api.handlers.agent import enrolled_agent
from command_api.handlers.base import Changes, Context, Handler, Streams, reading, single_aggregate
from schemas.commands import Command
from schemas.commands.dataset import (
    ClaimDatasetValidation,
    CompleteDatasetImport,
    CompleteDatasetUpload,
    DeleteDataset,
    FailDatasetImport,
    InterruptDatasetValidation,
    JudgeDataset,
    RegisterDataset,
    RequestDatasetImport,
    RetryDatasetImport,
    StartDatasetUpload,
)

_alone = single_aggregate(dataset.decide, lambda command: command.dataset_id)


@reading(lambda command: (command.dataset_id, command.agent_id))
def claim_validation(command: ClaimDatasetValidation, context: Context, streams: Streams) -> Changes:
    enrolled_agent(streams, command.agent_id)
    return _alone(command, context, streams)


HANDLERS: Mapping[type[Command], Handler] = {
    ClaimDatasetValidation: claim_validation,
    RegisterDataset: _alone,
    StartDatasetUpload: _alone,
    CompleteDatasetUpload: _alone,
    InterruptDatasetValidation: _alone,
    JudgeDataset: _alone,
    DeleteDataset: _alone,
    RequestDatasetImport: _alone,
    CompleteDatasetImport: _alone,
    FailDatasetImport: _alone,
    RetryDatasetImport: _alone,
}
