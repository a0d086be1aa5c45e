"""The embedded servers are ours, private, and keep what they were given."""

import asyncio
import os
import signal
import stat
from pathlib import Path

import httpx
import nats as nats_client
import psycopg
import pytest
from nats.errors import Error as NatsError
from nats.js.api import StorageType, StreamConfig

from command_api.messaging.connection import connect
from kinora.local.errors import DataFolderRefused, PortTaken
from kinora.local.folder import DataFolder
from kinora.local.ports import kept_ports
from kinora.local.servers import EmbeddedServers
from schemas.settings import NatsSettings, PostgresSettings, S3Settings


async def test_each_test_gets_an_empty_database(database: PostgresSettings) -> None:
    async with await psycopg.AsyncConnection.connect(database.conninfo()) as connection:
        tables = await connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert await tables.fetchall() == []
        await connection.execute("CREATE TABLE mine (id int)")


async def test_the_database_flushes_and_demands_a_password(servers: EmbeddedServers) -> None:
    async with await psycopg.AsyncConnection.connect(servers.postgres.conninfo()) as connection:
        for setting, expected in (
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("data_checksums", "on"),
            ("listen_addresses", ""),
            ("lock_timeout", "10s"),
        ):
            row = await (await connection.execute(f"SHOW {setting}".encode())).fetchone()
            assert row == (expected,), setting
        row = await (
            await connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'kinora'")
        ).fetchone()
        assert row == (False,)
    refused = servers.postgres.model_copy(update={"password": servers.secrets.s3_secret_key})
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        await psycopg.AsyncConnection.connect(refused.conninfo())


async def test_a_test_starts_without_streams(nats: NatsSettings) -> None:
    async with connect(nats, "test") as connection:
        jetstream = connection.jetstream()
        assert await jetstream.streams_info() == []
        await jetstream.add_stream(StreamConfig(name="LEFT", subjects=["left.>"], storage=StorageType.FILE))


async def test_strangers_are_refused_by_nats_and_s3(servers: EmbeddedServers, s3: S3Settings) -> None:
    stranger = nats_client.NATS()
    with pytest.raises(NatsError, match="Authorization"):
        await stranger.connect(servers.nats_control.url, allow_reconnect=False)
    await stranger.close()
    async with httpx.AsyncClient() as client:
        listing = await client.get(f"{s3.endpoint_url}/{s3.bucket}")
    assert listing.status_code in (400, 403)


def test_files_are_private(servers: EmbeddedServers) -> None:
    root = servers.folder.root
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    private = [servers.folder.secrets, servers.folder.ports, servers.folder.nats / "server.json"]
    private += list(servers.folder.logs.iterdir())
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in (servers.folder.s3, servers.folder.nats, servers.folder.postgres, servers.folder.run):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


async def test_a_second_start_on_the_same_folder_is_refused(servers: EmbeddedServers) -> None:
    with pytest.raises(DataFolderRefused, match=r"in use by process \d+"):
        async with EmbeddedServers(servers.folder.root):
            pass


async def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataFolderRefused, match=r"thesis\.tex"):
        async with EmbeddedServers(tmp_path):
            pass
    assert os.listdir(tmp_path) == ["thesis.tex"]  # noqa: PTH208 - pathlib blocks no less


async def test_data_and_addresses_survive_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with EmbeddedServers(data) as first:
        async with await psycopg.AsyncConnection.connect(first.postgres.conninfo()) as connection:
            await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        async with connect(first.nats_control, "test") as client:
            await client.jetstream().add_stream(StreamConfig(name="KEPT", subjects=["kept"]))
            await client.jetstream().publish("kept", b"hello")
        await first.restart("nats")
        async with connect(first.nats_control, "test") as client:
            assert (await client.jetstream().stream_info("KEPT")).state.messages == 1
        (first.folder.s3 / "kinora" / "kept").write_text("bytes")
        before = (first.ports, first.secrets)
        children = [first.child(name) for name in ("postgres", "nats", "s3")]
    assert [child.exit_code for child in children] == [0, 0, 128 + signal.SIGTERM]  # as rclone counts
    async with EmbeddedServers(data) as second:
        assert (second.ports, second.secrets) == before
        async with await psycopg.AsyncConnection.connect(second.postgres.conninfo()) as connection:
            assert await (await connection.execute("SELECT answer FROM kept")).fetchone() == (42,)
        async with connect(second.nats_control, "test") as client:
            assert (await client.jetstream().get_last_msg("KEPT", "kept")).data == b"hello"
        assert (second.folder.s3 / "kinora" / "kept").read_text() == "bytes"


async def test_a_database_restart_keeps_its_address(tmp_path: Path) -> None:
    async with EmbeddedServers(tmp_path / "data") as servers:
        before = servers.postgres
        await servers.restart("postgres")
        assert servers.postgres == before
        async with await psycopg.AsyncConnection.connect(before.conninfo()) as connection:
            await connection.execute("SELECT 1")


async def test_a_taken_port_is_named_with_its_holder(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    port = kept_ports(folder).nats
    stranger = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", port)
    try:
        with pytest.raises(PortTaken, match=rf"port {port} \(nats\).*ports\.json"):
            async with EmbeddedServers(folder.root):
                pass
    finally:
        stranger.close()
        await stranger.wait_closed()
