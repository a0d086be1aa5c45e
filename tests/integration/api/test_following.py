"""Server-sent events, tickets, and the end of a right: the feed for browsers, and for nobody else."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx
import pytest

from command_api.feed import frames
from command_api.feed.tickets import Tickets
from tests.integration.api.following import Follower, following, raw_socket
from tests.integration.api.running import Account, Backing, Person, Service, Visit, running_service
from tests.integration.api.stories import Agent, ready_inputs, register, request_job, start_training, train

T = TypeVar("T")

GRACE_SECONDS = 5
"""After which a service that stops cuts off whatever is still being answered."""


async def there(service: Service, work: Coroutine[Any, Any, T]) -> T:
    """Done on the loop of the service, which is another thread's."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, service.loop))


@dataclass
class Message:
    """One server-sent event."""

    name: str = ""
    id: int | str | None = None
    data: dict[str, Any] = field(default_factory=dict)


class Stream:
    """A reader of server-sent events that knows nothing but the standard."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.retry: str | None = None
        self._lines = answer.aiter_lines()

    async def next(self) -> Message:
        message = Message()
        async with asyncio.timeout(15):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                match name:
                    case "" if message.data:
                        return message
                    case "event":
                        message.name = value
                    case "id":
                        message.id = int(value) if value.isdecimal() else value
                    case "data":
                        message.data = json.loads(value)
                    case "retry":
                        self.retry = value
        raise EOFError

    async def until(self, name: str) -> list[Message]:
        found = [await self.next()]
        while found[-1].name != name:
            found.append(await self.next())
        return found


@asynccontextmanager
async def streaming(
    client: httpx.AsyncClient, headers: dict[str, str] | None = None, **parameters: Any
) -> AsyncIterator[Stream]:
    async with client.stream(
        "GET", "/api/v1/events/stream", params=parameters, headers=headers or {}
    ) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield Stream(answer)


async def test_a_stream_is_resumed_by_its_last_id(visit: Visit) -> None:
    ada = await visit.sign_up()
    await register(ada, "datasets", {"a": b"a"})
    everything = (await ada.get("/events")).json()["data"]
    async with streaming(ada.http, **{"from": "earliest"}) as stream:
        assert stream.answer.headers["content-type"].startswith("text/event-stream")
        assert "no-transform" in stream.answer.headers["cache-control"]
        assert stream.answer.headers["x-accel-buffering"] == "no"
        hello, *history, caught_up = await stream.until("caught_up")
        assert (hello.name, stream.retry) == ("hello", "2000")
        assert [message.data for message in history] == everything
        assert [message.id for message in history] == [event["position"] for event in everything]
        assert all(message.name == "" for message in history)
        assert caught_up.id is not None
        item = await register(ada, "datasets", {"b": b"b"})
        live = await stream.next()
        assert (live.id, live.data["subject"]) == (item["last_position"], item["id"])
    last = {"Last-Event-ID": str(history[1].id)}
    # An address that says where to begin is the same at every reconnection; the header goes before it.
    async with streaming(ada.http, last, after=0, log_id=hello.data["log_id"]) as stream:
        _, *rest, _ = await stream.until("caught_up")
        assert [message.id for message in rest] == [*(message.id for message in history[2:]), live.id]


async def test_streams_end_when_the_service_does(service: Service) -> None:
    """Neither is cut off nor waited for: the answer comes to its end, and the service with it."""
    settings = service.parts.settings
    backing = Backing(settings.postgres, settings.nats, settings.s3, settings.secrets)
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        stopping = await asyncio.to_thread(stack.enter_context, running_service(backing, projecting=False))
        async with Visit(stopping) as visit:
            ada = await visit.sign_up()
            async with streaming(ada.http, **{"from": "earliest"}) as stream:
                await stream.until("caught_up")
                began = loop.time()
                ending = asyncio.create_task(asyncio.to_thread(stack.close))
                *_, closing = await stream.until("closing")
                assert closing.data["code"] == frames.RESTARTING
                with pytest.raises(EOFError):
                    await stream.next()
                await ending
                assert loop.time() - began < GRACE_SECONDS


async def test_a_stream_of_another_log_is_reset(visit: Visit, ada: Person) -> None:
    for headers, parameters in (
        ({}, {"after": 1, "log_id": "log_of_yesterday"}),
        ({"Last-Event-ID": str(10**12)}, {}),
    ):
        async with streaming(ada.http, headers, **parameters) as stream:
            hello, reset, _ = await stream.until("closing")
            assert (reset.name, reset.data["reason"]) == ("reset", "log_changed")
            assert reset.data["log_id"] == hello.data["log_id"]
            with pytest.raises(EOFError):
                await stream.next()
        # `EventSource` connects again with the last id that it was given, and for 204 it stops.
        again = await ada.http.get(
            "/api/v1/events/stream", params=parameters, headers={"Last-Event-ID": str(reset.id)}
        )
        assert (again.status_code, again.content) == (204, b"")


@pytest.mark.parametrize(
    ("parameters", "status", "code"),
    [
        ({"after": 10**12}, 400, "bad_position"),
        ({"types": "kinora.job.exploded"}, 422, "unknown_value"),
        ({"types": ""}, 422, "invalid_request"),
        ({"types": "kinora.user.logged_in"}, 422, "bad_filter"),
        ({"types": "kinora.job.progressed", "min_level": "error"}, 422, "bad_filter"),
        ({"job_id": "job_" + "0" * 32}, 404, "not_found"),
        ({"since": "yesterday"}, 422, "invalid_request"),
        ({"since": "2026-01-01T00:00:00Z", "after": 1}, 422, "not_exactly_one"),
        ({"colour": "red"}, 422, "unknown_parameter"),
    ],
)
async def test_what_cannot_be_streamed(
    ada: Person, parameters: dict[str, Any], status: int, code: str
) -> None:
    answer = await ada.get("/events/stream", params=parameters)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert code in (problem["code"], *(error["code"] for error in problem["errors"]))


async def test_others_cannot_be_streamed(visit: Visit, ada: Person, bob: Person) -> None:
    item = await register(ada, "datasets", {"a": b"a"})
    answer = await bob.get("/events/stream", params={"stream_id": item["id"]})
    assert answer.status_code == 404
    async with streaming(bob.http, **{"from": "earliest"}) as stream:
        _, *theirs, _ = await stream.until("caught_up")
        assert {message.data["organization"] for message in theirs} == {bob.organization_id}


async def test_a_person_follows_their_own_stream(visit: Visit, ada: Person, bob: Person) -> None:
    async with following(visit, ada) as follower:
        await follower.subscribe("earliest", filter={"stream_id": ada.user_id})
        (*own, _) = await follower.until("caught_up")
        assert {frame["event"]["subject"] for frame in own} == {ada.user_id}
        joined = {"stream_id": ada.user_id, "types": ["kinora.user.registered"]}
        await follower.subscribe("earliest", sub="joined", filter=joined)
        first, _ = await follower.until("caught_up")
        assert first["event"]["subject"] == ada.user_id
        other = {"stream_id": ada.user_id, "types": ["kinora.job.succeeded"]}
        await follower.subscribe("earliest", sub="other", filter=other)
        assert (await follower.receive())["code"] == "bad_filter"
        await follower.subscribe("earliest", sub="theirs", filter={"stream_id": bob.user_id})
        assert (await follower.receive())["code"] == "not_found"


async def test_levels_times_and_conflation(visit: Visit, ada: Person) -> None:
    job = await request_job(ada, await ready_inputs(visit, ada))
    agent = await Agent.enrolled(visit, ada)
    await start_training(agent, job["id"])
    end = await train(agent, job["id"])
    events = (await ada.get("/events", params={"job_id": job["id"], "limit": 200})).json()["data"]
    of_level = [each["position"] for each in events if "progressed" not in each["type"]]
    async with following(visit, ada) as follower:
        await follower.subscribe("earliest", filter={"job_id": job["id"], "min_level": "info"})
        frames_ = await follower.until("caught_up")
        got = [frame["position"] for frame in frames_ if frame["type"] == "event"]
        assert {p for p in of_level if p in got} == set(got)
        assert got[-1] == end
        assert not any("progressed" in frame["event"]["type"] for frame in frames_[:-1])
        middle = events[len(events) // 2]
        await follower.send(
            {
                "type": "subscribe",
                "sub": "late",
                "filter": {"job_id": job["id"]},
                "from": {"time": middle["time"]},
            }
        )
        late = await follower.until("caught_up")
        begun = [each["position"] for each in events if each["time"] >= middle["time"]]
        assert [frame["position"] for frame in late[:-1]] == begun
        await follower.send({"type": "subscribe", "sub": "new", "from": {"time": "2100-01-01T00:00:00Z"}})
        assert (await follower.receive())["code"] == "in_the_future"
        progress = [each["position"] for each in events if "progressed" in each["type"]]
        assert len(progress) > 1
        await follower.subscribe("earliest", sub="newest", filter={"job_id": job["id"]}, mode="conflated")
        newest = [frame["position"] for frame in (await follower.until("caught_up"))[:-1]]
        assert newest == [each["position"] for each in events if each["position"] not in progress[:-1]]


# ---- tickets ----------------------------------------------------------------------------------------


async def ticket_of(person: Person) -> str:
    answer = await person.post("/events/tickets")
    assert answer.status_code == 201, answer.text
    return str(answer.json()["ticket"])


async def test_a_ticket_opens_one_feed(
    visit: Visit, ada: Person, bob: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = await visit.client()
    ticket = await ticket_of(ada)
    async with streaming(stranger, ticket=ticket, **{"from": "earliest"}) as stream:
        _, *own, _ = await stream.until("caught_up")
        assert {message.data["organization"] for message in own} == {ada.organization_id}
    again = await stranger.get("/api/v1/events/stream", params={"ticket": ticket})
    assert (again.status_code, again.json()["code"]) == (401, "ticket_invalid")
    for_socket = await ticket_of(bob)
    async with raw_socket(visit, {}, query=f"?ticket={for_socket}") as socket:
        follower = Follower(socket, await Follower(socket, {}).receive())
        await follower.subscribe("earliest")
        (*theirs, _) = await follower.until("caught_up")
        assert {frame["event"]["organization"] for frame in theirs} == {bob.organization_id}
    async with raw_socket(visit, {}, query=f"?ticket={for_socket}") as socket:
        assert await Follower(socket, {}).closed() == frames.UNAUTHENTICATED
    # Neither opens anything else, and neither is written anywhere.
    spare = await ticket_of(ada)
    assert (await stranger.get("/api/v1/jobs", params={"ticket": spare})).status_code == 401
    logged = "".join(capsys.readouterr())
    assert ticket not in logged
    assert for_socket not in logged


async def test_tickets_are_used_once_by_whoever_is_first(visit: Visit, ada: Person) -> None:
    ticket, stranger = await ticket_of(ada), await visit.client()

    async def use() -> int:
        async with stranger.stream("GET", "/api/v1/events/stream", params={"ticket": ticket}) as answer:
            return answer.status_code

    assert sorted(await asyncio.gather(*(use() for _ in range(5)))) == [200, 401, 401, 401, 401]


async def test_an_old_ticket_opens_nothing(visit: Visit, ada: Person) -> None:
    parts = visit.service.parts
    old = await there(visit.service, Tickets(parts.pool, seconds=-1).issue(parts.tokens.verify(ada.token)))
    answer = await (await visit.client()).get("/api/v1/events/stream", params={"ticket": old.text})
    assert (answer.status_code, answer.json()["code"]) == (401, "ticket_invalid")


async def test_a_ticket_ends_with_the_token_that_it_was_got_with(visit: Visit, ada: Person) -> None:
    parts = visit.service.parts
    caller = replace(parts.tokens.verify(ada.token), expires_at=0.0)
    ended = await there(visit.service, parts.tickets.issue(caller))
    async with streaming(await visit.client(), ticket=ended.text) as stream:
        assert (await stream.until("closing"))[-1].data["code"] == frames.UNAUTHENTICATED


# ---- rights that end --------------------------------------------------------------------------------


async def test_who_is_no_member_any_more_is_sent_away(visit: Visit, bob: Person) -> None:
    eve = await visit.sign_up("eve")
    rights = visit.service.parts.feed.rights
    async with (
        following(visit, eve) as follower,
        following(visit, bob) as other,
        streaming(eve.http) as stream,
    ):
        await follower.subscribe("latest")
        await follower.until("caught_up")
        await stream.until("caught_up")
        await there(visit.service, rights.check())
        await there(visit.service, forget_membership(visit.service, eve))
        await there(visit.service, rights.check())
        assert await follower.closed() == frames.FORBIDDEN
        assert (await stream.until("closing"))[-1].data["code"] == frames.FORBIDDEN
        await other.send({"type": "ping"})
        assert (await other.receive())["type"] == "heartbeat"


async def forget_membership(service: Service, account: Account) -> None:
    async with service.parts.pool.connection() as connection:
        await connection.execute("DELETE FROM kinora_memberships WHERE user_id = %s", (account.user_id,))
