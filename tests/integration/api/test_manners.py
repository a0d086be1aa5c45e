"""What every answer says to browsers, which hosts and origins are taken, and how much one client may hold."""

import asyncio
import base64
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import httpx
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from command_api.feed.frames import SUBPROTOCOL
from command_api.problems import PROBLEM_JSON
from command_api.settings import RateSettings
from kinora.client import ApiError, Client, Credentials
from kinora.http import listen
from kinora.local.servers import EmbeddedServers
from tests.integration.api.following import following, raw_socket
from tests.integration.api.running import PASSWORD, Account, Backing, Service, Visit, running_service
from tests.integration.api.test_auth import signup_body

CONSOLE = "https://console.example.org"


@pytest.fixture(scope="module")
def strict(service: Service, servers: EmbeddedServers) -> Iterator[Service]:
    """A second instance on the same database, behind a proxy, with small quotas."""
    mine = service.parts.settings
    changes = {
        "public_url": "https://kinora.example.org",
        "allowed_origins": (CONSOLE,),
        "allowed_hosts": ("kinora.internal",),
        "trusted_proxies": ("127.0.0.1/32",),
        "header_seconds": 1.0,
        "rates": RateSettings(
            general="8/day",
            anonymous="8/day",
            signup="2/day",
            login="",
            refresh="2/day",
            login_account="3/day",
            login_elsewhere="5/day",
            uploads="1/day",
            job_creation="1/day",
            event_replay="3/day",
            feeds=2,
        ),
    }
    backing = Backing(mine.postgres, mine.nats, mine.s3, mine.secrets, changes)
    with running_service(backing, projecting=False) as running:
        yield replace(running, url=f"http://127.0.0.1:{running.parts.settings.port}")


def address(number: int) -> dict[str, str]:
    return {"X-Forwarded-For": f"203.0.113.{number}"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/health", 200),
        ("/api/v1/jobs", 401),
        ("/nowhere", 404),
        ("/docs", 200),
        ("/openapi.json", 200),
    ],
)
async def test_every_answer_has_its_headers(visit: Visit, path: str, status: int) -> None:
    answer = await (await visit.client()).get(path)
    assert answer.status_code == status
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert "strict-transport-security" not in headers  # plain HTTP must stay reachable
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


