"""The models do what the real servers do: the same operations on both, and the same outcome after each.

Waiting for a lock ends by `lock_timeout` on either side, so that one thread can drive two sessions.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from nats.aio.client import Client as RealClient
from nats.errors import Error as NatsError
from nats.js.errors import APIError, ServerError
from psycopg.rows import dict_row

from command_api.eventlog import reader, recorder
from command_api.messaging import cursors, epochs
from command_api.messaging.connection import connect
from command_api.messaging.topology import events_config, inbox_config, reports_config
from command_api.tables import create_tables
from projections import catalogue, rebuild_requests
from projections.documents import document_table
from projections.reader import page_query
from schemas.settings import NatsSettings, PostgresSettings
from schemas.subjects import EVENTS_STREAM, EVENTS_SUBJECTS, INBOX_DURABLE, REPORTS_STREAM
from tests.simulation.jetstream import client as jetstream_client
from tests.simulation.jetstream import server as jetstream_server
from tests.simulation.postgres import connections, engine
from tests.simulation.scheduler import NOWHERE, SimulatedLoop, run

ONE_BY_ONE = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=(Phase.generate,),
)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SESSIONS = st.integers(0, 1)
NUMBERS = st.integers(1, 3)
LOCK_SECONDS = 0.05

TABLES = (
    "kinora_events, kinora_commands, kinora_report_cursors, kinora_relay_epochs,"
    " projections.views, projections.parked_streams, projections.rebuilds"
)

_DEFAULTS = """
    SELECT name, array_agg(attname ORDER BY attnum)
      FROM unnest(%s::text[]) AS name
      JOIN pg_attribute ON attrelid = name::regclass AND atthasdef
      JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
     WHERE pg_get_expr(adbin, adrelid) !~ '^(now|nextval)\\('
     GROUP BY name
