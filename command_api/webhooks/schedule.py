"""What follows from an attempt: done, another one and when, or given up. Pure; times are arguments.

The delays are those that Standard Webhooks recommends; the last one is cut, so that three days are never
passed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal

WINDOW = timedelta(days=3)
"""From a delivery's first attempt to its last. A receiver that takes nothing for as long is given up, too."""
DELAYS = tuple(
    timedelta(seconds=seconds)
    for seconds in (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
)
"""After the first attempt, the second, and so on; the last one for all further ones."""
JITTER = 0.1
"""Delays are this part longer or shorter, so that what failed together does not come back together."""
GONE = 410
"""The receiver's own word for never again."""

Failure = Literal["timeout", "unreachable", "host_unknown", "address_refused", "unsigned", "log_restored"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver said."""

    status: int
    text: str = ""
    """The beginning of its body."""
    retry_after: str | None = None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Why nothing was said."""

    code: Failure
    message: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True, slots=True)
class Again:
    """One more attempt, then."""

    due_at: datetime


@dataclass(frozen=True, slots=True)
class GivenUp:
    """No further attempt, unless somebody asks for it."""

    gone: bool = False
    """The receiver wants no other event either."""


Verdict = Delivered | Again | GivenUp


def judge(
    answer: Answer | NoAnswer, tries: int, window_from: datetime, ended_at: datetime, jitter: float
) -> Verdict:
    """What follows from the attempt number `tries` (from 1), counted since `window_from`.

    `jitter` is a random number from 0 to 1. Redirects are failures: what was signed for one address is not
    sent to another.
    """
    if isinstance(answer, Answer) and answer.is_success:
        return Delivered()
    if isinstance(answer, Answer) and answer.status == GONE:
        return GivenUp(gone=True)
    until = window_from + WINDOW
    if ended_at >= until:
        return GivenUp()
    delay = DELAYS[min(tries, len(DELAYS)) - 1] * (1 + JITTER * (2 * jitter - 1))
    wished = wait_wished(answer.retry_after, ended_at) if isinstance(answer, Answer) else timedelta()
    return Again(min(ended_at + max(delay, wished), until))


def wait_wished(retry_after: str | None, now: datetime) -> timedelta:
    """How long a Retry-After header asks to wait, as seconds or as a date; nothing when it makes no sense."""
    if retry_after is None:
        return timedelta()
    text = retry_after.strip()
    if text.isascii() and text.isdecimal():
        return min(timedelta(seconds=int(text[:9])), WINDOW)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return timedelta()
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(moment - now, timedelta()), WINDOW)


@dataclass(frozen=True, slots=True)
class Health:
    """How a receiver has been doing since its last success."""

    failing_since: datetime | None = None
    failures: int = 0
    """Attempts in a row."""

    def after(self, *, delivered: bool, attempted_at: datetime) -> "Health":
        if delivered:
            return Health()
        since = attempted_at if self.failing_since is None else min(self.failing_since, attempted_at)
        return Health(since, self.failures + 1)

    def is_dead(self, now: datetime) -> bool:
        """Whether it has taken nothing for so long that nobody seems to be there any more."""
        return self.failing_since is not None and now - self.failing_since >= WINDOW

    def was_away(self) -> bool:
        """Whether so much failed in a row that the receiver itself was the reason, not single events."""
        return self.failures >= AWAY_FAILURES


AWAY_FAILURES = 5
"""When the next attempt succeeds, what waits for a far-off one is tried at once."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A delivery that is due."""

    delivery_id: str
    subscription_id: str
    lane: str
    """Deliveries of one lane go one after the other: events of one stream in their order."""


def choose(
    due: Mapping[str, list[Waiting]],
    under_way: Mapping[str, Waiting],
    *,
    at_once: int,
    at_once_each: int,
) -> list[Waiting]:
    """Which to start now: in turn from every subscription, each one's in the order given.

    Args:
        due: of every subscription, what is due, most urgent first.
        under_way: by delivery id.
    """
    busy: dict[str, set[str]] = {}
    for each in under_way.values():
        busy.setdefault(each.subscription_id, set()).add(each.lane)
    chosen: list[Waiting] = []
    queues = {name: iter(waiting) for name, waiting in due.items()}
    while queues and len(under_way) + len(chosen) < at_once:
        for name in list(queues):
            lanes = busy.setdefault(name, set())
            found = None
            if len(lanes) < at_once_each:
                found = next(
                    (
                        one
                        for one in queues[name]
                        if one.lane not in lanes and one.delivery_id not in under_way
                    ),
                    None,
                )
            if found is None:
                del queues[name]
            elif len(under_way) + len(chosen) < at_once:
                lanes.add(found.lane)
                chosen.append(found)
    return chosen
