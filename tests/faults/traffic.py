"""Callers and a reader of a control plane: what they ask, are told and see goes into a `Run`.

Callers give commands over HTTP, each under an idempotency key, and repeat them until they are answered for
good; the reader follows the feed and resumes by position whenever its connection ends.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import httpx
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from schemas.ids import Prefix, new_id
from tests.faults.calls import Call, CallRule, Json, Told
from tests.faults.history import Rule
from tests.faults.plane import Plane
from tests.integration.api.following import Follower

CALLERS = 6
PATIENCE_SECONDS = 60.0
"""How long a caller repeats one command before that counts as a finding."""
PASSWORD = "correct horse battery"
RETRIED = {409, 429, 500, 502, 503, 504}
CONFLICTS = ("version_conflict", "command_repeated")
FRAMES = 50
"""So many frames the reader takes before it connects anew, once it has caught up."""


JudgedRule = Literal[
    "no_answer",
    "refused",
    "false_conflict",
    "event_of_nobody",
    "feed_stuck",
    "stream_stuck",
    "stream_hole",
    "stream_differs",
    "refilled_without_epoch",
    "view_stuck",
    "view_parked",
    "view_differs",
    "views_unreadable",
    "audit_finding",
    "findings_unreadable",
    "not_judged",
]
AnyRule = JudgedRule | CallRule | Rule


@dataclass(frozen=True)
class Finding:
    """A broken promise: which one, and how."""

    rule: AnyRule
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


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
    broken: list[Finding] = field(default_factory=list)


async def sign_up(http: httpx.AsyncClient) -> None:
    body = {"username": "ada", "email": "ada@example.org", "password": PASSWORD}
    answer = await http.post("/api/v1/auth/signup", json=body)
    assert answer.status_code == 201, answer.text
    http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


class Traffic:
    """What goes on while things fail."""

    def __init__(self, plane: Plane, http: httpx.AsyncClient, run: Run, chance: random.Random) -> None:
        self._plane = plane
        self._http = http
        self._run = run
        self._chance = chance
        self._quiet = False

    @asynccontextmanager
    async def reader(self, frames: int = FRAMES) -> AsyncIterator[None]:
        """One client of the feed."""
        reader = asyncio.create_task(self._follow(frames))
        try:
            yield
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    @asynccontextmanager
    async def callers(self) -> AsyncIterator[None]:
        """Callers who stop with the block, once each has the answer to its last command."""
        over = asyncio.Event()
        self._quiet = False
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(self._call(random.Random(self._chance.random()), over))
            try:
                yield
            finally:
                over.set()
        self._quiet = True

    async def _call(self, chance: random.Random, over: asyncio.Event) -> None:
        """Register datasets, and delete some: streams of its own and streams that others write to as well."""
        while not over.is_set():
            known = [call.told[0].resource_id for call in self._run.calls if call.told]
            if known and chance.random() < 0.3:
                await self._carry_out(chance, "DELETE", f"/datasets/{chance.choice(known)}", None)
            else:
                files = [{"path": "a.txt", "size_bytes": 1, "sha256": f"{chance.getrandbits(256):064x}"}]
                await self._carry_out(chance, "POST", "/datasets", {"name": "one", "files": files})
            await asyncio.sleep(chance.uniform(0, 0.05))

    async def _carry_out(self, chance: random.Random, method: str, path: str, body: Json | None) -> None:
        """One command, repeated until there is an answer for good; now and then repeated even then."""
        run = self._run
        call = Call(new_id(Prefix.COMMAND), began=time.monotonic())
        creates = method == "POST"
        if creates:
            run.calls.append(call)
        while True:
            answer = await self._try(call, method, f"{chance.choice(self._plane.urls)}/api/v1{path}", body)
            if answer is None:
                if time.monotonic() - call.began > PATIENCE_SECONDS:
                    run.broken.append(Finding("no_answer", f"to {method} {path} for {PATIENCE_SECONDS:g} s"))
                    return
                await asyncio.sleep(chance.uniform(0.02, 0.3))
                continue
            if answer.is_success and creates:
                made = answer.json()
                call.answered = call.answered or time.monotonic()
                call.command_id = made["command_id"]
                call.told.append(Told(made["id"], int(answer.headers["X-Event-Position"])))
                if len(call.told) == 1 and chance.random() < 0.3 and "projections" in self._plane.names:
                    await self._read_back(call)
                if chance.random() < 0.1:
                    continue  # as if the answer had been lost on the way
            elif not answer.is_success:
                code = answer.json()["code"]
                call.refused = code
                if creates or answer.status_code not in (404, 409):
                    run.broken.append(Finding("refused", f"{method} {path}: {answer.status_code} {code}"))
            return

    async def _try(self, call: Call, method: str, url: str, body: Json | None) -> httpx.Response | None:
        """An answer for good, or None when the same request has to be sent again."""
        self._run.tries += 1
        try:
            answer = await self._http.request(method, url, json=body, headers={"Idempotency-Key": call.key})
        except httpx.TransportError:
            return None
        if answer.status_code in RETRIED and (problem := answer.json()).get("retryable", True):
            if method == "POST" and problem.get("code") in CONFLICTS:
                # Nobody else writes to a stream that is only being made.
                self._run.broken.append(Finding("false_conflict", f"{call.key} was told {problem['code']}"))
            return None
        return answer

    async def _read_back(self, call: Call) -> None:
        """Read one's own write; a read model that is not there in time says so and is no finding."""
        told = call.told[0]
        try:
            answer = await self._http.get(
                f"/api/v1/datasets/{told.resource_id}", params={"min_position": told.position}
            )
        except httpx.TransportError:
            return
        if answer.status_code == 200:
            call.read = answer.json()
        elif (
            answer.status_code == 404 and int(answer.headers.get("X-Projection-Position", 0)) >= told.position
        ):
            call.read = {"id": None}

    async def _follow(self, frames: int) -> None:
        """Drop the connection now and then while there are callers, and resume by position."""
        run = self._run
        urls = itertools.cycle(url.replace("http", "ws", 1) + "/api/v1/events/ws" for url in self._plane.urls)
        while True:
            try:
                async with open_socket(
                    next(urls),
                    subprotocols=[Subprotocol("kinora.events.v1")],
                    additional_headers={"Authorization": self._http.headers["Authorization"]},
                    open_timeout=5,
                    proxy=None,
                ) as socket:
                    follower = Follower(socket, {})
                    await follower.receive()
                    await follower.subscribe(run.seen[-1] if run.seen else 0)
                    caught_up = False
                    received = 0
                    while received < frames or self._quiet:
                        frame = await follower.receive()
                        received += caught_up
                        caught_up |= frame["type"] == "caught_up"
                        if frame["type"] == "event":
                            run.seen.append(int(frame["position"]))
            except (OSError, TimeoutError, WebSocketException):
                await asyncio.sleep(0.1)
