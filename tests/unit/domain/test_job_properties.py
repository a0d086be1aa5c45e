"""Whatever is sent to a job in whatever order, its history stays sound."""

from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from command_api.domain import job
from command_api.domain.errors import Refused
from command_api.domain.job_phases import Absent, Held, holds
from schemas import work
from schemas.commands import Command
from schemas.events import Event
from schemas.events.job import JobFailed, JobQueued, JobStopped, JobSucceeded
from schemas.job_status import JobPhase, phase_after
from tests.unit.domain import job_story as story
from tests.unit.domain.job_story import HISTORIES, claim, expire, says, stop
from tests.unit.domain.samples import AGENT, JOB_REQUESTED, OTHER_AGENT

ALLOWED: dict[JobPhase, set[JobPhase]] = {
    "pending": {"validating", "cancelled"},
    "validating": {"queued", "cancelled", "failed"},
    "queued": {"assigned", "cancelled", "failed"},
    "assigned": {"preparing", "queued", "cancelled", "failed"},
    "preparing": {"running", "queued", "failed", "stopping"},
    "running": {"stopping", "finalizing", "queued", "failed"},
    "stopping": {"cancelled", "finalizing"},
    "finalizing": {"succeeded", "queued", "failed", "cancelled"},
    "succeeded": set(),
    "failed": set(),
    "cancelled": set(),
}
"""The table of transitions; beside it, an assigned attempt may be the last that was allowed."""

ONWARD: dict[JobPhase, list[work.ReportBody]] = {
    "assigned": [story.ACCEPTED],
    "preparing": [story.STARTED],
    "running": [story.PROGRESSED, story.CHECKPOINT, story.FINISHED],
    "stopping": [story.PARTIAL, story.STOPPED, story.FINISHED],
    "finalizing": [story.ADAPTER],
}
BODIES: list[work.ReportBody] = [
    story.ACCEPTED,
    story.STARTED,
    story.EVALUATED,
    story.PROGRESSED,
    story.CHECKPOINT,
    story.LOG,
    story.WARNED,
    story.RERANKED,
    story.FINISHED,
    story.ADAPTER,
    story.PARTIAL,
    story.STOPPED,
    story.DECLINED,
    story.RELEASED,
    story.CRASHED,
    story.BROKEN,
    work.DatasetJudged(),
]
NEW_EVERY_TIME = (work.Evaluated, work.Reranked, work.LogStored, work.Warned)
"""Reports that say nothing by which a repeat is known; their sequence number keeps repeats away."""


@dataclass(frozen=True)
class Move:
    """A choice that becomes a command when the job's state is known."""

    kind: str
    agent_id: str
    offset: int
    """From the current attempt: 0 fits, others are stale or invented."""
    body: work.ReportBody
    pick: int

    def command(self, state: job.State) -> Command:
        attempt = 1 if isinstance(state, Absent) else state.history.attempt
        fenced = max(1, attempt + self.offset)
        match self.kind:
            case "onward":
                return self._onward(state, max(1, attempt))
            case "validate":
                return story.VALIDATE
            case "admit":
                return story.ADMIT
            case "refuse":
                return story.REFUSE
            case "claim":
                return claim(fenced, self.agent_id)
            case "expire":
                return expire(fenced)
            case "stop":
                return stop("immediate" if self.pick % 2 else "graceful")
            case _:
                return says(self.body, fenced, self.agent_id)

    def _onward(self, state: job.State, attempt: int) -> Command:
        """A command that fits, so that random histories get far."""
        if isinstance(state, Held):
            bodies = ONWARD[state.phase]
            return says(bodies[self.pick % len(bodies)], attempt, state.agent_id)
        by_phase = {"pending": story.VALIDATE, "validating": story.ADMIT}
        return by_phase.get(state.phase or "", claim(attempt, self.agent_id))


KINDS = ["onward"] * 8 + ["report"] * 4 + ["claim", "expire", "stop", "validate", "admit", "refuse"]
MOVES = st.lists(
    st.builds(
        Move,
        kind=st.sampled_from(KINDS),
        agent_id=st.sampled_from([AGENT, AGENT, OTHER_AGENT]),
        offset=st.sampled_from([0, 0, 0, -1, 1]),
        body=st.sampled_from(BODIES),
        pick=st.integers(0, 5),
    ),
    min_size=5,
    max_size=80,
)
STARTS = st.sampled_from(list(HISTORIES))
ONWARD_ONLY = [Move("onward", AGENT, 0, story.ACCEPTED, pick) for pick in (0, 0, 0, 0, 0, 2, 0)]


def decided(state: job.State, command: Command) -> list[Event]:
    """The events, or none when it is refused."""
    try:
        return job.decide(state, command)  # type: ignore[arg-type]
    except Refused:
        return []


def play(start: JobPhase, moves: list[Move]) -> tuple[job.State, list[Event]]:
    """Decide every move from one phase on, and check what holds at each step."""
    history = list(HISTORIES[start])
    state: job.State = story.job.given(*history).state
    for move in moves:
        command, before = move.command(state), state
        events = decided(state, command)
        for event in events:
            phase = phase_after(state.phase, event)
            state = job.evolve(state, event)
            assert state.phase == phase
        history += events
        if state.phase != before.phase:
            assert before.phase is not None
            assert state.phase in ALLOWED[before.phase]
        check_repeat(state, command)
    return state, history


def check_repeat(state: job.State, command: Command) -> None:
    body = getattr(getattr(command, "report", None), "body", None)
    if not isinstance(body, NEW_EVERY_TIME):
        assert decided(state, command) == []


@settings(max_examples=300)
@given(STARTS, MOVES)
@example("pending", ONWARD_ONLY)
def test_any_sequence_of_commands_leaves_a_sound_history(start: JobPhase, moves: list[Move]) -> None:
    state, history = play(start, moves)
    terminal = [event for event in history if isinstance(event, JobSucceeded | JobFailed | JobStopped)]
    assert len(terminal) <= 1
    assert not terminal or history[-1] is terminal[0]
    attempts = [event.attempt for event in history if isinstance(event, JobQueued)]
    assert attempts == list(range(1, len(attempts) + 1))
    if not isinstance(state, Absent):
        assert state.history.failures <= JOB_REQUESTED.max_attempts
        assert sum(holds(state, agent_id, state.history.attempt) for agent_id in (AGENT, OTHER_AGENT)) <= 1


@settings(max_examples=200)
@given(STARTS, MOVES)
def test_the_shared_fold_names_the_same_phase_after_every_event(start: JobPhase, moves: list[Move]) -> None:
    _, history = play(start, moves)
    state, phase = job.INITIAL, None
    for event in history:
        state, phase = job.evolve(state, event), phase_after(phase, event)
        assert state.phase == phase


def test_moves_onward_reach_success() -> None:
    state, _ = play("pending", ONWARD_ONLY)
    assert state.phase == "succeeded"
