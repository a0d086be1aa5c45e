"""Real processes under every fault that their surroundings know, judged by what callers and readers saw.

Callers give commands over HTTP, each under an idempotency key, and repeat them until they are answered for
good; readers follow the feed, resume by position and read what was acknowledged. Meanwhile processes are
killed and frozen, servers restarted and wiped, and wires cut, slowed, parted and robbed of the answers to
COMMIT and to the relay's publishing. The seed decides on the faults and on what callers do, so a run can be
repeated as far as the machine's timing allows.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from nats.js.errors import NotFoundError
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from command_api.messaging.connection import connect
from schemas.envelope import public_bytes
from schemas.ids import Prefix, new_id
from schemas.subjects import EPOCH_HEADER, EVENTS_STREAM, POSITION_HEADER, PREVIOUS_POSITION_HEADER
from tests.faults.calls import Call, Json, Told, check_calls
from tests.faults.history import History, Seen, check
from tests.faults.plane import CONTROL, Plane, wired_plane
from tests.integration.api.following import Follower

CALLERS = 6
PATIENCE_SECONDS = 60.0
"""How long a caller repeats one command before that counts as a finding."""
BETWEEN_FAULTS = (0.2, 1.2)
PASSWORD = "correct horse battery"
RETRIED = {409, 429, 500, 502, 503, 504}


@dataclass
class Run:
    """What happened, and what was found wrong with it."""

    seed: int
    calls: list[Call] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    seen: list[int] = field(default_factory=list)
    tries: int = 0
    epochs: int = 0
    events: int = 0
    broken: list[str] = field(default_factory=list)


async def run(
    folder: Path,
    seconds: float,
    seed: int,
    say: Callable[[str], None] = lambda text: None,
    *,
    mutation: str | None = None,
) -> Run:
    """Torment a control plane for so long, let it recover, and judge it."""
    done = Run(seed)
    try:
        await _run(done, folder, seconds, say, mutation)
    except Exception as error:
        if mutation is None:
            raise
        # With a fault in it, it may not even get so far that it can be judged.
        done.broken.append(f"{type(error).__name__}: {str(error)[:300]}")
    return done


async def _run(
    done: Run, folder: Path, seconds: float, say: Callable[[str], None], mutation: str | None
) -> None:
    chance = random.Random(done.seed)
    async with wired_plane(folder, mutation) as plane:
        async with httpx.AsyncClient(base_url=plane.urls[0], trust_env=False, timeout=10) as http:
            await _sign_up(http)
            over = asyncio.Event()
            reader = asyncio.create_task(_follow(plane, http.headers["Authorization"], done, over))
            callers = [
                asyncio.create_task(_call(http, plane.urls, done, random.Random(chance.random()), over))
                for _ in range(CALLERS)
            ]
            await _torment(plane, done, chance, seconds, say)
            over.set()
            await asyncio.gather(*callers)
            for name in CONTROL:
                await plane.ready(name)
            log = await _whole_log(http)
            head = log[-1]["position"]
            await _until(
                lambda: bool(done.seen) and done.seen[-1] >= head, "the feed to have seen everything"
            )
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            done.events = len(log)
            done.broken += map(
                str, check(History(log=log, seen=[Seen("feed", tuple(done.seen), until=head)]))
            )
            done.broken += map(str, check_calls(log, done.calls))
            done.broken += await _stream_against_log(plane, done, log)
            done.broken += await _views_against_log(http, done, head)
            done.broken += await _open_findings(http)
        for wire in plane.wires:
            done.faults.update(wire.happened)


# ---- callers and readers --------------------------------------------------------------------------


async def _sign_up(http: httpx.AsyncClient) -> None:
    body = {"username": "ada", "email": "ada@example.org", "password": PASSWORD}
    answer = await http.post("/api/v1/auth/signup", json=body)
    assert answer.status_code == 201, answer.text
    http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


async def _call(
    http: httpx.AsyncClient, urls: Sequence[str], run: Run, chance: random.Random, over: asyncio.Event
) -> None:
    """Register datasets, and delete some: streams of its own and streams that others write to as well."""
    while not over.is_set():
        known = [call.told[0].resource_id for call in run.calls if call.told]
        if known and chance.random() < 0.3:
            await _carry_out(http, urls, run, chance, "DELETE", f"/datasets/{chance.choice(known)}", None)
        else:
            files = [{"path": "a.txt", "size_bytes": 1, "sha256": f"{chance.getrandbits(256):064x}"}]
            await _carry_out(http, urls, run, chance, "POST", "/datasets", {"name": "one", "files": files})
        await asyncio.sleep(chance.uniform(0, 0.05))


async def _carry_out(
    http: httpx.AsyncClient,
    urls: Sequence[str],
    run: Run,
    chance: random.Random,
    method: str,
    path: str,
    body: Json | None,
) -> None:
    """One command, repeated until there is an answer for good; now and then repeated even then."""
    call = Call(new_id(Prefix.COMMAND), began=time.monotonic())
    creates = method == "POST"
    if creates:
        run.calls.append(call)
    while True:
        answer = await _try(http, run, call, method, f"{chance.choice(urls)}/api/v1{path}", body)
        if answer is None:
            if time.monotonic() - call.began > PATIENCE_SECONDS:
                run.broken.append(f"no answer to {method} {path} for {PATIENCE_SECONDS:g} s")
                return
            await asyncio.sleep(chance.uniform(0.02, 0.3))
            continue
        if answer.is_success and creates:
            made = answer.json()
            call.answered = call.answered or time.monotonic()
            call.command_id = made["command_id"]
            call.told.append(Told(made["id"], int(answer.headers["X-Event-Position"])))
            if len(call.told) == 1 and chance.random() < 0.3:
                await _read_back(http, call)
            if chance.random() < 0.1:
                continue  # as if the answer had been lost on the way
        elif not answer.is_success:
            code = answer.json()["code"]
            call.refused = code
            if creates or answer.status_code not in (404, 409):
                run.broken.append(f"{method} {path} was refused: {answer.status_code} {code}")
        return


async def _try(
    http: httpx.AsyncClient, run: Run, call: Call, method: str, url: str, body: Json | None
) -> httpx.Response | None:
    """An answer for good, or None when the same request has to be sent again."""
    run.tries += 1
    try:
        answer = await http.request(method, url, json=body, headers={"Idempotency-Key": call.key})
    except httpx.TransportError:
        return None
    if answer.status_code in RETRIED and answer.json().get("retryable", True):
        return None
    return answer


async def _read_back(http: httpx.AsyncClient, call: Call) -> None:
    """Read one's own write; a read model that is not there in time says so and is no finding."""
    told = call.told[0]
    try:
        answer = await http.get(
            f"/api/v1/datasets/{told.resource_id}", params={"min_position": told.position}
        )
    except httpx.TransportError:
        return
    if answer.status_code == 200:
        call.read = answer.json()
    elif answer.status_code == 404 and int(answer.headers.get("X-Projection-Position", 0)) >= told.position:
        call.read = {"id": None}


