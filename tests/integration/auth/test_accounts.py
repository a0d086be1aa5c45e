"""Signing up, logging in, refreshing and logging out on a real log and real tables."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import bcrypt
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg_pool import AsyncConnectionPool

from command_api.auth.accounts import Accounts, Profile, Session
from command_api.auth.errors import TokenExpired, TokenInvalid, WrongCredentials
from command_api.auth.tokens import OPERATE, SCOPES, AccessTokens
from command_api.credentials.personal import Unreadable
from command_api.credentials.store import Credentials
from command_api.domain.errors import Conflict, NotFound
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Context, Idempotency
from command_api.handlers.bus import CommandBus
from command_api.handlers.registry import HANDLERS
from command_api.tables import ensure_tables
from schemas.api import LoginBody, SignupBody
from schemas.events.identity import UserRegistered
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings
from tests.integration.eventlog.cut_connection import CuttingProxy

PEM = Ed25519PrivateKey.generate().private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
ADA = SignupBody(username="ada", email="Ada@example.org", password="correct horse battery")


@dataclass
class House:
    """Everything that signing up takes."""

    log: EventLog
    credentials: Credentials
    tokens: AccessTokens
    accounts: Accounts
    database: PostgresSettings
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def rows(self, table: str) -> int:
        return int(self.one(f"SELECT count(*) FROM {table}"))

    def one(self, statement: str, *params: object) -> str:
        with psycopg.connect(self.database.conninfo(), autocommit=True) as connection:
            row = connection.execute(statement, params).fetchone()
            return "" if row is None else str(row[0])

    def kinds(self) -> list[str]:
        return [raw.type.removeprefix("kinora.") for raw in self.log.read_all(0, 100)]


async def house_on(settings: PostgresSettings, database: PostgresSettings) -> AsyncIterator[House]:
    await ensure_tables(database.conninfo())
    async with AsyncConnectionPool(database.conninfo(), min_size=1, max_size=4, open=False) as pool:
        credentials = Credentials(pool, personal_key=b"p" * 32, index_key=b"i" * 32)
        tokens = AccessTokens(PEM.decode(), seconds=600)
        with EventLog.open(settings) as log:
            async with CommandBus(log, HANDLERS) as bus:
                clock: Callable[[], datetime] = lambda: house.now  # noqa: E731
                accounts = Accounts(bus, credentials, tokens, refresh_token_seconds=3600, clock=clock)
                house = House(log, credentials, tokens, accounts, database)
                yield house


@pytest.fixture
async def house(database: PostgresSettings) -> AsyncIterator[House]:
    async for house in house_on(database, database):
        yield house


def asked(key: str | None = None, hmac: bytes = b"one") -> Context:
    request_id = new_id(Prefix.REQUEST)
    idempotency = None if key is None else Idempotency("anybody", key, hmac)
    return Context("", None, None, request_id, request_id, request_id, idempotency=idempotency)


def login(username: str = "ada", password: str = ADA.password) -> LoginBody:
    return LoginBody(username=username, password=password)


# ---- signing up ---------------------------------------------------------------------------------


def scopes(house: House, session: Session) -> tuple[str, ...]:
    return house.tokens.verify(session.access_token).scopes


async def test_who_signs_up_first_operates_the_installation(house: House) -> None:
    others = [
        SignupBody(username=name, email=f"{name}@example.org", password=ADA.password)
        for name in ("bob", "eve", "dan")
    ]
    # At once, so that they are committed together.
    people = [ADA, *others]
    sessions = await asyncio.gather(*(house.accounts.sign_up(person, asked()) for person in people))
    operators = [session for session in sessions if OPERATE in scopes(house, session)]
    assert len(operators) == 1
    assert house.rows("kinora_operators") == 1
    assert operators[0].user_id == house.one(
        "SELECT stream_id FROM kinora_events WHERE topic = 'kinora.user.registered'"
        " ORDER BY notification_id LIMIT 1"
    )
    for person, session in zip(people, sessions, strict=True):
        operates = session is operators[0]
        again = await house.accounts.log_in(login(person.username), asked())
        assert (OPERATE in scopes(house, again)) is operates
        refreshed = await house.accounts.refresh(again.refresh_token, asked())
        assert (OPERATE in scopes(house, refreshed)) is operates


async def test_an_older_installation_gets_its_operator(house: House) -> None:
    first = await house.accounts.sign_up(ADA, asked())
    bob = SignupBody(username="bob", email="bob@example.org", password=ADA.password)
    await house.accounts.sign_up(bob, asked())
    with psycopg.connect(house.database.conninfo(), autocommit=True) as connection:
        connection.execute("DROP TABLE kinora_operators")
    for _ in range(2):
        await ensure_tables(house.database.conninfo())
    assert house.rows("kinora_operators") == 1
    assert house.one("SELECT user_id FROM kinora_operators") == first.user_id


async def test_signing_up_makes_a_person_with_a_home(house: House) -> None:
    session = await house.accounts.sign_up(ADA, asked())
    assert house.kinds() == [
        "user.registered",
        "organization.created",
        "organization.workspace_created",
        "organization.member_added",
    ]
    assert session.position == 4
    principal = house.tokens.verify(session.access_token)
    assert (principal.user_id, principal.organization_id) == (session.user_id, session.organization_id)
    assert (principal.workspace_id, principal.scopes) == (
        session.workspace_id,
        (*SCOPES["owner"], OPERATE),
    )
    registered, created, *_ = house.log.read_all(0, 10)
    assert (registered.organization_id, created.organization_id) == (None, session.organization_id)
    assert registered.recorded().metadata.actor == session.user_id


async def test_personal_data_and_secrets_stand_nowhere_in_the_clear(house: House) -> None:
    session = await house.accounts.sign_up(ADA.model_copy(update={"username": "countess-lovelace"}), asked())
    everything = house.one(
        "SELECT (SELECT string_agg(convert_from(state, 'UTF8') || k::text, '') FROM kinora_events k)"
        " || (SELECT string_agg(p::text, '') FROM kinora_passwords p)"
        " || (SELECT string_agg(n::text, '') FROM kinora_unique_names n)"
        " || (SELECT string_agg(f::text, '') FROM kinora_refresh_families f)"
        " || (SELECT string_agg(t::text, '') FROM kinora_refresh_tokens t)"
    )
    for secret in ("lovelace", "example.org", ADA.password, session.refresh_token, session.access_token):
        assert secret.lower() not in everything.lower()
        assert secret not in repr(session)


async def test_a_person_reads_their_own_data_until_their_key_is_deleted(house: House) -> None:
    session = await house.accounts.sign_up(ADA, asked())
    assert await house.accounts.profile(session.user_id) == Profile(session.user_id, "ada", "Ada@example.org")
    assert await house.credentials.decrypt_personal(
        session.user_id, await house.credentials.encrypt_personal(session.user_id, "note")
    ) == "note"  # fmt: skip
    house.one("DELETE FROM kinora_person_keys RETURNING 1")
    with pytest.raises(Unreadable, match="gone for good"):
        await house.accounts.profile(session.user_id)
    with pytest.raises(NotFound):
        await house.accounts.profile(new_id(Prefix.USER))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"email": "other@example.org"}, "username_taken"),
        ({"email": "other@example.org", "username": "ADA"}, "username_taken"),
        ({"username": "bob"}, "email_taken"),
        ({"username": "bob", "email": "ada@EXAMPLE.org"}, "email_taken"),
    ],
)
async def test_a_taken_name_is_refused_and_leaves_nothing(
    house: House, changes: dict[str, str], code: str
) -> None:
    await house.accounts.sign_up(ADA, asked())
    with pytest.raises(Conflict) as refused:
        await house.accounts.sign_up(ADA.model_copy(update=changes), asked())
    assert refused.value.code == code
    assert len(house.kinds()) == 4
    tables = ("passwords", "person_keys", "memberships", "refresh_families", "refresh_tokens")
    assert [house.rows(f"kinora_{table}") for table in tables] == [1] * 5
    assert house.rows("kinora_unique_names") == 2


async def test_of_several_at_once_one_gets_the_name(house: House) -> None:
    results = await asyncio.gather(
        *(house.accounts.sign_up(ADA, asked()) for _ in range(4)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 3 + ["Session"]
    assert len(house.kinds()) == 4


async def test_a_repeat_is_not_told_the_secret_again(house: House) -> None:
    await house.accounts.sign_up(ADA, asked("key"))
    with pytest.raises(Conflict) as repeat:
        await house.accounts.sign_up(ADA, asked("key"))
    assert repeat.value.code == "secret_already_issued"
    with pytest.raises(Conflict) as other:
        await house.accounts.sign_up(ADA, asked("key", hmac=b"two"))
    assert other.value.code == "idempotency_key_reused"
    assert len(house.kinds()) == 4


async def test_strangers_who_choose_the_same_key_do_not_meet(house: House) -> None:
    await house.accounts.sign_up(ADA, asked("1"))
    bob = SignupBody(username="bob", email="bob@example.org", password="correct horse battery")
    await house.accounts.sign_up(bob, asked("1", hmac=b"two"))
    assert house.kinds().count("user.registered") == 2


async def test_a_lost_commit_reply_still_gives_the_tokens(database: PostgresSettings) -> None:
    with TemporaryDirectory(prefix="kinora-") as folder, CuttingProxy(database, Path(folder)) as proxy:
        async for house in house_on(proxy.settings, database):
            proxy.arm()
            session = await house.accounts.sign_up(ADA, asked("key"))
            assert proxy.cuts == 1
            assert len(house.kinds()) == 4
            await house.accounts.refresh(session.refresh_token, asked())


# ---- logging in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ada", "ADA", "ada@example.org", "ADA@EXAMPLE.ORG"])
async def test_a_person_logs_in_by_name_or_address(house: House, name: str) -> None:
    signed_up = await house.accounts.sign_up(ADA, asked())
    session = await house.accounts.log_in(login(name), asked())
    assert (session.user_id, session.workspace_id) == (signed_up.user_id, signed_up.workspace_id)
    assert session.position == 5
    assert house.kinds()[-1] == "user.logged_in"
    assert session.refresh_token != signed_up.refresh_token


async def test_nobody_is_told_what_was_wrong(house: House) -> None:
    await house.accounts.sign_up(ADA, asked())
    messages = set()
    for body in (login(password="wrong"), login("bob"), login("bob@example.org")):
        with pytest.raises(WrongCredentials) as wrong:
            await house.accounts.log_in(body, asked())
        messages.add(str(wrong.value))
    assert len(messages) == 1
    assert len(house.kinds()) == 4


async def test_an_old_hash_is_replaced_at_login(house: House) -> None:
    await house.accounts.sign_up(ADA, asked())
    old = bcrypt.hashpw(ADA.password.encode(), bcrypt.gensalt(4)).decode()
    house.one("UPDATE kinora_passwords SET hash = %s RETURNING 1", old)
    await house.accounts.log_in(login(), asked())
    assert house.one("SELECT hash FROM kinora_passwords").startswith("$argon2id$")
    await house.accounts.log_in(login(), asked())


# ---- refreshing ---------------------------------------------------------------------------------


async def test_each_refresh_token_is_good_for_one_use(house: House) -> None:
    first = await house.accounts.sign_up(ADA, asked())
    second = await house.accounts.refresh(first.refresh_token, asked())
    third = await house.accounts.refresh(second.refresh_token, asked())
    assert house.tokens.verify(third.access_token).organization_id == first.organization_id
    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3


async def test_a_token_used_twice_closes_its_session_and_no_other(house: House) -> None:
    first = await house.accounts.sign_up(ADA, asked())
    other = await house.accounts.log_in(login(), asked())
    second = await house.accounts.refresh(first.refresh_token, asked())
    with pytest.raises(TokenInvalid, match="used before"):
        await house.accounts.refresh(first.refresh_token, asked())
    assert house.kinds()[-1] == "user.token_family_revoked"
    with pytest.raises(TokenInvalid, match="log in again"):
        await house.accounts.refresh(second.refresh_token, asked())
    assert house.kinds().count("user.token_family_revoked") == 1
    await house.accounts.refresh(other.refresh_token, asked())


async def test_of_two_at_once_one_gets_the_next_token(house: House) -> None:
    first = await house.accounts.sign_up(ADA, asked())
    results = await asyncio.gather(
        *(house.accounts.refresh(first.refresh_token, asked()) for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["Session", "TokenInvalid"]


async def test_a_refresh_token_expires(house: House) -> None:
    first = await house.accounts.sign_up(ADA, asked())
    assert first.refresh_expires_at == house.now + timedelta(seconds=3600)
    house.now += timedelta(seconds=3600)
    with pytest.raises(TokenExpired):
        await house.accounts.refresh(first.refresh_token, asked())
    assert house.kinds().count("user.token_family_revoked") == 0


async def test_an_unknown_refresh_token_is_invalid(house: House) -> None:
    with pytest.raises(TokenInvalid):
        await house.accounts.refresh(secrets.token_urlsafe(32), asked())


async def test_logging_out_closes_the_session(house: House) -> None:
    session = await house.accounts.sign_up(ADA, asked())
    await house.accounts.log_out(session.refresh_token, asked())
    await house.accounts.log_out(session.refresh_token, asked())
    await house.accounts.log_out("unknown", asked())
    assert house.kinds().count("user.token_family_revoked") == 1
    with pytest.raises(TokenInvalid):
        await house.accounts.refresh(session.refresh_token, asked())


async def test_somebody_who_is_no_member_any_more_gets_no_token(house: House) -> None:
    session = await house.accounts.sign_up(ADA, asked())
    house.one("DELETE FROM kinora_memberships RETURNING 1")
    with pytest.raises(TokenInvalid, match="member"):
        await house.accounts.refresh(session.refresh_token, asked())
    with pytest.raises(WrongCredentials):
        await house.accounts.log_in(login(), asked())


async def test_the_tables_may_be_made_by_several_at_once(house: House) -> None:
    await asyncio.gather(*(ensure_tables(house.database.conninfo()) for _ in range(4)))


async def test_registered_fields_are_ciphertext_of_their_person(house: House) -> None:
    session = await house.accounts.sign_up(ADA, asked())
    event = house.log.read_stream(session.user_id)[0].event
    assert isinstance(event, UserRegistered)
    assert await house.credentials.decrypt_personal(session.user_id, event.username_ciphertext) == "ada"
