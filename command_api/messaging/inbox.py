"""Commits what agents report: in order per attempt, once, and only then acknowledged.

A report that comes again is recognised by the attempt's cursor, one that comes too early waits, and one
whose sender does not hold the attempt is dropped. Nothing is acknowledged before its commit, and nothing
is committed over a report that was not.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from pydantic import ValidationError

from command_api.domain.errors import Refused
from command_api.eventlog.errors import EventNotCanonical, LogUnavailable
from command_api.handlers.bus import Answer, CommandBus, Outcome
from command_api.messaging.artifacts import named_objects, with_proven_artifacts
from command_api.messaging.board import Item
from command_api.messaging.connection import UNREACHABLE
from command_api.messaging.cursors import OUT_OF_ORDER, Advance, Attempt, Cursors
from command_api.messaging.follower import Follower
from command_api.messaging.identity import agent_context
from command_api.messaging.leases import Held
from command_api.metrics import INBOX_REPORTS
from command_api.objects import ObjectStore, ObjectStoreUnavailable
from command_api.tracing import continued, traceparent_of
from schemas.commands.job import ReportAttempt
from schemas.errors import KinoraError
from schemas.subjects import REPORTS_STREAM, dead_letter_subject, report_subject
from schemas.work import Failed, Report, log_fields

logger = logging.getLogger(__name__)
_tracer = trace.get_tracer(__name__)

GAP_DELAY = 1.0
"""Seconds before a report that came too early is looked at again."""
GAP_SECONDS = 120.0
"""After so long the missing report counts as lost with its store, and the attempt as failed: an agent never
sends again what JetStream has acknowledged, so the job would otherwise wait for ever. Measured here and not
in deliveries, of which an outage makes many while the missing report waits for it to end too."""
OUTAGE_DELAY = 2.0
"""Seconds before reports are taken again that database or store could not take."""
TRIES = 10
"""Deliveries after which a report that breaks our own code is put aside, so that its job can go on."""
STORE_SECONDS = 10.0
"""How long the object store may take to prove one report, while all others wait."""
ACK_TIMEOUT = 5.0
BATCH_REPORTS = 256
ASIDE_BYTES = 256 * 1024
"""How much of a message is put aside. A whole one of the largest size would not fit together with the
headers, and the server ends the connection of whoever sends too much."""


@dataclass
class Letter:
    """One report and the messages that brought it; more than one when it was sent again."""

    organization_id: str
    agent_id: str
    report: Report
    messages: list[Msg]

    @property
    def attempt(self) -> Attempt:
        return self.report.item_id, self.report.attempt

    @property
    def held(self) -> Held:
        return Held(self.report.item_id, self.report.attempt, self.agent_id)


@dataclass
class Sorted:
    """What is to become of a batch."""

    commit: list[tuple[Letter, Item]] = field(default_factory=list)
    done: list[Letter] = field(default_factory=list)
    """Nothing is left to do but to acknowledge them."""
    early: list[Letter] = field(default_factory=list)
    again: list[Letter] = field(default_factory=list)
    store_away: bool = False
    """The object store did not answer for one of them; the others need not wait for it too."""


class Inbox:
    """Gathers what the subscriber delivers one by one, and commits it batch by batch."""

    def __init__(
        self,
        js: JetStreamContext,
        follower: Follower,
        bus: CommandBus,
        store: ObjectStore,
        cursors: Cursors,
    ) -> None:
        self._js = js
        self._follower = follower
        self._bus = bus
        self._store = store
        self._cursors = cursors
        self._waiting: set[int] = set()
        """Stream sequences of the reports that wait for a gap to fill."""
        self._gaps: dict[Attempt, float] = {}
        """When each attempt's next report was last looked at, or first missed."""
        self._delivered: asyncio.Queue[Msg] = asyncio.Queue(BATCH_REPORTS)
        self.batches = 0
        """Batches taken so far, so that a watchdog sees whether anything moves."""
        self.taking = False
        self._current: asyncio.Future[None] | None = None

    async def deliver(self, message: Msg) -> None:
        """Take a message over, in order; waits while a whole batch waits already."""
        await self._delivered.put(message)

    async def run(self) -> None:
        """Commit batches until cancelled: one message at once, or all that came during the last commit."""
        while True:
            messages = [await self._delivered.get()]
            messages += self._rest(BATCH_REPORTS - 1)
            self._current = asyncio.ensure_future(self.take(messages))
            # A commit is never cut off: its acknowledgements would be lost, and the reports come again late.
            await asyncio.shield(self._current)

    async def finish(self) -> None:
        """After `run` was cancelled: end the last batch, and give back what was never begun."""
        if self._current is not None:
            await self._current
        await _send_back(self._rest(BATCH_REPORTS), 0)

    def _rest(self, limit: int) -> list[Msg]:
        return [self._delivered.get_nowait() for _ in range(min(limit, self._delivered.qsize()))]

    async def take(self, messages: Sequence[Msg]) -> None:
        """Commit a batch and acknowledge it; whatever could not be committed comes again."""
        self.taking = True
        try:
            await self._take(messages)
        except (LogUnavailable, *UNREACHABLE) as error:
            logger.warning(
                "inbox: %s; %d reports come again", str(error) or type(error).__name__, len(messages)
            )
            await _send_back(messages, OUTAGE_DELAY)
            self._gaps.clear()  # what was missed may be among these
        except Exception:  # the inbox's door: one report must not end the whole orchestrator
            logger.exception("inbox: a batch of %d reports failed and comes again", len(messages))
            await _send_back(messages, OUTAGE_DELAY)
            self._gaps.clear()
        finally:
            self.taking = False
            self.batches += 1

    async def unread(self, organization_id: str, held: Held) -> bool:
        """Whether a report of this attempt was sent and is not committed, unless it waits for a lost one.

        True also when nobody can say.
        """
        subject = report_subject(organization_id, held.agent_id, held.item_id)
        try:
            oldest = await self._js.get_msg(REPORTS_STREAM, seq=1, subject=subject, next=True)
        except NotFoundError:
            return False
        except (*UNREACHABLE, APIError):
            return True
        return oldest.seq not in self._waiting or (held.item_id, held.attempt) not in self._gaps

    async def _take(self, messages: Sequence[Msg]) -> None:
        self._waiting.difference_update(_sequence(message) for message in messages)
        letters = await self._read(messages)
        await self._follower.catch_up()
        batch = await self._sort(letters)
        spans = [_begin(letter, item) for letter, item in batch.commit]
        requests = [
            (
                ReportAttempt(agent_id=letter.agent_id, report=letter.report),
                agent_context(
                    self._follower.board.agents[letter.agent_id],
                    item,
                    f"report:{letter.report.item_id}:{letter.report.attempt}:{letter.report.sequence}",
                    traceparent_of(span),
                ),
                (Advance(letter.attempt, letter.report.sequence),),
            )
            for (letter, item), span in zip(batch.commit, spans, strict=True)
        ]
        try:
            answers = await self._bus.execute_batch(requests)
        except BaseException:
            for letter, _ in batch.commit:
                self._cursors.forget(letter.attempt)
            raise
        finally:
            for span in spans:
                span.end()
        await self._settle([letter for letter, _ in batch.commit], answers, batch)
        for letter in batch.early:
            self._waiting.update(_sequence(message) for message in letter.messages)
        await _acknowledge(_messages(batch.done))
        await _send_back(_messages(batch.early), GAP_DELAY)
        await _send_back(_messages(batch.again), OUTAGE_DELAY)

    # ---- reading --------------------------------------------------------------------------------

    async def _read(self, messages: Sequence[Msg]) -> list[Letter]:
        """One letter per report, each attempt's in order; what cannot be read is put aside."""
        letters: dict[tuple[str, str, Attempt, int], Letter] = {}
        for message in messages:
            tokens = message.subject.split(".")
            try:
                report = Report.model_validate_json(message.data)
            except ValidationError as error:
                await self._put_aside(message, f"{error.error_count()} validation errors: {error}"[:1000])
                continue
            if len(tokens) != 5 or tokens[4] != report.item_id:
                await self._put_aside(message, f"the report is of {report.item_id}")
                continue
            organization_id, agent_id = tokens[2], tokens[3]
            key = (organization_id, agent_id, (report.item_id, report.attempt), report.sequence)
            if key in letters:
                letters[key].messages.append(message)
            else:
                letters[key] = Letter(organization_id, agent_id, report, [message])
        # Redelivered reports come behind younger ones.
        return sorted(letters.values(), key=lambda letter: letter.report.sequence)

    async def _put_aside(self, message: Msg, reason: str) -> None:
        INBOX_REPORTS.labels("put_aside").inc()
        logger.error("inbox: a message on %s goes to the dead letters: %s", message.subject, reason)
        await self._js.publish(
            dead_letter_subject(REPORTS_STREAM),
            message.data[:ASIDE_BYTES],
            headers={
                "Nats-Msg-Id": f"{REPORTS_STREAM}-{_sequence(message)}",
                "Kinora-Subject": message.subject,
                "Kinora-Bytes": str(len(message.data)),
                "Kinora-Reason": " ".join(reason.split()),
            },
            timeout=ACK_TIMEOUT,
        )
        await _acknowledge([message])

    async def _sort(self, letters: Sequence[Letter]) -> Sorted:
        batch = Sorted()
        following: dict[Attempt, int] = {}
        for letter in letters:
            item = self._holder(letter)
            if item is None:
                batch.done.append(letter)
                INBOX_REPORTS.labels("stray").inc()
                self._forget(letter.attempt)
                continue
            following.setdefault(letter.attempt, await self._cursors.last(letter.attempt) + 1)
            following[letter.attempt] += await self._place(batch, letter, item, following[letter.attempt])
        return batch

    async def _place(self, batch: Sorted, letter: Letter, item: Item, expected: int) -> int:
        """Put a letter where it belongs; 1 when the next one of its attempt may be committed too."""
        if letter.report.sequence < expected:
            INBOX_REPORTS.labels("repeated").inc()
            batch.done.append(letter)
            return 0
        if letter.report.sequence > expected:
            if not self._missed_for_long(letter.attempt) or await self._is_stored(letter, expected):
                logger.debug("inbox: %s came before report %d", _name(letter), expected)
                INBOX_REPORTS.labels("early").inc()
                batch.early.append(letter)
                return 0
            logger.error("inbox: %s still came before report %d; that one is lost", _name(letter), expected)
            lost = Failed(code="reports_lost", message=f"report {expected} never arrived", retryable=True)
            letter.report = letter.report.model_copy(update={"sequence": expected, "body": lost})
        self._gaps.pop(letter.attempt, None)
        away = batch.store_away and named_objects(letter.report.body)
        proven = None if away else await self._prove(item, letter)
        if proven is None:
            batch.store_away = True
            batch.again.append(letter)
            self._looked_at(letter.attempt)
            return 0
        if proven is not letter.report:
            logger.warning("inbox: %s is not true: %s", _name(letter), proven.body)
            letter.report = proven
        batch.commit.append((letter, item))
        return 1

    def _missed_for_long(self, attempt: Attempt) -> bool:
        now = asyncio.get_running_loop().time()
        return now - self._gaps.setdefault(attempt, now) >= GAP_SECONDS

    async def _is_stored(self, letter: Letter, sequence: int) -> bool:
        """Whether the missing report lies in REPORTS after all: it comes then, however long that takes.

        After the machine slept, for instance, all that time has passed and nothing was missing.
        """
        subject = report_subject(letter.organization_id, letter.agent_id, letter.report.item_id)
        after = 0
        while True:
            try:
                found = await self._js.get_msg(REPORTS_STREAM, seq=after + 1, subject=subject, next=True)
                report = Report.model_validate_json(found.data or b"")
            except NotFoundError:
                return False
            except ValidationError:
                report = None
            after = found.seq or after + 1
            if report is not None and (report.attempt, report.sequence) == (letter.report.attempt, sequence):
                return True

    def _looked_at(self, attempt: Attempt) -> None:
        """The next report is here and comes again: those behind it do not miss it."""
        self._gaps[attempt] = asyncio.get_running_loop().time()

    async def _prove(self, item: Item, letter: Letter) -> Report | None:
        """The report as far as it is true; None when the object store cannot say now."""
        try:
            async with asyncio.timeout(STORE_SECONDS):
                return await with_proven_artifacts(self._store, item, letter.report)
        except (ObjectStoreUnavailable, TimeoutError) as error:
            logger.warning(
                "inbox: %s waits for the object store: %s", _name(letter), str(error) or "no answer"
            )
            return None

    def _holder(self, letter: Letter) -> Item | None:
        agent = self._follower.board.agents.get(letter.agent_id)
        item = self._follower.board.holds(letter.held)
        if agent is None or agent.revoked or item is None:
            logger.info("inbox: %s dropped, agent %s does not hold it", _name(letter), letter.agent_id)
            return None
        if not agent.organization_id == item.organization_id == letter.organization_id:
            logger.warning("inbox: %s dropped, it came under %s", _name(letter), letter.organization_id)
            return None
        return item

    # ---- settling -------------------------------------------------------------------------------

    async def _settle(self, letters: Sequence[Letter], answers: Sequence[Answer], batch: Sorted) -> None:
        """Move the cursors as the answers say. After one that must come again, so must those behind it."""
        stuck: set[Attempt] = set()
        position = 0
        for letter, answer in zip(letters, answers, strict=True):
            if letter.attempt in stuck:
                batch.again.append(letter)
            elif isinstance(answer, Outcome):
                INBOX_REPORTS.labels("committed").inc()
                self._cursors.committed(letter.attempt, letter.report.sequence)
                position = max(position, answer.position)
                batch.done.append(letter)
            elif _is_final(answer):
                INBOX_REPORTS.labels("refused").inc()
                logger.warning("inbox: %s refused: %s", _name(letter), answer)
                await self._cursors.skip(letter.attempt, letter.report.sequence)
                batch.done.append(letter)
            elif _bug(answer) and letter.messages[0].metadata.num_delivered >= TRIES:
                await self._put_aside(letter.messages[0], f"it cannot be decided: {answer!r}")
                await self._cursors.skip(letter.attempt, letter.report.sequence)
                batch.done.append(letter)
            else:
                logger.warning("inbox: %s comes again: %s", _name(letter), answer, exc_info=_bug(answer))
                stuck.add(letter.attempt)
                self._looked_at(letter.attempt)
                self._cursors.forget(letter.attempt)
                batch.again.append(letter)
        await self._follower.reach(position)
        for letter in letters:
            if self._follower.board.holds(letter.held) is None:
                self._forget(letter.attempt)

    def _forget(self, attempt: Attempt) -> None:
        """The attempt is over, or its sender never held it."""
        self._cursors.forget(attempt)
        self._gaps.pop(attempt, None)


