"""The board shows what waits, what is queued and who holds what, and nothing that is over."""

from datetime import timedelta

from command_api.messaging.board import LIFECYCLE_TYPES, Board, Offer
from command_api.messaging.leases import Held
from schemas.envelope import Metadata, Recorded
from schemas.events import REGISTRY, Event
from schemas.events.agent import AgentEnrolled, AgentJoined, AgentLost, AgentOnline, AgentRevoked
from schemas.events.dataset import (
    DatasetRegistered,
    DatasetRejected,
    DatasetUploaded,
    DatasetValidationInterrupted,
    DatasetValidationStarted,
)
from schemas.events.job import (
    CheckpointSaved,
    JobAssigned,
    JobFailed,
    JobPlanned,
    JobProgressed,
    JobQueued,
    JobRequested,
    JobStopped,
    JobStopRequested,
    JobSucceeded,
    JobValidationStarted,
    LeaseExpired,
    PinnedInput,
    TrainingFinished,
)
from schemas.ids import Prefix, new_id
from schemas.training import Hyperparameters
from tests.unit.domain.samples import AGENT, DATASET, JOB, LISTING, MANIFEST, MODEL, NOON, PROBLEM, USER, sha

JOINED_AGAIN = "agt_" + "8" * 32
ORGANIZATION, WORKSPACE = "org_" + "1" * 32, "ws_" + "1" * 32
PINNED = PinnedInput(listing=LISTING, content_sha256=sha(1))
REQUESTED = JobRequested(
    name="",
    owner_id=USER,
    dataset_id=DATASET,
    model_id=MODEL,
    dataset=PINNED,
    model=PINNED,
    manifest=MANIFEST,
    hyperparameters=Hyperparameters(),
    pool="gpu",
    priority="high",
    labels={},
    max_attempts=5,
)
PLANNED = JobPlanned(total_steps=10, training_examples=8, held_out_examples=2, epochs=1.0)
REGISTERED = DatasetRegistered(
    name="d",
    description="",
    format="video_text",
    owner_id=USER,
    listing=LISTING,
    file_count=1,
    size_bytes=1,
)
QUEUED = (REQUESTED, JobValidationStarted(), PLANNED, JobQueued(attempt=1, reason="requested"))
ASSIGNED = (*QUEUED, JobAssigned(attempt=1, agent_id=AGENT))
CHECKPOINT = CheckpointSaved(attempt=1, step=50, objects=(LISTING,))


def told(*events: Event, stream_id: str = JOB, board: Board | None = None) -> Board:
    board = board or Board()
    for event in events:
        position = board.position + 1
        metadata = Metadata(
            event_id=new_id(Prefix.EVENT),
            recorded_at=NOON,
            organization_id=ORGANIZATION,
            workspace_id=WORKSPACE,
            actor=USER,
            correlation_id="req_1",
            causation_id="req_1",
        )
        board.apply(
            Recorded(position=position, stream_id=stream_id, version=position, metadata=metadata, event=event)
        )
    return board


def offer(board: Board, item_id: str) -> Offer:
    found = board.offer(item_id)
    assert found is not None
    return found


def test_a_requested_job_waits_for_a_policy() -> None:
    (item,) = told(REQUESTED).undecided()
    assert (item.item_id, item.phase, item.workspace_id) == (JOB, "requested", WORKSPACE)
    (item,) = told(REQUESTED, JobValidationStarted()).undecided()
    assert item.phase == "validating"


def test_a_queued_job_is_offered_to_its_pool() -> None:
    board = told(*QUEUED)
    assert board.undecided() == []
    offered = offer(board, JOB)
    assert (offered.pool, offered.item.attempt, offered.item.priority, offered.item.lane) == (
        "gpu",
        1,
        "high",
        "train",
    )
    assert offered.item.not_before is None


def test_a_backoff_delays_the_offer() -> None:
    retry = JobQueued(attempt=2, reason="retry", not_before_seconds=8)
    board = told(*ASSIGNED, LeaseExpired(attempt=1, agent_id=AGENT), retry)
    assert offer(board, JOB).item.not_before == NOON + timedelta(seconds=8)