"""


# ---- PostgreSQL ---------------------------------------------------------------------------------


class BothPostgres(RuleBasedStateMachine):
    """Two sessions on the real server, and two on the model."""

    database: PostgresSettings

    def __init__(self) -> None:
        super().__init__()
        self._real = [psycopg.connect(self.database.conninfo(), autocommit=True) for _ in range(2)]
        for each in self._real:
            each.execute(f"SET lock_timeout = '{int(LOCK_SECONDS * 1000)}ms'")
        self._real[0].execute(f"TRUNCATE {TABLES} RESTART IDENTITY")
        for name in ("view_a", "view_b"):
            self._real[0].execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
        self._loop = SimulatedLoop(0)
        server = engine.Server(self._loop)
        self._model = [engine.Session(server) for _ in range(2)]
        for session in self._model:
            session.lock_timeout = LOCK_SECONDS
        self._open = [False, False]

    def teardown(self) -> None:
        for session, is_open in enumerate(self._open):
            if is_open:
                self.begin_or_end(session, commit=False)
        try:
            self._same_defaults()
        finally:
            for each in self._real:
                each.close()
            run(self._loop, asyncio.sleep(0))

    def _same_defaults(self) -> None:
        """What no INSERT names is in the model's rows too, and the same; times of the clock and ids aside."""
        names = [name.strip() for name in TABLES.split(",")]
        defaults = self._real[0].execute(_DEFAULTS, (names,)).fetchall()
        assert {name for name, _ in defaults} == {"kinora_relay_epochs", "projections.rebuilds"}
        for name, columns in defaults:
            real = self._real[0].execute(f"SELECT {', '.join(columns)} FROM {name}").fetchall()
            rows = self._model[0].server.table(name).rows.values()
            assert Counter(tuple(row[column] for column in columns) for row in rows) == Counter(real), name

    def _on_model(self, body: Callable[[], Any]) -> Any:
        return self._loop.run_until_complete(self._loop.strand(body, NOWHERE).future)

    def same(self, session: int, text: str, params: Any = None, *, ordered: bool = False) -> None:
        """Both answer alike; times of the clock and the order of unordered rows aside."""
        real = self._ask_real(session, text, params, ordered)
        model = self._ask_model(session, text, params, ordered)
        assert model == real, f"{text} with {params}"

    def _ask_real(self, session: int, text: str, params: Any, ordered: bool) -> Any:
        try:
            cursor = self._real[session].cursor(row_factory=dict_row).execute(text, params)
        except psycopg.Error as error:
            return type(error).__name__, error.diag.constraint_name
        if cursor.description is None:
            return cursor.rowcount
        return _told(cursor.fetchall(), ordered)

    def _ask_model(self, session: int, text: str, params: Any, ordered: bool) -> Any:
        operation = connections._run([connections.Statement(text, params)], autocommit=True)
        try:
            (result,) = self._on_model(lambda: operation(self._model[session]))
        except psycopg.Error as error:
            return type(error).__name__, error.diag.constraint_name
        if result.columns is None:
            return result.count
        return _told([dict(zip(result.columns, row, strict=True)) for row in result.rows], ordered)

    # ---- transactions ---------------------------------------------------------------------------

    @rule(session=SESSIONS, commit=st.booleans())
    def begin_or_end(self, session: int, commit: bool) -> None:
        word = "BEGIN" if not self._open[session] else "COMMIT" if commit else "ROLLBACK"
        self._real[session].execute(word)
        self._on_model(lambda: connections._control(self._model[session], word))
        self._open[session] = not self._open[session]

    @rule(session=SESSIONS)
    def lock_the_events(self, session: int) -> None:
        if self._open[session]:
            self.same_done(session, 'LOCK TABLE "public"."kinora_events" IN EXCLUSIVE MODE')

    def same_done(self, session: int, text: str, params: Any = None) -> None:
        """For statements of which only failure is told."""
        real, model = (ask(session, text, params, False) for ask in (self._ask_real, self._ask_model))
        failed = [answer if isinstance(answer, tuple) else None for answer in (real, model)]
        assert failed[0] == failed[1], f"{text} with {params}"

    @rule(session=SESSIONS, key=NUMBERS)
    def advisory(self, session: int, key: int) -> None:
        self.same(session, "SELECT pg_try_advisory_lock(%s)", [key])

    # ---- the log --------------------------------------------------------------------------------

    @rule(
        session=SESSIONS,
        rows=st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(1, 8)), min_size=1, max_size=3),
    )
    def insert_events(self, session: int, rows: list[tuple[int, int, int]]) -> None:
        columns = [
            (
                *(UUID(int=stream), version, f"type.{version}", b"{}", f"evt_{event}", f"job_{stream:032x}"),
                *("org_1" if stream > 1 else None, None, "system:test", "c", "c", NOON),
            )
            for stream, version, event in rows
        ]
        params = [list(column) for column in zip(*columns, strict=True)]
        self.same(session, recorder.INSERT_EVENTS, params, ordered=True)

    @rule(session=SESSIONS, key=NUMBERS, events=st.integers(0, 2), head=st.sampled_from((None, 7)))
    def insert_command(self, session: int, key: int, events: int, head: int | None) -> None:
        values = ("usr_1", f"key-{key}", b"hmac", None, max(0, events - 1), 0, events)
        self.same(session, recorder.INSERT_COMMANDS, [*([value] for value in values), head])

    @rule(session=SESSIONS, after=st.integers(0, 4), limit=NUMBERS, filtered=st.booleans())
    def read_pages(self, session: int, after: int, limit: int, filtered: bool) -> None:
        params: dict[str, Any] = {"after": after, "limit": limit}
        self.same(session, reader.page_query(None, ()), params, ordered=True)
        if filtered:
            params |= {"organization_id": "org_1", "types": ["type.1", "type.2"], "max_bytes": 3}
            names = ("organization_id", "types")
            self.same(session, reader.page_query(params["types"], names), params, ordered=True)
            self.same(session, page_query((*names, "max_bytes")), params, ordered=True)
        self.same(session, reader.HEAD)
        self.same(session, reader.POSITIONS, [["evt_1", "evt_2", "evt_9"]])
        self.same(session, reader.COMMANDS, [["usr_1"] * 2, ["key-1", "key-2"]])

    @rule(session=SESSIONS, stream=NUMBERS, after=st.integers(0, 2), limit=NUMBERS)
    def read_streams(self, session: int, stream: int, after: int, limit: int) -> None:
        name, others = f"job_{stream:032x}", [number for number in (1, 2, 3) if number != stream]
        self.same(session, reader.STREAM, [UUID(int=stream), after, name, limit], ordered=True)
        self.same(session, reader.TAILS, [[UUID(int=stream)], [after], [name], limit, 9], ordered=True)
        two = [stream, others[0]]
        ids, names = [UUID(int=number) for number in two], [f"job_{number:032x}" for number in two]
        self.same(session, reader.TAILS, [ids, [after, 0], names, limit, 9])

    # ---- the orchestrator's rows ----------------------------------------------------------------

    @rule(session=SESSIONS, attempt=NUMBERS, sequence=NUMBERS, which=st.sampled_from("fnsr"))
    def report_cursors(self, session: int, attempt: int, sequence: int, which: str) -> None:
        match which:
            case "f":
                self.same(session, cursors.FIRST, ["job_1", attempt])
            case "n":
                self.same(session, cursors.NEXT, [sequence, "job_1", attempt, sequence - 1])
            case "s":
                self.same(session, cursors.SKIP, ["job_1", attempt, sequence])
            case _:
                self.same(session, cursors.READ, ["job_1", attempt])

    @rule(session=SESSIONS, epoch=NUMBERS, sequence=NUMBERS, which=st.sampled_from("bmdr"))
    def relay_epochs(self, session: int, epoch: int, sequence: int, which: str) -> None:
        values = {"epoch": epoch, "sequence": sequence, "position": sequence, "reason": "r", "why": "w"}
        match which:
            case "b":
                self.same(session, epochs._BEGIN, values | {"seen": epoch - 1})
            case "m":
                self.same(session, epochs._MARK, values)
            case "d":
                self.same(session, epochs._BREAK, values)
            case _:
                self.same(session, epochs._CURRENT, {})

    # ---- the projections' books -----------------------------------------------------------------

    @rule(session=SESSIONS, view=st.sampled_from("ab"), position=NUMBERS, which=st.sampled_from("iml"))
    def views(self, session: int, view: str, position: int, which: str) -> None:
        match which:
            case "i":
                self.same(
                    session,
                    "INSERT INTO projections.views (view, generation, version, position, log_id)"
                    " VALUES (%s, 1, %s, 0, %s)",
                    [view, 1, "log_1"],
                )
            case "m":
                self.same(
                    session,
                    "UPDATE projections.views SET position = %s, updated_at = now() WHERE view = %s",
                    [position, view],
                )
            case _:
                self.same(
                    session,
                    "SELECT view, generation, version, position, log_id"
                    " FROM projections.views WHERE view = %s FOR UPDATE",
                    [view],
                )

    @rule(session=SESSIONS, stream=NUMBERS, which=st.sampled_from("pcudr"))
    def parked(self, session: int, stream: int, which: str) -> None:
        match which:
            case "p":
                self.same(
                    session,
                    "INSERT INTO projections.parked_streams (view, generation, stream_id, first_position,"
                    " last_position, events, error) VALUES (%s, %s, %s, %s, %s, %s, %s)",
                    ["a", 1, f"job_{stream}", 4, 4, 1, "bad"],
                )
            case "c":
                self.same(
                    session,
                    "UPDATE projections.parked_streams SET events = events + %s, last_position = %s"
                    " WHERE view = %s AND generation = %s AND stream_id = %s",
                    [2, 9, "a", 1, f"job_{stream}"],
                )
            case "u":
                self.same(
                    session,
                    "DELETE FROM projections.parked_streams"
                    " WHERE view = %s AND generation = %s AND stream_id = %s",
                    ["a", 1, f"job_{stream}"],
                )
            case _:
                self.same(
                    session,
                    "SELECT stream_id FROM projections.parked_streams WHERE view = %s AND generation = %s",
                    ["a", 1],
                )

    @rule(session=SESSIONS, name=st.sampled_from(("view_a", "view_b")), which=st.sampled_from("cdrh"))
    def schemas(self, session: int, name: str, which: str) -> None:
        if self._open[1 - session]:
            return  # our code changes schemas under the view's row lock only
        other = "view_b" if name == "view_a" else "view_a"
        match which:
            case "c":
                self.same_done(session, f'CREATE SCHEMA "{name}"')
            case "d":
                self.same_done(session, f'DROP SCHEMA IF EXISTS "{name}" CASCADE')
            case "r":
                self.same_done(session, f'ALTER SCHEMA "{name}" RENAME TO "{other}"')
            case _:
                real = self._ask_real(session, "SELECT to_regnamespace(%s) IS NOT NULL", [name], False)
                model = self._ask_model(session, "SELECT to_regnamespace(%s) IS NOT NULL", [name], False)
                assert real == model

    @rule(session=SESSIONS, which=st.sampled_from("cwwr"), number=NUMBERS, status=st.sampled_from("xy"))
    def documents(self, session: int, which: str, number: int, status: str) -> None:
        """In a schema of the search path, as `DocumentView` writes and reads them."""
        if not self._open[session] or self._open[1 - session]:
            return
        self.same_done(session, "SELECT set_config('search_path', %s, true)", ["view_a"])
        table = document_table("ledger")
        match which:
            case "c":
                for statement in ('CREATE SCHEMA "view_a"', table.create, *table.finish):
                    self.same_done(session, statement)
            case "w":
                document = json.dumps({"status": status})
                values = (f"job_{number}", "org_1", status, NOON, document)
                self.same(session, _SAVE, [[value] for value in values])
            case _:
                self.same(
                    session,
                    'SELECT id, document FROM "ledger" WHERE id = ANY(%s)',
                    [["job_1", "job_2", "job_9"]],
                )
        # The log's tables are named without a schema, and our code never asks for them on a view's path.
        self.same_done(session, "SELECT set_config('search_path', %s, true)", ["public"])

    @rule(session=SESSIONS, view=st.sampled_from("ab"), which=st.sampled_from("qqfo"), number=NUMBERS)
    def rebuilds(self, session: int, view: str, which: str, number: int) -> None:
        match which:
            case "q":
                asked = {"view": view, "reason": "r", "requested_by": "test", "quiet": 0.0}
                self.same(session, _REQUEST, asked)
            case "f":
                self.same(
                    session,
                    "UPDATE projections.rebuilds SET state = 'failed', error = %s, finished_at = now()"
                    " WHERE id = %s",
                    ["why", number],
                )
            case _:
                self.same(
                    session,
                    rebuild_requests._SELECT + "WHERE state IN ('requested', 'running') ORDER BY id",
                    ordered=True,
                )


