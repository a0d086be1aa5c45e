"""Known faults of our code, put back into it by patch: what was wrong once, or is easily got wrong.

Each names the rules of `tests.simulation.checking` that catch it, as the table in `test_mutations` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

from command_api.eventlog.log import EventLog
from command_api.eventlog.recorder import LogRecorder
from command_api.feed.subscription import Subscription
from command_api.handlers.writer import Writer
from command_api.messaging import relay as relay_module
from command_api.messaging.cursors import Advance
from command_api.messaging.follower import Follower
from command_api.messaging.inbox import Inbox
from command_api.messaging.relay import Relay
from command_api.messaging.wake import LogWake
from projections import catalogue, folding, listening, runner, tail
from tests.simulation.rewriting import Patch, fault, rewritten


@dataclass(frozen=True)
class Mutation:
    """A known fault, what brings it to light, and how it shows."""

    name: str
    rules: frozenset[str]
    patches: tuple[Patch, ...]
    may_fail: tuple[str, ...]
    """What goes wrong around it; a narrow choice finds it in fewer seeds."""
    first: int = 0
    seeds: int = 6


def _do_nothing(_self: object, _cursor: object) -> None: ...


def _find_nothing(_self: object, _events: object) -> list[int]:
    return []


def _mutation(
    name: str, rules: str, patches: Sequence[Patch], may_fail: str, *, first: int = 0, seeds: int = 6
) -> Mutation:
    return Mutation(
        name,
        frozenset(rules.split()),
        tuple(patches),
        tuple(one.strip() for one in may_fail.split(",")),
        first,
        seeds,
    )


MUTATIONS = (
    _mutation(
        "appends do not lock the table",
        "overtaken seen_gap stream_hole view_differs",
        [lambda: mock.patch.object(LogRecorder, "_lock_table", _do_nothing)],
        "slow postgres, cut connections",
    ),
    _mutation(
        "a checkpoint is committed before its rows",
        "view_differs",
        [
            fault(
                runner,
                "advance",
                (
                    """        await catalogue.use_schema(connection, active_schema(view.name))
        await fold(""",
                    """        position = rows[-1].position
        await catalogue.move(connection, view.name, position)
    async with connection.transaction():
        await catalogue.use_schema(connection, active_schema(view.name))
        await fold(""",
                ),
                (
                    """active.generation, rows)
        position = rows[-1].position
        await catalogue.move(connection, view.name, position)
""",
                    """active.generation, rows)
