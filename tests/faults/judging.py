"""Holds what callers and readers saw, EVENTS, the read models and the auditor's findings against the log."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import httpx
import psycopg
from nats.js.errors import NotFoundError

from command_api.messaging.connection import connect
from schemas.envelope import public_bytes
from schemas.events.dataset import DatasetRegistered
from schemas.subjects import EPOCH_HEADER, EVENTS_STREAM, POSITION_HEADER, PREVIOUS_POSITION_HEADER
from tests.faults.calls import Call, Json, check_calls
from tests.faults.history import History, Seen, check
from tests.faults.plane import Plane
from tests.faults.traffic import Finding, Run

PATIENCE_SECONDS = 60.0
"""How long whatever follows the log may take to reach its end."""

Filling = tuple[datetime | None, int]
"""When EVENTS was made, and the epoch of its last message; 0 for an empty one."""


async def judge(
    plane: Plane, http: httpx.AsyncClient, run: Run, patience: float = PATIENCE_SECONDS
) -> list[Finding]:
    """Every broken promise, once callers are quiet; only of the parts that the plane has."""
    log = await _whole_log(http)
    head = log[-1]["position"]
    run.events = len(log)
    found: list[Finding] = []
    if not await _until(lambda: bool(run.seen) and run.seen[-1] >= head, patience):
        found.append(Finding("feed_stuck", f"at {run.seen[-1:]}, and the log ends at {head}"))
    seen = Seen("feed", tuple(run.seen), until=head)
    found += [Finding(one.rule, str(one)) for one in check(History(log=log, seen=[seen]))]
    found += [Finding(one.rule, str(one)) for one in check_calls(log, run.calls)]
    found += _of_nobody(log, run.calls)
    found += await _stream_against_log(plane, run, patience)
    if "projections" in plane.names:
        found += await _views_against_log(http, log, head, patience)
    if "auditor" in plane.names:
        found += await _open_findings(http, patience)
    return found


async def filling(plane: Plane) -> Filling:
    """Which filling of the stream there is."""
    async with connect(plane.servers.nats_control, "black box") as client:
        js = client.jetstream()
        try:
            info = await js.stream_info(EVENTS_STREAM)
            last = await js.get_last_msg(EVENTS_STREAM, "kinora.v1.>")
        except NotFoundError:
            return None, 0
        return info.created, int((last.headers or {})[EPOCH_HEADER])


def filled_anew(before: Filling, after: Filling) -> list[Finding]:
    """A stream that was made anew has to say so, by its epoch."""
    if after[0] != before[0] and 0 < after[1] <= before[1]:
        return [Finding("refilled_without_epoch", f"EVENTS was made anew and is of epoch {after[1]} again")]
    return []


def _of_nobody(log: Sequence[Json], calls: Sequence[Call]) -> list[Finding]:
    """Each caller repeats its command until it is answered, so what nobody was told of came of a repeat."""
    if any(call.command_id is None and call.refused is None for call in calls):
        return []  # somebody gave up, which is a finding of its own
    told = {call.command_id for call in calls}
    return [
        Finding("event_of_nobody", f"nobody was told of {event['subject']} at {event['position']}")
        for event in log
        if event["type"].startswith(DatasetRegistered.TYPE) and event["causationid"] not in told
    ]


async def _whole_log(http: httpx.AsyncClient) -> list[Json]:
    """The organization's log by pages, patiently: the last fault may not be over."""
    log: list[Json] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            answer = await http.get(
                "/api/v1/events", params={"after": log[-1]["position"] if log else 0, "limit": 200}
            )
            answer.raise_for_status()
        except httpx.HTTPError:
            assert time.monotonic() < deadline, "the log cannot be read"
            await asyncio.sleep(0.2)
            continue
        page = answer.json()
        log += page["data"]
        if not page["has_more"]:
            return log


