"""How often somebody may ask: quotas counted in sliding windows, in this process or in a shared store.

Each bucket has its own quota; `Rates.take` spends one of it for a key (a person, an address, an account) or
refuses. Where the shared store is away nothing is refused: the quotas protect the service, not the data.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import structlog
from limits import RateLimitItem, parse_many
from limits.aio.storage import Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string

from command_api.settings import RateSettings
from schemas.errors import KinoraError

_log = structlog.get_logger(__name__)

Bucket = Literal[
    "general",
    "anonymous",
    "signup",
    "login",
    "refresh",
    "enrolment",
    "login_account",
    "login_elsewhere",
    "uploads",
    "job_creation",
    "event_replay",
    "event_export",
]


class StoreUnusable(KinoraError):
    """The settings name a store of counts that cannot be used here."""

    code = "settings"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of one quota."""

    policy: str
    quota: int
    window_seconds: int
    remaining: int
    reset_seconds: int
    """Until more is there."""


class TooManyRequests(KinoraError):
    """A quota is used up; it says when the next request has a chance."""

    code = "too_many_requests"
    retryable = True

    def __init__(self, message: str, *, retry_seconds: int, standings: Sequence[Standing] = ()) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds
        self.standings = tuple(standings)


class TooManyAttempts(TooManyRequests):
    """Too many log-ins to one account."""

    code = "too_many_attempts"


class Rates:
    """The quotas of one process."""

    def __init__(self, settings: RateSettings) -> None:
        self._storage = _open(settings.storage_uri.get_secret_value())
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)
        self._limits: dict[str, list[RateLimitItem]] = {
            name: parse_many(quota)
            for name, quota in settings
            if name not in ("storage_uri", "feeds") and quota
        }

    async def take(self, bucket: Bucket, *key: str) -> list[Standing]:
        """Spend one of the bucket's quota for `key`, and say what is left.

        Raises:
            TooManyRequests: nothing is left.
        """
        standings: list[Standing] = []
        try:
            for item in self._limits.get(bucket, ()):
                taken = await self._limiter.hit(item, bucket, *key)
                standings.append(await self._standing(bucket, item, key))
                if not taken:
                    wait = max(1, standings[-1].reset_seconds)
                    raise TooManyRequests(
                        f"more than {item.amount} requests in {item.get_expiry()} s ({bucket});"
                        f" wait {wait} s and try again",
                        retry_seconds=wait,
                        standings=standings,
                    )
        except StorageError as error:
            _log.warning("rates.store_away", reason=str(error.storage_error))
        return standings

    async def forget(self, bucket: Bucket, *key: str) -> None:
        """Begin anew for `key`."""
        try:
            for item in self._limits.get(bucket, ()):
                await self._limiter.clear(item, bucket, *key)
        except StorageError as error:
            _log.warning("rates.store_away", reason=str(error.storage_error))

    async def remember(self, seconds: int, *key: str) -> None:
        """Note that something happened; known for `seconds` from now on."""
        try:
            await self._storage.clear(_note(key))
            await self._storage.incr(_note(key), seconds)
        except StorageError as error:
            _log.warning("rates.store_away", reason=str(error.storage_error))

    async def known(self, *key: str) -> bool:
        """Whether `remember` was told so."""
        try:
            return await self._storage.get(_note(key)) > 0
        except StorageError as error:
            _log.warning("rates.store_away", reason=str(error.storage_error))
            return False

    async def _standing(self, bucket: str, item: RateLimitItem, key: Sequence[str]) -> Standing:
        stats = await self._limiter.get_window_stats(item, bucket, *key)
        return Standing(
            policy=bucket if len(self._limits[bucket]) == 1 else f"{bucket}_{item.get_expiry()}",
            quota=item.amount,
            window_seconds=item.get_expiry(),
            remaining=max(0, stats.remaining),
            reset_seconds=max(0, math.ceil(stats.reset_time - time.time())),
        )


def fields(standings: Sequence[Standing]) -> dict[str, str]:
    """The header fields RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-11)."""
    if not standings:
        return {}
    return {
        "RateLimit-Policy": ", ".join(f'"{s.policy}";q={s.quota};w={s.window_seconds}' for s in standings),
        "RateLimit": ", ".join(f'"{s.policy}";r={s.remaining};t={s.reset_seconds}' for s in standings),
    }


def _note(key: Sequence[str]) -> str:
    return "/".join(("NOTED", *key))


def _open(uri: str) -> Storage:
    scheme = uri.partition("://")[0]
    try:
        # Own errors only: what a driver raises would depend on the store.
        storage = storage_from_string(uri, wrap_exceptions=True)
    except ConfigurationError as error:
        # Neither message nor cause may quote the address: it can hold a password.
        reason = str(error).replace(uri, scheme)
        raise StoreUnusable(f"rates.storage_uri ({scheme}://…) cannot be used: {reason}") from None
    if not isinstance(storage, Storage):
        raise StoreUnusable(f"rates.storage_uri must begin with async+, not {scheme}://")
    return storage
