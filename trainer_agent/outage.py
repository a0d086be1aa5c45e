"""When to speak of a failure that goes on: at once, then ever more rarely; pure."""

_FIRST_SECONDS = 30.0
_LONGEST_SECONDS = 3600.0


class Outage:
    """One kind of failure, from its first time to `over`; times in monotonic seconds."""

    def __init__(self) -> None:
        self._pause = _FIRST_SECONDS
        self._quiet_until: float | None = None

    def worth_saying(self, now: float) -> bool:
        """It failed again; True at first, then after 30 s, a minute more, two more, up to an hour."""
        if self._quiet_until is None:
            self._quiet_until = now + self._pause
            return True
        if now < self._quiet_until:
            return False
        self._pause = min(2 * self._pause, _LONGEST_SECONDS)
        self._quiet_until = now + self._pause
        return True

    def over(self) -> bool:
        """It works; True when it had failed."""
        had_failed = self._quiet_until is not None
        self._pause, self._quiet_until = _FIRST_SECONDS, None
        return had_failed