async def _stream_against_log(plane: Plane, run: Run, patience: float) -> list[Finding]:
    """EVENTS is the log: every position once, in order, each naming the one before, the same bytes."""
    async with connect(plane.servers.nats_control, "black box") as client:
        js = client.jetstream()

        async def end() -> int:
            try:
                last = await js.get_last_msg(EVENTS_STREAM, "kinora.v1.>")
            except NotFoundError:
                return 0
            return int((last.headers or {})[POSITION_HEADER])

        deadline = time.monotonic() + patience
        # Callers are quiet, but the auditor may still say something.
        while (reached := await end()) < (rows := await asyncio.to_thread(_stored, plane))[-1][0]:
            if time.monotonic() > deadline:
                ends = f"ends at {reached}, and the log at {rows[-1][0]}"
                return [Finding("stream_stuck", f"EVENTS {ends}")]
            await asyncio.sleep(0.1)
        state = (await js.stream_info(EVENTS_STREAM)).state
        found, previous = [], 0
        for sequence in range(state.first_seq, state.last_seq + 1):
            message = await js.get_msg(EVENTS_STREAM, seq=sequence)
            headers = message.headers or {}
            if int(headers[PREVIOUS_POSITION_HEADER]) != previous:
                follows = f"{headers[POSITION_HEADER]} follows {headers[PREVIOUS_POSITION_HEADER]}"
                return [Finding("stream_hole", f"message {sequence} says that {follows}, not {previous}")]
            previous = int(headers[POSITION_HEADER])
            run.epochs = max(run.epochs, int(headers[EPOCH_HEADER]))
            found.append((previous, message.data))
    if found[: len(rows)] != rows:
        detail = f"EVENTS holds {len(found)} messages and the log {len(rows)}, or other bytes"
        return [Finding("stream_differs", detail)]
    return []


def _stored(plane: Plane) -> list[tuple[int, bytes]]:
    with psycopg.connect(plane.servers.postgres.conninfo()) as connection:
        (log_id,) = connection.execute("SELECT log_id FROM kinora_log").fetchone() or ("",)
        rows = connection.execute(
            "SELECT notification_id, state FROM kinora_events ORDER BY notification_id"
        ).fetchall()
    return [(position, public_bytes(position, log_id, bytes(state))) for position, state in rows]


async def _views_against_log(
    http: httpx.AsyncClient, log: Sequence[Json], head: int, patience: float
) -> list[Finding]:
    """Every dataset is shown as its last event left it, and no view had to set a stream aside."""
    answer = await http.get("/api/v1/projections/parked")
    if answer.status_code != 200:
        return [Finding("views_unreadable", answer.text)]
    parked = [
        Finding("view_parked", f"{each['view']} at {each['first_position']}: {each['error']}")
        for each in answer.json()["data"]
    ]
    found = await _patiently(http, head, patience)
    if found is None:
        return [*parked, Finding("view_stuck", f"datasets cannot be read as of {head}")]
    deleted = {event["subject"] for event in log if event["type"].startswith("kinora.dataset.deleted")}
    made = {event["subject"] for event in log if event["type"].startswith(DatasetRegistered.TYPE)}
    return [
        *parked,
        *(Finding("view_differs", f"{name} is not shown") for name in sorted(made - deleted - found.keys())),
        *(Finding("view_differs", f"{name} is shown and deleted") for name in sorted(deleted & found.keys())),
    ]


async def held_up(http: httpx.AsyncClient, patience: float) -> list[Finding]:
    """Streams that a view set aside hold up nothing but themselves."""
    head = (await _whole_log(http))[-1]["position"]
    if await _patiently(http, head, patience) is None:
        return [Finding("view_stuck", f"datasets cannot be read as of {head}, behind streams set aside")]
    return []


async def _patiently(http: httpx.AsyncClient, head: int, patience: float) -> dict[str, Any] | None:
    deadline = time.monotonic() + patience
    while True:
        found = await _datasets(http, head)
        if found is not None or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)


async def _datasets(http: httpx.AsyncClient, head: int) -> dict[str, Any] | None:
    """All that are shown, or None while the view is not there yet."""
    shown: dict[str, Any] = {}
    cursor = None
    while True:
        parameters = {"limit": 200, "min_position": head} | ({"cursor": cursor} if cursor else {})
        answer = await http.get("/api/v1/datasets", params=parameters)
        if answer.status_code != 200:
            return None
        page = answer.json()
        shown |= {each["id"]: each for each in page["data"]}
        cursor = page["next_cursor"]
        if not page["has_more"]:
            return shown


async def _open_findings(http: httpx.AsyncClient, patience: float) -> list[Finding]:
    """What the auditor still finds wrong, once it had the time to see what was put right.

    Nothing here damages a read model, so whatever was found of one was wrong or a false alarm.
    """
    deadline = time.monotonic() + patience
    while True:
        answer = await http.get("/api/v1/audit/findings")
        if answer.status_code != 200:
            return [Finding("findings_unreadable", answer.text)]
        found = [
            each
            for each in answer.json()["data"]
            if each["status"] == "open" or each["check"] == "read_model"
        ]
        if not found:
            return []
        if time.monotonic() > deadline:
            return [
                Finding("audit_finding", f"{each['subject']} for {each['about']}: {each['detail']}")
                for each in found
            ]
        await asyncio.sleep(0.2)


async def _until(condition: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True