def test_an_assigned_job_is_held_and_no_longer_offered() -> None:
    board = told(*ASSIGNED)
    assert board.queued() == []
    assert board.held() == [Held(JOB, 1, AGENT)]
    assert board.holds(Held(JOB, 1, AGENT)) is not None
    assert board.holds(Held(JOB, 2, AGENT)) is None


def test_the_next_attempt_goes_on_from_the_checkpoint_and_keeps_doing_so() -> None:
    requeued = JobQueued(attempt=2, reason="lease_expired", resume_step=50)
    later = CheckpointSaved(attempt=2, step=100, objects=(MANIFEST,))
    board = told(
        *ASSIGNED,
        CHECKPOINT,
        LeaseExpired(attempt=1, agent_id=AGENT),
        requeued,
        JobAssigned(attempt=2, agent_id=AGENT),
        later,
    )
    assert board.items[JOB].resume == CHECKPOINT
    assert board.items[JOB].checkpoints == (CHECKPOINT, later)


def test_a_job_goes_on_from_the_checkpoint_before_a_damaged_one() -> None:
    damaged = CheckpointSaved(attempt=1, step=100, objects=(MANIFEST,))
    board = told(
        *ASSIGNED,
        CHECKPOINT,
        damaged,
        LeaseExpired(attempt=1, agent_id=AGENT),
        JobQueued(attempt=2, reason="retry", resume_step=50),
    )
    assert board.items[JOB].resume == CHECKPOINT
    assert board.items[JOB].checkpoints == (CHECKPOINT,)


def test_between_two_attempts_nobody_holds_it() -> None:
    board = told(*ASSIGNED, LeaseExpired(attempt=1, agent_id=AGENT))
    assert board.held() == []
    assert board.queued() == []


def test_a_stop_is_what_the_holder_should_do_until_the_training_is_finished() -> None:
    stop = JobStopRequested(mode="graceful", reason="")
    assert told(*ASSIGNED).items[JOB].desired == "run"
    board = told(*ASSIGNED, stop)
    assert board.items[JOB].desired == "stop"
    told(JobStopRequested(mode="immediate", reason=""), board=board)
    assert board.items[JOB].desired == "stop_immediately"
    told(TrainingFinished(attempt=1, steps=1, loss_first=1, loss_last=1, seconds=1), board=board)
    assert board.items[JOB].desired == "run"


def test_what_is_over_leaves_the_board() -> None:
    for end in (
        JobSucceeded(attempt=1, output_model_id=MODEL),
        JobFailed(attempt=1, code="oom", message="", retryable=True),
        JobStopped(attempt=1, step=0, reason=""),
    ):
        assert told(*ASSIGNED, end).items == {}


def test_an_uploaded_dataset_is_offered_until_it_is_judged() -> None:
    board = told(REGISTERED, stream_id=DATASET)
    assert board.queued() == []
    told(DatasetUploaded(upload_id="u"), stream_id=DATASET, board=board)
    assert offer(board, DATASET).item.attempt == 1
    told(DatasetValidationStarted(agent_id=AGENT, attempt=1), stream_id=DATASET, board=board)
    assert board.held() == [Held(DATASET, 1, AGENT)]
    told(DatasetValidationInterrupted(attempt=1, reason="released"), stream_id=DATASET, board=board)
    assert offer(board, DATASET).item.attempt == 2
    assert board.held() == []
    told(DatasetRejected(attempt=1, problems=(PROBLEM,)), stream_id=DATASET, board=board)
    assert board.items == {}


def test_a_validation_goes_to_a_pool_that_has_agents() -> None:
    board = told(REGISTERED, DatasetUploaded(upload_id="u"), stream_id=DATASET)
    assert offer(board, DATASET).pool == "default"
    told(AgentEnrolled(name="n", pool="gpu"), stream_id=AGENT, board=board)
    assert offer(board, DATASET).pool == "gpu"
    told(AgentEnrolled(name="m", pool="default"), stream_id="agt_" + "9" * 32, board=board)
    assert offer(board, DATASET).pool == "default"
    assert board.pools() == {(ORGANIZATION, "default"), (ORGANIZATION, "gpu")}


