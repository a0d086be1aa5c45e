"""The live feed: every event once and in order, from any position, and only one's own."""

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta

import pytest

from command_api.auth.tokens import READ, AccessTokens, Principal
from command_api.feed import frames
from command_api.feed.parts import FeedLimits
from command_api.messaging.connection import connect
from schemas.ids import Prefix, new_id
from schemas.subjects import telemetry_subject
from schemas.work import TelemetryLine
from tests.integration.api.following import Follower, following, raw_socket
from tests.integration.api.running import Person, Visit
from tests.integration.api.stories import (
    Agent,
    point,
    ready_inputs,
    register,
    request_job,
    start_training,
    train,
)


def positions(found: list[frames.Frame]) -> list[int]:
    return [frame["position"] for frame in found if frame["type"] == "event"]


async def own_positions(person: Person, after: int = 0, **filters: str) -> list[int]:
    """What the feed has to send, read over REST."""
    found, parameters = [], {"after": after, "limit": 200, **filters}
    while True:
        page = (await person.get("/events", params=parameters)).json()
        found += [event["position"] for event in page["data"]]
        if not page["has_more"]:
            return found
        parameters["after"] = found[-1]


async def test_history_then_live(visit: Visit) -> None:
    ada = await visit.sign_up()
    await register(ada, "datasets", {"a": b"a"})
    async with following(visit, ada) as follower:
        assert follower.hello["heartbeat_seconds"] > 0
        assert follower.hello["log_id"].startswith("log_")
        await follower.subscribe("earliest")
        history = await follower.until("caught_up")
        assert positions(history) == await own_positions(ada)
        assert history[-1]["position"] >= positions(history)[-1]
        frame = history[0]
        assert (frame["sub"], frame["event"]["position"]) == ("s", frame["position"])
        assert frame["event"]["source"] == f"urn:kinora:{follower.hello['log_id']}"
        item = await register(ada, "datasets", {"b": b"b"})
        (live,) = await follower.events(1)
        assert (live["position"], live["event"]["subject"]) == (item["last_position"], item["id"])


async def test_a_client_that_drops_and_resumes_sees_every_event_once_and_in_order(visit: Visit) -> None:
    ada = await visit.sign_up()
    seen: list[int] = []
    busy = asyncio.create_task(write_much(ada, 60))
    chance = random.Random(7)
    while not (busy.done() and seen and seen[-1] == (await own_positions(ada))[-1]):
        async with following(visit, ada) as follower:
            await follower.subscribe(seen[-1] if seen else "earliest")
            for _ in range(chance.randint(1, 12)):
                try:
                    async with asyncio.timeout(0.5):
                        frame = json.loads(await follower.socket.recv())
                except TimeoutError:
                    break
                if frame["type"] == "event":
                    seen.append(frame["position"])
            # Dropped in the middle of whatever was on its way.
            follower.socket.transport.abort()
    await busy
    assert seen == await own_positions(ada)
    assert len(seen) >= 60


async def write_much(person: Person, count: int) -> None:
    for number in range(count):
        answer = await person.post("/agents/enroll", {"name": f"node {number}"})
        assert answer.status_code == 201


async def test_many_followers_see_the_same(visit: Visit, bob: Person) -> None:
    ada = await visit.sign_up()

    async def follow() -> list[int]:
        async with following(visit, ada) as follower:
            await follower.subscribe("earliest")
            seen: list[int] = []
            while len(seen) < 43:
                seen += positions(await follower.events(1))
            return seen

    followers = [asyncio.create_task(follow()) for _ in range(8)]
    # Others write at the same time: nothing of theirs may come, and nothing may be missed for it.
    await asyncio.gather(write_much(ada, 40), write_much(bob, 20))
    expected = await own_positions(ada)
    assert len(expected) == 43
    for task in followers:
        assert await task == expected


async def test_catching_up_takes_pages(visit: Visit) -> None:
    ada = await visit.sign_up()
    agent = await Agent.enrolled(visit, ada)
    await asyncio.gather(*(write_much(ada, 15) for _ in range(10)))
    assert agent.agent_id
    async with following(visit, ada) as follower:
        await follower.subscribe("earliest", sub="all")
        assert positions(await follower.until("caught_up")) == await own_positions(ada)


