"""One application for all tests of this folder; every test signs up people of its own."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from kinora.local.servers import EmbeddedServers
from tests.integration.api.running import Account, Backing, Person, Service, Visit, running_service
from tests.integration.api.things import Things, make_things


@pytest.fixture(scope="session")
def service(servers: EmbeddedServers) -> Iterator[Service]:
    name = f"api_{secrets.token_hex(6)}"
    s3 = servers.s3.model_copy(update={"bucket": name.replace("_", "-")})
    with psycopg.connect(servers.postgres_superuser.conninfo(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(servers.postgres.user)
            )
        )
    database = servers.postgres.model_copy(update={"dbname": name})
    with running_service(Backing(database, servers.nats_control, s3)) as running:

        async def first_comes() -> Account:
            async with Visit(running) as visit:
                return await visit.make_account("root")

        yield replace(running, operator=asyncio.run(first_comes()))


@pytest.fixture
async def visit(service: Service) -> AsyncIterator[Visit]:
    """This test's clients of the service."""
    async with Visit(service) as visit:
        yield visit


@pytest.fixture(scope="session")
def accounts(service: Service) -> dict[str, Account]:
    """Hashing a password takes a quarter of a second: most tests share these two."""

    async def make() -> dict[str, Account]:
        async with Visit(service) as visit:
            return {name: await visit.make_account(name) for name in ("ada", "bob")}

    return asyncio.run(make())


@pytest.fixture
async def operator(visit: Visit) -> Person:
    """Who signed up first."""
    assert visit.service.operator is not None
    return await visit.come_in(visit.service.operator)


@pytest.fixture
async def ada(visit: Visit, accounts: dict[str, Account]) -> Person:
    return await visit.come_in(accounts["ada"])


@pytest.fixture
async def bob(visit: Visit, accounts: dict[str, Account]) -> Person:
    """Of another organization."""
    return await visit.come_in(accounts["bob"])


@pytest.fixture(scope="session")
def things(service: Service, accounts: dict[str, Account]) -> Things:
    """Of Ada's organization, and some of Bob's; tests leave them as they are."""

    async def make() -> Things:
        async with Visit(service) as visit:
            return await make_things(visit, *[await visit.come_in(accounts[name]) for name in ("ada", "bob")])

    return asyncio.run(make())
