"""Imports from their request to the store and the log: done, refused, ended, begun again after a restart."""

import io
import json
import logging
import os
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from command_api.credentials.secrets import SecretKey, SecretPlace, Secrets
from command_api.domain.import_sources import parsed_source
from command_api.handlers.base import Context
from command_api.imports import progress, web
from command_api.messaging.connection import connect
from command_api.settings import OrchestratorSettings
from schemas.api import SecretBody
from schemas.commands.dataset import DeleteDataset, RequestDatasetImport, RetryDatasetImport
from schemas.commands.identity import CreateOrganization, StoreSecret
from schemas.commands.model import RequestModelImport
from schemas.events.dataset import (
    DatasetDeleted,
    DatasetImportFailed,
    DatasetImportRequested,
    DatasetImportRetried,
    DatasetRegistered,
    DatasetUploaded,
)
from schemas.events.model import ModelRegistered, ModelUploaded
from schemas.ids import Prefix, new_id
from schemas.objects import Listing, content_key
from schemas.settings import NatsSettings, PostgresSettings, S3Settings
from schemas.subjects import EVENTS_STREAM
from tests.integration.imports.conftest import ALLOWED
from tests.integration.imports.origin import Origin
from tests.integration.messaging.world import (
    World,
    active_orchestrator,
    eventually,
    make_world,
    settings_of,
)

CANARY = "canary-5d3f81c6"
FILES = {
    "shapes/captions.jsonl": b'{"video": "a.mp4"}\n',
    "shapes/clips/a.mp4": b"a" * 5000,
    "README": b"hello",
}


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@dataclass
class Site:
    """A world, the settings of its orchestrator, and where that works."""

    world: World
    settings: OrchestratorSettings
    pool: AsyncConnectionPool[AsyncConnection]

    async def ask(self, uri: str, secret: str | None = None) -> str:
        dataset_id = new_id(Prefix.DATASET)
        request = RequestDatasetImport(
            dataset_id=dataset_id,
            name="shapes",
            description="",
            owner_id=self.world.user_id,
            source=parsed_source(uri, secret),
        )
        await self.world.ask(request)
        return dataset_id

    async def keep(self, name: str, secret: SecretBody) -> None:
        world = self.world
        place = SecretPlace(world.organization_id, world.workspace_id, name)
        secrets = Secrets(self.pool, SecretKey.from_secrets(self.settings.secrets))
        store = StoreSecret(
            organization_id=world.organization_id,
            workspace_id=world.workspace_id,
            name=name,
            kind=secret.kind,
        )
        context = Context.system("test", organization_id=world.organization_id)
        await world.bus.execute(store, context, (secrets.row(place, secret),))

    async def failure(self, dataset_id: str, count: int = 1) -> DatasetImportFailed:
        failed = await self.world.event(dataset_id, DatasetImportFailed, count)
        assert isinstance(failed, DatasetImportFailed)
        return failed

    def left(self) -> list[Path]:
        return list(Path(self.settings.work_folder).iterdir())


@pytest.fixture
async def site(
    database: PostgresSettings, nats: NatsSettings, s3: S3Settings, tmp_path: Path
) -> AsyncIterator[Site]:
    root = tmp_path / "root"
    root.mkdir()
    settings = settings_of(database, nats, s3).model_copy(
        update={"imports": ALLOWED, "import_roots": (str(root),), "work_folder": str(tmp_path / "imports")}
    )
    pool: AsyncConnectionPool[AsyncConnection] = AsyncConnectionPool(
        database.conninfo(), min_size=0, max_size=2, kwargs={"autocommit": True}, open=False
    )
    async with make_world(database, s3) as world, pool:
        create = CreateOrganization(
            organization_id=world.organization_id,
            workspace_id=world.workspace_id,
            owner_id=world.user_id,
            personal=True,
        )
        await world.ask(create)
        yield Site(world, settings, pool)