def test_a_validation_prefers_a_pool_whose_agents_are_there() -> None:
    board = told(REGISTERED, DatasetUploaded(upload_id="u"), stream_id=DATASET)
    told(AgentEnrolled(name="gone", pool="default"), stream_id="agt_" + "9" * 32, board=board)
    told(AgentEnrolled(name="n", pool="gpu"), AgentOnline(), stream_id=AGENT, board=board)
    assert offer(board, DATASET).pool == "gpu"
    told(AgentLost(reason="shut_down"), stream_id=AGENT, board=board)
    assert offer(board, DATASET).pool == "default"


def test_a_revoked_agent_is_nowhere_and_its_key_is_void() -> None:
    key, other = "U" + "A" * 55, "U" + "B" * 55
    board = told(AgentEnrolled(name="n", pool="gpu"), AgentJoined(public_key=key), stream_id=AGENT)
    assert (board.agents[AGENT].public_key, board.void_keys) == (key, {})
    told(AgentJoined(public_key=other), AgentOnline(), stream_id=AGENT, board=board)
    assert (board.agents[AGENT].public_key, board.void_keys) == (other, {key: NOON})
    told(AgentRevoked(), stream_id=AGENT, board=board)
    assert board.void_keys == {key: NOON, other: NOON}
    assert (board.pools(), board.online(), board.agents[AGENT].revoked) == (set(), [], True)
    # What was signed for it before stays void, wherever it joins again.
    told(
        AgentEnrolled(name="m", pool="gpu"), AgentJoined(public_key=key), stream_id=JOINED_AGAIN, board=board
    )
    assert board.void_keys == {key: NOON, other: NOON}


def test_a_validation_that_was_declined_or_failed_waits_before_it_is_offered_again() -> None:
    for reason, pause in (("declined", 5), ("failed", 5), ("released", 0), ("lease_expired", 0)):
        board = told(REGISTERED, DatasetUploaded(upload_id="u"), stream_id=DATASET)
        told(DatasetValidationStarted(agent_id=AGENT, attempt=1), stream_id=DATASET, board=board)
        told(DatasetValidationInterrupted(attempt=1, reason=reason), stream_id=DATASET, board=board)
        assert offer(board, DATASET).item.not_before == NOON + timedelta(seconds=pause)


def test_a_validation_that_nobody_takes_is_offered_less_and_less_often() -> None:
    board = told(REGISTERED, DatasetUploaded(upload_id="u"), stream_id=DATASET)
    pauses = []
    for attempt in range(1, 9):
        told(DatasetValidationStarted(agent_id=AGENT, attempt=attempt), stream_id=DATASET, board=board)
        told(DatasetValidationInterrupted(attempt=attempt, reason="declined"), stream_id=DATASET, board=board)
        not_before = offer(board, DATASET).item.not_before
        assert not_before is not None
        pauses.append((not_before - NOON).total_seconds())
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]


def test_agents_come_and_go() -> None:
    board = told(AgentEnrolled(name="n", pool="gpu"), stream_id=AGENT)
    assert board.online() == []
    told(AgentOnline(), stream_id=AGENT, board=board)
    assert board.online() == [AGENT]
    told(AgentLost(reason="shut_down"), stream_id=AGENT, board=board)
    assert board.online() == []


def test_measurements_are_not_read() -> None:
    assert JobProgressed.TYPE not in LIFECYCLE_TYPES
    assert set(LIFECYCLE_TYPES) <= {event.TYPE for event in REGISTRY.types}


def test_what_was_stirred_is_told_once() -> None:
    board = told(REQUESTED)
    assert board.take_stirred() == {JOB}
    assert board.take_stirred() == set()
    told(JobValidationStarted(), PLANNED, board=board)
    assert board.take_stirred() == {JOB}


def test_who_is_there_stirs_queued_validations_only() -> None:
    board = told(REGISTERED, stream_id=DATASET)
    told(AgentEnrolled(name="a", pool="gpu"), stream_id=AGENT, board=board)
    board.take_stirred()
    told(AgentOnline(), stream_id=AGENT, board=board)
    assert board.take_stirred() == set()
    told(DatasetUploaded(upload_id="upl"), stream_id=DATASET, board=board)
    board.take_stirred()
    told(AgentLost(reason="shut_down"), stream_id=AGENT, board=board)
    assert board.take_stirred() == {DATASET}