_SAVE = """
    INSERT INTO "ledger" (id, organization_id, status, created_at, document)
    SELECT id, organization_id, status, created_at, document::jsonb
      FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::text[])
           AS fresh (id, organization_id, status, created_at, document)
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, document = excluded.document
"""
_REQUEST = """
    INSERT INTO projections.rebuilds (view, reason, requested_by)
    SELECT %(view)s, %(reason)s, %(requested_by)s
     WHERE NOT EXISTS (
           SELECT FROM projections.rebuilds
            WHERE view = %(view)s AND state = 'failed'
              AND finished_at > now() - make_interval(secs => %(quiet)s))
    ON CONFLICT (view) WHERE state IN ('requested', 'running') DO UPDATE SET view = excluded.view
    RETURNING id
"""


def _told(rows: list[dict[str, Any]], ordered: bool) -> list[Any]:
    found = [{name: value for name, value in row.items() if not name.endswith("_at")} for row in rows]
    return found if ordered else sorted(found, key=repr)


@pytest.fixture
def prepared(database: PostgresSettings) -> PostgresSettings:
    async def prepare() -> None:
        async with await psycopg.AsyncConnection.connect(database.conninfo(), autocommit=True) as connection:
            await create_tables(connection)
            await catalogue.install(connection)

    asyncio.run(prepare())
    return database


