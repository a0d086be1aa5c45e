"""Signing up, logging in, refreshing and logging out, as routes call it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from command_api.auth.errors import TokenExpired, TokenInvalid, WrongCredentials
from command_api.auth.tokens import OPERATE, SCOPES, AccessTokens, Principal
from command_api.credentials.memberships import Membership
from command_api.credentials.operators import FirstOperatorRow
from command_api.credentials.passwords import PasswordRow, Passwords
from command_api.credentials.personal import PersonKey
from command_api.credentials.refresh import Family, FamilyRevokedRow, FamilyRow, new_refresh_token
from command_api.credentials.store import Credentials
from command_api.domain.errors import Conflict, NotFound
from command_api.domain.user import Registered
from command_api.eventlog.recorder import SideRow
from command_api.handlers.base import Context, Idempotency
from command_api.handlers.bus import CommandBus
from schemas.api import LoginBody, SignupBody
from schemas.commands.identity import RecordLogin, RevokeTokenFamily, SignUp
from schemas.ids import Prefix, new_id


@dataclass(frozen=True, slots=True)
class Session:
    """What a person gets for proving who they are. The tokens are secrets: shown once, never logged."""

    user_id: str
    organization_id: str
    workspace_id: str
    position: int
    """Of the event that tells of it; 0 for a refresh, which is no event."""
    access_token: str = field(repr=False)
    expires_in: int
    """Seconds that the access token lives."""
    refresh_token: str = field(repr=False)
    refresh_expires_at: datetime


@dataclass(frozen=True, slots=True)
class Profile:
    """A person's own data, decrypted for themselves."""

    user_id: str
    username: str
    email: str


