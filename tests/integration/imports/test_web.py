"""Downloads from origins that lead elsewhere, break off, never end, or ask for credentials."""

import hashlib
import os
import socket
from typing import Any

import pytest

from command_api.imports import web
from command_api.imports.errors import SourceFailed
from command_api.imports.web import Credential, Web
from command_api.imports.work import Work
from command_api.settings import ImportSettings
from tests.integration.imports.conftest import ALLOWED
from tests.integration.imports.origin import Origin, Request, serving

CANARY = "canary-71c0d2"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_RETRY_SECONDS", 0.01)


async def fetched(
    url: str, work: Work, credential: Credential | None = None, settings: ImportSettings = ALLOWED
) -> bytes:
    target = work.new_file()
    async with Web(settings) as client:
        await client.download(url, target, work, credential or Credential())
    return target.read_bytes()


async def refused(url: str, work: Work, code: str, **arguments: Any) -> str:
    with pytest.raises(SourceFailed) as caught:
        await fetched(url, work, **arguments)
    assert caught.value.code == code, caught.value.message
    return caught.value.message


async def test_a_file(origin: Origin, work: Work) -> None:
    content = os.urandom(300_000)
    assert await fetched(origin.serve("/a", content), work) == content
    assert (work.bytes_done, work.bytes_total) == (300_000, 300_000)
    assert origin.seen[0][1]["Host"] == f"127.0.0.1:{origin.port}"
    assert await fetched(origin.redirect("/b", "/a"), work) == content


async def test_by_default_loopback_is_not_there(origin: Origin, work: Work) -> None:
    url = origin.serve("/a", b"inside")
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433", "127.1"):
        other = url.replace("127.0.0.1", host)
        await refused(other, work, "address_refused", settings=ImportSettings())
    assert origin.seen == []


async def test_a_redirect_is_judged_like_the_first_address(
    origin: Origin, forbidden: Origin, work: Work
) -> None:
    inside = forbidden.serve("/secret", b"inside")
    await refused(origin.redirect("/a", inside), work, "address_refused")
    await refused(origin.redirect("/b", origin.redirect("/c", inside)), work, "address_refused")
    for location in ("file:///etc/passwd", "ftp://127.0.0.1/x", "", "http://a:b@127.0.0.1/"):
        await refused(origin.redirect("/d", location), work, "source_redirects")
    assert forbidden.seen == []


async def test_a_name_is_resolved_once_and_that_is_connected_to(
    origin: Origin, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that answers otherwise the second time gets no second time."""
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def rebinding(host: str, *arguments: Any, **named: Any) -> Any:
        if host != "rebind.example":
            return resolve(host, *arguments, **named)
        asked.append(host)
        return resolve("127.0.0.1" if len(asked) == 1 else "127.0.0.2", *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    url = origin.serve("/a", b"public").replace("127.0.0.1", "rebind.example")
    assert await fetched(url, work) == b"public"
    assert asked == ["rebind.example"]
    assert origin.seen[0][1]["Host"].startswith("rebind.example:")
    await refused(url, work, "address_refused")


async def test_one_bad_address_among_good_ones_is_enough(
    origin: Origin, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def both(host: str, *arguments: Any, **named: Any) -> Any:
        return [*resolve("127.0.0.1", *arguments, **named), *resolve("10.0.0.1", *arguments, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    await refused("http://mixed.example/a", work, "address_refused")
    assert origin.seen == []


async def test_redirects_end(origin: Origin, work: Work) -> None:
    assert "more than 5" in await refused(origin.redirect("/a", "/a"), work, "source_redirects")
    assert len(origin.seen) == 6


async def test_no_way_back_from_https() -> None:
    secure = web._parsed("https://example.org/a")
    with pytest.raises(SourceFailed, match="from https to http"):
        web._redirected("https://example.org/a", secure, "http://example.org/b")
    assert str(web._redirected("", secure, "//cdn.example.org/b")) == "https://cdn.example.org/b"


async def test_what_is_sent_counts_and_not_what_is_announced(origin: Origin, work: Work) -> None:
    def endless(request: Request) -> None:
        request.say(200, Transfer_Encoding="chunked")
        block = bytes(50_000)
        try:
            while not origin.closing.is_set():
                request.wfile.write(b"c350\r\n" + block + b"\r\n")
        except OSError:
            return

    origin.answers["/endless"] = endless
    await refused(f"{origin.url}/endless", work, "import_too_large")
    assert sum(file.stat().st_size for file in work.folder.iterdir()) <= 2 * 10**6
    origin.answers["/huge"] = lambda request: request.say(200, b"x", length=str(10**12))
    await refused(f"{origin.url}/huge", work, "import_too_large")


async def test_a_download_that_breaks_off_goes_on_where_it_was(origin: Origin, work: Work) -> None:
    content = os.urandom(600_000)
    tag = f'"{hashlib.sha256(content).hexdigest()}"'

    def flaky(request: Request) -> None:
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        headers = {"ETag": tag, "Accept_Ranges": "bytes", "length": str(len(content) - start)}
        if start:
            assert request.headers["If-Range"] == tag
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        request.say(206 if start else 200, content[start : start + 250_000], **headers)
        request.close_connection = True

    origin.answers["/flaky"] = flaky
    assert await fetched(f"{origin.url}/flaky", work) == content
    assert [headers.get("Range", "") for _, headers in origin.seen] == ["", "bytes=250000-", "bytes=500000-"]
    assert work.bytes_done == len(content)


async def test_a_download_that_cannot_go_on_begins_anew(origin: Origin, work: Work) -> None:
    tries = []

    def flaky(request: Request) -> None:
        tries.append(request.path)
        request.say(200, b"whole" if len(tries) == 3 else b"who", length="5")
        request.close_connection = True

    origin.answers["/flaky"] = flaky
    assert await fetched(f"{origin.url}/flaky", work) == b"whole"
    origin.answers["/away"] = lambda request: request.say(503)
    with pytest.raises(SourceFailed) as caught:
        await fetched(f"{origin.url}/away", work)
    assert (caught.value.code, caught.value.retryable) == ("source_unreachable", True)
    assert origin.paths().count("/away") == web.TRIES


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "source_refused"), (403, "source_refused"), (404, "source_missing"), (204, "source_unusable")],
)
async def test_answers_that_are_no_file(origin: Origin, work: Work, status: int, code: str) -> None:
    origin.answers["/a"] = lambda request: request.say(status)
    await refused(f"{origin.url}/a", work, code)
    assert len(origin.seen) == 1


async def test_nobody_there(work: Work) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    await refused(f"http://127.0.0.1:{port}/a", work, "source_unreachable")
    await refused("http://does-not-exist.invalid/a", work, "host_unknown")


async def test_credentials_stay_with_their_origin(origin: Origin, work: Work) -> None:
    with serving() as other:
        url = origin.redirect("/a", other.serve("/b", b"content"))
        credential = Credential({"Authorization": f"Bearer {CANARY}"})
        assert await fetched(url, work, credential) == b"content"
        assert origin.seen[0][1]["Authorization"] == f"Bearer {CANARY}"
        assert "Authorization" not in other.seen[0][1]
        signed = Credential(query=f"sig={CANARY}")
        await fetched(f"{url}?v=1", work, signed)
        assert (origin.paths()[-1], other.paths()[-1]) == (f"/a?v=1&sig={CANARY}", "/b")
        origin.answers["/c"] = lambda request: request.say(404)
        assert CANARY not in await refused(f"{origin.url}/c", work, "source_missing", credential=signed)
        assert CANARY not in repr(credential) + repr(signed)
