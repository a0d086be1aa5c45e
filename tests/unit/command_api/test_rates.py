"""Quotas: what is taken, what is left, what is said of it, and what a store may be."""

import pytest
from pydantic import SecretStr, ValidationError

from command_api.auth.attempts import LoginAttempts
from command_api.rates import Rates, Standing, StoreUnusable, TooManyAttempts, TooManyRequests, fields
from command_api.settings import RateSettings


def rates(**quotas: str) -> Rates:
    unlimited = {name: "" for name in RateSettings.model_fields if name not in ("storage_uri", "feeds")}
    return Rates(RateSettings(**(unlimited | quotas)))


async def test_a_quota_is_each_key_s_own() -> None:
    counted = rates(general="2/day")
    for _ in range(2):
        await counted.take("general", "ada")
    with pytest.raises(TooManyRequests, match="more than 2 requests in 86400 s") as refused:
        await counted.take("general", "ada")
    assert 0 < refused.value.retry_seconds <= 2 * 86400
    assert [s.remaining for s in refused.value.standings] == [0]
    (standing,) = await counted.take("general", "bob")
    assert (standing.policy, standing.quota, standing.remaining) == ("general", 2, 1)


async def test_without_a_quota_everything_is_taken() -> None:
    assert [await rates().take("general", "ada") for _ in range(100)] == [[]] * 100


async def test_the_narrowest_of_several_decides() -> None:
    counted = rates(login="2/day; 3/month")
    first = await counted.take("login", "here")
    assert [s.policy for s in first] == ["login_86400", f"login_{30 * 86400}"]
    await counted.take("login", "here")
    with pytest.raises(TooManyRequests, match="more than 2"):
        await counted.take("login", "here")


def test_the_fields_are_structured() -> None:
    left = [Standing("general", 100, 60, 7, 12), Standing("uploads", 5, 3600, 0, 9)]
    assert fields(left) == {
        "RateLimit-Policy": '"general";q=100;w=60, "uploads";q=5;w=3600',
        "RateLimit": '"general";r=7;t=12, "uploads";r=0;t=9',
    }
    assert fields([]) == {}


async def test_a_success_begins_anew_for_its_address_only() -> None:
    attempts = LoginAttempts(rates(login_account="2/day", login_elsewhere="5/day"))
    for address in ("home", "away"):
        await attempts.begin(b"ada", address)
    await attempts.succeeded(b"ada", "home")
    for _ in range(2):
        await attempts.begin(b"ada", "home")
    with pytest.raises(TooManyAttempts):
        await attempts.begin(b"ada", "home")
    await attempts.begin(b"ada", "away")
    with pytest.raises(TooManyAttempts):
        await attempts.begin(b"ada", "away")


async def test_guessing_from_everywhere_does_not_shut_the_owner_out() -> None:
    attempts = LoginAttempts(rates(login_account="100/day", login_elsewhere="3/day"))
    await attempts.begin(b"ada", "home")
    await attempts.succeeded(b"ada", "home")
    for number in range(2):
        await attempts.begin(b"ada", f"bot {number}")
    with pytest.raises(TooManyAttempts) as refused:
        await attempts.begin(b"ada", "bot 3")
    # How often others tried is nobody's business.
    assert refused.value.standings == ()
    await attempts.begin(b"ada", "home")
    await attempts.begin(b"bob", "bot 3")


@pytest.mark.parametrize("quota", ["often", "10", "10/fortnight", "-1/day"])
def test_a_quota_that_is_none_is_refused(quota: str) -> None:
    with pytest.raises(ValidationError, match="is no quota; write 30/minute"):
        RateSettings(general=quota)


@pytest.mark.parametrize("uri", ["nonsense://x:s3cret@y", "memory://", "async+redis://:s3cret@127.0.0.1:1"])
def test_a_store_that_cannot_be_used_is_named_without_its_password(uri: str) -> None:
    with pytest.raises(StoreUnusable) as refused:
        Rates(RateSettings(storage_uri=SecretStr(uri)))
    assert "storage_uri" in refused.value.message
    assert "s3cret" not in refused.value.message