""",
                ),
            )
        ],
        "cut connections, kill process, restart postgres",
    ),
    _mutation(
        "a checkpoint is committed after its rows",
        "view_differs",
        [
            fault(
                runner,
                "advance",
                (
                    """        position = rows[-1].position
        await catalogue.move(""",
                    """        position = rows[-1].position
    async with connection.transaction():
        await catalogue.move(""",
                ),
            )
        ],
        "cut connections, kill process, restart postgres",
    ),
    _mutation(
        "the relay's wake-up has no poll behind it",
        "stuck",
        [fault(LogWake, "_listen", ("timeout=self._poll_seconds", "timeout=None"))],
        "silence listener, slow nats",
    ),
    _mutation(
        "the shared tail looks before it listens, and never again",
        "stuck seen_gap",
        [
            lambda: mock.patch.object(
                tail,
                "follow",
                rewritten(
                    listening,
                    "follow",
                    (
                        "                await connection.execute(sql.SQL",
                        "                await on_wake(connection, ())\n"
                        "                await connection.execute(sql.SQL",
                    ),
                    (
                        "                while True:\n                    async with",
                        "                async for _ in connection.notifies():\n"
                        "                    async with",
                    ),
                    (
                        "                    received = connection.notifies(timeout=poll_seconds,"
                        " stop_after=1)\n                    payloads = tuple([notification.payload async"
                        " for notification in received])\n",
                        "",
                    ),
                ),
            )
        ],
        "cut connections, slow postgres",
        seeds=12,
    ),
    _mutation(
        "a second relay is not fenced",
        "stream_doubled stream_hole stream_of_two_epochs stream_rewritten stream_differs",
        [
            fault(
                Relay,
                "_publish",
                ("        messages[0][2][Header.EXPECTED_LAST_SEQUENCE] = str(cursor.sequence)\n", ""),
            )
        ],
        "stall publishes",
        seeds=12,
    ),
    _mutation(
        "new code writes into tables of an old version",
        "view_of_two_versions",
        [
            fault(runner, "advance", ("active is None or active.version != view.version", "active is None")),
            fault(catalogue, "ensure", ("if active.version != view.version:", "if False:")),
        ],
        "release new view, slow postgres",
    ),
    _mutation(
        "reports are acknowledged before they are committed",
        "report_lost report_skipped",
        [
            fault(
                Inbox,
                "_take",
                (
                    "        try:\n            answers = await",
                    "        await _acknowledge(_messages([letter for letter, _ in batch.commit]))\n"
                    "        try:\n            answers = await",
                ),
            )
        ],
        "crash under load",
        seeds=12,
    ),
    _mutation(
        "reports are told apart by JetStream's window alone",
        "report_twice report_out_of_order",
        [
            fault(Inbox, "_place", ("letter.report.sequence < expected", "False")),
            lambda: mock.patch.object(Advance, "write", _do_nothing),
        ],
        "lose publish ack, cut clients, kill process, sleep machine",
    ),
    _mutation(
        "the relay trusts JetStream's window and begins anew",
        "stream_doubled stream_rewritten",
        [
            fault(Relay, "_resume", ("int(headers[POSITION_HEADER])", "0")),
            fault(
                Relay,
                "_publish",
                (
                    "        if ack.duplicate:\n            raise Superseded",
                    "        if False:\n            raise Superseded",
                ),
                ("        messages[0][2][Header.EXPECTED_LAST_SEQUENCE] = str(cursor.sequence)\n", ""),
            ),
            lambda: mock.patch.object(relay_module, "BATCH_EVENTS", 1),
        ],
        "sleep machine, kill process, zombie orchestrator",
    ),
    _mutation(
        "the command row is written outside the transaction",
        "answer_lost event_of_nobody answers_differ",
        [
            fault(
                LogRecorder,
                "insert_events",
                (
                    "                        self._insert(curs, stored_events, entries, head)\n"
                    '                        conn.execute("COMMIT")\n'
                    "                else:",
                    """                        self._insert(curs, stored_events, (), head)
                        conn.execute("COMMIT")
                    columns = _command_columns(len(stored_events), entries)
                    if columns is not None:
                        with conn.cursor() as second, conn.transaction():
                            second.execute(INSERT_COMMANDS, (*columns, None if stored_events else head))
                else:""",
                ),
            )
        ],
        "kill process, cut connections, restart postgres",
        seeds=12,
    ),
    _mutation(
        "a lost COMMIT is told as a conflict",
        "false_conflict wrong_error",
        [
            lambda: mock.patch.object(EventLog, "_positions_if_stored", _find_nothing),
            fault(
                Writer,
                "_commit_together",
                (
                    "        except Exception:  # noqa: BLE001 - whatever it was, giving each unit its own"
                    " transaction finds it\n            self._commit_each(units)",
                    "        except Exception as error:\n            self._replies.fail(units, error)",
                ),
            ),
        ],
        "lose commit reply",
    ),
    _mutation(
        "the relay goes on from memory",
        "stuck stream_hole stream_doubled",
        [
            fault(
                Relay,
                "run",
                (
                    "        while True:\n            try:\n",
                    "        cursor = await self._resume()\n        while True:\n            try:\n",
                ),
                ("self._follow(await self._resume())", "self._follow(cursor)"),
            )
        ],
        "wipe events, truncate events, lose publish ack",
    ),
    _mutation(
        "EVENTS is filled anew without a new epoch",
        "refilled_without_epoch stuck",
        [
            fault(
                Relay,
                "_begin_epoch",
                (
                    "        number = max(",
                    "        if known is not None:\n"
                    "            await self._topology.recreate_events(before_first(known.epoch))\n"
                    "            return Cursor(before_first(known.epoch), 0, known.epoch)\n"
                    "        number = max(",
                ),
            )
        ],
        "wipe events, empty events",
    ),
    _mutation(
        "the feed takes `reached` after reading the rows",
        "seen_gap",
        [
            fault(
                Subscription,
                "_more",
                (
                    "            page = await self._page(after)\n",
                    "            page = await self._page(after)\n            reached = self.tail.head\n",
                ),
            )
        ],
        "slow postgres, kill process, cut connections",
        seeds=12,
    ),
    _mutation(
        "later events of a parked stream are applied",
        "view_differs",
        [
            lambda: mock.patch.object(
                runner,
                "fold",
                rewritten(
                    folding, "fold", ("[row for row in rows if row.stream_id not in parked]", "list(rows)")
                ),
            )
        ],
        "poison stream, slow nats",
    ),
    _mutation(
        "the board reads the log's end after the page",
        "report_lost stuck report_skipped",
        [
            fault(
                Follower,
                "_read",
                (
                    "        head = self._log.head()\n        if head <= self._seen:\n"
                    "            return head, []\n"
                    "        return head, self._log.read_all(self._seen, PAGE, types=LIFECYCLE_TYPES)",
                    "        page = self._log.read_all(self._seen, PAGE, types=LIFECYCLE_TYPES)\n"
                    "        return self._log.head(), page",
                ),
            )
        ],
        "slow postgres, kill process",
    ),
    _mutation(
        "a report is committed over a missing one",
        "report_skipped report_out_of_order report_twice",
        [
            fault(Inbox, "_place", ("letter.report.sequence > expected", "False")),
            lambda: mock.patch.object(Advance, "write", _do_nothing),
        ],
        "cut clients, restart nats",
        seeds=12,
    ),
)
