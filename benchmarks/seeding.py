"""Fills a log with many events in little time: jobs with their lifecycle and progress, as agents make them.

Every event is what the domain would have decided, in the bytes that the log would have stored: a test folds
the streams and writes every event anew. The same seed makes the same log. Memory stays flat.

`python -m benchmarks.seeding EVENTS` says how fast that is here.
"""

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from benchmarks.installation import scratch
from benchmarks.seed_templates import ID_NAMES, SYSTEM, UNPLACED, Template, templates
from command_api.domain.job_reports import output_model_id
from command_api.eventlog.bulk import EventRow, import_rows
from command_api.eventlog.log import EventLog
from kinora.local.servers import EmbeddedServers
from schemas.ids import Prefix
from schemas.settings import PostgresSettings

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MEAN_SECONDS = 1.0
"""Between two events."""

# ---- the story --------------------------------------------------------------------------------------

Fields = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Home:
    """An organization, and what its jobs are made of."""

    organization_id: str
    workspace_id: str
    user_id: str
    dataset_id: str
    model_id: str


@dataclass(slots=True)
class Story:
    """A history by seed. `rows` tells it, once; afterwards the fields say what is in it."""

    seed: int = 0
    organizations: int = 4
    agents: int = 8
    """Of each organization; every one of them holds a job at any time."""
    long_stream: int = 0
    """Events of one more job, spread over the whole log; it still runs at the end. 0 for no such job."""
    head: int = 0
    homes: list[Home] = field(default_factory=list)
    running: dict[str, str] = field(default_factory=dict)
    """Jobs that are held, and by which agent."""
    ended: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=1000))
    """The jobs that ended last, and their organizations."""
    long_job_id: str | None = None
    _random: random.Random = field(default_factory=random.Random)
    _now: datetime = BEGINNING
    _templates: Mapping[str, Template] = field(default_factory=templates)

    def rows(self, events: int) -> Iterator[EventRow]:
        """So many events, at positions from 1 on, with a gap now and then as rollbacks leave them."""
        if self.long_stream > events - 1000 and self.long_stream:
            raise ValueError(
                f"long_stream is {self.long_stream}; leave 1,000 of {events} events for the others"
            )
        self._random.seed(self.seed)
        return islice(self._told(events), events)

    def _told(self, events: int) -> Iterator[EventRow]:
        lines: list[Iterator[EventRow]] = []
        told = 0
        for row in self._beginning(lines):
            told += 1
            yield row
        long_line = lines.pop()
        left = max(1, events - told)
        for number in range(left):
            # So that the long stream has its share of every part of the log.
            if (number + 1) * self.long_stream // left > number * self.long_stream // left:
                yield next(long_line)
            else:
                yield next(self._random.choice(lines))

    def _beginning(self, lines: list[Iterator[EventRow]]) -> Iterator[EventRow]:
        """Everything that jobs need; appends a line of jobs for each agent, the long job's as the last."""
        fields: Fields = {}
        for _ in range(self.organizations):
            fields = {name: self._digits() for name in ID_NAMES}
            fields |= {"sha256": self._sha256(), "number": 4711}
            self.homes.append(_home(fields))
            yield from self._history(fields, "user", "user")
            yield from self._history(fields, "organization", "organization", "workspace", "member")
            yield from self._agent(fields)
            steps = ("", "_upload", "_uploaded", "_validating", "_validated")
            yield from self._history(fields, "dataset", *(f"dataset{step}" for step in steps))
            yield from self._history(fields, "model", *(f"model{step}" for step in steps))
            lines.append(self._jobs(fields))
            for _ in range(self.agents - 1):
                fields = dict(fields)
                yield from self._agent(fields)
                lines.append(self._jobs(fields))
        fields = dict(fields)
        if self.long_stream:
            yield from self._agent(fields)
        lines.append(self._long_job(fields))

    def _agent(self, fields: Fields) -> Iterator[EventRow]:
        fields["agent"] = self._digits()
        yield from self._history(fields, "agent", "enrolled", "online")

    def _history(self, fields: Fields, stream: str, *names: str) -> Iterator[EventRow]:
        fields["stream"], fields["story"] = fields[stream], self._digits()
        for version, name in enumerate(names, start=1):
            yield self._row(name, fields, version)

    def _jobs(self, fields: Fields) -> Iterator[EventRow]:
        while True:
            yield from self._job(fields, self._random.randint(20, 60))

    def _long_job(self, fields: Fields) -> Iterator[EventRow]:
        for row in self._job(fields, sys.maxsize):
            self.long_job_id = row.stream_id
            yield row

    def _job(self, fields: Fields, reports: int) -> Iterator[EventRow]:
        fields["job"] = fields["stream"] = digits = self._digits()
        fields["story"], fields["sha256"] = self._digits(), self._sha256()
        job_id, agent_id = f"job_{digits}", f"agt_{fields['agent']}"
        version = 0
        for name in ("requested", "validating", "planned", "queued", "assigned", "accepted", "started"):
            version += 1
            self.running[job_id] = agent_id
            yield self._row(name, fields, version)
        fields["loss"] = "2.43751"
        version += 1
        yield self._row("evaluated_before", fields, version)
        for report in range(1, reports + 1):
            self._measure(fields, 2 * report)
            version += 1
            yield self._row("progressed", fields, version)
            if report % 10 == 0:
                version += 1
                yield self._row("checkpoint", fields, version)
            if report % 20 == 0:
                fields["number"] = report // 20
                version += 1
                yield self._row("log", fields, version)
        for name in self._random.choices(tuple(_ENDINGS), (18, 1, 1))[0].split():
            if name == "adapter_registered":
                output = output_model_id(job_id)
                yield self._row(name, fields | {"stream": output.removeprefix("mdl_")}, 1)
                continue
            version += 1
            fields["output"] = output_model_id(job_id).removeprefix("mdl_")
            yield self._row(name, fields, version)
        del self.running[job_id]
        self.ended.append((job_id, f"org_{fields['organization']}"))

    def _measure(self, fields: Fields, step: int) -> None:
        """What an agent reports; the last digit keeps a number from ending in zeros, which JSON drops."""
        fields["step"], fields["step_before"] = step, step - 1
        fields["epochs"] = f"{step / 1000:.3f}1"
        loss = 0.2 + 2 / (1 + step / 20) + self._random.random() / 20
        fields["loss"], fields["loss_before"] = f"{loss:.4f}1", f"{loss + 0.01:.4f}3"

    def _row(self, name: str, fields: Fields, version: int) -> EventRow:
        template, draw = self._templates[name], self._random.random()
        self.head += 1 if draw > 0.001 else 3
        now = self._now = self._now + timedelta(microseconds=1 + int(draw * 2e6 * MEAN_SECONDS))
        if now.microsecond == 0:  # would be written without a fraction
            now = self._now = now + timedelta(microseconds=1)
        fields["cause"] = fields["event"]
        fields["event"] = event = self._digits()
        fields["version"], fields["time"] = version, f"{now.isoformat()[:26]}Z"
        stream = str(fields["stream"])
        return EventRow(
            self.head,
            UUID(hex=stream),
            version,
            template.topic,
            (template.state % fields).encode(),
            f"evt_{event}",
            f"{template.prefix}_{stream}",
            None if template.prefix is Prefix.USER else f"org_{fields['organization']}",
            None if template.prefix in UNPLACED else f"ws_{fields['workspace']}",
            template.actor % fields,
            f"req_{fields['story']}",
            f"{'evt' if template.actor == SYSTEM else 'req'}_{fields['cause']}",
            now,
        )

    def _digits(self) -> str:
        """Of a UUIDv7 at the story's time."""
        milliseconds = (self._now - _EPOCH) // timedelta(milliseconds=1)
        chance = self._random.getrandbits(74)
        return f"{milliseconds:012x}7{chance >> 62:03x}{0x2 << 62 | chance & (1 << 62) - 1:016x}"

    def _sha256(self) -> str:
        return f"{self._random.getrandbits(256):064x}"