@asynccontextmanager
async def orchestrated(site: Site) -> AsyncIterator[None]:
    async with active_orchestrator(site.settings):
        yield
    assert site.left() == []


async def test_a_dataset_and_a_model_by_url(
    site: Site, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    world = site.world
    checkpoint = {"tiny/config.json": b"{}", "tiny/model.safetensors": b"weights", "tiny/evil.py": b"code"}
    origin.serve("/tiny.zip", zipped(checkpoint))
    origin.serve("/shapes.zip", zipped(FILES))
    with caplog.at_level(logging.DEBUG):
        async with orchestrated(site):
            await site.keep("lab", SecretBody(kind="query", value=f"sig={CANARY}"))
            dataset_id = await site.ask(f"{origin.url}/shapes.zip", "lab")
            model_id = new_id(Prefix.MODEL)
            await world.ask(
                RequestModelImport(
                    model_id=model_id,
                    name="tiny",
                    description="",
                    owner_id=world.user_id,
                    source=parsed_source(f"{origin.url}/tiny.zip", None),
                )
            )
            await world.event(dataset_id, DatasetUploaded)
            await world.event(model_id, ModelUploaded)
            await no_canary_in_messages(site)
    assert f"/shapes.zip?sig={CANARY}" in origin.paths()
    assert CANARY not in caplog.text
    assert world.events(dataset_id) == [DatasetImportRequested, DatasetRegistered, DatasetUploaded]
    registered = world.story(dataset_id)[1].event
    assert isinstance(registered, DatasetRegistered)
    assert (registered.file_count, registered.size_bytes) == (2, 5019)
    listing = Listing.model_validate_json(await world.store.get_bytes(registered.listing.key))
    assert [file.path for file in listing.files] == ["captions.jsonl", "clips/a.mp4"]
    for file in listing.files:
        key = content_key(world.organization_id, file.sha256)
        assert await world.store.hash(key) == (file.sha256, file.size_bytes)
    model = world.story(model_id)[1].event
    assert isinstance(model, ModelRegistered)
    listing = Listing.model_validate_json(await world.store.get_bytes(model.listing.key))
    assert [file.path for file in listing.files] == ["config.json", "model.safetensors"]


async def no_canary_in_messages(site: Site) -> None:
    """EVENTS holds the whole story, and none of it the secret."""
    head = site.world.log.head()
    async with connect(site.settings.nats, "test") as client:
        jetstream = client.jetstream()

        async def published() -> bool:
            info = await jetstream.stream_info(EVENTS_STREAM)
            if not info.state.messages:
                return False
            last = await jetstream.get_msg(EVENTS_STREAM, info.state.last_seq)
            return int((last.headers or {})["Kinora-Position"]) >= head

        await eventually(published, "the relay")
        state = (await jetstream.stream_info(EVENTS_STREAM)).state
        for sequence in range(state.first_seq, state.last_seq + 1):
            message = await jetstream.get_msg(EVENTS_STREAM, sequence)
            assert CANARY.encode() not in (message.data or b"")
            assert CANARY not in json.dumps(message.headers)
    for recorded in site.world.log.read_all(0, 1000):
        assert CANARY not in repr(recorded)


async def test_what_cannot_be_had(
    site: Site, origin: Origin, forbidden: Origin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(web, "_RETRY_SECONDS", 0.01)
    (tmp_path / "root" / "clips").mkdir()
    (tmp_path / "root" / "clips" / "captions.jsonl").write_bytes(b"")
    for name in (b"one\xff", b"two"):  # the first one is no text
        folder = tmp_path / "root" / "twice" / os.fsdecode(name)
        folder.mkdir(parents=True)
        (folder / "captions.jsonl").write_bytes(b"{}")
    expected = {
        forbidden.serve("/a.zip", zipped(FILES)): "address_refused",
        origin.redirect("/away.zip", f"{forbidden.url}/a.zip"): "address_refused",
        f"{origin.url}/gone.zip": "source_missing",
        origin.serve("/text.zip", b"not an archive"): "archive_unknown",
        origin.serve("/evil.zip", zipped({"../captions.jsonl": b"{}"})): "archive_unsafe",
        origin.serve("/other.zip", zipped({"a.mp4": b"a"})): "no_captions",
        origin.serve("/bomb.zip", zipped({"captions.jsonl": bytes(5 * 10**6)})): "import_too_large",
        f"file://{tmp_path}/imports": "folder_outside_roots",
        f"file://{tmp_path}/root/none": "source_missing",
        f"file://{tmp_path}/root/clips": "size_limit",
        f"file://{tmp_path}/root/twice": "no_captions",
        "hf://acme/tiny": "hub_off",
    }
    async with orchestrated(site):
        ids = {uri: await site.ask(uri) for uri in expected}
        ids["unknown secret"] = await site.ask(f"{origin.url}/a.zip", "lab")
        found = {uri: (await site.failure(dataset_id)).code for uri, dataset_id in ids.items()}
    assert found.pop("unknown secret") == "secret_unknown"
    assert found == expected
    assert forbidden.seen == []
    objects = [key async for key, _ in site.world.store.iterate(f"{site.world.organization_id}/")]
    assert objects == []


async def test_a_failed_import_is_tried_again(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "root" / "clips"
    async with orchestrated(site):
        dataset_id = await site.ask(f"file://{folder}")
        failed = await site.failure(dataset_id)
        assert (failed.code, failed.attempt) == ("source_missing", 1)
        folder.mkdir()
        (folder / "captions.jsonl").write_bytes(b"{}")
        await site.world.ask(RetryDatasetImport(dataset_id=dataset_id))
        await site.world.event(dataset_id, DatasetUploaded)
    assert site.world.events(dataset_id)[2:] == [DatasetImportRetried, DatasetRegistered, DatasetUploaded]


async def test_only_so_many_at_once_and_deletion_ends_them(site: Site, origin: Origin) -> None:
    world = site.world
    async with orchestrated(site):
        stalled = [await site.ask(origin.stall(f"/{number}.zip")) for number in range(2)]

        async def both_run() -> bool:
            seen = [
                await progress.read(site.pool, world.organization_id, dataset_id, 1) for dataset_id in stalled
            ]
            return all(each.stage == "fetching" and each.bytes_total == 10**6 for each in seen)

        await eventually(both_run, "two imports at work")
        third = await site.ask(origin.serve("/third.zip", zipped(FILES)))
        assert (await progress.read(site.pool, world.organization_id, third, 1)).stage == "waiting"
        assert world.events(third) == [DatasetImportRequested]
        assert len(site.left()) == 2
        await world.ask(DeleteDataset(dataset_id=stalled[0]))
        await world.event(third, DatasetUploaded)
        assert "/third.zip" in origin.paths()
        assert world.events(stalled[0]) == [DatasetImportRequested, DatasetDeleted]
        strangers = await progress.read(site.pool, new_id(Prefix.ORGANIZATION), stalled[1], 1)
        assert strangers.stage == "waiting"


async def test_a_new_orchestrator_begins_the_same_import_again(site: Site, origin: Origin) -> None:
    url = origin.stall("/shapes.zip")
    async with orchestrated(site):
        dataset_id = await site.ask(url)

        async def asked() -> bool:
            return bool(origin.seen)

        await eventually(asked, "the download")
    left = Path(site.settings.work_folder) / "import-killed"
    left.mkdir()
    (left / "1").write_bytes(b"what a killed process leaves")
    origin.serve("/shapes.zip", zipped(FILES))
    async with orchestrated(site):
        await site.world.event(dataset_id, DatasetUploaded)
        assert not left.exists()
    assert site.world.events(dataset_id) == [DatasetImportRequested, DatasetRegistered, DatasetUploaded]
