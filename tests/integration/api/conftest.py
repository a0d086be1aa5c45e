"""One application for all tests of this folder; every test signs up people of its own."""

import secrets
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg import sql

from kinora.local.servers import EmbeddedServers
from tests.integration.api.running import Person, Service, Visit, running_service


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
    with running_service(database, servers.nats_control, s3) as running:
        yield running


@pytest.fixture
async def visit(service: Service) -> AsyncIterator[Visit]:
    """This test's clients of the service."""
    visit = Visit(service)
    async with visit.stack:
        yield visit


@pytest.fixture
async def ada(visit: Visit) -> Person:
    return await visit.sign_up("ada")


@pytest.fixture
async def bob(visit: Visit) -> Person:
    """Of another organization."""
    return await visit.sign_up("bob")
