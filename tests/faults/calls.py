"""What callers were told, held against the log: every promise is there once, and nothing else came of a call.

Pure, as the checker of histories is. A call is one command under one idempotency key, with all of its tries.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
CallRule = Literal[
    "command_lost", "command_twice", "answer_differs", "refused_but_stored", "order_in_time", "not_read"
]


@dataclass(frozen=True)
class Told:
    """An answer that promises: what came of the command, and where it stands in the log."""

    resource_id: str
    position: int


@dataclass
class Call:
    """One command; times are the caller's monotonic clock."""

    key: str
    command_id: str | None = None
    """The causation of its events; known from the first answer."""
    began: float = 0.0
    answered: float | None = None
    """When the first promise arrived."""
    told: list[Told] = field(default_factory=list)
    """Every promise that was made, repeats included."""
    refused: str | None = None
    """The code of the refusal, when it was refused for good."""
    read: Json | None = None
    """What reading the resource from the told position on gave; None when nobody looked."""


@dataclass(frozen=True)
class Breach:
    """A promise that was not kept."""

    rule: CallRule
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule} {self.where}: {self.detail}"


def check_calls(log: Sequence[Json], calls: Sequence[Call]) -> list[Breach]:
    """Every broken promise; `log` is the whole log as the API gives it."""
    by_command: dict[str, list[Json]] = {}
    for event in log:
        by_command.setdefault(event["causationid"], []).append(event)
    return [
        *(breach for call in calls for breach in _kept(call, by_command)),
        *_in_time(calls),
        *_once(log),
    ]


def _kept(call: Call, by_command: Mapping[str, Sequence[Json]]) -> Iterator[Breach]:
    if len(set(call.told)) > 1:
        yield Breach("answer_differs", call.key, f"it was told {sorted(set(call.told), key=str)}")
    events = by_command.get(call.command_id or "", ())
    if call.refused is not None and events:
        yield Breach("refused_but_stored", call.key, f"{call.refused}, and the log has {len(events)} events")
    if call.told:
        told = call.told[0]
        positions = [event["position"] for event in events if event["subject"] == told.resource_id]
        if told.position not in positions:
            yield Breach("command_lost", call.key, f"told {told}, and the log has {positions} of it")
        if call.read is not None and call.read.get("id") != told.resource_id:
            yield Breach("not_read", call.key, f"read {call.read} behind position {told.position}")
    keys = Counter((event["subject"], event["type"]) for event in events)
    if doubled := [what for what, count in keys.items() if count > 1]:
        yield Breach("command_twice", call.key, f"{doubled}")


def _in_time(calls: Sequence[Call]) -> Iterator[Breach]:
    """What was acknowledged before another command began stands before it in the log."""
    promised = [call for call in calls if call.told and call.answered is not None]
    by_answer = sorted(promised, key=lambda call: call.answered or 0.0)
    by_start = sorted(promised, key=lambda call: call.began)
    highest, latest = 0, ""
    done = 0
    for call in by_start:
        while done < len(by_answer) and (by_answer[done].answered or 0.0) < call.began:
            if by_answer[done].told[0].position > highest:
                highest, latest = by_answer[done].told[0].position, by_answer[done].key
            done += 1
        if call.told[0].position < highest:
            detail = f"position {call.told[0].position}, begun after {latest} was told {highest}"
            yield Breach("order_in_time", call.key, detail)


def _once(log: Sequence[Json]) -> Iterator[Breach]:
    for event_id, count in Counter(event["id"] for event in log).items():
        if count > 1:
            yield Breach("command_twice", event_id, f"the log has it {count} times")
