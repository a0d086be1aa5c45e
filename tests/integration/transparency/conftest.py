"""A log of two organizations, and the tables beside it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from psycopg import AsyncConnection
from pydantic import SecretStr

from command_api.eventlog.log import EventLog
from command_api.tables import create_tables
from command_api.transparency.heads import Signer
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings
from tests.integration.eventlog.log_samples import logged, one


def new_key() -> SecretStr:
    key = Ed25519PrivateKey.generate()
    return SecretStr(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


@dataclass
class Chronicle:
    """Appends events and remembers whose they are."""

    log: EventLog
    conninfo: str
    signer: Signer = field(default_factory=lambda: Signer.of(new_key()))
    ada: str = field(default_factory=lambda: new_id(Prefix.ORGANIZATION))
    bob: str = field(default_factory=lambda: new_id(Prefix.ORGANIZATION))

    def tell(self, *organizations: str | None) -> list[int]:
        """One event each, in a transaction each."""
        return [
            position
            for organization in organizations
            for (position,) in self.log.append([one(logged(organization_id=organization))])
        ]

    def states(self, organization: str | None) -> list[tuple[int, bytes]]:
        """Position and stored bytes of an organization's events."""
        return [
            (raw.position, raw.state)
            for raw in self.log.read_all(0, 10_000)
            if raw.organization_id == organization
        ]

    def tamper(self, statement: str, *values: object) -> None:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            assert connection.execute(statement.encode(), values).rowcount > 0


@pytest.fixture
def chronicle(database: PostgresSettings) -> Iterator[Chronicle]:
    with EventLog.open(database) as log:
        yield Chronicle(log, database.conninfo())


@pytest.fixture
async def connection(chronicle: Chronicle) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(chronicle.conninfo, autocommit=True) as connection:
        await create_tables(connection)
        yield connection
    await asyncio.sleep(0)