async def test_only_what_was_asked_for(visit: Visit, ada: Person) -> None:
    inputs = await ready_inputs(visit, ada)
    job, other = await request_job(ada, inputs), await request_job(ada, inputs)
    agent = await Agent.enrolled(visit, ada)
    await start_training(agent, job["id"])
    async with following(visit, ada) as follower:
        await follower.subscribe("earliest", sub="job", filter={"job_id": job["id"]})
        of_job = await follower.until("caught_up")
        assert {frame["event"]["subject"] for frame in of_job[:-1]} == {job["id"]}
        assert positions(of_job) == await own_positions(ada, job_id=job["id"])
        await follower.subscribe(
            "earliest",
            sub="types",
            filter={"types": ["kinora.job.requested"], "workspace_id": ada.workspace_id},
        )
        requested = [frame for frame in await follower.until("caught_up") if frame["sub"] == "types"]
        assert {frame["event"]["type"] for frame in requested[:-1]} == {"kinora.job.requested.v1"}
        assert {job["id"], other["id"]} <= {frame["event"]["subject"] for frame in requested[:-1]}
        await follower.send({"type": "unsubscribe", "sub": "types"})
        end = await train(agent, job["id"])
        live: list[frames.Frame] = []
        while not live or live[-1]["position"] < end:
            live += await follower.events(1)
        assert {frame["sub"] for frame in live} == {"job"}
        assert live[-1]["event"]["type"] == "kinora.job.succeeded.v1"


async def test_latest_begins_at_the_end(visit: Visit, ada: Person) -> None:
    async with following(visit, ada) as follower:
        await follower.subscribe("latest")
        (caught_up,) = await follower.until("caught_up")
        assert caught_up["position"] >= follower.hello["head"]
        item = await register(ada, "models", {"b": b"b"})
        assert (await follower.events(1))[0]["position"] == item["last_position"]


@pytest.mark.parametrize(
    ("frame", "code", "field"),
    [
        ({"from": {"position": 10**9}}, "bad_position", "/from/position"),
        ({"filter": {"types": ["kinora.job.exploded"]}}, "unknown_type", "/filter/types"),
        ({"from": {"time": "2999-01-01T00:00:00Z"}}, "in_the_future", "/from/time"),
        ({"filter": {"telemetry": True}}, "bad_filter", "/filter/job_id"),
        ({"filter": {"job_id": new_id(Prefix.JOB)}}, "not_found", "/filter"),
        ({"filter": {"types": ["kinora.job.progressed"], "min_level": "error"}}, "bad_filter", "/filter"),
        ({"filter": {"stream_id": new_id(Prefix.USER)}}, "not_found", "/filter"),
        ({"filter": {"workspace_id": new_id(Prefix.WORKSPACE)}}, "not_found", "/filter/workspace_id"),
        ({"filter": {"colour": 1}}, "bad_field", "/filter/colour"),
        ({"filter": {"types": []}}, "bad_field", "/filter/types"),
        ({"filter": {"types": ["kinora.user.logged_in"]}}, "bad_filter", "/filter/types"),
        (
            {"filter": {"types": ["kinora.job.succeeded", "kinora.user.logged_in"]}},
            "bad_filter",
            "/filter/types",
        ),
        ({"filter": {"job_id": "first"}}, "bad_field", "/filter/job_id"),
        ({"from": {"position": -1}}, "bad_field", "/from/position"),
        ({"from": {"position": True}}, "bad_field", "/from/position"),
        ({"from": {"position": "1"}}, "bad_field", "/from/position"),
        ({"from": "yesterday"}, "bad_field", "/from"),
        ({"pinned": ["kinora.job.progressed.v99"]}, "unknown_event_version", "/pinned"),
    ],
)
async def test_what_cannot_be_subscribed(
    visit: Visit, ada: Person, frame: frames.Frame, code: str, field: str
) -> None:
    async with following(visit, ada) as follower:
        await follower.send({"type": "subscribe", "sub": "s", **frame})
        answer = await follower.receive()
        assert (answer["type"], answer["code"], answer["sub"]) == ("error", code, "s")
        assert answer["field"] == field
        assert answer["remedy"]
        await follower.subscribe("latest")  # and the connection goes on
        assert (await follower.receive())["type"] == "caught_up"
        await follower.subscribe("latest")
        assert (await follower.receive())["code"] == "subscription_exists"


