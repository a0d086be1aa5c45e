"""Judges a simulation: the rules of `tests.faults.history`, and those that need a judge who sees everything.

Rules are about what anybody outside could notice: an answer that is not true, an event that is missing, came
twice or in another order. How our code is built inside plays no part.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from schemas import work
from schemas.envelope import public_bytes
from tests.faults.history import History, Seen, Violation, check
from tests.simulation.history import Asked, Reported
from tests.simulation.jetstream.server import Message
from tests.simulation.postgres.engine import EventsTable, Row
from tests.simulation.virtual import EPOCH
from tests.simulation.world import LOG_ID, World


class Judge:
    """Looks while a run goes on, and at its end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[Violation] = []
        self._told: set[tuple[str, str]] = set()
        self._stored: dict[tuple[str, int], str] = {}
        """Event id by epoch and sequence, of everything that EVENTS ever held."""
        self._made: dict[str, int] = {}
        """The stream that each epoch began to fill."""
        world.nats.on_store = self._on_store

    def found(self, *violations: Violation) -> None:
        """Each rule once per place: the first time tells most."""
        for one in violations:
            if (one.rule, one.where) not in self._told:
                self._told.add((one.rule, one.where))
                self.violations.append(one)
                self._world.loop.note(f"BROKEN {one}")

    # ---- while it runs --------------------------------------------------------------------------

    def look(self) -> None:
        self.found(*_view(self._world), *_stream(self._world, at_end=False))

    def _on_store(self, stream: str, message: Message) -> None:
        """A subscriber that reads EVENTS from anywhere must be able to trust (epoch, sequence)."""
        if stream != "EVENTS":
            return
        epoch, event_id = message.headers["Kinora-Epoch"], message.headers["Nats-Msg-Id"]
        before = self._stored.setdefault((epoch, message.sequence), event_id)
        if before != event_id:
            self.found(
                Violation(
                    "stream_rewritten",
                    "EVENTS",
                    f"sequence {message.sequence} of epoch {epoch} was {before} and is now {event_id}",
                )
            )
        stream = self._world.nats.streams["EVENTS"]
        last = stream.messages.get(message.sequence - 1)
        said = int(message.headers["Kinora-Previous-Position"])
        before_it = int(last.headers["Kinora-Position"]) if last is not None else 0
        if said != before_it and (last is not None or message.sequence == (int(epoch) << 40) + 1):
            detail = (
                f"position {message.headers['Kinora-Position']} was stored after {before_it}, and says {said}"
            )
            self.found(Violation("stream_doubled" if said < before_it else "stream_hole", "EVENTS", detail))
        made = stream.made
        if self._made.setdefault(epoch, made) != made:
            detail = f"epoch {epoch} goes on in a stream that is another one"
            self.found(Violation("refilled_without_epoch", "EVENTS", detail))

    # ---- at the end -----------------------------------------------------------------------------

    def end(self) -> None:
        world = self._world
        if (why := world.unsettled()) is not None or world.in_flight:
            why = why or f"{world.in_flight} operations have no answer"
            self.found(Violation("stuck", "everything", why))
        rows = _log(world)
        head = max(rows, default=0)
        public = [json.loads(public_bytes(position, LOG_ID, row["state"])) for position, row in rows.items()]
        seen = [Seen(one.told.client, one.told.positions, until=head) for one in world.follows]
        self.found(*check(History(log=public, seen=seen)))
        for one in world.follows:
            self.found(*_once(one.told.client, one.told.positions))
            for reason in one.told.resets:
                self.found(Violation("false_reset", one.told.client, f"it was told {reason}"))
        self.found(*_commits(world), *_commands(world, rows), *_reports(world, rows))
        self.found(*_view(world), *_stream(world, at_end=True))


def _log(world: World) -> dict[int, Row]:
    table = world.postgres.table("kinora_events")
    assert isinstance(table, EventsTable)
    return {position: table.by_position[position] for position in table.positions}


def _once(client: str, positions: Sequence[int]) -> Iterator[Violation]:
    if len(set(positions)) != len(positions):
        twice = sorted({one for one in positions if positions.count(one) > 1})
        yield Violation("seen_twice", client, f"it resumed by position and saw {twice} again")


def _commits(world: World) -> Iterator[Violation]:
    """Positions appear in their order, so that no reader that follows them is ever overtaken."""
    last = 0
    for writes in world.postgres.commits:
        for row in writes.get("kinora_events", {}).values():
            assert row is not None
            if row["notification_id"] < last:
                detail = f"position {row['notification_id']} appeared after {last}"
                yield Violation("overtaken", "the log", detail)
            last = max(last, row["notification_id"])


# ---- commands -----------------------------------------------------------------------------------