async def test_an_unexpected_error_has_them_too(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("command_api.routes.health.Health", broken)
    answer = await (await visit.client()).get("/api/v1/health")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "a secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


async def test_the_reference_page_loads_known_files_only(visit: Visit) -> None:
    page = await (await visit.client()).get("/docs")
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    loaded = re.findall(r'<(?:script src|link rel="stylesheet" href)="([^"]+)"([^>]*)>', page.text)
    assert len(loaded) == page.text.count("https://") == 2
    for _, attributes in loaded:
        assert re.fullmatch(r' integrity="sha384-[A-Za-z0-9+/]{64}" crossorigin="anonymous"', attributes)
    policy = page.headers["content-security-policy"]
    (scripts,) = re.findall(r"script-src ([^;]*)", policy)
    assert scripts.split() == [f"'sha256-{digest}'", loaded[1][0]]


async def test_the_openapi_document_is_the_same_at_both_addresses(visit: Visit) -> None:
    client = await visit.client()
    answers = [await client.get(path) for path in ("/openapi.json", "/api/v1/openapi.json")]
    assert [answer.json() for answer in answers] == [visit.service.app.openapi()] * 2


async def test_what_is_asked_for_again_may_be_kept_but_not_shared(visit: Visit) -> None:
    ada = await visit.sign_up()
    made = await ada.post(
        "/datasets", {"name": "x", "files": [{"path": "a", "size_bytes": 1, "sha256": "0" * 64}]}
    )
    position = made.headers["x-event-position"]
    answer = await ada.get(f"/datasets/{made.json()['id']}", params={"min_position": position})
    assert answer.headers["etag"]
    assert answer.headers["cache-control"] == "private, no-cache"


async def test_https_is_for_good(strict: Service) -> None:
    async with Visit(strict) as visit:
        answer = await (await visit.client()).get("/openapi.json")
    assert answer.headers["strict-transport-security"].startswith("max-age=")


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        ("kinora.example.org", True),
        ("kinora.internal:8080", True),
        ("KINORA.example.org", True),
        ("localhost:1", True),
        ("127.0.0.1", True),
        ("[::1]:80", True),
        ("evil.example", False),
        ("kinora.example.org.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
async def test_only_the_service_s_own_names_are_taken(strict: Service, host: str, taken: bool) -> None:
    async with Visit(strict) as visit:
        answer = await (await visit.client()).get("/openapi.json", headers={"Host": host})
    if taken:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["code"]) == (421, "misdirected_request")
        assert answer.headers["content-type"] == PROBLEM_JSON
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_page_of_an_allowed_origin_may_call(strict: Service) -> None:
    async with Visit(strict) as visit:
        client = await visit.client()
        asked = {"Origin": CONSOLE, "Access-Control-Request-Method": "POST"}
        preflight = await client.options("/api/v1/jobs", headers=asked)
        plain = await client.get("/openapi.json", headers={"Origin": CONSOLE})
        refused = await client.options("/api/v1/jobs", headers=asked | {"Origin": "https://evil.example"})
        elsewhere = await client.get("/openapi.json", headers={"Origin": CONSOLE + ".evil.example"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == CONSOLE
    assert "idempotency-key" in preflight.headers["access-control-allow-headers"].lower()
    assert plain.headers["access-control-allow-origin"] == CONSOLE
    assert "X-Event-Position" in plain.headers["access-control-expose-headers"]
    assert refused.status_code == 400
    for answer in (refused, elsewhere):
        assert "access-control-allow-origin" not in answer.headers
    for answer in (preflight, plain, refused, elsewhere):
        assert "access-control-allow-credentials" not in answer.headers


async def test_the_feed_takes_pages_of_the_same_origins(strict: Service, ada_account: Account) -> None:
    url = strict.url.replace("http", "ws") + "/api/v1/events/ws"
    bearer = {"Authorization": f"Bearer {ada_account.token}"}

    async def first_word(origin: str) -> str:
        async with connect(
            url,
            subprotocols=[SUBPROTOCOL],
            additional_headers=bearer | {"Origin": origin},
            proxy=None,  # type: ignore[list-item]
        ) as socket_:
            try:
                return str(json.loads(await socket_.recv())["type"])
            except ConnectionClosed as closed:
                return str(closed.rcvd and closed.rcvd.code)

    assert await first_word(CONSOLE) == "hello"
    assert await first_word("https://kinora.example.org") == "hello"
    assert await first_word("https://evil.example") == "4403"
    with pytest.raises(InvalidStatus, match="403"):
        async with connect(
            "ws://evil.example/api/v1/events/ws",
            host="127.0.0.1",
            port=strict.parts.settings.port,
            additional_headers=bearer,
            proxy=None,
        ):
            pass


@pytest.fixture
async def ada_account(service: Service) -> Account:
    """Nobody else's quota."""
    async with Visit(service) as visit:
        return await visit.make_account("rated")


async def test_quotas_are_told_and_then_hold(strict: Service, ada_account: Account) -> None:
    async with Visit(strict) as visit:
        ada = await visit.come_in(ada_account)
        first = await ada.get("/users/me")
        assert first.headers["ratelimit-policy"] == '"general";q=8;w=86400'
        assert re.fullmatch(r'"general";r=7;t=\d+', first.headers["ratelimit"])
        made = await ada.post("/jobs", {})
        assert made.status_code == 422
        assert made.headers["ratelimit-policy"] == '"general";q=8;w=86400, "job_creation";q=1;w=86400'
        refused = await ada.post("/jobs", {})
        assert_refused(refused, "too_many_requests")
        assert "job_creation" in refused.json()["detail"]
        # Other things go on until the general quota is spent, and others' are their own.
        for _ in range(5):
            last = await ada.get("/users/me")
            assert last.status_code == 200
        assert_refused(await ada.get("/users/me"), "too_many_requests")
        stranger = await visit.client()
        assert (await stranger.get("/api/v1/health", headers=address(10))).status_code == 200


def assert_refused(answer: httpx.Response, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (429, code), answer.text
    assert answer.headers["content-type"] == PROBLEM_JSON
    assert answer.json()["retryable"] is True
    assert 0 < int(answer.headers["retry-after"]) <= 2 * 86400
    if code == "too_many_requests":
        assert re.search(r"r=0;t=\d+", answer.headers["ratelimit"])


async def test_strangers_are_counted_by_address(strict: Service) -> None:
    async with Visit(strict) as visit:
        stranger = await visit.client()
        for _ in range(8):
            answer = await stranger.get("/api/v1/jobs", headers=address(20))
            assert answer.status_code == 401
        assert_refused(await stranger.get("/api/v1/jobs", headers=address(20)), "too_many_requests")
        # Whoever is nearer to us is believed, not what was claimed before it.
        forged = {"X-Forwarded-For": "198.51.100.1, 203.0.113.20"}
        assert_refused(await stranger.get("/api/v1/jobs", headers=forged), "too_many_requests")
        assert (await stranger.get("/api/v1/jobs", headers=address(21))).status_code == 401
        six = [{"X-Forwarded-For": f"2001:db8::{number}"} for number in range(1, 10)]
        answers = [await stranger.get("/api/v1/jobs", headers=each) for each in six]
        assert [answer.status_code for answer in answers] == [401] * 8 + [429]


async def test_without_a_trusted_proxy_nobody_names_their_address(visit: Visit) -> None:
    stranger = await visit.client()
    left = []
    for number in range(3):
        answer = await stranger.get("/api/v1/problems/not_found", headers=address(number))
        left.append(int(re.search(r"r=(\d+)", answer.headers["ratelimit"]).group(1)))  # type: ignore[union-attr]
    assert left[0] > left[1] > left[2]


async def test_guessing_a_password_gets_slow_and_its_owner_still_gets_in(
    visit: Visit, strict: Service
) -> None:
    body = signup_body()
    assert (await (await visit.client()).post("/api/v1/auth/signup", json=body)).status_code == 201
    right = {"username": body["username"], "password": PASSWORD}
    wrong = right | {"password": "not the password"}
    async with Visit(strict) as there:
        client = await there.client()

        async def log_in(given: dict[str, str], where: int) -> httpx.Response:
            return await client.post("/api/v1/auth/login", json=given, headers=address(where))

        assert (await log_in(right, 30)).status_code == 200  # the owner, at home
        head = strict.parts.log.read_all(0, 10_000)[-1].position
        assert [(await log_in(wrong, 31)).status_code for _ in range(3)] == [401] * 3
        refused = await log_in(wrong, 31)
        assert_refused(refused, "too_many_attempts")
        assert body["username"] not in refused.text
        # Not even the right password tells anything now.
        assert_refused(await log_in(right, 31), "too_many_attempts")
        # From everywhere together: one success and three refusals so far; then it is over for new addresses.
        assert (await log_in(wrong, 32)).status_code == 401
        assert_refused(await log_in(right, 33), "too_many_attempts")
        assert strict.parts.log.read_all(0, 10_000)[-1].position == head  # nothing of it is an event
        # The owner notices nothing, as often as they like.
        assert [(await log_in(right, 30)).status_code for _ in range(4)] == [200] * 4
        # Names that nobody has are treated alike.
        nobody = {"username": f"nobody-{body['username']}", "password": "not the password"}
        answers = [await log_in(nobody, 34) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
        assert {**answers[3].json(), **same} == {**refused.json(), **same}


same = {"request_id": "", "detail": ""}
"""What differs between two answers by its nature."""


@pytest.mark.parametrize(("path", "body"), [("signup", {}), ("refresh", {"refresh_token": "knr_rt_x"})])
async def test_the_other_doors_are_counted_too(strict: Service, path: str, body: dict[str, str]) -> None:
    async with Visit(strict) as visit:
        client = await visit.client()
        answers = [
            await client.post(f"/api/v1/auth/{path}", json=body, headers=address(40)) for _ in range(3)
        ]
    assert [answer.status_code for answer in answers[:2]] == [422 if path == "signup" else 401] * 2
    assert_refused(answers[2], "too_many_requests")


async def test_one_person_holds_so_many_feeds(strict: Service, ada_account: Account) -> None:
    async with Visit(strict) as visit:
        bearer = {"Authorization": f"Bearer {ada_account.token}"}
        async with following(visit, ada_account) as first, following(visit, ada_account):
            async with raw_socket(visit, bearer) as third:
                with pytest.raises(ConnectionClosed) as closed:
                    await third.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (
                4429,
                "2 feeds are open; close one first",
            )
            await first.send({"type": "ping"})
            await first.until("heartbeat")
        # They are free again, but three were opened, and that is the other quota.
        async with raw_socket(visit, bearer) as fourth:
            with pytest.raises(ConnectionClosed) as closed:
                await fourth.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4429
        assert "event_replay" in closed.value.rcvd.reason


@pytest.fixture
def hurried(service: Service, servers: EmbeddedServers) -> Iterator[Service]:
    """An instance whose quota comes back within seconds."""
    mine = service.parts.settings
    changes = {"rates": RateSettings(general="5/second")}
    backing = Backing(mine.postgres, mine.nats, mine.s3, mine.secrets, changes)
    with running_service(backing, projecting=False) as running:
        yield running


async def test_our_own_client_waits_for_its_quota(hurried: Service, ada_account: Account) -> None:
    def ask(quota_seconds: float) -> list[str]:
        credentials = Credentials(
            url=hurried.url, username=ada_account.username, password=SecretStr(PASSWORD)
        )
        with Client(credentials, quota_seconds=quota_seconds) as client:
            return [client.get("/users/me")["id"] for _ in range(12)]

    assert await asyncio.to_thread(ask, 20.0) == [ada_account.user_id] * 12
    with pytest.raises(ApiError, match="wait 1 s and try again") as refused:
        await asyncio.to_thread(ask, 0.0)
    assert (refused.value.status, refused.value.code) == (429, "too_many_requests")


async def raw_exchange(service: Service, *sent: bytes, pause: float = 0.0) -> bytes:
    """What a connection answers to bytes, until the service ends it."""
    port = service.parts.settings.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in sent:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_headers_that_never_end_are_cut_off(strict: Service) -> None:
    loop = asyncio.get_running_loop()
    for sent in ((), (b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nX-A: ",) * 1 + (b"a",) * 3):
        begun = loop.time()
        assert await raw_exchange(strict, *sent, pause=0.2) == b""
        assert 0.9 < loop.time() - begun < 5


async def test_the_clock_of_headers_does_not_stop_requests_or_feeds(
    strict: Service, ada_account: Account
) -> None:
    """Several requests and a feed on connections that live longer than headers may take."""
    async with Visit(strict) as visit:
        client = await visit.client()
        async with following(visit, ada_account) as feed:
            for _ in range(4):
                assert (await client.get("/openapi.json")).status_code == 200
                await asyncio.sleep(0.4)  # longer than header_seconds together
            await feed.send({"type": "ping"})
            await feed.until("heartbeat")


async def test_headers_have_a_size(strict: Service) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 200_000 + b"\r\n\r\n"
    answer = await raw_exchange(strict, request)
    # What is not read any more may make the system reset the connection before the answer is seen.
    assert answer.startswith(b"HTTP/1.1 400 ") or answer == b""


async def test_a_large_frame_ends_the_connection_and_none_is_packed(
    visit: Visit, ada_account: Account
) -> None:
    url = visit.service.url.replace("http", "ws") + "/api/v1/events/ws"
    async with connect(
        url,
        subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
        additional_headers={"Authorization": f"Bearer {ada_account.token}"},
        compression="deflate",
        proxy=None,
    ) as socket_:
        assert socket_.response is not None
        assert "Sec-WebSocket-Extensions" not in socket_.response.headers
        await socket_.recv()
        with suppress(ConnectionClosed):
            await socket_.send("a" * 2 * 2**20)
        async with asyncio.timeout(15):
            await socket_.wait_closed()
        assert socket_.close_code in (1009, 4400)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"[" * 100_000, {}, 400),
        (b'{"labels":' * 50_000 + b"1" + b"}" * 50_000, {}, 400),
        (b'{"name": ' + b"9" * 100_000 + b"}", {}, 400),
        (b'{"name": 1e400}', {}, 422),
        (b"\xff\xfe", {}, 400),
        (b'{"name": "\\ud800"}', {}, 422),
        (b"x", {"content-encoding": "gzip"}, 415),
        (b"x", {"content-encoding": "br", "transfer-encoding": "chunked"}, 415),
        (b"--b\r\n\r\n--b--", {"content-type": "multipart/form-data; boundary=b"}, 415),
    ],
    ids=[
        "deep-list",
        "deep-object",
        "long-number",
        "huge-number",
        "not-utf8",
        "surrogate",
        "gzip",
        "br",
        "multipart",
    ],
)
async def test_bombs_are_refused(
    visit: Visit, content: bytes, headers: dict[str, str], status: int, accounts: dict[str, Account]
) -> None:
    ada = await visit.come_in(accounts["ada"])
    answer = await ada.http.post(
        "/api/v1/jobs", content=content, headers={"content-type": "application/json"} | headers
    )
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM_JSON
    assert len(answer.content) < 10_000


def test_sockets_that_send_nothing_do_not_stop_others(service: Service) -> None:
    port = service.parts.settings.port
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    try:
        assert httpx.get(f"{service.url}/api/v1/health", trust_env=False).status_code == 200
    finally:
        for each in idle:
            each.close()


def test_the_body_of_an_answer_does_not_wait_for_its_head_to_be_acknowledged() -> None:
    with listen("the API", "127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