async def test_others_jobs_cannot_be_followed(visit: Visit, ada: Person, bob: Person) -> None:
    job = await request_job(ada, await ready_inputs(visit, ada))
    async with following(visit, bob) as follower:
        await follower.subscribe("earliest", filter={"job_id": job["id"]})
        assert (await follower.receive())["code"] == "not_found"


async def test_a_position_of_another_log_is_reset(visit: Visit, ada: Person) -> None:
    async with following(visit, ada) as follower:
        await follower.subscribe(10**9, log_id="log_of_yesterday")  # beyond the end of this one
        reset = await follower.receive()
        assert (reset["type"], reset["earliest"], reset["reason"]) == ("reset", 0, "log_changed")
        assert reset["log_id"] == follower.hello["log_id"]
        await follower.subscribe(0, log_id=reset["log_id"])
        assert (await follower.receive())["type"] == "event"


async def test_ping_and_acknowledgement_show_the_lag(visit: Visit, ada: Person) -> None:
    async with following(visit, ada) as follower:
        await follower.subscribe("latest")
        (caught_up,) = await follower.until("caught_up")
        position = caught_up["position"]
        await follower.send({"type": "ack", "sub": "s", "position": position})
        await follower.send({"type": "ping"})
        beat = await follower.receive()
        assert beat["type"] == "heartbeat"
        assert beat["head"] >= position
        assert beat["subscriptions"]["s"]["acknowledged"] == position
        await follower.send({"type": "ack", "sub": "s", "position": 10**9})
        assert (await follower.receive())["code"] == "bad_position"
        for kind in ("ack", "unsubscribe"):
            more = {"position": position} if kind == "ack" else {}
            await follower.send({"type": kind, "sub": "nobody", **more})
            answer = await follower.receive()
            assert (answer["code"], answer["sub"], answer["field"]) == ("not_subscribed", "nobody", "/sub")


async def test_telemetry_is_conflated(visit: Visit, ada: Person) -> None:
    job = await request_job(ada, await ready_inputs(visit, ada))
    settings = visit.service.parts.settings.nats
    subject = telemetry_subject(ada.organization_id, job["id"])
    async with connect(settings, "agent") as publisher, following(visit, ada) as follower:
        await follower.subscribe("latest", filter={"job_id": job["id"], "telemetry": True})
        await follower.until("caught_up")
        found: list[frames.Frame] = []
        loop = asyncio.get_running_loop()
        began, step = loop.time(), 0
        while not found or found[-1]["points"][-1]["step"] < 40:
            if step < 40:
                step += 1
                line = TelemetryLine(job_id=job["id"], attempt=1, points=(point(step),), log=(f"{step}",))
                await publisher.publish(subject, line.model_dump_json().encode())
                await publisher.flush()
            if step == 40:
                found += await follower.until("telemetry")
        assert len(found) <= (loop.time() - began) * 10 + 2
        steps = [each["step"] for frame in found for each in frame["points"]]
        assert steps == sorted(set(steps))
        assert (found[0]["sub"], found[0]["job_id"], found[0]["attempt"]) == ("s", job["id"], 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"type": "subscribe"}', "/sub: sub is missing"),
        ('{"type": "ping", "x": 1}', '/x: there is no field "x"'),
        ('{"type": "reauth", "token": 7}', "/token: token must be a text"),
        ('{"type": "ack", "sub": "s", "position": -1}', "/position: position is -1; it must be at least 0"),
        (
            '{"type": "ack", "sub": "s", "position": %s}' % ("9" * 4000),
            "it must be at most 4611686018427387904",
        ),
    ],
)
async def test_a_wrong_field_is_told_and_the_connection_goes_on(
    visit: Visit, ada: Person, text: str, says: str
) -> None:
    async with following(visit, ada) as follower:
        await follower.socket.send(text)
        answer = await follower.receive()
        assert (answer["type"], answer["code"]) == ("error", "bad_field")
        assert says in answer["message"]
        await follower.send({"type": "ping"})
        assert (await follower.receive())["type"] == "heartbeat"