@pytest.mark.timeout(300)
def test_the_model_of_postgresql_is_true(prepared: PostgresSettings) -> None:
    machine = type("Both", (BothPostgres,), {"database": prepared})
    run_state_machine_as_test(machine, settings=ONE_BY_ONE)


# ---- JetStream ----------------------------------------------------------------------------------

Act = Callable[[Any], Coroutine[Any, Any, Any]]
SUBJECT = "kinora.v1.org.ws.job.requested"
IDS = st.sampled_from(("evt-1", "evt-2", "evt-3", "evt-4", None))
FENCES = st.sampled_from(("right", "wrong", None))


class BothJetStreams(RuleBasedStateMachine):
    """A client of the real server, and one of the model."""

    runner: asyncio.Runner
    real: RealClient

    def __init__(self) -> None:
        super().__init__()
        self._loop = SimulatedLoop(0)
        network = jetstream_client.Network(self._loop, jetstream_server.Server(self._loop))
        self._model = jetstream_client.Client(network)
        self._batches = 0
        self._delivered: list[list[Any]] = [[], []]

    def teardown(self) -> None:
        run(self._loop, asyncio.sleep(0))

    def same(self, act: Act) -> Any:
        real = self.runner.run(_outcome(act, self.real))
        model = self._loop.run_until_complete(_outcome(act, self._model))
        assert model == real
        return real

    @initialize(first=st.sampled_from((1, 1000)))
    def make(self, first: int) -> None:
        async def clear() -> None:
            jetstream = self.real.jetstream()
            for stream in await jetstream.streams_info():
                await jetstream.delete_stream(str(stream.config.name))

        self.runner.run(clear())
        self._create(first)

        async def reports(client: Any) -> Any:
            await client.jetstream().add_stream(reports_config())
            await client.jetstream().add_consumer(REPORTS_STREAM, inbox_config())

        self.same(reports)

    def _create(self, first: int) -> None:
        config = events_config(2**26).evolve(first_seq=first)
        self.same(lambda client: _created(client, config))

    @rule(first=st.sampled_from((1, 5000)), remake=st.sampled_from((False, False, False, True)))
    def remake(self, first: int, remake: bool) -> None:
        if remake:
            self.same(lambda client: client.jetstream().delete_stream(EVENTS_STREAM))
            self.same(lambda client: client.jetstream().stream_info(EVENTS_STREAM))
            self.same(lambda client: client.request(SUBJECT, b"x", timeout=1))
            self._create(first)

    @rule(message_id=IDS, fence=FENCES)
    def publish(self, message_id: str | None, fence: str | None) -> None:
        async def act(client: Any) -> Any:
            headers = await _headers(client, message_id, fence)
            return await client.jetstream().publish(SUBJECT, b"one", stream=EVENTS_STREAM, headers=headers)

        self.same(act)

    @rule(
        ids=st.lists(IDS, min_size=1, max_size=3),
        fence=FENCES,
        broken=st.sampled_from((None, None, "first", "gap", "open")),
    )
    def publish_batch(self, ids: list[str | None], fence: str | None, broken: str | None) -> None:
        self._batches += 1
        name = f"batch-{self._batches}"

        async def act(client: Any) -> Any:
            answers = []
            for number, message_id in enumerate(ids, start=1):
                headers = await _headers(client, message_id, fence if number == 1 else None)
                place = number + (1 if broken == "gap" and number == len(ids) else 0)
                headers |= {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(place)}
                if number == len(ids) and broken != "open":
                    headers["Nats-Batch-Commit"] = "1"
                if number == 1 and broken == "first" and len(ids) > 1:
                    continue
                if number in (1, len(ids)):
                    reply = await client.request(SUBJECT, b"many", headers=headers, timeout=1)
                    answers.append(json.loads(reply.data) if reply.data else None)
                else:
                    await client.publish(SUBJECT, b"many", headers=headers)
            return [_plain(answer) for answer in answers]

        if broken == "open" and len(ids) == 1:
            return
        self.same(act)

    @rule(back=st.integers(0, 4))
    def read(self, back: int) -> None:
        async def get(client: Any) -> Any:
            info = await client.jetstream().stream_info(EVENTS_STREAM)
            return await client.jetstream().get_msg(EVENTS_STREAM, seq=max(1, info.state.last_seq - back))

        self.same(get)
        self.same(lambda client: client.jetstream().get_last_msg(EVENTS_STREAM, EVENTS_SUBJECTS))
        self.same(lambda client: client.jetstream().stream_info(EVENTS_STREAM))

    @rule()
    def purge(self) -> None:
        self.same(lambda client: client.jetstream().purge_stream(EVENTS_STREAM))

    @rule(number=st.integers(1, 6))
    def report(self, number: int) -> None:
        async def act(client: Any) -> Any:
            headers = {"Nats-Msg-Id": f"report-{number}"}
            return await client.jetstream().publish(
                "kinora.report.org.agt.job", str(number).encode(), stream=REPORTS_STREAM, headers=headers
            )

        self.same(act)

    @rule()
    def pull(self) -> None:
        async def act(client: Any) -> Any:
            body = json.dumps({"batch": 1, "expires": 30_000_000}).encode()
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{REPORTS_STREAM}.{INBOX_DURABLE}"
            if client is self._model:
                found = await client.request(subject, body, timeout=1)
            else:  # what is delivered keeps its own subject, so nats-py wants a subscription for it
                inbox = client.new_inbox()
                subscription = await client.subscribe(inbox, max_msgs=1)
                await client.publish(subject, body, reply=inbox)
                found = await subscription.next_msg(timeout=1)
            if not found.reply:
                return (found.headers or {}).get("Status")
            self._delivered[client is self._model].append(found)
            metadata = found.metadata
            return found.subject, found.data, metadata.num_delivered, metadata.sequence.stream

        self.same(act)

    @rule(again=st.booleans())
    def acknowledge(self, again: bool) -> None:
        async def act(client: Any) -> Any:
            waiting = self._delivered[client is self._model]
            if waiting:
                message = waiting.pop(0)
                await (message.nak() if again else message.ack_sync(timeout=1))
            info = await client.jetstream().stream_info(REPORTS_STREAM)
            return info.state.messages, info.state.last_seq

        self.same(act)