def _commands(world: World, rows: dict[int, Row]) -> Iterator[Violation]:
    stored = world.postgres.table("kinora_commands").rows
    by_key: dict[tuple[str, str], list[Asked]] = defaultdict(list)
    for asked in world.asked:
        by_key[asked.key].append(asked)
    for key, asks in by_key.items():
        where = f"{asks[0].command.TYPE} {key[1][-8:]}"
        row = stored.get(key)
        answers = [answer for asked in asks for answer in asked.answers]
        refusals = [code for asked in asks for code in asked.refusals]
        for error in (error for asked in asks for error in asked.errors):
            yield Violation("wrong_error", where, error)
        lonely = len(asks) == 1 and not asks[0].unanswered
        if lonely and asks[0].conflicts and answers and answers[0][2]:
            detail = "it was told that somebody else was faster, and nobody but itself had been"
            yield Violation("false_conflict", where, detail)
        if answers and row is None:
            yield Violation("answer_lost", where, f"it was told {answers[0]}, and there is no command row")
        if answers and len({answer[:2] for answer in answers}) > 1:
            yield Violation("answers_differ", where, f"one request was answered {answers}")
        if sum(not replayed for _, _, replayed in answers) > 1:
            yield Violation("answers_differ", where, "two answers claim to be the first")
        for position, event_ids, _ in answers:
            found = [rows[p]["event_id"] for p in rows if rows[p]["event_id"] in set(event_ids)]
            if found != list(event_ids) or (found and rows.get(position, {}).get("event_id") != found[-1]):
                yield Violation(
                    "answer_lost", where, f"it was told {event_ids} at {position}, and the log has {found}"
                )
        if refusals and not answers and row is not None and row["event_count"]:
            detail = f"it was refused ({refusals[0]}), and events {row['first_position']} follow from it"
            yield Violation("refused_but_stored", where, detail)
        # The other way round is right: what was refused left nothing, and may be possible later.
        first = min((at for asked in asks for at in asked.answered_at), default=None)
        if first is not None and any(at > first for asked in asks for at in asked.refused_at):
            yield Violation("answers_differ", where, f"it was carried out, and refused with {refusals}")
    yield from _owners(rows, stored)


def _owners(rows: dict[int, Row], stored: Any) -> Iterator[Violation]:
    """Every event belongs to one command, which names it."""
    owner: dict[int, tuple[str, str]] = {}
    for key, row in stored.items():
        if row["event_count"]:
            own = [p for p in rows if row["first_position"] <= p <= row["position"]]
            if len(own) != row["event_count"]:
                yield Violation("command_incomplete", key[1][-8:], f"it made {row['event_count']}: {own}")
            for position in own:
                if position in owner:
                    yield Violation("event_of_two", str(position), f"{owner[position]} and {key}")
                owner[position] = key
    for position, row in rows.items():
        if position not in owner and not row["causation_id"].startswith(("report:", "setup")):
            detail = f"{row['topic']} of {row['stream_id']} follows from no command that is known"
            yield Violation("event_of_nobody", str(position), detail)


# ---- reports ------------------------------------------------------------------------------------


def _reports(world: World, rows: dict[int, Row]) -> Iterator[Violation]:
    """Per attempt: committed in order, none twice, none left out, and none lost that NATS had taken."""
    committed: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    for row in rows.values():
        if row["causation_id"].startswith("report:"):
            _, item_id, attempt, sequence = row["causation_id"].split(":")
            committed[item_id, int(attempt)].append((int(sequence), row["topic"]))
    sent: dict[tuple[str, int], list[Reported]] = defaultdict(list)
    for report in world.reported:
        sent[report.job_id, report.attempt].append(report)
    for attempt, reports in sent.items():
        where = f"{attempt[0][-8:]} attempt {attempt[1]}"
        known = [sequence for sequence, _ in committed.get(attempt, [])]
        warnings = [
            sequence for sequence, topic in committed.get(attempt, []) if topic.endswith("warning_raised")
        ]
        if len(set(warnings)) != len(warnings):
            yield Violation("report_twice", where, f"reports {warnings}")
        if known != sorted(known):
            yield Violation("report_out_of_order", where, f"reports {known}")
        visible = {one.sequence for one in reports if isinstance(one.body, work.Warned)}
        if missed := sorted(one for one in visible if known and one < max(known) and one not in known):
            yield Violation("report_skipped", where, f"{missed} are missing, {max(known)} is there")
        for sequence, at in _given_up(rows, attempt):
            known_at = [one.acknowledged_at for one in reports if one.sequence == sequence]
            if any(one is not None and one < at for one in known_at):
                yield Violation("report_lost", where, f"{sequence} was acknowledged, and given up as lost")
        if not _held(rows, attempt, reports[0].agent_id) or _ended(rows, attempt):
            continue
        acknowledged = {one.sequence for one in reports if one.acknowledged and one.sequence in visible}
        if lost := sorted(acknowledged - set(known)):
            yield Violation("report_lost", where, f"{lost} were acknowledged and are not in the log")


