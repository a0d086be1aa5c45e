"""How much waits where, looked at every few seconds: what the other parts count, but for standing amounts."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from nats.js.errors import APIError
from prometheus_client import Gauge

from command_api import metrics
from command_api.eventlog.errors import LogUnavailable
from command_api.eventlog.log import EventLog
from command_api.messaging.board import Board, Item
from command_api.messaging.connection import UNREACHABLE
from command_api.messaging.follower import Follower
from command_api.messaging.topology import Topology
from schemas.envelope import Recorded
from schemas.events import dataset, job, model
from schemas.subjects import DEAD_LETTERS_STREAM, REPORTS_STREAM

logger = logging.getLogger(__name__)

BOARD_SECONDS = 1.0
STREAMS_SECONDS = 5.0


class Gauges:
    """Sets the gauges of the active orchestrator; they say nothing in one that is not."""

    def __init__(
        self, follower: Follower, topology: Topology, log: EventLog, relayed: Callable[[], int]
    ) -> None:
        self._follower = follower
        self._topology = topology
        self._log = log
        self._relayed = relayed
        self._streams_due = 0.0
        follower.listen(_count)

    async def run(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        metrics.ORCHESTRATOR_ACTIVE.set(1)
        try:
            while True:
                began = loop.time()
                show_board(self._follower.board, datetime.now(UTC))
                spent = loop.time() - began
                if loop.time() >= self._streams_due:
                    self._streams_due = loop.time() + STREAMS_SECONDS
                    await self._look_at_streams()
                # With very many items looking takes a while, in which nothing else is done.
                await asyncio.sleep(max(BOARD_SECONDS, 50 * spent))
        finally:
            metrics.ORCHESTRATOR_ACTIVE.set(0)
            for gauge in _OF_BOARD:
                gauge.clear()

    async def _look_at_streams(self) -> None:
        try:
            head = await asyncio.to_thread(self._log.head)
            metrics.RELAY_LAG.set(max(0, head - self._relayed()))
            reports = await self._topology.js.stream_info(REPORTS_STREAM)
            metrics.INBOX_PENDING.set(reports.state.messages)
            letters = await self._topology.js.stream_info(DEAD_LETTERS_STREAM)
            metrics.DEAD_LETTERS.set(letters.state.messages)
        except (*UNREACHABLE, APIError, LogUnavailable) as error:
            logger.info("gauges: cannot look (%s)", str(error) or type(error).__name__)


_OF_BOARD: tuple[Gauge, ...] = (metrics.QUEUE_DEPTH, metrics.QUEUE_OLDEST, metrics.RUNNING, metrics.AGENTS)


def show_board(board: Board, now: datetime) -> None:
    """Queues, attempts and agents as the board has them."""
    waiting: dict[tuple[str, ...], list[Item]] = {}
    for item_id in board.queued():
        if (offer := board.offer(item_id)) is not None:
            place = (offer.pool, offer.item.lane, offer.item.priority)
            waiting.setdefault(place, []).append(offer.item)
    depths = {place: len(items) for place, items in waiting.items()}
    oldest = {
        place: max(0.0, (now - min(item.since for item in items)).total_seconds())
        for place, items in waiting.items()
    }
    held = [item for item in board.items.values() if item.phase == "held"]
    running: Counter[tuple[str, ...]] = Counter((board.pool_of(item), item.lane) for item in held)
    agents: Counter[tuple[str, ...]] = Counter(
        (agent.pool, "online" if agent.online else "offline") for agent in board.agents.values()
    )
    _show(metrics.QUEUE_DEPTH, depths)
    _show(metrics.QUEUE_OLDEST, oldest)
    _show(metrics.RUNNING, running)
    _show(metrics.AGENTS, agents)


def _show(gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
    """Set what there is; what was there before and is no more becomes 0, so that graphs come down."""
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
    for sample in next(iter(gauge.collect())).samples:
        labels = tuple(sample.labels.values())
        if labels not in values:
            gauge.labels(*labels).set(0)


def _count(before: Item | None, recorded: Recorded) -> None:
    """Count an event that the log holds; called for each that is folded once the gauges are there."""
    lane = before.lane if before is not None else "train"
    match recorded.event:
        case job.JobSucceeded():
            metrics.JOBS_ENDED.labels("succeeded").inc()
        case job.JobFailed():
            metrics.JOBS_ENDED.labels("failed").inc()
        case job.JobStopped():
            metrics.JOBS_ENDED.labels("stopped").inc()
        case job.LeaseExpired():
            metrics.LEASE_EXPIRIES.labels(lane).inc()
            metrics.ATTEMPTS_FAILED.labels("lease_expired").inc()
        case (
            dataset.DatasetValidationInterrupted(reason="lease_expired")
            | model.ModelValidationInterrupted(reason="lease_expired")
        ):
            metrics.LEASE_EXPIRIES.labels(lane).inc()
        case job.AttemptFailed():
            metrics.ATTEMPTS_FAILED.labels("failed").inc()
        case job.AttemptReleased():
            metrics.ATTEMPTS_FAILED.labels("released").inc()
        case job.AgentDeclined():
            metrics.ATTEMPTS_FAILED.labels("declined").inc()
        case _:
            return