class Accounts:
    """Everything about who somebody is. `asked` contexts carry the request; the actor is filled in here."""

    def __init__(
        self,
        bus: CommandBus,
        credentials: Credentials,
        tokens: AccessTokens,
        *,
        refresh_token_seconds: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._bus = bus
        self._credentials = credentials
        self._tokens = tokens
        self._refresh_lifetime = timedelta(seconds=refresh_token_seconds)
        self._clock = clock
        self._passwords = Passwords()

    async def sign_up(self, body: SignupBody, asked: Context) -> Session:
        """Make a person with an organization and a workspace of their own, and log them in.

        Raises:
            Conflict: ``username_taken``, ``email_taken``, or ``secret_already_issued`` for a repeat, because
                the tokens of the first time are kept nowhere.
        """
        user_id, organization_id = new_id(Prefix.USER), new_id(Prefix.ORGANIZATION)
        home = Membership(user_id, organization_id, new_id(Prefix.WORKSPACE), "owner")
        person = PersonKey.new(user_id)
        command = SignUp(
            user_id=user_id,
            organization_id=organization_id,
            workspace_id=home.workspace_id,
            username_ciphertext=person.encrypt(body.username),
            email_ciphertext=person.encrypt(body.email),
        )
        login, refresh_token, expires_at = self._new_family(home)
        rows: list[SideRow] = [
            self._credentials.name_row("username", body.username, user_id),
            self._credentials.name_row("email", body.email, user_id),
            PasswordRow(user_id, await asyncio.to_thread(self._passwords.hash, body.password)),
            self._credentials.key_row(person),
            home,
            FirstOperatorRow(user_id),
            login,
        ]
        outcome = await self._bus.execute(command, self._signing_up(asked, user_id, body.username), rows)
        if outcome.replayed:
            raise Conflict(
                "this Idempotency-Key signed somebody up already and its tokens were shown then; log in",
                code="secret_already_issued",
            )
        return await self._session(home, refresh_token, expires_at, outcome.position)

    def account_digest(self, name: str) -> bytes:
        """What attempts on an account are counted by: a keyed hash of a user name or e-mail address."""
        return self._credentials.digest("email" if "@" in name else "username", name)

    async def log_in(self, body: LoginBody, asked: Context) -> Session:
        """Open a session for a user name or e-mail address and a password.

        Raises:
            WrongCredentials: without saying, by text or by time, which of the two is wrong.
        """
        found = await self._credentials.find_user(body.username)
        check = await asyncio.to_thread(self._passwords.check, body.password, found[1] if found else None)
        homes = await self._credentials.memberships(found[0]) if found and check.right else []
        if not homes:
            raise WrongCredentials("user name and password do not belong together; check both")
        home = homes[0]
        login, refresh_token, expires_at = self._new_family(home)
        rows: list[SideRow] = [login]
        if check.new_hash is not None:
            rows.append(PasswordRow(home.user_id, check.new_hash))
        outcome = await self._bus.execute(RecordLogin(user_id=home.user_id), _as(asked, home), rows)
        return await self._session(home, refresh_token, expires_at, outcome.position)

    async def refresh(self, refresh_token: str, asked: Context) -> Session:
        """Exchange a refresh token for new tokens. Used twice, it voids its whole family.

        Raises:
            TokenExpired, TokenInvalid: log in again.
        """
        new, expires_at = new_refresh_token(), self._clock() + self._refresh_lifetime
        standing, family = await self._credentials.spend(
            refresh_token, new, now=self._clock(), expires_at=expires_at
        )
        match standing, family:
            case "fresh", Family():
                return await self._session(await self._home(family), new, expires_at, 0)
            case "used", Family():
                await self._revoke(family, "reuse_detected", asked)
                raise TokenInvalid(
                    "the refresh token was used before, so its session is closed; log in again"
                )
            case "expired", _:
                raise TokenExpired("the refresh token has expired; log in again")
            case _:
                raise TokenInvalid("the refresh token is not valid; log in again")

    async def log_out(self, refresh_token: str, asked: Context) -> None:
        """Void the session's refresh tokens; an unknown token changes nothing."""
        family = await self._credentials.family_of(refresh_token, self._clock())
        if family is not None:
            await self._revoke(family, "logout", asked)

    async def profile(self, user_id: str) -> Profile:
        """A person's own name and address.

        Raises:
            NotFound: nobody signed up under this id.
            Unreadable: their key was deleted.
        """
        match (await self._bus.load(user_id)).state:
            case Registered(registration=registration):
                key = await self._credentials.person_key(user_id)
                return Profile(
                    user_id,
                    key.decrypt(registration.username_ciphertext),
                    key.decrypt(registration.email_ciphertext),
                )
        raise NotFound(f"{user_id} does not exist; check the id")

    def _signing_up(self, asked: Context, user_id: str, username: str) -> Context:
        """Nobody is logged in yet, so a key belongs to the name asked for and not to all strangers."""
        key = asked.idempotency
        if key is not None:
            principal = f"signup:{self._credentials.digest('username', username).hex()}"
            key = Idempotency(principal, key.key, key.request_hmac)
        return replace(asked, actor=user_id, organization_id=None, workspace_id=None, idempotency=key)

    def _new_family(self, home: Membership) -> tuple[FamilyRow, str, datetime]:
        token, expires_at = new_refresh_token(), self._clock() + self._refresh_lifetime
        family = Family.new(home.user_id, home.organization_id, home.workspace_id)
        return FamilyRow(family, token, expires_at), token, expires_at

    async def _home(self, family: Family) -> Membership:
        """The place that the family speaks for, with today's role in it."""
        for home in await self._credentials.memberships(family.user_id):
            if (home.organization_id, home.workspace_id) == (family.organization_id, family.workspace_id):
                return home
        raise TokenInvalid("you are no longer a member there; log in again")

    async def _revoke(
        self, family: Family, reason: Literal["reuse_detected", "logout"], asked: Context
    ) -> None:
        command = RevokeTokenFamily(user_id=family.user_id, family_id=family.family_id, reason=reason)
        context = replace(
            asked,
            actor=family.user_id,
            organization_id=family.organization_id,
            workspace_id=family.workspace_id,
            idempotency=None,
        )
        await self._bus.execute(command, context, [FamilyRevokedRow(family.family_id)])

    async def _session(
        self, home: Membership, refresh_token: str, refresh_expires_at: datetime, position: int
    ) -> Session:
        scopes = SCOPES[home.role]
        if await self._credentials.is_operator(home.user_id):
            scopes = (*scopes, OPERATE)
        principal = Principal(home.user_id, home.organization_id, home.workspace_id, scopes)
        return Session(
            user_id=home.user_id,
            organization_id=home.organization_id,
            workspace_id=home.workspace_id,
            position=position,
            access_token=self._tokens.issue(principal),
            expires_in=self._tokens.seconds,
            refresh_token=refresh_token,
            refresh_expires_at=refresh_expires_at,
        )


def _as(asked: Context, home: Membership) -> Context:
    """The request as the person who was recognised in it. Keys do not apply: every login is its own."""
    return replace(
        asked,
        actor=home.user_id,
        organization_id=home.organization_id,
        workspace_id=home.workspace_id,
        idempotency=None,
    )