@pytest.mark.parametrize(
    ("text", "says"),
    [("nonsense", "JSON"), ("{}", "type"), ("[]", "the frame"), ('{"type": "x"}', "subscribe")],
)
async def test_what_is_no_frame_ends_the_connection(visit: Visit, ada: Person, text: str, says: str) -> None:
    async with following(visit, ada) as follower:
        await follower.socket.send(text)
        answer = await follower.receive()
        assert answer["code"] == "bad_frame"
        assert says in answer["message"]
        assert await follower.closed() == frames.BAD_FRAME


async def test_bytes_are_no_frames(visit: Visit, ada: Person) -> None:
    async with following(visit, ada) as follower:
        await follower.socket.send(b"{}")
        assert await follower.closed() == frames.BAD_FRAME


async def test_too_many_frames_end_the_connection(visit: Visit, ada: Person) -> None:
    async with following(visit, ada) as follower:
        for _ in range(FeedLimits().frames + 1):
            await follower.send({"type": "ping"})
        assert await follower.closed() == frames.TOO_MUCH


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic x"}])
async def test_strangers_are_closed_out(visit: Visit, headers: dict[str, str]) -> None:
    async with raw_socket(visit, headers) as socket:
        assert await Follower(socket, {}).closed() == frames.UNAUTHENTICATED


async def test_other_origins_are_closed_out(visit: Visit, ada: Person) -> None:
    headers = {"Authorization": f"Bearer {ada.token}"}
    async with raw_socket(visit, headers | {"Origin": "https://evil.example"}) as socket:
        assert await Follower(socket, {}).closed() == frames.FORBIDDEN
    async with raw_socket(visit, headers | {"Origin": visit.service.url}) as socket:
        assert (await Follower(socket, {}).receive())["type"] == "hello"


async def test_a_scope_and_the_subprotocol_are_needed(visit: Visit, ada: Person) -> None:
    principal = Principal(ada.user_id, ada.organization_id, ada.workspace_id, ("jobs:read",))
    token = visit.service.parts.tokens.issue(principal)
    async with raw_socket(visit, {"Authorization": f"Bearer {token}"}) as socket:
        assert await Follower(socket, {}).closed() == frames.FORBIDDEN
    async with raw_socket(visit, {"Authorization": f"Bearer {ada.token}"}, ()) as socket:
        assert await Follower(socket, {}).closed() == frames.BAD_FRAME


async def test_the_connection_ends_with_the_token_unless_it_is_renewed(
    visit: Visit, ada: Person, bob: Person
) -> None:
    pem = visit.service.parts.settings.secrets.token_private_key_pem.get_secret_value()
    earlier = AccessTokens(pem, seconds=60, clock=lambda: datetime.now(UTC) - timedelta(seconds=57))
    token = earlier.issue(Principal(ada.user_id, ada.organization_id, ada.workspace_id, READ))
    headers = {"Authorization": f"Bearer {token}"}
    async with raw_socket(visit, headers) as renewed, raw_socket(visit, headers) as ending:
        kept = Follower(renewed, await Follower(renewed, {}).receive())
        await kept.send({"type": "reauth", "token": ada.token})
        assert await Follower(ending, {}).closed() == frames.UNAUTHENTICATED
        await kept.send({"type": "ping"})
        assert (await kept.receive())["type"] == "heartbeat"
        await kept.send({"type": "reauth", "token": bob.token})
        assert await kept.closed() == frames.FORBIDDEN
    less = Principal(ada.user_id, ada.organization_id, ada.workspace_id, ("events:read",))
    async with raw_socket(visit, {"Authorization": f"Bearer {ada.token}"}) as socket:
        demoted = Follower(socket, await Follower(socket, {}).receive())
        await demoted.send({"type": "reauth", "token": visit.service.parts.tokens.issue(less)})
        assert await demoted.closed() == frames.FORBIDDEN
