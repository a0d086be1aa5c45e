"""The secret store: credentials for places outside, sealed for their organization, workspace and name."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from psycopg import AsyncConnection, Cursor
from psycopg.rows import DictRow, class_row
from psycopg_pool import AsyncConnectionPool

from command_api.credentials.sealing import Sealer
from command_api.domain.errors import NotFound
from command_api.settings import ControlSecrets
from schemas.api import SecretBody
from schemas.secrets import SecretKind

_PURPOSE = b"kinora secret store v1"

Pool = AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class SecretPlace:
    """Whose secret, and which."""

    organization_id: str
    workspace_id: str
    name: str


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """What may be told of a secret."""

    name: str
    kind: SecretKind
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class SecretRow:
    """A new or replaced value; written with the command that stores it."""

    place: SecretPlace
    kind: SecretKind
    sealed: bytes = field(repr=False)

    def write(self, cursor: Cursor[DictRow]) -> None:
        place = self.place
        cursor.execute(
            "INSERT INTO kinora_secrets (organization_id, workspace_id, name, kind, sealed)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (organization_id, workspace_id, name)"
            " DO UPDATE SET kind = excluded.kind, sealed = excluded.sealed, updated_at = now()",
            (place.organization_id, place.workspace_id, place.name, self.kind, self.sealed),
        )


@dataclass(frozen=True, slots=True)
class SecretGoneRow:
    """Deletes a value with the command that says so."""

    place: SecretPlace

    def write(self, cursor: Cursor[DictRow]) -> None:
        cursor.execute(
            "DELETE FROM kinora_secrets WHERE organization_id = %s AND workspace_id = %s AND name = %s",
            (self.place.organization_id, self.place.workspace_id, self.place.name),
        )


class SecretKey:
    """Seals and opens values."""

    def __init__(self, personal_key: bytes) -> None:
        self._sealer = Sealer(personal_key, _PURPOSE)

    @classmethod
    def from_secrets(cls, secrets: ControlSecrets) -> Self:
        return cls(bytes.fromhex(secrets.personal_key_hex.get_secret_value()))

    def seal(self, place: SecretPlace, secret: SecretBody) -> bytes:
        return self._sealer.seal(secret.model_dump_json().encode(), *_parts(place))

    def open(self, place: SecretPlace, sealed: bytes) -> SecretBody:
        """The secret in the clear: keep it no longer than it is needed.

        Raises:
            SecretUnreadable: when it was sealed with other keys or for another place.
        """
        return SecretBody.model_validate_json(self._sealer.open(sealed, *_parts(place)))


class Secrets:
    """The table, as routes and imports use it; borrows its caller's connection pool."""

    def __init__(self, pool: Pool, key: SecretKey) -> None:
        self._pool = pool
        self._key = key

    def row(self, place: SecretPlace, secret: SecretBody) -> SecretRow:
        return SecretRow(place, secret.kind, self._key.seal(place, secret))

    async def told(self, organization_id: str, workspace_id: str) -> list[StoredSecret]:
        """Every secret of a workspace by name, without values."""
        async with self._pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(StoredSecret))
            await cursor.execute(
                "SELECT name, kind, created_at, updated_at, last_used_at FROM kinora_secrets"
                " WHERE organization_id = %s AND workspace_id = %s ORDER BY name",
                (organization_id, workspace_id),
            )
            return await cursor.fetchall()

    async def find(self, place: SecretPlace) -> StoredSecret:
        """What may be told of one.

        Raises:
            NotFound: code ``secret_unknown``.
        """
        for secret in await self.told(place.organization_id, place.workspace_id):
            if secret.name == place.name:
                return secret
        raise _unknown(place)

    async def use(self, place: SecretPlace) -> SecretBody:
        """The value in the clear, noting that it was used.

        Raises:
            NotFound: code ``secret_unknown``.
            SecretUnreadable: when the keys do not open it.
        """
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "UPDATE kinora_secrets SET last_used_at = now()"
                " WHERE organization_id = %s AND workspace_id = %s AND name = %s RETURNING sealed",
                (place.organization_id, place.workspace_id, place.name),
            )
            row = await cursor.fetchone()
        if row is None:
            raise _unknown(place)
        return self._key.open(place, bytes(row[0]))


def _parts(place: SecretPlace) -> tuple[str, str, str]:
    return place.organization_id, place.workspace_id, place.name


def _unknown(place: SecretPlace) -> NotFound:
    return NotFound(
        f"the workspace has no secret {place.name}; store it with `kinora secrets set {place.name}`",
        code="secret_unknown",
    )
