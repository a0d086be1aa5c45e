"""How often an account may be tried: guessing gets slow, and its owner still gets in.

Two quotas hold for an account, whether it exists or not. The narrow one counts attempts from one address and
begins anew with a success, so whoever guesses waits longer and longer (minutes, a quarter, an hour) while the
owner, who is elsewhere, notices nothing. The wide one counts attempts from everywhere, against guessing from
many addresses; it does not count addresses that the account has logged in from, which therefore stay open to
the owner while it is used up. Refresh tokens do not pass here at all.
"""

from command_api.rates import Rates, Standing, TooManyAttempts, TooManyRequests

_KNOWN_SECONDS = 30 * 86400


class LoginAttempts:
    """Counts attempts by the account's keyed hash and the client's address."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates

    async def begin(self, account: bytes, address: str) -> list[Standing]:
        """Count an attempt before its password is looked at.

        Raises:
            TooManyAttempts: wait, as long as it says.
        """
        name = account.hex()
        try:
            standings = await self._rates.take("login_account", name, address)
            if not await self._rates.known("address", name, address):
                # Not told: it would say how often others tried.
                await self._rates.take("login_elsewhere", name)
        except TooManyRequests as refused:
            shown = [s for s in refused.standings if s.policy.startswith("login_account")]
            raise TooManyAttempts(
                f"too many attempts to log in to this account; wait {refused.retry_seconds} s and try again."
                " Sessions that are open already go on",
                retry_seconds=refused.retry_seconds,
                standings=shown,
            ) from None
        return standings

    async def succeeded(self, account: bytes, address: str) -> None:
        """The password was right: whoever is at this address is the owner."""
        name = account.hex()
        await self._rates.forget("login_account", name, address)
        await self._rates.remember(_KNOWN_SECONDS, "address", name, address)