async def _follow(plane: Plane, authorization: str, run: Run, over: asyncio.Event) -> None:
    """A client of the feed that drops its connection now and then and resumes by position."""

    urls = itertools.cycle(url.replace("http", "ws", 1) + "/api/v1/events/ws" for url in plane.urls)
    while True:
        try:
            async with open_socket(
                next(urls),
                subprotocols=[Subprotocol("kinora.events.v1")],
                additional_headers={"Authorization": authorization},
                open_timeout=5,
                proxy=None,
            ) as socket:
                follower = Follower(socket, {})
                await follower.receive()
                await follower.subscribe(run.seen[-1] if run.seen else 0)
                for _ in range(50 if not over.is_set() else 10**9):
                    frame = await follower.receive()
                    if frame["type"] == "event":
                        run.seen.append(int(frame["position"]))
        except (OSError, TimeoutError, WebSocketException):
            await asyncio.sleep(0.1)


# ---- faults ---------------------------------------------------------------------------------------


async def _torment(
    plane: Plane, run: Run, chance: random.Random, seconds: float, say: Callable[[str], None]
) -> None:
    ends = time.monotonic() + seconds
    acts = _acts(plane, chance)
    queue: list[str] = []
    while time.monotonic() < ends or len(run.faults) < len(acts):
        if not queue:  # every kind in turn, each round in an order of its own
            queue = sorted(acts, key=lambda _: chance.random())
        name = queue.pop()
        say(name)
        await acts[name]()
        run.faults[name] += 1
        await asyncio.sleep(chance.uniform(*BETWEEN_FAULTS))


