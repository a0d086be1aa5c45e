"""What an agent should be doing with an attempt: the answer to its heartbeat."""

from command_api.domain import dataset, job, model
from command_api.domain.job_phases import Stopping, holds
from schemas.work import DesiredState


def desired_state(
    state: job.State | dataset.State | model.State, agent_id: str, attempt: int
) -> DesiredState:
    """``run`` or a stop for the holder of the attempt; ``abandon`` for anybody else.

    A stop that came when the training had already finished is not repeated: its result is kept.
    """
    match state:
        case dataset.Validating() | model.Validating():
            held = state.agent_id == agent_id and state.tally.attempts == attempt
            return "run" if held else "abandon"
        case Stopping(stop=stop) if holds(state, agent_id, attempt):
            return "stop" if stop.mode == "graceful" else "stop_immediately"
        case _ if isinstance(state, job.State) and holds(state, agent_id, attempt):
            return "run"
        case _:
            return "abandon"
