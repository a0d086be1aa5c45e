"""Streams and consumers of JetStream: made by the control plane alone."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import BadRequestError, NotFoundError

from schemas.subjects import (
    DEAD_LETTERS_STREAM,
    DEAD_LETTERS_SUBJECTS,
    EVENTS_STREAM,
    EVENTS_SUBJECTS,
    HEADS_STREAM,
    HEADS_SUBJECT,
    INBOX_DURABLE,
    LANES,
    PRIORITIES,
    REPORTS_STREAM,
    REPORTS_SUBJECTS,
    WORK_STREAM,
    WORK_SUBJECTS,
    Lane,
    PriorityLevel,
    pool_durables,
    work_durable,
    work_subject,
)

logger = logging.getLogger(__name__)

REPORTS_MAX_BYTES = 256 * 2**20
DEAD_LETTERS_MAX_BYTES = 32 * 2**20
"""The server reserves these sizes, so their sum has to fit a small disk."""
WORK_MAX_BYTES = 64 * 2**20
HEADS_MAX_BYTES = 8 * 2**20

SUBSCRIBER_ACK_SECONDS = 30
"""After so long without an acknowledgement a subscriber is given the event again."""

_IMMUTABLE = ("retention", "storage")
"""What the server cannot change of a stream in place."""


def events_config(max_bytes: int) -> StreamConfig:
    """Every committed event. No `max_age`: an old log would otherwise look emptied and be refilled again."""
    return StreamConfig(
        name=EVENTS_STREAM,
        description="every committed event, in log order",
        subjects=[EVENTS_SUBJECTS],
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.OLD,
        storage=StorageType.FILE,
        max_bytes=max_bytes,
        duplicate_window=120,
        allow_atomic=True,
        allow_direct=True,
        deny_delete=True,
        deny_purge=True,
    )


def work_config() -> StreamConfig:
    """One message per queued item; published again it is refused, also while it is in flight."""
    return StreamConfig(
        name=WORK_STREAM,
        description="one offer per queued item, derived from the log",
        subjects=[WORK_SUBJECTS],
        retention=RetentionPolicy.WORK_QUEUE,
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
        max_msgs_per_subject=1,
        storage=StorageType.FILE,
        max_bytes=WORK_MAX_BYTES,
        duplicate_window=120,
    )


def reports_config() -> StreamConfig:
    """What agents reported and the inbox has not committed yet; full means that agents wait, never loss."""
    return StreamConfig(
        name=REPORTS_STREAM,
        description="reports of agents, until they are committed",
        subjects=[REPORTS_SUBJECTS],
        retention=RetentionPolicy.WORK_QUEUE,
        discard=DiscardPolicy.NEW,
        storage=StorageType.FILE,
        max_bytes=REPORTS_MAX_BYTES,
        duplicate_window=120,
    )


def dead_letters_config() -> StreamConfig:
    """Messages that nobody can read, kept for a person to look at."""
    return StreamConfig(
        name=DEAD_LETTERS_STREAM,
        description="reports that could not be decoded",
        subjects=[DEAD_LETTERS_SUBJECTS],
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.OLD,
        storage=StorageType.FILE,
        max_bytes=DEAD_LETTERS_MAX_BYTES,
        duplicate_window=120,
        allow_direct=True,
    )


def heads_config() -> StreamConfig:
    """The last signed heads; all of them are in the object store and behind REST."""
    return StreamConfig(
        name=HEADS_STREAM,
        description="signed heads of the log's Merkle trees",
        subjects=[HEADS_SUBJECT],
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.OLD,
        storage=StorageType.FILE,
        max_bytes=HEADS_MAX_BYTES,
        duplicate_window=120,
        allow_direct=True,
        deny_delete=True,
        deny_purge=True,
    )


def inbox_config() -> ConsumerConfig:
    """The one consumer of REPORTS. Never a `max_deliver`: a message at its limit would block for good."""
    return ConsumerConfig(
        durable_name=INBOX_DURABLE,
        name=INBOX_DURABLE,
        description="commits reports to the log",
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        # A commit takes milliseconds; what a killed orchestrator held comes back after this.
        ack_wait=5,
        max_deliver=-1,
        max_ack_pending=4096,
        filter_subject=REPORTS_SUBJECTS,
    )


def work_consumer_config(
    organization_id: str, pool: str, lane: Lane, priority: PriorityLevel
) -> ConsumerConfig:
    """The queue that the agents of one pool share; an offer that nobody answers for comes back after 30 s."""
    durable = work_durable(organization_id, pool, lane, priority)
    return ConsumerConfig(
        durable_name=durable,
        name=durable,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=30,
        max_deliver=-1,
        max_ack_pending=1000,
        filter_subject=work_subject(organization_id, pool, lane, priority, "*"),
    )


def subscriber_consumer_config(
    durable: str, filter_subjects: Sequence[str], start_sequence: int
) -> ConsumerConfig:
    """What one subscriber reads at its own pace, from a sequence on. It stays however long nobody reads.

    One event at a time, so that they come in order also when one is delivered again: whoever drops what does
    not lie behind its last position then drops nothing but duplicates.
    """
    return ConsumerConfig(
        durable_name=durable,
        name=durable,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start_sequence,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=SUBSCRIBER_ACK_SECONDS,
        max_deliver=-1,
        max_ack_pending=1,
        filter_subjects=list(filter_subjects),
    )


@dataclass
class Topology:
    """Makes what is missing and corrects what differs; asking again changes nothing."""

    js: JetStreamContext
    events_max_bytes: int
    _pools: set[tuple[str, str]] = field(default_factory=set)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ensure_streams(self) -> None:
        """Every stream, and the inbox's consumer."""
        async with self._lock:
            for config in (
                events_config(self.events_max_bytes),
                work_config(),
                reports_config(),
                dead_letters_config(),
                heads_config(),
            ):
                await self._ensure_stream(config)
            await self._ensure_consumer(REPORTS_STREAM, inbox_config())

    async def ensure_pool(self, organization_id: str, pool: str) -> None:
        """The six work queues of a pool; remembered, so that `repair` makes them again."""
        if (organization_id, pool) in self._pools:
            return
        async with self._lock:
            await self._make_pool(organization_id, pool)
            self._pools.add((organization_id, pool))

    async def make_subscriber(
        self, durable: str, filter_subjects: Sequence[str], start_sequence: int
    ) -> None:
        """The consumer that a subscriber reads; `command_api.messaging.subscribers` says where it begins."""
        async with self._lock:
            config = subscriber_consumer_config(durable, filter_subjects, start_sequence)
            await self._ensure_consumer(EVENTS_STREAM, config)

    async def repair(self) -> bool:
        """Make again what somebody deleted; true when anything was missing."""
        await self.ensure_streams()
        # By name: others may make consumers too, so their number tells nothing.
        there = {info.name for info in await self.consumers_of(WORK_STREAM)}
        broken = sorted(pool for pool in self._pools if not there.issuperset(pool_durables(*pool)))
        if not broken:
            return False
        logger.warning("%d of %d pools lack work queues; making them", len(broken), len(self._pools))
        async with self._lock:
            for organization_id, pool in broken:
                await self._make_pool(organization_id, pool)
        return True

    async def recreate_events(self, before_first: int) -> None:
        """Begin EVENTS anew with the sequence after `before_first`, without consumers.

        Deleting the consumers along with the stream tells whoever waits on one that it is gone.
        """
        async with self._lock:
            with suppress(NotFoundError):
                await self.js.delete_stream(EVENTS_STREAM)
            await self.js.add_stream(events_config(self.events_max_bytes).evolve(first_seq=before_first + 1))
            logger.info("stream %s begun anew behind sequence %d", EVENTS_STREAM, before_first)

    async def consumers_of(self, stream: str) -> list[ConsumerInfo]:
        """Every consumer of a stream, whoever made it."""
        found: dict[str, ConsumerInfo] = {}
        while page := await self.js.consumers_info(stream, offset=len(found)):
            fresh = [info for info in page if info.name not in found]
            found |= {info.name: info for info in fresh}
            if not fresh:  # somebody deleted some meanwhile, so that pages overlap
                break
        return list(found.values())

    async def _make_pool(self, organization_id: str, pool: str) -> None:
        for lane in LANES:
            for priority in PRIORITIES:
                await self._ensure_consumer(
                    WORK_STREAM, work_consumer_config(organization_id, pool, lane, priority)
                )

    async def _ensure_stream(self, wanted: StreamConfig) -> None:
        name = str(wanted.name)
        try:
            found = (await self.js.stream_info(name)).config
        except NotFoundError:
            await self.js.add_stream(wanted)
            logger.info("stream %s made", name)
            return
        fixed = [part for part in _IMMUTABLE if getattr(found, part) != getattr(wanted, part)]
        if fixed:
            raise BadRequestError(
                code=400,
                description=f"stream {name} has another {', '.join(fixed)}; delete it, it is derived",
            )
        if _differs(wanted, found):
            # Where its sequences begin is decided when it is made.
            await self.js.update_stream(wanted.evolve(first_seq=found.first_seq))
            logger.info("stream %s corrected", name)

    async def _ensure_consumer(self, stream: str, wanted: ConsumerConfig) -> None:
        # Creating a consumer that is there with the same settings changes nothing, also not its progress.
        await self.js.add_consumer(stream, wanted)


def _differs(wanted: StreamConfig, found: StreamConfig) -> bool:
    names = (
        "subjects",
        "discard",
        "discard_new_per_subject",
        "max_msgs_per_subject",
        "max_bytes",
        "duplicate_window",
        "deny_delete",
        "deny_purge",
    )
    if any(getattr(wanted, name) != getattr(found, name) for name in names):
        return True
    flags = ("allow_atomic", "allow_direct")
    return any(bool(getattr(wanted, name)) != bool(getattr(found, name)) for name in flags)
