"""Was anything lost, doubled or half done? Judges a run by its log and by what its clients saw; pure.

Give `check` everything that was recorded; it answers with every rule that was broken, none for a clean run.
`tests.faults.observing` gathers a `History` from a running service.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from command_api.domain import job as jobs
from command_api.domain.errors import ImpossibleHistory
from projections.views.jobs import Jobs, JobView
from schemas.envelope import Recorded, split_type
from schemas.events import job as facts
from schemas.ids import Prefix, id_prefix

Json = dict[str, Any]

Rule = Literal[
    "job_lost",
    "job_unfinished",
    "terminal_twice",
    "event_after_end",
    "attempts_not_increasing",
    "stale_attempt",
    "impossible_history",
    "steps_not_monotone",
    "resumed_from_nothing",
    "version_gap",
    "positions_not_increasing",
    "seen_not_in_log",
    "seen_out_of_order",
    "seen_gap",
    "object_missing",
    "object_differs",
    "view_differs",
]

TERMINAL = (facts.JobSucceeded, facts.JobFailed, facts.JobStopped)
ATTEMPT_ENDS = (facts.AgentDeclined, facts.AttemptReleased, facts.LeaseExpired, facts.AttemptFailed)
UNHELD = (facts.JobQueued, *TERMINAL)
"""What may happen to an attempt that nobody holds; everything else that names one is a report."""


@dataclass(frozen=True)
class Violation:
    """A broken rule: which one, of what (a job, a client, an object key), and how."""

    rule: Rule
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule} {self.where}: {self.detail}"


@dataclass(frozen=True)
class Seen:
    """What one client of the feed received, frame by frame, repeats included."""

    client: str
    positions: Sequence[int]
    after: int = 0
    """It subscribed behind this position."""
    stream_id: str | None = None
    """It asked for this stream's events only."""
    until: int | None = None
    """It had to see everything up to here; None: up to the last that it saw."""


@dataclass(frozen=True)
class History:
    """Everything that is known of a run."""

    log: Sequence[Json]
    """Events as the API gives them, in its order; whole streams, or streams from their beginning."""
    submitted: Sequence[str] = ()
    """Job ids that a client was promised (202)."""
    all_ended: bool = False
    """Whether every submitted job has to be over."""
    seen: Sequence[Seen] = ()
    stored: Mapping[str, str] | None = None
    """SHA-256 of what is in the store, by key; None: nobody looked."""
    views: Mapping[str, Json] | None = None
    """`GET /jobs/{id}` of each job after the last event; None: nobody looked."""


def check(history: History) -> list[Violation]:
    """Every broken rule; positions, versions and attempts are compared, times never."""
    streams: dict[str, list[Recorded]] = defaultdict(list)
    for event in history.log:
        streams[event["subject"]].append(recorded(event))
    job_streams = {name: events for name, events in streams.items() if id_prefix(name) is Prefix.JOB}
    return [
        *_positions(history.log),
        *(broken for name, events in streams.items() for broken in _versions(name, events)),
        *_promises(history, job_streams),
        *(broken for name, events in job_streams.items() for broken in _job(name, events)),
        *(broken for seen in history.seen for broken in _feed(seen, history.log)),
        *(_objects(history.log, history.stored) if history.stored is not None else ()),
        *(_views(job_streams, history.views) if history.views is not None else ()),
    ]


def recorded(event: Json) -> Recorded:
    """An event of the API, decoded."""
    stored = {name: value for name, value in event.items() if name not in ("position", "source")}
    return Recorded.from_state(event["position"], json.dumps(stored).encode())


# ---- the log ------------------------------------------------------------------------------------


def _positions(log: Sequence[Json]) -> Iterator[Violation]:
    last = 0
    for event in log:
        if event["position"] <= last:
            detail = f"position {event['position']} came after {last}"
            yield Violation("positions_not_increasing", event["subject"], detail)
        last = event["position"]


def _versions(name: str, events: Sequence[Recorded]) -> Iterator[Violation]:
    versions = [event.version for event in events]
    if versions != list(range(1, len(versions) + 1)):
        yield Violation("version_gap", name, f"versions {versions}")


def _promises(history: History, streams: Mapping[str, Sequence[Recorded]]) -> Iterator[Violation]:
    for job_id in history.submitted:
        events = streams.get(job_id, ())
        if not events:
            yield Violation("job_lost", job_id, "it was accepted, and the log has nothing of it")
        elif history.all_ended and not any(isinstance(one.event, TERMINAL) for one in events):
            yield Violation("job_unfinished", job_id, f"it ends with {events[-1].event.TYPE}")


# ---- one job ------------------------------------------------------------------------------------


def _job(name: str, events: Sequence[Recorded]) -> Iterator[Violation]:
    yield from _ends(name, events)
    yield from _attempts(name, events)
    yield from _steps(name, events)
    state = jobs.INITIAL
    for one in events:
        try:
            state = jobs.evolve(state, one.event)
        except ImpossibleHistory as error:
            yield Violation("impossible_history", name, f"version {one.version}: {error}")
            return