_ENDS = ("released", "failed", "expired", "stopped", "succeeded", "declined")


def _given_up(rows: dict[int, Row], attempt: tuple[str, int]) -> Iterator[tuple[int, float]]:
    """The reports of an attempt for which nobody wanted to wait any longer, and when that was."""
    for row in rows.values():
        if row["stream_id"] == attempt[0] and b'"code":"reports_lost"' in row["state"]:
            _, _, number, sequence = row["causation_id"].split(":")
            if int(number) == attempt[1]:
                yield int(sequence), row["recorded_at"].timestamp() - EPOCH


def _held(rows: dict[int, Row], attempt: tuple[str, int], agent_id: str) -> bool:
    """Whether the agent was given the attempt; what it reports otherwise is nobody's."""
    wanted = {"attempt": attempt[1], "agent_id": agent_id}
    return any(
        json.loads(row["state"])["data"] == wanted
        for row in rows.values()
        if row["stream_id"] == attempt[0] and row["topic"] == "kinora.job.assigned"
    )


def _ended(rows: dict[int, Row], attempt: tuple[str, int]) -> bool:
    """Whether something ended the attempt; whatever it still reported then comes too late."""
    for row in rows.values():
        if row["stream_id"] == attempt[0] and row["topic"].endswith(_ENDS):
            number = json.loads(row["state"])["data"].get("attempt")
            if number is None or number >= attempt[1]:
                return True
    return False


# ---- the read model -----------------------------------------------------------------------------


def _view(world: World) -> Iterator[Violation]:
    """At every moment the rows are the fold of the log up to the position beside them."""
    view = world.postgres.table("projections.views").rows.get("ledger")
    schema = world.postgres.table("pg_namespace").rows.get("view_ledger")
    if view is None or schema is None:
        return
    documents = world.postgres.table(f"{schema['id']}.ledger").rows
    parked = {
        row["stream_id"]: row["first_position"]
        for row in world.postgres.table("projections.parked_streams").rows.values()
        if row["view"] == "ledger" and row["generation"] == view["generation"]
    }
    wanted: dict[str, list[int]] = defaultdict(list)
    for position, row in _log(world).items():
        if position > view["position"] or not row["topic"].startswith("kinora.job."):
            continue
        if position < parked.get(row["stream_id"], position + 1):
            wanted[row["stream_id"]].append(position)
    shown = {stream: json.loads(row["document"])["seen"] for stream, row in documents.items()}
    for stream in sorted({*wanted, *shown}):
        if wanted.get(stream, []) != shown.get(stream, []):
            here, there = shown.get(stream), wanted.get(stream)
            detail = f"at position {view['position']} it shows {here}, the log says {there}"
            yield Violation("view_differs", stream, detail)
    versions = {row["status"] for row in documents.values()}
    if versions - {f"v{view['version']}"}:
        yield Violation("view_of_two_versions", "ledger", f"rows {versions}, the books say {view['version']}")


# ---- the stream ---------------------------------------------------------------------------------


def _stream(world: World, *, at_end: bool) -> Iterator[Violation]:
    """EVENTS holds the log from its beginning, in order, whole, each message saying which one was before."""
    stream = world.nats.streams.get("EVENTS")
    if stream is None:
        return
    rows = _log(world)
    positions = list(rows)
    messages = [stream.messages[number] for number in sorted(stream.messages)]
    if not at_end and messages:
        # A beginning that is missing has to be noticed, but not at once.
        positions = [p for p in positions if p >= int(messages[0].headers["Kinora-Position"])]
    previous, epochs = int(messages[0].headers["Kinora-Previous-Position"]) if messages else 0, set()
    for index, message in enumerate(messages):
        position = int(message.headers["Kinora-Position"])
        epochs.add(message.headers["Kinora-Epoch"])
        expected = positions[index] if index < len(positions) else None
        if position != expected:
            kind = "stream_doubled" if position <= previous else "stream_hole"
            yield Violation(
                kind, "EVENTS", f"message {message.sequence} is position {position}, not {expected}"
            )
            return
        if int(message.headers["Kinora-Previous-Position"]) != previous:
            said = message.headers["Kinora-Previous-Position"]
            yield Violation(
                "stream_hole", "EVENTS", f"{position} says that {said} was before, not {previous}"
            )
        if message.data != public_bytes(position, LOG_ID, rows[position]["state"]):
            yield Violation("stream_differs", "EVENTS", f"position {position} is not what the log holds")
        previous = position
    if len(epochs) > 1:
        yield Violation("stream_of_two_epochs", "EVENTS", f"it holds messages of epochs {sorted(epochs)}")
    if at_end and previous != (positions[-1] if positions else 0):
        yield Violation("stream_hole", "EVENTS", f"it ends at {previous}, the log at {positions[-1]}")
