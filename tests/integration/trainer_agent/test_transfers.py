"""Inputs come in verified, outputs go out whole, over the real S3."""

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from kinora.local.servers import EmbeddedServers
from schemas.ids import Prefix, new_id
from schemas.objects import FileEntry, content_key
from schemas.work import LogStored, Warned
from tests.integration.trainer_agent.conftest import Parts
from tests.integration.trainer_agent.peer import Peer
from trainer_agent.artifacts import MOST_CHECKPOINTS_WAITING, Artifacts, CheckpointUploads
from trainer_agent.errors import InputUnreadable, ReportTooLarge
from trainer_agent.log_segments import LogSegments
from trainer_agent.presign import Presigner
from trainer_agent.reporter import reporting
from trainer_agent.settings import AgentSettings
from trainer_agent.spool import Spool
from trainer_agent.staging import Staging
from trainer_agent.story import Line


def staging_of(parts: Parts, peer: Peer) -> Staging:
    return Staging(parts.http, parts.presigner, parts.cache, peer.organization_id)


async def test_a_listing_is_laid_out_by_its_paths(peer: Peer, parts: Parts, tmp_path: Path) -> None:
    contents = {f"clips/{number:03}.mp4": bytes([number % 7]) * (1000 + number % 7) for number in range(150)}
    contents["empty.txt"] = b""
    stored = await peer.put_listing([await peer.put_content(path, text) for path, text in contents.items()])
    staging = staging_of(parts, peer)

    listing = await staging.listing(stored, tmp_path / "listing.json")
    await staging.files(listing.files, tmp_path / "data")

    found = {
        file.relative_to(tmp_path / "data").as_posix(): file.read_bytes()
        for file in (tmp_path / "data").rglob("*")
        if file.is_file()
    }
    assert found == contents


async def test_what_is_cached_is_not_fetched_again(peer: Peer, parts: Parts, tmp_path: Path) -> None:
    entry = await peer.put_content("model.safetensors", b"w" * 100_000)
    staging = staging_of(parts, peer)
    await staging.files([entry], tmp_path / "first")
    await peer.store.delete(content_key(peer.organization_id, entry.sha256))
    await staging.files([entry], tmp_path / "second")
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == b"w" * 100_000


@pytest.mark.parametrize("stored", [b"not what was uploaded", b"a clip of frames plus a tail", b""])
async def test_a_corrupted_object_is_refused(peer: Peer, parts: Parts, tmp_path: Path, stored: bytes) -> None:
    good = await peer.put_content("good.mp4", b"a good clip")
    entry = await peer.put_content("clip.mp4", b"a clip of frames")
    await peer.store.put_bytes(content_key(peer.organization_id, entry.sha256), stored)
    with pytest.raises(InputUnreadable, match=r"clip\.mp4") as refused:
        await staging_of(parts, peer).files([good, entry], tmp_path / "data")
    assert refused.value.code == "data_unreadable"
    assert not refused.value.retryable
    assert not (tmp_path / "data" / "clip.mp4").exists()
    assert not parts.cache.holds(entry.sha256, entry.size_bytes)


async def test_a_missing_object_is_refused(peer: Peer, parts: Parts, tmp_path: Path) -> None:
    missing = FileEntry(path="gone.mp4", size_bytes=4, sha256=hashlib.sha256(b"gone").hexdigest())
    with pytest.raises(InputUnreadable, match="404") as refused:
        await staging_of(parts, peer).files([missing], tmp_path / "data")
    assert not refused.value.retryable


async def test_an_expired_url_is_renewed(peer: Peer, parts: Parts, tmp_path: Path) -> None:
    entry = await peer.put_content("clip.mp4", b"a clip of frames")
    peer.expired_urls = 1
    await staging_of(parts, peer).files([entry], tmp_path / "data")
    assert (tmp_path / "data" / "clip.mp4").read_bytes() == b"a clip of frames"
    assert peer.expired_urls == 0


async def test_a_store_that_is_away_is_waited_for(
    peer: Peer, parts: Parts, servers: EmbeddedServers, tmp_path: Path
) -> None:
    entry = await peer.put_content("clip.mp4", b"a clip of frames")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"a" * 100_000)
    await servers.child("s3").stop()
    try:
        staging = asyncio.create_task(staging_of(parts, peer).files([entry], tmp_path / "data"))
        storing = asyncio.create_task(Artifacts(parts.http, parts.presigner).store_folder(folder, "adapter"))
        done, _ = await asyncio.wait({staging, storing}, timeout=1)
        assert done == set()
    finally:
        await servers.revive("s3")
    await staging
    (stored,) = await storing
    assert (tmp_path / "data" / "clip.mp4").read_bytes() == b"a clip of frames"
    assert await peer.store.hash(stored.key) == (stored.sha256, stored.size_bytes)


