"""The credential tables as routes use them; new rows travel as side rows of the commands that need them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from command_api.credentials import enrolment, refresh
from command_api.credentials.enrolment import Enrolment
from command_api.credentials.memberships import Membership
from command_api.credentials.names import NameKind, UniqueNameRow, name_digest
from command_api.credentials.personal import PersonKey, PersonKeyRow, PersonKeys, Unreadable
from command_api.credentials.refresh import Family, Standing
from command_api.settings import ControlSecrets

Pool = AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]


class Credentials:
    """Reads and rotates credentials; borrows its caller's connection pool."""

    def __init__(self, pool: Pool, *, personal_key: bytes, index_key: bytes) -> None:
        self._pool = pool
        self._person_keys = PersonKeys(personal_key)
        self._index_key = index_key

    @classmethod
    def from_secrets(cls, pool: Pool, secrets: ControlSecrets) -> Self:
        return cls(
            pool,
            personal_key=bytes.fromhex(secrets.personal_key_hex.get_secret_value()),
            index_key=bytes.fromhex(secrets.index_key_hex.get_secret_value()),
        )

    # ---- names and passwords --------------------------------------------------------------------

    def digest(self, kind: NameKind, text: str) -> bytes:
        return name_digest(self._index_key, kind, text)

    def name_row(self, kind: NameKind, text: str, user_id: str) -> UniqueNameRow:
        """Takes the name with its command, or refuses that: ``username_taken``, ``email_taken``."""
        return UniqueNameRow(kind, self.digest(kind, text), user_id)

    async def find_user(self, name: str) -> tuple[str, str] | None:
        """User id and password hash behind a user name or e-mail address."""
        kind: NameKind = "email" if "@" in name else "username"
        row = await self._one(
            "SELECT user_id, hash FROM kinora_unique_names JOIN kinora_passwords USING (user_id)"
            " WHERE kind = %s AND digest = %s",
            (kind, self.digest(kind, name)),
        )
        return None if row is None else (row[0], row[1])

    async def memberships(self, user_id: str) -> list[Membership]:
        """Where a person belongs, oldest first."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT user_id, organization_id, workspace_id, role FROM kinora_memberships"
                " WHERE user_id = %s ORDER BY created_at, organization_id, workspace_id",
                (user_id,),
            )
            return [Membership(*row) for row in await cursor.fetchall()]

    async def is_operator(self, user_id: str) -> bool:
        """Whether a person runs the installation."""
        return await self._one("SELECT 1 FROM kinora_operators WHERE user_id = %s", (user_id,)) is not None

    # ---- personal fields ------------------------------------------------------------------------

    def key_row(self, person: PersonKey) -> PersonKeyRow:
        """Stores a new person's key with the command that makes the person."""
        return PersonKeyRow(person.user_id, self._person_keys.wrap(person))

    async def person_key(self, user_id: str) -> PersonKey:
        """A person's key in the clear.

        Raises:
            Unreadable: when there is none, or it was wrapped with another personal key.
        """
        row = await self._one("SELECT wrapped_key FROM kinora_person_keys WHERE user_id = %s", (user_id,))
        if row is None:
            raise Unreadable(f"{user_id} has no key; personal fields are gone for good once it is deleted")
        return self._person_keys.unwrap(user_id, bytes(row[0]))

    async def encrypt_personal(self, user_id: str, text: str) -> str:
        return (await self.person_key(user_id)).encrypt(text)

    async def decrypt_personal(self, user_id: str, ciphertext: str) -> str:
        return (await self.person_key(user_id)).decrypt(ciphertext)

    # ---- refresh tokens -------------------------------------------------------------------------

    async def spend(
        self, old: str, new: str, *, now: datetime, expires_at: datetime
    ) -> tuple[Standing, Family | None]:
        """Exchange a fresh token for `new`; any other standing changes nothing and is told."""
        async with self._pool.connection() as connection, connection.transaction():
            standing, family = await refresh.standing_of(connection, old, now)
            if standing == "fresh" and family is not None:
                await refresh.rotate(connection, family, old, new, expires_at)
            return standing, family

    async def family_of(self, token: str, now: datetime) -> Family | None:
        """The family that a token belongs to, whatever its standing."""
        async with self._pool.connection() as connection, connection.transaction():
            return (await refresh.standing_of(connection, token, now))[1]

    # ---- enrolment tokens -----------------------------------------------------------------------

    async def enrolment(
        self, token: str, public_key: str, now: datetime
    ) -> tuple[enrolment.Standing, Enrolment | None]:
        """What an enrolment token is worth to the node with this key, and whom it makes of it."""
        async with self._pool.connection() as connection:
            return await enrolment.standing_of(connection, token, public_key, now)

    async def _one(self, statement: str, params: Sequence[object]) -> tuple[Any, ...] | None:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(statement, params)
            return await cursor.fetchone()
