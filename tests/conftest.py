"""The real servers, started once per run; each test gets a database, a bucket and an empty JetStream."""

import asyncio
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import hypothesis
import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr
from xdist.remote import Producer

from command_api.messaging.connection import connect
from command_api.nats_auth.keys import new_seed, public_key
from command_api.nats_auth.users import signed_agent
from command_api.objects import ObjectStore
from kinora.local.servers import EmbeddedServers
from qlora_engine.imports import uncollected
from schemas.settings import NatsSettings, NatsUser, PostgresSettings, S3Settings
from schemas.subjects import DEFAULT_POOL
from tests.distribution import Bundles, last_of_bundles, longest_first
from tests.reaper import nothing_left_behind
from tests.system_fixtures import SHARED, registered, samples, service

__all__ = ["registered", "samples", "service"]
"""Fixtures of the running service, here so that acceptance and fault tests share one."""


# A shared machine is slow at times; what takes too long is ended by pytest's own time limit.
hypothesis.settings.register_profile("kinora", deadline=None)
hypothesis.settings.load_profile("kinora")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What collecting imports stays: garbage collections would only look through it, again and again."""
    with uncollected():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Bundles | None:
    """Bundles in place of single files."""
    return Bundles(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The shared service ends with the last test that needs it: idle, it would take time from all others."""
    following = None if nextitem is None else nextitem.nodeid
    if SHARED in item.config.stash and last_of_bundles(item.nodeid, following):
        item.config.stash[SHARED].close()


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    with nothing_left_behind():
        yield


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServers]:
    """PostgreSQL, NATS and S3 for the whole run."""
    running = EmbeddedServers(tmp_path_factory.mktemp("servers") / "data")
    with asyncio.Runner() as runner:
        runner.run(running.__aenter__())
        try:
            yield running
        finally:
            runner.run(running.__aexit__(None, None, None))


@pytest.fixture
def database(servers: EmbeddedServers) -> Iterator[PostgresSettings]:
    """An empty database, owned by the role that the product uses."""
    with made_database(servers) as settings:
        yield settings


@contextmanager
def made_database(servers: EmbeddedServers) -> Iterator[PostgresSettings]:
    """An empty database, for as long as the context lasts."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(servers.postgres_superuser.conninfo(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(servers.postgres.user)
            )
        )
    yield servers.postgres.model_copy(update={"dbname": name})
    # Another connection, because the test may have restarted the server; by force, because a failed test
    # may have left connections open.
    with psycopg.connect(servers.postgres_superuser.conninfo(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def nats(servers: EmbeddedServers) -> NatsSettings:
    """NATS as the control plane, without any stream."""
    asyncio.run(_delete_streams(servers.nats_control))
    return servers.nats_control


AgentUser = Callable[..., NatsUser]
"""``(organization_id, agent_id, pool="default") -> NatsUser``"""


@pytest.fixture
def nats_agent(nats: NatsSettings) -> AgentUser:
    """The same server as any agent of a test's choice sees it."""

    def user(organization_id: str, agent_id: str, pool: str = DEFAULT_POOL) -> NatsUser:
        seed = new_seed("user")
        signed = signed_agent(nats, public_key(seed), organization_id, agent_id, pool)
        return NatsUser(url=nats.url, jwt=signed.jwt, seed=SecretStr(seed))

    return user


@pytest.fixture
def s3(servers: EmbeddedServers) -> Iterator[S3Settings]:
    """An empty bucket."""
    with made_bucket(servers) as settings:
        yield settings


@contextmanager
def made_bucket(servers: EmbeddedServers) -> Iterator[S3Settings]:
    """An empty bucket, for as long as the context lasts."""
    bucket = f"test-{secrets.token_hex(6)}"
    settings = servers.s3.model_copy(update={"bucket": bucket})
    asyncio.run(_create_bucket(settings))
    yield settings
    shutil.rmtree(servers.folder.s3 / bucket)


async def _create_bucket(settings: S3Settings) -> None:
    # Through the server: it would notice a folder that is made behind its back only after a second.
    async with ObjectStore(settings) as store:
        await store.ensure_bucket()


async def _delete_streams(settings: NatsSettings) -> None:
    async with connect(settings, "tests") as connection:
        jetstream = connection.jetstream()
        for stream in await jetstream.streams_info():
            assert stream.config.name is not None
            await jetstream.delete_stream(stream.config.name)