_ENDINGS = (
    "evaluated_after finished log adapter adapter_registered succeeded",
    "failed",
    "stop_requested stopped",
)


def _home(fields: Fields) -> Home:
    return Home(
        organization_id=f"org_{fields['organization']}",
        workspace_id=f"ws_{fields['workspace']}",
        user_id=f"usr_{fields['user']}",
        dataset_id=f"ds_{fields['dataset']}",
        model_id=f"mdl_{fields['model']}",
    )


# ---- the log ----------------------------------------------------------------------------------------

# As if each event had come of a command with a key of its own.
_COMMANDS = """
    INSERT INTO kinora_commands
        (principal, key, request_hmac, stream_id, first_position, position, event_count, created_at)
    SELECT actor, event_id, %s, stream_id, notification_id, notification_id, 1, recorded_at
    FROM kinora_events ORDER BY notification_id
"""


def fill(
    postgres: PostgresSettings, events: int, story: Story | None = None, *, commands: bool = False
) -> Story:
    """Put so many events into a log that is empty, and with `commands` a command row for each.

    Returns the story, which knows what is in the log now.

    Raises:
        ImportRefused: when the log is not empty.
    """
    story = story or Story()
    with EventLog.open(postgres):
        pass
    with psycopg.connect(postgres.conninfo(), row_factory=dict_row) as connection:
        with connection.transaction(), connection.cursor() as cursor:
            import_rows(cursor, story.rows(events))
            if commands:
                cursor.execute(_COMMANDS, (bytes(32),))
        connection.autocommit = True
        # What autovacuum would have done while a log grew slowly.
        connection.execute("VACUUM (ANALYZE) kinora_events, kinora_commands")
    return story


async def _main(events: int) -> None:
    with scratch() as folder:
        async with EmbeddedServers(folder / "data", only=["postgres"]) as servers:
            begun = time.perf_counter()
            story = fill(servers.postgres, events)
            seconds = time.perf_counter() - begun
    print(
        f"{events:,} events up to position {story.head:,} in {seconds:.1f} s: {events / seconds:,.0f} per s"
    )


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