def _acts(plane: Plane, chance: random.Random) -> dict[str, Callable[[], Awaitable[object]]]:
    wires = plane.wires

    async def swallow_commits() -> None:
        for name in ("api", "api-2", "orchestrator"):
            plane.database[name].swallow("commit", chance.randint(1, 3))

    async def swallow_publishing() -> None:
        plane.broker["orchestrator"].swallow("publish", chance.randint(1, 3))

    async def cut_some() -> None:
        for wire in chance.sample([wire for wire in wires if wire.carries], k=2):
            await wire.cut()

    async def slow_down() -> None:
        wire = chance.choice(wires)
        wire.delay_seconds = chance.uniform(0.01, 0.2)
        await asyncio.sleep(chance.uniform(0.5, 1.5))
        wire.delay_seconds = 0.0

    async def part() -> None:
        wire = chance.choice(wires)
        wire.part()
        await asyncio.sleep(chance.uniform(0.5, 3.0))
        await wire.mend()

    async def kill() -> None:
        await plane.kill(chance.choice(CONTROL))

    async def freeze() -> None:
        await plane.freeze(chance.choice(CONTROL), chance.uniform(0.5, 2.0))

    return {
        "commit replies to be swallowed": swallow_commits,
        "publish replies to be swallowed": swallow_publishing,
        "wires cut": cut_some,
        "a wire slowed": slow_down,
        "a wire parted": part,
        "a process killed": kill,
        "a process frozen": freeze,
        "backends terminated": plane.terminate_backends,
        "postgres killed": lambda: plane.kill_server("postgres"),
        "nats killed": lambda: plane.kill_server("nats"),
        "JetStream wiped": plane.wipe_broker,
    }


# ---- judging --------------------------------------------------------------------------------------


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


async def _stream_against_log(plane: Plane, run: Run, log: Sequence[Json]) -> list[str]:
    """EVENTS is the log: every position once, in order, each naming the one before, the same bytes."""
    rows = await asyncio.to_thread(_stored, plane)
    async with connect(plane.servers.nats_control, "black box") as client:
        js = client.jetstream()

        async def level() -> bool:
            try:
                last = await js.get_last_msg(EVENTS_STREAM, "kinora.v1.>")
            except NotFoundError:
                return False
            return bool(rows) and int((last.headers or {})[POSITION_HEADER]) == rows[-1][0]

        deadline = time.monotonic() + PATIENCE_SECONDS
        while not await level():
            if time.monotonic() > deadline:
                return ["the stream did not catch up with the log"]
            await asyncio.sleep(0.1)
        state = (await js.stream_info(EVENTS_STREAM)).state
        found, previous = [], 0
        for sequence in range(state.first_seq, state.last_seq + 1):
            message = await js.get_msg(EVENTS_STREAM, seq=sequence)
            headers = message.headers or {}
            if int(headers[PREVIOUS_POSITION_HEADER]) != previous:
                return [f"message {sequence} follows {headers[PREVIOUS_POSITION_HEADER]}, not {previous}"]
            previous = int(headers[POSITION_HEADER])
            run.epochs = max(run.epochs, int(headers[EPOCH_HEADER]))
            found.append((previous, message.data))
    if found != rows:
        return [f"the stream holds {len(found)} messages and the log {len(rows)}, or other bytes"]
    return []


def _stored(plane: Plane) -> list[tuple[int, bytes]]:
    with psycopg.connect(plane.servers.postgres.conninfo()) as connection:
        (log_id,) = connection.execute("SELECT log_id FROM kinora_log").fetchone() or ("",)
        rows = connection.execute(
            "SELECT notification_id, state FROM kinora_events ORDER BY notification_id"
        ).fetchall()
    return [(position, public_bytes(position, log_id, bytes(state))) for position, state in rows]


async def _views_against_log(http: httpx.AsyncClient, run: Run, head: int) -> list[str]:
    """Every dataset is shown as its last event left it."""
    shown: dict[str, Any] = {}
    cursor = None
    while True:
        parameters = {"limit": 200, "min_position": head} | ({"cursor": cursor} if cursor else {})
        answer = await http.get("/api/v1/datasets", params=parameters)
        if answer.status_code != 200:
            return [f"datasets cannot be read: {answer.text}"]
        page = answer.json()
        shown |= {each["id"]: each for each in page["data"]}
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    log = await _whole_log(http)
    deleted = {event["subject"] for event in log if event["type"].startswith("kinora.dataset.deleted")}
    made = {event["subject"] for event in log if event["type"].startswith("kinora.dataset.registered")}
    return [f"{name} is not shown" for name in sorted(made - deleted - shown.keys())] + [
        f"{name} is shown and deleted" for name in sorted(deleted & shown.keys())
    ]


async def _open_findings(http: httpx.AsyncClient) -> list[str]:
    """What the auditor still finds wrong, once it had the time to see what was put right.

    Nothing here damages a read model, so whatever was found of one was wrong or a false alarm.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        answer = await http.get("/api/v1/audit/findings")
        if answer.status_code != 200:
            return [f"findings cannot be read: {answer.text}"]
        found = [
            each
            for each in answer.json()["data"]
            if each["status"] == "open" or each["check"] == "read_model"
        ]
        if not found:
            return []
        if time.monotonic() > deadline:
            return [f"{each['subject']} differs for {each['about']}: {each['detail']}" for each in found]
        await asyncio.sleep(0.2)


async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.05)