async def test_a_folder_is_stored_whole(peer: Peer, parts: Parts, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    (folder / "deep").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"a" * 3_000_000)
    (folder / "deep" / "config.json").write_text("{}")
    (folder / "empty").write_bytes(b"")
    (folder / "link").symlink_to("/etc/hostname")

    objects = await Artifacts(parts.http, parts.presigner).store_folder(folder, "adapter")

    assert [stored.path for stored in objects] == ["adapter_model.safetensors", "deep/config.json", "empty"]
    for stored in objects:
        assert await peer.store.hash(stored.key) == (stored.sha256, stored.size_bytes)
        assert hashlib.sha256((folder / stored.path).read_bytes()).hexdigest() == stored.sha256


async def test_the_store_itself_refuses_what_was_garbled_on_the_way(peer: Peer, parts: Parts) -> None:
    url = await peer.store.presign_put("garbled")
    wrong = "1B2M2Y8AsgTpgAmY7PhCfg=="  # of nothing
    response = await parts.http.put(url, content=b"something", headers={"Content-MD5": wrong})
    assert response.status_code == 400
    assert await peer.store.head("garbled") is None


async def test_while_the_store_is_away_only_the_newest_checkpoints_are_kept(
    parts: Parts, settings: AgentSettings, tmp_path: Path
) -> None:
    nobody = settings.model_copy(update={"agent_id": new_id(Prefix.AGENT)})  # gets no URLs
    artifacts = Artifacts(parts.http, Presigner(parts.connection, nobody, parts.held))
    spool = Spool(tmp_path / "spool")
    kept = tmp_path / "kept"
    noted: list[Line] = []

    async def note(line: Line) -> None:
        noted.append(line)

    async with (
        reporting(parts.connection, settings, parts.held, spool) as reporter,
        CheckpointUploads(artifacts, reporter, kept, note) as uploads,
    ):
        for step in range(1, 21):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            (folder / "weights").write_bytes(b"w")
            await uploads.add(step, folder)
        held = sorted(int(folder.name.split("-")[1]) for folder in kept.iterdir())
    assert held[-MOST_CHECKPOINTS_WAITING:] == list(range(21 - MOST_CHECKPOINTS_WAITING, 21))
    assert len(held) <= MOST_CHECKPOINTS_WAITING + 1  # one is being stored
    assert [line.code for line in noted] == ["checkpoint_superseded"] * (20 - len(held))


async def test_a_report_is_measured_in_bytes(parts: Parts, settings: AgentSettings, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    async with reporting(parts.connection, settings, parts.held, spool) as reporter:
        with pytest.raises(ReportTooLarge):
            await reporter.report(Warned(code="long", message="狐" * 100_000))
    assert spool.last_sequence == 0


async def test_printed_lines_are_stored_once_when_the_end_meets_the_poll(
    peer: Peer, parts: Parts, settings: AgentSettings, tmp_path: Path
) -> None:
    printed = tmp_path / "engine.log"
    printed.write_text("".join(f"line {number}\n" for number in range(1000)))

    async def live(_: tuple[str, ...]) -> None:
        await asyncio.sleep(0)

    async with reporting(parts.connection, settings, parts.held, Spool(tmp_path / "spool")) as reporter:
        segments = LogSegments(Artifacts(parts.http, parts.presigner), reporter, tmp_path, printed, live)
        await asyncio.gather(*(segments._take_printed() for _ in range(8)))
        await segments.finish()
        stored = await peer.reported(LogStored)
    assert stored.lines == 1000


async def test_a_log_says_where_lines_of_it_are_missing(
    peer: Peer, parts: Parts, settings: AgentSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "segments"  # not there yet, so that nothing can be written

    async def live(_: tuple[str, ...]) -> None:
        await asyncio.sleep(0)

    async with reporting(parts.connection, settings, parts.held, Spool(tmp_path / "spool")) as reporter:
        artifacts = Artifacts(parts.http, parts.presigner)
        segments = LogSegments(artifacts, reporter, folder, tmp_path / "engine.log", live)
        for number in range(3):
            await segments.add(Line("info", "step", f"step {number}"))
        await segments.finish()
        folder.mkdir()
        await segments.add(Line("info", "step", "step 3"))
        await segments.finish()
        stored = await peer.reported(LogStored)
    text = (await peer.store.get_bytes(stored.object.key)).decode()
    lost, last = map(json.loads, text.splitlines())
    assert (lost["level"], lost["code"]) == ("warning", "log_lines_lost")
    assert "3 lines" in lost["message"]
    assert last["message"] == "step 3"
