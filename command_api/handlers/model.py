"""Models: every command is decided by one of them alone; a claim must come from an enrolled agent."""

from collections.abc import Mapping

from command_api.domain import model
from command_api.handlers.agent import enrolled_agent
from command_api.handlers.base import Changes, Context, Handler, Streams, reading, single_aggregate
from schemas.commands import Command
from schemas.commands.model import (
    ClaimModelValidation,
    CompleteModelImport,
    CompleteModelUpload,
    DeleteModel,
    FailModelImport,
    InterruptModelValidation,
    JudgeModel,
    RegisterAdapter,
    RegisterModel,
    RequestModelImport,
    RetryModelImport,
    StartModelUpload,
)

_alone = single_aggregate(model.decide, lambda command: command.model_id)


@reading(lambda command: (command.model_id, command.agent_id))
def claim_validation(command: ClaimModelValidation, context: Context, streams: Streams) -> Changes:
    enrolled_agent(streams, command.agent_id)
    return _alone(command, context, streams)


HANDLERS: Mapping[type[Command], Handler] = {
    ClaimModelValidation: claim_validation,
    RegisterModel: _alone,
    StartModelUpload: _alone,
    CompleteModelUpload: _alone,
    InterruptModelValidation: _alone,
    JudgeModel: _alone,
    RegisterAdapter: _alone,
    DeleteModel: _alone,
    RequestModelImport: _alone,
    CompleteModelImport: _alone,
    FailModelImport: _alone,
    RetryModelImport: _alone,
}