def _ends(name: str, events: Sequence[Recorded]) -> Iterator[Violation]:
    ends = [number for number, one in enumerate(events) if isinstance(one.event, TERMINAL)]
    if len(ends) > 1:
        types = [events[number].event.TYPE for number in ends]
        yield Violation("terminal_twice", name, f"it ended {len(ends)} times: {types}")
    if ends and ends[0] != len(events) - 1:
        after = [one.event.TYPE for one in events[ends[0] + 1 :]]
        yield Violation("event_after_end", name, f"its end was followed by {after}")


def _attempts(name: str, events: Sequence[Recorded]) -> Iterator[Violation]:
    current, held = 0, False
    for one in events:
        attempt = getattr(one.event, "attempt", None)
        if attempt is None:
            continue
        if isinstance(one.event, facts.JobQueued):
            if attempt <= current:
                yield Violation(
                    "attempts_not_increasing", name, f"attempt {attempt} was queued after {current}"
                )
            current, held = attempt, False
        elif isinstance(one.event, facts.JobAssigned):
            if attempt != current or held:
                yield Violation(
                    "stale_attempt", name, f"attempt {attempt} was assigned while {current} counted"
                )
            held = True
        elif attempt != current or not (held or isinstance(one.event, UNHELD)):
            detail = f"{one.event.TYPE} of attempt {attempt} was accepted while {current} counted"
            yield Violation("stale_attempt", name, detail)
        if isinstance(one.event, ATTEMPT_ENDS):
            held = False


def _steps(name: str, events: Sequence[Recorded]) -> Iterator[Violation]:
    saved: set[int] = {0}
    step = 0
    for one in events:
        match one.event:
            case facts.JobQueued(resume_step=resume):
                if resume not in saved:
                    detail = f"attempt {one.event.attempt} is to go on from {resume}; saved: {sorted(saved)}"
                    yield Violation("resumed_from_nothing", name, detail)
                step = resume
            case facts.TrainingStarted(start_step=start):
                if start != step:
                    detail = f"attempt {one.event.attempt} began at step {start} and not at {step}"
                    yield Violation("resumed_from_nothing", name, detail)
                step = start
            case facts.JobProgressed(points=points, step=last):
                steps = [point.step for point in points]
                if sorted({step, *steps, last}) != [step, *steps] or (steps and steps[-1] != last):
                    yield Violation("steps_not_monotone", name, f"after step {step} came {steps} and {last}")
                step = last
            case facts.CheckpointSaved(step=at):
                saved.add(at)


# ---- what clients saw ---------------------------------------------------------------------------


def _feed(seen: Seen, log: Sequence[Json]) -> Iterator[Violation]:
    wanted = [
        event["position"]
        for event in log
        if event["position"] > seen.after and seen.stream_id in (None, event["subject"])
    ]
    known = set(wanted)
    first = list(dict.fromkeys(seen.positions))  # at least once: a repeat of what was seen is no news
    if strangers := [position for position in first if position not in known]:
        yield Violation("seen_not_in_log", seen.client, f"positions {strangers}")
    if first != sorted(first):
        yield Violation("seen_out_of_order", seen.client, f"{first}")
    until = max(first, default=seen.after) if seen.until is None else seen.until
    if missed := [position for position in wanted if position <= until and position not in set(first)]:
        yield Violation("seen_gap", seen.client, f"it never saw {missed}")


# ---- what events name ---------------------------------------------------------------------------


def named_objects(value: Any) -> Iterator[Json]:
    """Every stored object inside a payload."""
    match value:
        case {"key": str(), "sha256": str()}:
            yield value
        case dict():
            for each in value.values():
                yield from named_objects(each)
        case list():
            for each in value:
                yield from named_objects(each)


def _objects(log: Sequence[Json], stored: Mapping[str, str]) -> Iterator[Violation]:
    # What was deleted promises nothing any more; a job keeps what it names for good.
    deleted = {event["subject"] for event in log if split_type(event["type"])[0].endswith(".deleted")}
    for event in log:
        if event["subject"] in deleted:
            continue
        for named in named_objects(event["data"]):
            found = stored.get(named["key"])
            if found is None:
                detail = f"{event['type']} at {event['position']} names it, and the store has it not"
                yield Violation("object_missing", named["key"], detail)
            elif found != named["sha256"]:
                detail = f"{event['type']} names {named['sha256']}, and the store has {found}"
                yield Violation("object_differs", named["key"], detail)


def _views(streams: Mapping[str, Sequence[Recorded]], views: Mapping[str, Json]) -> Iterator[Violation]:
    for name, events in streams.items():
        document: JobView | None = None
        for one in events:
            document = Jobs().fold(document, one)
        shown = views.get(name)
        if document is None or shown is None:
            yield Violation("view_differs", name, "the log has this job, and the read model has it not")
            continue
        folded = document.model_dump(mode="json")
        wrong = {
            field: (shown.get(field), value) for field, value in folded.items() if shown.get(field) != value
        }
        if wrong:
            yield Violation("view_differs", name, f"(shown, folded): {wrong}")