async def _created(client: Any, config: Any) -> Any:
    """A real server may still be busy removing the files of the stream that had the name."""
    deadline = asyncio.get_running_loop().time() + 5
    while True:
        try:
            return await client.jetstream().add_stream(config)
        except ServerError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.05)


async def _headers(client: Any, message_id: str | None, fence: str | None) -> dict[str, str]:
    headers = {} if message_id is None else {"Nats-Msg-Id": message_id}
    if fence is not None:
        last = (await client.jetstream().stream_info(EVENTS_STREAM)).state.last_seq
        headers["Nats-Expected-Last-Sequence"] = str(last if fence == "right" else last + 7)
    return headers


async def _outcome(act: Act, client: Any) -> Any:
    try:
        return _plain(await act(client))
    except APIError as error:
        return type(error).__name__, error.code, error.err_code
    except NatsError as error:
        return type(error).__name__


def _plain(answer: Any) -> Any:
    """What both servers have to agree on."""
    if hasattr(answer, "state"):
        state = answer.state
        return state.messages, state.first_seq, state.last_seq
    if hasattr(answer, "stream") and hasattr(answer, "duplicate"):
        return answer.stream, answer.seq, bool(answer.duplicate)
    if hasattr(answer, "seq"):
        return answer.subject, answer.seq, answer.data, dict(answer.headers or {})
    if isinstance(answer, dict) and "error" in answer:
        return answer["error"]["code"], answer["error"]["err_code"]
    if isinstance(answer, dict):
        return answer.get("seq"), answer.get("count")
    return answer


@pytest.mark.timeout(300)
def test_the_model_of_jetstream_is_true(nats: NatsSettings) -> None:
    with asyncio.Runner() as runner:
        connection = connect(nats, "simulation")
        real = runner.run(connection.__aenter__())
        machine = type("Both", (BothJetStreams,), {"runner": runner, "real": real})
        try:
            run_state_machine_as_test(machine, settings=ONE_BY_ONE)
        finally:
            runner.run(connection.__aexit__(None, None, None))