def _begin(letter: Letter, item: Item) -> Span:
    """From the moment that the report is in order until its batch is committed."""
    sent = (letter.messages[0].headers or {}).get("traceparent")
    report = letter.report
    return _tracer.start_span(
        f"process {report.body.kind}",
        continued(sent or item.traceparent),
        SpanKind.CONSUMER,
        {
            "messaging.system": "nats",
            "messaging.operation.type": "process",
            "messaging.destination.name": REPORTS_STREAM,
            "kinora.sequence": report.sequence,
            **{f"kinora.{name}": value for name, value in log_fields(*letter.attempt).items()},
        },
    )


def _is_final(answer: Exception) -> bool:
    """Whether deciding again would refuse again."""
    if isinstance(answer, Refused):
        return answer.code != OUT_OF_ORDER and not answer.retryable
    return isinstance(answer, EventNotCanonical)


def _bug(answer: Exception) -> Exception | None:
    """What asking again will hardly mend, a damaged stream among it; refusals are not bugs."""
    expected = isinstance(answer, Refused) or (isinstance(answer, KinoraError) and answer.retryable)
    return None if expected else answer


def _name(letter: Letter) -> str:
    report = letter.report
    return f"report {report.sequence} ({report.body.kind}) of {report.item_id} attempt {report.attempt}"


def _messages(letters: Iterable[Letter]) -> list[Msg]:
    return [message for letter in letters for message in letter.messages]


def _sequence(message: Msg) -> int:
    return message.metadata.sequence.stream


async def _acknowledge(messages: Sequence[Msg]) -> None:
    """Double acknowledgement; one that is lost only means that the report comes again."""
    await asyncio.gather(*(_answer(message, None) for message in messages))


async def _send_back(messages: Sequence[Msg], delay: float) -> None:
    await asyncio.gather(*(_answer(message, delay) for message in messages))


async def _answer(message: Msg, delay: float | None) -> None:
    if message._ackd:
        return
    try:
        if delay is None:
            await message.ack_sync(timeout=ACK_TIMEOUT)
        else:
            await message.nak(delay=delay)
    except UNREACHABLE as error:
        logger.info(
            "inbox: an answer for %s was lost (%s)", message.subject, str(error) or type(error).__name__
        )
